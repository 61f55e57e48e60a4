//! Commands over a real OpenSSH server. The "guest" is this machine: nothing here may destroy anything.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    sync::{Mutex, mpsc},
    time::{Duration, Instant},
};

use kiln_core::{Secret, event::Stream};
use kiln_io::{
    guest::{Bundle, Command, Content, Entry, Exit, Guest as _, GuestError, Output, Quiet},
    ssh::SshGuest,
};
use kiln_tests::{
    guest::{Kept, LONG, connect, connect_through, eventually, run},
    proxy::Proxy,
    sshd::Sshd,
};
use proptest::{
    prelude::*,
    test_runner::{Config, TestRunner},
};
use tokio_util::sync::CancellationToken;

async fn sh(guest: &SshGuest, script: &str) -> (Exit, String, String) {
    run(guest, &Command::new(script, LONG)).await.unwrap()
}

#[tokio::test]
async fn a_script_gives_both_streams_and_its_status() {
    let sshd = Sshd::start().await;
    let guest = connect(&sshd).await;
    assert_eq!(sh(&guest, "echo out; echo err >&2; exit 3").await, (Exit::Code(3), "out\n".into(), "err\n".into()));
    assert_eq!(sh(&guest, "printf 'no end'").await, (Exit::Code(0), "no end".into(), String::new()));
    assert_eq!(sh(&guest, "").await, (Exit::Code(0), String::new(), String::new()));
    assert_eq!(sh(&guest, "kill -9 $$").await.0, Exit::Signal("KILL".into()));
    assert_eq!(sh(&guest, "echo 'ünï' \"it's\" | cat").await.1, "ünï it's\n");
    assert_eq!(sh(&guest, "if then").await.0, Exit::Code(2));
    let elsewhere = Command { directory: Some("/usr".into()), ..Command::new("pwd; umask", LONG) };
    assert_eq!(run(&guest, &elsewhere).await.unwrap().1, "/usr\n0022\n");
    let nowhere = Command { directory: Some("/no such".into()), ..Command::new("true", LONG) };
    assert_eq!(run(&guest, &nowhere).await.unwrap().0, Exit::Code(126));
}

#[tokio::test]
async fn every_posix_shell_will_do() {
    for shell in ["dash", "bash --posix", "busybox sh"] {
        let sshd = Sshd::with_shell(shell).await;
        let guest = connect(&sshd).await;
        let mut command = Command::new("cat \"$1$F/x\"; echo \"$V\"; exit 4", LONG);
        command.env.insert("V".into(), "it's \u{7f}ünï\n\"$(x)\\".into());
        let directory = sshd.directory().join("bundle").display().to_string();
        command.env.insert("F".into(), directory.clone());
        let entry = |content: Vec<u8>| Entry { path: "x".into(), mode: 0o644, content: Content::Bytes(content) };
        for content in [b"plain".to_vec(), vec![b'\xff', 0, b'\n']] {
            command.bundle = Some(Bundle { directory: directory.clone(), entries: vec![entry(content.clone())] });
            let kept = Kept::default();
            assert_eq!(guest.run(&command, &kept).await.unwrap(), Exit::Code(4), "{shell}");
            let expected = [content, command.env["V"].clone().into_bytes(), b"\n".to_vec()].concat();
            assert_eq!(kept.bytes().0, expected, "{shell}");
        }
        let hanging = Command::new("sleep 1000 & sleep 1000", Duration::from_millis(500));
        let error = guest.run(&hanging, &Quiet).await.unwrap_err().to_string();
        assert!(error.matches("sleep 1000").count() == 2, "{shell}: {error}");
        assert_eq!(sh(&guest, "kill -TERM $$").await.0, Exit::Signal("TERM".into()), "{shell}");
    }
}

#[tokio::test]
async fn fifty_steps_cost_fifty_round_trips() {
    let sshd = Sshd::start().await;
    let proxy = Proxy::delaying(sshd.port, Duration::from_millis(20));
    let guest = connect_through(&sshd, proxy.port).await;
    let before = proxy.turns();
    for _ in 0..50 {
        assert!(guest.run(&Command::new("true", LONG), &Quiet).await.unwrap().success());
    }
    let turns = proxy.turns() - before;
    assert!((50..=55).contains(&turns), "{turns} round trips for 50 commands");
}

