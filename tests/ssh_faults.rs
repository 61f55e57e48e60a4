//! What goes wrong on the way to a guest: strangers, silence, cut connections, reboots.

use std::{
    fs,
    io::Write as _,
    net::TcpListener,
    sync::mpsc,
    time::{Duration, Instant},
};

use kiln_io::{
    guest::{Command, Exit, Guest as _, GuestError, Quiet, Stage},
    keys::KeyPair,
    ssh::{SshGuest, Target},
};
use kiln_tests::{
    guest::{Kept, LONG, connect, connect_through, eventually, run},
    proxy::{Conditions, Proxy},
    sshd::{Sshd, user},
};
use tokio_util::sync::CancellationToken;

async fn attempt(target: Target) -> GuestError {
    SshGuest::connect(target, CancellationToken::new()).await.expect_err("it must not connect")
}

fn stage(error: &GuestError) -> Stage {
    let GuestError::Connect { stage, .. } = error else { panic!("{error}") };
    *stage
}

#[tokio::test]
async fn a_stranger_on_the_port_is_refused_before_any_login_and_both_fingerprints_are_shown() {
    let (ours, stranger) = (Sshd::start().await, Sshd::start().await);
    let error = attempt(ours.target(stranger.port)).await;
    assert!(matches!(error, GuestError::HostKey { .. }));
    let text = error.to_string();
    for sshd in [&ours, &stranger] {
        assert!(text.contains(&sshd.host_key.fingerprint()), "{text}");
    }
    eventually("the stranger notices", || stranger.log().contains("host key differs")).await;
    let log = stranger.log();
    assert!(
        !log.contains("publickey") && !log.contains("Accepted") && !log.contains(&ours.login.public.fingerprint()),
        "{log}"
    );
}

/// A second server as the bastion, and the stock client through it: `ssh -W` is what people have.
fn through(bastion: &Sshd, guest: &Sshd) -> Target {
    let options = bastion.client_options(bastion.port).join(" ");
    let proxy = format!("ssh {options} -W 127.0.0.1:{} {}@127.0.0.1", guest.port, user());
    Target { proxy: Some(proxy), ..guest.target(1) }
}

/// Whether a program has `argument`.
fn runs(argument: &str) -> bool {
    let programs = fs::read_dir("/proc").expect("list the processes").flatten();
    let mut arguments = programs.filter_map(|program| fs::read(program.path().join("cmdline")).ok());
    arguments.any(|line| line.split(|byte| *byte == 0).any(|found| found == argument.as_bytes()))
}

#[tokio::test]
async fn a_bastion_passes_everything_on_and_the_key_of_the_guest_is_what_counts() {
    let (bastion, sshd) = (Sshd::start().await, Sshd::start().await);
    let guest = SshGuest::connect(through(&bastion, &sshd), CancellationToken::new()).await.unwrap();
    let (exit, out, _) = run(&guest, &Command::new("head -c 3000000 /dev/zero | wc -c; echo end", LONG)).await.unwrap();
    assert_eq!((exit, out.as_str()), (Exit::Code(0), "3000000\nend\n"));
    assert!(runs(&format!("127.0.0.1:{}", sshd.port)));
    // Programs on this machine take the same way: the stock client, with what kiln says of the guest.
    let access = guest.access().unwrap();
    assert!(access.proxy_command().unwrap().contains("-W 127.0.0.1:"));
    drop(guest);
    eventually("the proxy is gone", || !runs(&format!("127.0.0.1:{}", sshd.port))).await;

    let stranger = Target { host_key: bastion.host_key.clone(), ..through(&bastion, &sshd) };
    assert!(matches!(attempt(stranger).await, GuestError::HostKey { .. }));
}

#[tokio::test]
async fn a_proxy_that_fails_is_quoted() {
    let sshd = Sshd::start().await;
    let with = |command: &str| Target { proxy: Some(command.to_owned()), ..sshd.target(sshd.port) };
    let error = attempt(with("echo 'bastion: access denied' >&2; exit 1")).await;
    assert_eq!(stage(&error), Stage::Banner);
    assert!(error.to_string().ends_with("the proxy said: bastion: access denied"), "{error}");
    let silent = Target { attempt: Duration::from_millis(500), ..with("sleep 1000") };
    assert_eq!(stage(&attempt(silent).await), Stage::Banner);
    let missing = attempt(with("/no/such/program")).await.to_string();
    assert!(missing.contains("not found"), "{missing}");
}

