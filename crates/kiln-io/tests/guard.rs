//! The guard as a real process, also when kiln's side is killed.
//!
//! This program has its own `main`, since it plays three parts: the tests, the guard (as the binary does) and the kiln
//! that gets killed.

#![expect(clippy::unwrap_used, reason = "a test, although without the usual harness")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use kiln_io::{
    dirs::Dirs,
    guard::{self, Ended, Guard, Program},
    ledger::{self, Choice, Condition, Ledger},
    process::{Identity, Sink, Spec, Stdin, kill_group, spawn},
    time::{Attempt, Policy, SystemClock, poll_until},
};
use tokio_util::sync::CancellationToken;

/// Waits for ever without a child of its own.
const HANG: &str = "mkfifo fifo; read line < fifo";

const BUILD: &str = "b-00000001-test";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    match arguments.get(1).map(String::as_str) {
        Some(guard::VERB) => return guard::run(Path::new(&arguments[2])),
        Some("play-kiln") => return run(play_kiln(dirs(Path::new(&arguments[2])), arguments[3] == "keep")),
        Some("--list") => return ExitCode::SUCCESS,
        _ => {}
    }
    run(async {
        reports_how_programs_end().await;
        closing_releases_everything().await;
        dropping_releases_everything().await;
        when_kiln_is_killed_nothing_is_left().await;
        what_is_kept_outlives_kiln_until_it_ends_by_itself().await;
        when_the_guard_is_killed_its_programs_die_and_clean_releases_the_rest().await;
    })
}

fn run(future: impl Future<Output = ()>) -> ExitCode {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap().block_on(future);
    ExitCode::SUCCESS
}

fn dirs(root: &Path) -> Dirs {
    Dirs { cache: root.join("cache"), state: root.join("state"), data: root.join("data") }
}

fn program(dirs: &Dirs, script: &str) -> Program {
    Program {
        name: "vm".into(),
        what: "VM".into(),
        program: "sh".into(),
        args: ["-c", script, "kiln-test-marker"].map(Into::into).into(),
        marker: "kiln-test-marker".into(),
        directory: dirs.build(BUILD),
        output: dirs.build(BUILD).join("vm.log"),
    }
}

struct Bench {
    _root: tempfile::TempDir,
    dirs: Dirs,
    ledger: Ledger,
    overlay: PathBuf,
    guard: Guard,
}

async fn bench() -> Bench {
    let root = tempfile::tempdir().unwrap();
    let dirs = dirs(root.path());
    let ledger = Ledger::open(&dirs, BUILD).unwrap();
    let guard = Guard::spawn(&std::env::current_exe().unwrap(), &dirs, BUILD, &ledger).await.unwrap();
    let overlay = overlay(&dirs, &ledger);
    Bench { _root: root, dirs, ledger, overlay, guard }
}

fn overlay(dirs: &Dirs, ledger: &Ledger) -> PathBuf {
    let overlay = dirs.build(BUILD).join("overlay");
    ledger.acquire_file("overlay", &overlay).unwrap();
    fs::write(&overlay, "x").unwrap();
    overlay
}

/// Waits as long as it takes; a test that hangs here is a guard that does not do its work.
async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let policy =
        Policy { first: Duration::from_millis(5), max: Duration::from_millis(50), deadline: Duration::from_mins(2) };
    let probe = || {
        let holds = holds();
        async move { if holds { Attempt::Done(()) } else { Attempt::Again(()) } }
    };
    assert!(poll_until(&SystemClock::new(), policy, &CancellationToken::new(), probe).await.is_ok(), "never: {what}");
}

fn outstanding(dirs: &Dirs) -> Vec<String> {
    ledger::read(&dirs.build(BUILD)).unwrap().outstanding.into_iter().map(|entry| entry.what).collect()
}

async fn reports_how_programs_end() {
    let bench = bench().await;
    bench.guard.start(program(&bench.dirs, "echo words; exit 3")).await.unwrap();
    assert_eq!(bench.guard.wait("vm").await, Ended::Code(3));
    assert_eq!(fs::read_to_string(bench.dirs.build(BUILD).join("vm.log")).unwrap(), "words\n");
    let named = |name: &str, script: &str| Program { name: name.into(), ..program(&bench.dirs, script) };
    bench.guard.start(named("crash", "kill -SEGV $$")).await.unwrap();
    assert_eq!(bench.guard.wait("crash").await, Ended::Signal(11));
    let missing = Program { program: "no-such-program-x".into(), ..named("missing", "") };
    let error = bench.guard.start(missing).await.unwrap_err().to_string();
    assert!(error.contains("could not start `missing`") && error.contains("no-such-program-x"), "{error}");
    bench.guard.start(named("long", HANG)).await.unwrap();
    assert_eq!(bench.guard.ended("long"), None);
    assert_eq!(bench.guard.kill("long").await.unwrap(), Ended::Signal(9));
    assert_eq!(bench.guard.close().await.unwrap().failed, [""; 0]);
}