#[tokio::test]
async fn a_hanging_command_is_killed_with_its_whole_session_and_its_tree_is_shown() {
    let sshd = Sshd::start().await;
    let guest = connect(&sshd).await;
    let script =
        "echo $$; sh -c 'trap \"\" TERM; sleep 1000; true' & (setsid sleep 1001) & echo last words; sleep 1002; wait";
    let kept = Kept::default();
    let error = guest.run(&Command::new(script, Duration::from_secs(1)), &kept).await.unwrap_err();
    let GuestError::TimedOut { tree, .. } = &error else { panic!("{error}") };
    for process in ["sleep 1000", "sleep 1001", "sleep 1002"] {
        assert!(tree.contains(process), "{tree}");
    }
    let (out, _) = kept.bytes();
    let out = String::from_utf8(out).unwrap();
    assert!(out.ends_with("last words\n"), "{out}");
    for line in tree.lines().filter(|line| !line.is_empty()) {
        let pid: u32 = line.trim().split(' ').next().unwrap().parse().unwrap();
        let dead = || kiln_io::process::start_time(pid).is_none_or(|start| !kiln_io::process::alive(pid, start));
        eventually(&format!("{line} is dead"), dead).await;
    }
    assert_eq!(sh(&guest, "echo alive").await.1, "alive\n");
}

#[tokio::test]
async fn a_daemon_that_keeps_the_output_open_holds_nobody_and_its_late_words_end_no_later_step() {
    let sshd = Sshd::start().await;
    let guest = connect(&sshd).await;
    let (exit, out, _) = sh(&guest, "(while sleep 0.01; do echo noise 0; done) & echo $!").await;
    assert_eq!(exit, Exit::Code(0));
    let pid = out.lines().next().unwrap().to_owned();
    for number in 0..20 {
        let (exit, out, _) = sh(&guest, &format!("sleep 0.02; echo step {number}; exit {number}")).await;
        assert_eq!(exit, Exit::Code(number));
        assert!(out.contains(&format!("step {number}\n")), "{out}");
    }
    sh(&guest, &format!("kill {pid}")).await;
}

#[tokio::test]
async fn nothing_can_be_asked_because_stdin_is_closed_and_there_is_no_terminal() {
    let sshd = Sshd::start().await;
    let guest = connect(&sshd).await;
    let script =
        "read x; echo \"read $?\"; [ -t 0 ] || [ -t 1 ] || echo no tty; (: </dev/tty) 2>/dev/null || echo none";
    assert_eq!(sh(&guest, script).await.1, "read 1\nno tty\nnone\n");
}

#[tokio::test]
async fn any_bytes_come_through_on_both_streams() {
    let sshd = Sshd::start().await;
    let guest = connect(&sshd).await;
    let all: Vec<u8> = (0..=255).cycle().take(300_000).collect();
    let file = sshd.directory().join("bytes");
    fs::write(&file, &all).unwrap();
    let kept = Kept::default();
    let script = format!("cat {0} & cat {0} >&2; wait", file.display());
    guest.run(&Command::new(script, LONG), &kept).await.unwrap();
    assert!(kept.bytes() == (all.clone(), all));
}

/// Resident memory at its highest since the last call, in KiB.
fn peak_memory() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    fs::write("/proc/self/clear_refs", "5").unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Counts, and is slow in the beginning.
struct Slow {
    seen: Mutex<(u64, u64)>,
    pause: mpsc::Receiver<()>,
}

/// A receiver may not be shared between threads without a lock.
struct Shared(Mutex<Slow>);