#[tokio::test]
async fn each_stage_of_a_connection_fails_under_its_own_name() {
    let sshd = Sshd::start().await;
    let at = |port| Target { attempt: Duration::from_millis(500), ..sshd.target(port) };

    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    assert_eq!(stage(&attempt(at(closed)).await), Stage::Listener);

    // Accepts in the kernel and never speaks.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    assert_eq!(stage(&attempt(at(silent.local_addr().unwrap().port())).await), Stage::Banner);

    for (words, expected) in
        [("", Stage::Banner), ("SSH-2.0-other\r\n", Stage::Handshake), ("HTTP/1.1 400\r\n\r\n", Stage::Handshake)]
    {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        std::thread::spawn(move || {
            let _ = listener.accept().unwrap().0.write_all(words.as_bytes());
        });
        assert_eq!(stage(&attempt(Target { attempt: LONG, ..sshd.target(port) }).await), expected, "{words:?}");
    }

    let other = Target { login: KeyPair::generate("other").unwrap(), ..sshd.target(sshd.port) };
    let error = attempt(other).await;
    assert!(matches!(&error, GuestError::Login { user, .. } if *user == kiln_tests::sshd::user()), "{error}");

    let shellless = Sshd::with_shell("/no/such/shell").await;
    assert_eq!(stage(&attempt(shellless.target(shellless.port)).await), Stage::Shell);

    let private = Target { private: "/proc/no".to_owned(), ..sshd.target(sshd.port) };
    let error = attempt(private).await;
    assert!(stage(&error) == Stage::Shell && error.to_string().contains("/proc/no"), "{error}");
}

#[tokio::test]
async fn connecting_can_be_cancelled_while_the_other_side_is_silent() {
    let sshd = Sshd::start().await;
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let target = Target { attempt: LONG, ..sshd.target(silent.local_addr().unwrap().port()) };
    let cancel = CancellationToken::new();
    let start = Instant::now();
    let (result, ()) = tokio::join!(SshGuest::connect(target, cancel.clone()), async {
        silent.accept().unwrap();
        cancel.cancel();
    });
    assert!(matches!(result, Err(GuestError::Cancelled)));
    assert!(start.elapsed() < LONG);
}

/// Wherever the connection is cut, the answer is an error of the right kind, and nothing hangs.
#[tokio::test]
async fn a_connection_cut_after_any_number_of_bytes_is_an_error_and_never_a_rerun() {
    let sshd = Sshd::start().await;
    let count = sshd.directory().join("count");
    let script = format!("echo x >>'{}'; echo done", count.display());
    let runs = || std::fs::read_to_string(&count).unwrap_or_default().lines().count();
    let whole = Proxy::start(sshd.port, Conditions::default());
    let guest = connect_through(&sshd, whole.port).await;
    let (connected, before) = (whole.passed(), runs());
    guest.run(&Command::new(script.as_str(), LONG), &Quiet).await.unwrap();
    let all = whole.passed();
    assert!(runs() == before + 1 && connected < all);
    let cuts = (0..connected).step_by(257).chain((connected..all).step_by(83));
    let (mut not_connected, mut lost) = (0, 0);
    for cut in cuts {
        let before = runs();
        let proxy = Proxy::start(sshd.port, Conditions { cut_after: Some(cut), ..Conditions::default() });
        let target = Target { return_within: Duration::from_millis(100), ..sshd.target(proxy.port) };
        match SshGuest::connect(target, CancellationToken::new()).await {
            Err(GuestError::Connect { .. } | GuestError::Login { .. }) => not_connected += 1,
            Err(other) => panic!("cut after {cut}: {other}"),
            Ok(guest) => match guest.run(&Command::new(script.as_str(), LONG), &Quiet).await {
                Err(GuestError::Lost { .. } | GuestError::Connect { .. }) => lost += 1,
                other => panic!("cut after {cut}: {other:?}"),
            },
        }
        assert!(runs() <= before + 1, "cut after {cut}: it ran twice");
    }
    assert!(not_connected > 2 && lost > 2, "{not_connected} {lost}");
}

#[tokio::test]
async fn a_connection_lost_under_a_command_says_so_and_the_next_command_finds_a_new_one() {
    let sshd = Sshd::rebootable().await;
    let proxy = Proxy::start(sshd.port, Conditions::default());
    let guest = connect_through(&sshd, proxy.port).await;
    let kept = Kept::default();
    let command = Command::new("echo begun; sleep 2; echo late", LONG);
    let (result, ()) = tokio::join!(guest.run(&command, &kept), async {
        eventually("it runs", || kept.stdout() == b"begun\n").await;
        proxy.cut_once();
    });
    let error = result.unwrap_err();
    assert!(matches!(&error, GuestError::Lost { during, .. } if during.starts_with("echo begun")), "{error}");
    assert_eq!(run(&guest, &Command::new("echo again", LONG)).await.unwrap().1, "again\n");
}