async fn closing_releases_everything() {
    let bench = bench().await;
    let vm = bench.guard.start(program(&bench.dirs, HANG)).await.unwrap();
    assert!(vm.alive());
    let released = bench.guard.close().await.unwrap();
    assert_eq!((released.failed.len(), vm.alive(), bench.overlay.exists()), (0, false, false));
    assert_eq!(outstanding(&bench.dirs), [""; 0]);
    assert!(bench.ledger.directory().exists());
}

async fn dropping_releases_everything() {
    let bench = bench().await;
    let vm = bench.guard.start(program(&bench.dirs, HANG)).await.unwrap();
    drop(bench.guard);
    until("everything is released", || outstanding(&bench.dirs).is_empty()).await;
    assert!(!vm.alive() && !bench.overlay.exists());
}

/// The part of a kiln that starts a machine, says so and then hangs.
async fn play_kiln(dirs: Dirs, keep: bool) {
    let ledger = Ledger::open(&dirs, BUILD).unwrap();
    let guard = Guard::spawn(&std::env::current_exe().unwrap(), &dirs, BUILD, &ledger).await.unwrap();
    overlay(&dirs, &ledger);
    let vm = guard.start(program(&dirs, HANG)).await.unwrap();
    let text = serde_json::to_vec(&vm).unwrap();
    if keep {
        guard.keep().await.unwrap();
    } else {
        // Never dropped, never closed: only the kernel takes it away.
        std::mem::forget(guard);
    }
    kiln_io::fs::write_atomic(&dirs.build(BUILD).join("ready"), &text, 0o600).unwrap();
    std::future::pending::<()>().await;
}

/// A kiln of another process with a machine that runs.
async fn other_kiln(root: &Path, how: &str) -> (kiln_io::process::Running, Identity) {
    let mut spec =
        Spec::new(std::env::current_exe().unwrap()).args(["play-kiln".as_ref(), root.as_os_str(), how.as_ref()]);
    (spec.stdin, spec.stdout, spec.stderr) = (Stdin::Null, Sink::Null, Sink::Append(root.join("errors")));
    let kiln = spawn(&spec).await.unwrap();
    let ready = dirs(root).build(BUILD).join("ready");
    until("the other kiln is ready", || ready.exists()).await;
    (kiln, serde_json::from_slice(&fs::read(&ready).unwrap()).unwrap())
}

async fn when_kiln_is_killed_nothing_is_left() {
    let root = tempfile::tempdir().unwrap();
    let dirs = dirs(root.path());
    let (mut kiln, vm) = other_kiln(root.path(), "leave").await;
    assert!(vm.alive());
    assert_eq!(ledger::survey(&dirs).unwrap()[0].condition, Condition::Alive);
    kill_group(kiln.identity.pid, true);
    kiln.wait().await.unwrap();
    until("everything is released", || outstanding(&dirs).is_empty()).await;
    assert!(!vm.alive() && !dirs.build(BUILD).join("overlay").exists());
}

async fn what_is_kept_outlives_kiln_until_it_ends_by_itself() {
    let root = tempfile::tempdir().unwrap();
    let dirs = dirs(root.path());
    let (mut kiln, vm) = other_kiln(root.path(), "keep").await;
    kill_group(kiln.identity.pid, true);
    kiln.wait().await.unwrap();
    let report = &ledger::reap(&dirs, &Choice::default()).unwrap()[0];
    assert_eq!((&report.condition, report.released), (&Condition::Kept, 0));
    assert!(vm.alive() && dirs.build(BUILD).join("overlay").exists());
    kill_group(vm.pid, true);
    until("everything is released", || outstanding(&dirs).is_empty()).await;
    assert!(!dirs.build(BUILD).join("overlay").exists());
}

async fn when_the_guard_is_killed_its_programs_die_and_clean_releases_the_rest() {
    let root = tempfile::tempdir().unwrap();
    let dirs = dirs(root.path());
    let (mut kiln, vm) = other_kiln(root.path(), "leave").await;
    let entries = ledger::read(&dirs.build(BUILD)).unwrap().outstanding;
    let guard = entries.iter().find_map(|entry| match &entry.resource {
        ledger::Resource::Process { identity, .. } if entry.what == "guard" => identity.clone(),
        _ => None,
    });
    kill_group(guard.unwrap().pid, true);
    until("the machine died with its guard", || !vm.alive()).await;
    kill_group(kiln.identity.pid, true);
    kiln.wait().await.unwrap();
    let report = &ledger::reap(&dirs, &Choice::default()).unwrap()[0];
    assert_eq!((&report.condition, report.failed.len()), (&Condition::Interrupted, 0));
    assert_eq!(report.summary(), "1 VM, 1 guard, 1 guard file, 1 overlay");
    assert!(outstanding(&dirs).is_empty() && !dirs.build(BUILD).join("overlay").exists());
}