impl Output for Shared {
    fn write(&self, _: Stream, bytes: &[u8]) {
        let slow = self.0.lock().unwrap();
        let mut seen = slow.seen.lock().unwrap();
        if seen.1 < 20 {
            let _ = slow.pause.recv_timeout(Duration::from_millis(50));
        }
        seen.0 += bytes.len() as u64;
        seen.1 += 1;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn huge_output_flows_in_bounded_memory_also_to_a_slow_reader() {
    let sshd = Sshd::start().await;
    let guest = connect(&sshd).await;
    let (_keep, pause) = mpsc::channel();
    let shared = Shared(Mutex::new(Slow { seen: Mutex::default(), pause }));
    peak_memory();
    let one_line = Command::new("head -c 1G /dev/zero | tr '\\0' x", LONG);
    assert!(guest.run(&one_line, &shared).await.unwrap().success());
    assert_eq!(shared.0.lock().unwrap().seen.lock().unwrap().0, 1 << 30);
    let endless = guest.run(&Command::new("yes", Duration::from_secs(2)), &shared).await;
    assert!(matches!(endless, Err(GuestError::TimedOut { .. })));
    assert_eq!(sh(&guest, "echo still here").await.1, "still here\n");
    let peak = peak_memory();
    assert!(peak < 200 << 10, "{peak} KiB");
}

#[test]
fn any_text_survives_as_environment_as_secret_and_as_script() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let sshd = runtime.block_on(Sshd::start());
    let guest = runtime.block_on(connect(&sshd));
    let mut runner = TestRunner::new(Config { cases: 150, failure_persistence: None, ..Config::default() });
    // Any characters, and more of those that shells care about.
    let text = || {
        proptest::collection::vec(
            prop_oneof![any::<char>(), "['\"\\\\$`\n\r\t !*?~#%|&;()<>-]".prop_map(|s| s.chars().next().unwrap())],
            0..60,
        )
        .prop_map(|chars| chars.into_iter().filter(|c| *c != '\0').collect::<String>())
    };
    let result = runner.run(&(text(), text(), text()), |(env, secret, script)| {
        let text = format!("printf '%s' \"$A\"; printf '%s' \"$B\" >&2; cat \"$0\"; exit 0\n{script}");
        let mut command = Command::new(text.clone(), LONG);
        command.env.insert("A".into(), env.clone());
        command.secrets.insert("B".into(), Secret::new(secret.clone()));
        let kept = Kept::default();
        runtime.block_on(guest.run(&command, &kept)).unwrap();
        let (out, err) = kept.bytes();
        prop_assert_eq!(String::from_utf8(out).unwrap(), env + &text);
        prop_assert_eq!(String::from_utf8(err).unwrap(), secret);
        Ok(())
    });
    result.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_is_on_no_command_line_and_in_no_file_while_its_step_runs_and_after() {
    let sshd = Sshd::start().await;
    let guest = connect(&sshd).await;
    let canary = format!("canary-{}", kiln_io::random::nonce());
    let mut command = Command::new("[ -n \"$TOKEN\" ] && echo running; sleep 1", LONG);
    command.secrets.insert("TOKEN".into(), Secret::new(canary.clone()));
    let stop = CancellationToken::new();
    let watcher = {
        let (stop, canary, private) = (stop.clone(), canary.clone(), sshd.directory().join("private"));
        std::thread::spawn(move || {
            let (mut rounds, mut seen) = (0, BTreeSet::new());
            while !stop.is_cancelled() {
                rounds += 1;
                let processes = fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path().join("cmdline"));
                let files = fs::read_dir(&private).unwrap().flatten().map(|entry| entry.path());
                for path in processes.chain(files) {
                    if fs::read(&path).is_ok_and(|bytes| contains(&bytes, canary.as_bytes())) {
                        seen.insert(path);
                    }
                }
            }
            (rounds, seen)
        })
    };
    let (exit, out, err) = run(&guest, &command).await.unwrap();
    assert_eq!((exit, out.as_str(), err.as_str()), (Exit::Code(0), "running\n", ""));
    assert_eq!(sh(&guest, "echo \"${TOKEN:-gone}\"").await.1, "gone\n");
    stop.cancel();
    let (rounds, seen) = watcher.join().unwrap();
    assert!(rounds > 2 && seen.is_empty(), "{rounds} looks: {seen:?}");
    assert!(!sshd.log().contains(&canary));
    let debug = format!("{command:?} {guest:?}");
    assert!(!debug.contains(&canary) && !debug.contains("PRIVATE KEY"), "{debug}");
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}

#[tokio::test]
async fn a_bundle_is_there_for_its_command_and_gone_afterwards() {
    let sshd = Sshd::start().await;
    let guest = connect(&sshd).await;
    let directory = sshd.directory().join("step 1");
    fs::create_dir(&directory).unwrap();
    fs::write(directory.join("left over"), "x").unwrap();
    let bytes =
        |path: &str, mode, content: &[u8]| Entry { path: path.into(), mode, content: Content::Bytes(content.to_vec()) };
    let small = vec![
        bytes("run", 0o755, b"#!/bin/sh\necho 'ran' \"$0\"\n"),
        Entry { path: "files".into(), mode: 0o755, content: Content::Directory },
        bytes("files/a", 0o644, b"it's"),
        bytes("secret", 0o600, b""),
    ];
    let binary = [small.clone(), vec![bytes("files/b", 0o640, b"\xff\0")]].concat();
    let large = [small.clone(), vec![bytes("files/c", 0o600, &vec![b'c'; 1 << 20])]].concat();
    for entries in [small, binary, large] {
        let count = entries.len();
        let bundle = Bundle { directory: directory.display().to_string(), entries };
        let script = "stat -c '%a %n' . run files files/a secret; find . -mindepth 1 | wc -l; ./run";
        let command = Command {
            bundle: Some(bundle),
            directory: Some(directory.display().to_string()),
            ..Command::new(script, LONG)
        };
        let (exit, out, err) = run(&guest, &command).await.unwrap();
        let expected = format!("700 .\n755 run\n755 files\n644 files/a\n600 secret\n{count}\nran ./run\n");
        assert_eq!((exit, out.as_str(), err.as_str()), (Exit::Code(0), expected.as_str(), ""));
        eventually("the bundle is removed", || !directory.exists()).await;
    }
    let private = fs::read_dir(sshd.directory().join("private")).unwrap();
    assert!(private.flatten().all(|entry| entry.metadata().unwrap().len() == 0));
}

#[tokio::test]
async fn a_killed_shell_costs_its_command_and_no_other() {
    let sshd = Sshd::start().await;
    let guest = connect(&sshd).await;
    let error = guest.run(&Command::new("kill -9 $PPID; sleep 1", LONG), &Quiet).await.unwrap_err();
    assert!(matches!(error, GuestError::Lost { .. }), "{error}");
    assert_eq!(sh(&guest, "echo new").await.1, "new\n");
}

#[tokio::test]
async fn an_abandoned_command_does_not_disturb_the_next_one() {
    let sshd = Sshd::start().await;
    let guest = connect(&sshd).await;
    let marker = sshd.directory().join("begun");
    let script = format!("touch '{}'; sleep 5; echo late", marker.display());
    let command = Command::new(script, LONG);
    tokio::select! {
        _ = guest.run(&command, &Quiet) => panic!("it sleeps"),
        () = eventually("it runs", || marker.exists()) => {}
    }
    assert_eq!(sh(&guest, "echo next").await.1, "next\n");
}

#[tokio::test]
async fn cancelling_closes_the_connection_at_once() {
    let sshd = Sshd::start().await;
    let cancel = CancellationToken::new();
    let guest = SshGuest::connect(sshd.target(sshd.port), cancel.clone()).await.unwrap();
    let kept = Kept::default();
    let command = Command::new("echo $$; exec sleep 1000", LONG);
    let start = Instant::now();
    let (result, ()) = tokio::join!(guest.run(&command, &kept), async {
        eventually("it runs", || kept.stdout().ends_with(b"\n")).await;
        cancel.cancel();
    });
    assert!(matches!(result, Err(GuestError::Cancelled)));
    assert!(start.elapsed() < LONG);
    assert!(matches!(guest.boot_id().await, Err(GuestError::Cancelled)));
    let pid: u32 = String::from_utf8(kept.bytes().0).unwrap().trim().parse().unwrap();
    assert!(Path::new(&format!("/proc/{pid}")).exists());
    kiln_io::process::kill_group(pid, true);
}