#[tokio::test]
async fn an_unwanted_reboot_is_named_under_a_command_and_between_commands() {
    let sshd = Sshd::rebootable().await;
    let proxy = Proxy::start(sshd.port, Conditions::default());
    let guest = connect_through(&sshd, proxy.port).await;
    let before = guest.boot_id().await.unwrap();
    let kept = Kept::default();
    let command = Command::new("echo begun; sleep 1000", LONG);
    let (result, ()) = tokio::join!(guest.run(&command, &kept), async {
        eventually("it runs", || kept.stdout() == b"begun\n").await;
        sshd.pretend_reboot();
        proxy.cut_once();
    });
    assert!(matches!(result, Err(GuestError::Rebooted { .. })), "{result:?}");
    assert_ne!(guest.boot_id().await.unwrap(), before);

    sshd.pretend_reboot();
    proxy.cut_once();
    eventually("the old connection is closed", || proxy.open() == 0).await;
    let error = loop {
        // The session's thread learns of the end a moment later.
        match run(&guest, &Command::new("true", LONG)).await {
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert!(matches!(error, GuestError::Rebooted { .. }), "{error}");
    assert_eq!(run(&guest, &Command::new("exit 7", LONG)).await.unwrap().0, Exit::Code(7));
}

#[tokio::test]
async fn a_wanted_reboot_waits_for_a_new_boot_id() {
    let sshd = Sshd::rebootable().await;
    let proxy = Proxy::start(sshd.port, Conditions::default());
    let guest = connect_through(&sshd, proxy.port).await;
    let before = guest.boot_id().await.unwrap();
    let kept = Kept::default();
    let command = Command { reboots: true, ..Command::new("echo begun; sleep 1000", LONG) };
    let (result, ()) = tokio::join!(guest.run(&command, &kept), async {
        eventually("it runs", || kept.stdout() == b"begun\n").await;
        proxy.cut_once();
    });
    assert!(matches!(result, Err(GuestError::Lost { .. })), "{result:?}");
    let same = guest.reconnect_after_reboot(&before, Duration::from_millis(300)).await.unwrap_err().to_string();
    assert!(same.contains("same boot id"), "{same}");
    let (back, ()) = tokio::join!(guest.reconnect_after_reboot(&before, LONG), async { sshd.pretend_reboot() });
    back.unwrap();
    assert_ne!(guest.boot_id().await.unwrap(), before);
    assert_eq!(run(&guest, &Command::new("echo up", LONG)).await.unwrap().1, "up\n");
}

#[tokio::test]
async fn bytes_are_exchanged_with_a_port_of_the_guest() {
    let sshd = Sshd::start().await;
    let guest = connect(&sshd).await;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let (held, keep) = mpsc::channel();
    std::thread::spawn(move || {
        for number in 0..3 {
            let (mut stream, _) = listener.accept().unwrap();
            let mut word = [0; 4];
            std::io::Read::read_exact(&mut stream, &mut word).unwrap();
            if number == 2 {
                // Says nothing until the test is over.
                held.send(stream).unwrap();
            } else {
                stream.write_all(&[b"you said ", &word[..], &vec![b'.'; 200_000]].concat()).unwrap();
            }
        }
    });
    let answer = guest.exchange("127.0.0.1", port, b"ping", 1 << 20, LONG).await.unwrap();
    assert!(answer.starts_with(b"you said ping") && answer.len() == 200_013);
    assert_eq!(guest.exchange("127.0.0.1", port, b"ping", 10, LONG).await.unwrap(), b"you said p");
    let silent = guest.exchange("127.0.0.1", port, b"ping", 10, Duration::from_millis(300)).await.unwrap_err();
    assert!(silent.to_string().contains("no answer within"), "{silent}");
    drop(keep);
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let refused = guest.exchange("127.0.0.1", free, b"", 10, LONG).await.unwrap_err();
    assert!(matches!(&refused, GuestError::Remote { .. }), "{refused}");
    assert_eq!(run(&guest, &Command::new("echo fine", LONG)).await.unwrap().1, "fine\n");
}
