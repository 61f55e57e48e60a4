//! A real machine of our own Debian base: boots, runs commands, goes down clean, and leaves nothing when kiln is killed.
//!
//! This program has its own `main`, since it plays two parts: the tests and the guard (as the binary does).

use std::{
    path::Path,
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use kiln_build::{
    base::{BaseContext, PreparedBase, prepare},
    qemu::{Accel, BootError, Calibration, Running, VmHost, VmSpec, boot},
};
use kiln_core::{
    ByteSize,
    event::{Event, Events},
    plan::{Accelerator, Base, DebianBase, Login, QemuMachine},
};
use kiln_io::{
    dirs::Dirs,
    guard::{self, Guard},
    guest::{Command, Guest as _, Quiet},
    ledger::Ledger,
    process::{Limits, Spec, run},
    time::SystemClock,
};
use tokio_util::sync::CancellationToken;

const BUILD: &str = "b-00000001-test";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    match arguments.get(1).map(String::as_str) {
        Some(guard::VERB) => return guard::run(Path::new(&arguments[2])),
        Some("--list") => {}
        _ => block_on(all()),
    }
    ExitCode::SUCCESS
}

fn block_on(future: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap().block_on(future);
}

async fn all() {
    let base = base().await;
    boots_runs_and_goes_down_clean(&base).await;
}

#[derive(Debug)]
struct Say;

impl Events for Say {
    fn emit(&self, event: Event) {
        if let Event::Warning { message } = event {
            say(&message);
        }
    }
}

#[expect(clippy::print_stderr, reason = "how long each part of a slow test takes")]
fn say(text: &str) {
    eprintln!("qemu: {text}");
}

/// Our own base, from the cache that all tests and the user share.
async fn base() -> PreparedBase {
    let dirs = Dirs::from_environment(|name| std::env::var(name).ok()).unwrap();
    let (events, clock) = (Arc::new(Say), Arc::new(SystemClock::new()));
    let context = BaseContext { dirs, events, clock, cancel: CancellationToken::new() };
    let debian = DebianBase { suite: "bookworm".into(), mirror: None, packages: Vec::new() };
    prepare(&Base::Debian(debian), &context).await.unwrap()
}

fn spec(base: &PreparedBase) -> VmSpec {
    VmSpec {
        name: "vm".into(),
        build: BUILD.into(),
        disk: base.disk.clone(),
        format: base.format,
        size: 4 << 30,
        login: Login::Credentials,
        kernel: base.kernel.clone(),
        machine: QemuMachine {
            memory: ByteSize::gib(1),
            cpus: 2,
            disk: ByteSize::gib(4),
            accelerator: Accelerator::Tcg,
            boot_timeout: Duration::from_secs(300),
            shutdown_timeout: Duration::from_secs(120),
        },
        calibration: Calibration { accelerator: Accel::Tcg, reason: "the test says so".into(), slowness: 4.0 },
    }
}

struct Bench {
    root: tempfile::TempDir,
    dirs: Dirs,
    ledger: Ledger,
    guard: Guard,
    clock: SystemClock,
    cancel: CancellationToken,
}

fn dirs(root: &Path) -> Dirs {
    Dirs { cache: root.join("cache"), state: root.join("state"), data: root.join("data") }
}

impl Bench {
    async fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let dirs = dirs(root.path());
        let ledger = Ledger::open(&dirs, BUILD).unwrap();
        let guard = Guard::spawn(&std::env::current_exe().unwrap(), &dirs, BUILD, &ledger).await.unwrap();
        Self { root, dirs, ledger, guard, clock: SystemClock::new(), cancel: CancellationToken::new() }
    }

    fn host(&self) -> VmHost<'_> {
        let Self { dirs, ledger, guard, clock, cancel, .. } = self;
        VmHost { dirs, guard, ledger, events: &Say, clock, cancel }
    }

    async fn boot(&self, spec: VmSpec) -> Result<Running<'_>, BootError> {
        let start = Instant::now();
        let result = boot(spec, self.host()).await;
        say(&format!("boot took {:.1?}", start.elapsed()));
        result
    }
}

async fn output_of(running: &Running<'_>, script: &str) -> String {
    struct Collect(std::sync::Mutex<Vec<u8>>);
    impl kiln_io::guest::Output for Collect {
        fn write(&self, _: kiln_core::event::Stream, bytes: &[u8]) {
            self.0.lock().unwrap().extend_from_slice(bytes);
        }
    }
    let collect = Collect(std::sync::Mutex::default());
    let exit = running.guest().run(&Command::new(script, Duration::from_secs(120)), &collect).await.unwrap();
    assert!(exit.success(), "{script}: {exit:?}");
    String::from_utf8(collect.0.into_inner().unwrap()).unwrap()
}

async fn boots_runs_and_goes_down_clean(base: &PreparedBase) {
    let bench = Bench::new().await;
    let running = bench.boot(spec(base)).await.unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(output_of(&running, "id -u; cat /proc/cmdline | grep -c cloud-init=disabled").await, "0\n1\n");
    say(&output_of(
        &running,
        "systemd-analyze; cat /sys/devices/system/clocksource/clocksource0/current_clocksource; uname -r",
    )
    .await);
    // Nothing secret is on a command line, and the private key of the login is not in the guest at all.
    let key = std::fs::read_to_string(running.guest().access().unwrap().key).unwrap();
    let cmdline = std::fs::read("/proc/self/cmdline").unwrap();
    assert!(!cmdline.windows(20).any(|window| window == &key.as_bytes()[60..80]));
    running.guest().run(&Command::new("echo kept > /root/proof; sync", Duration::from_secs(60)), &Quiet).await.unwrap();
    let start = Instant::now();
    let stopped = running.shutdown().await.unwrap_or_else(|error| panic!("{error}"));
    say(&format!("shutdown took {:.1?}", start.elapsed()));
    let check = Spec::new("qemu-img").args(["check", "-f", "qcow2"]).arg(&stopped.disk);
    run(&check, &Limits::default(), &mut |_, _| {}).await.unwrap();
    let released = bench.guard.close().await.unwrap();
    assert_eq!(released.failed, [""; 0]);
    let left: Vec<_> =
        std::fs::read_dir(bench.dirs.build(BUILD)).unwrap().flatten().map(|entry| entry.file_name()).collect();
    say(&format!("left: {left:?}"));
    assert!(!stopped.disk.exists());
    drop(bench.root);
}
