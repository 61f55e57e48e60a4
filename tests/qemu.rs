//! A real machine of our own Debian base: boots, runs commands, goes down clean, and leaves nothing when kiln is killed.
//!
//! This program has its own `main`, since it plays three parts: the tests, the guard (as the binary does) and the kiln
//! that gets killed.

#![expect(clippy::unwrap_used, reason = "a test, although without the usual harness")]

use std::{
    path::Path,
    pin::Pin,
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use kiln_build::{
    base::{BaseContext, DiskFormat, PreparedBase, prepare},
    qemu::{Accel, BootError, Calibration, CalibrationHost, Running, ShutdownError, VmHost, VmSpec, boot, calibrate},
};
use kiln_core::{
    ByteSize,
    event::{Event, Events},
    plan::{Accelerator, Base, CheckpointKind, DebianBase, Login, QemuMachine},
};
use kiln_io::{
    dirs::Dirs,
    guard::{self, Guard},
    guest::{Command, Guest as _, Quiet},
    ledger::{self, Ledger},
    process::{Identity, Limits, Sink, Spec, kill_group, run, spawn},
    time::{Attempt, Policy, SystemClock, poll_until},
};
use tokio_util::sync::CancellationToken;

const BUILD: &str = "b-00000001-test";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    match arguments.get(1).map(String::as_str) {
        Some(guard::VERB) => return guard::run(Path::new(&arguments[2])),
        Some("play-kiln") => block_on(play_kiln(Path::new(&arguments[2]))),
        Some("--list") => {}
        word => block_on(all(word.filter(|word| !word.starts_with('-')).unwrap_or_default())),
    }
    ExitCode::SUCCESS
}

fn block_on(future: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap().block_on(future);
}

type Case<'a> = Pin<Box<dyn Future<Output = ()> + 'a>>;

/// A case with its name.
macro_rules! case {
    ($name:ident $(, $base:expr)?) => {
        (stringify!($name), Box::pin($name($($base)?)))
    };
}
/// Runs those whose name holds `word`.
async fn all(word: &str) {
    let base = base().await;
    let cases: [(&str, Case<'_>); 12] = [
        case!(calibrates_to_an_accelerator_that_answers),
        case!(a_machine_that_qemu_refuses_shows_its_words_and_the_command),
        case!(a_disk_that_does_not_boot_is_found_out_early),
        case!(a_crash_of_qemu_is_told_with_its_signal),
        case!(a_qemu_that_falls_silent_is_killed),
        case!(cancelling_a_boot_leaves_nothing),
        case!(when_kiln_is_killed_while_booting_nothing_is_left),
        case!(boots_runs_and_goes_down_clean, &base),
        case!(a_guest_that_ignores_the_order_to_go_down_is_unclean, &base),
        case!(a_missing_root_file_system_is_found_out_early, &base),
        case!(a_guest_without_network_and_one_without_sshd_are_told_apart, &base),
        case!(a_seed_lets_kiln_into_a_cloud_image_booted_by_its_firmware, &base),
    ];
    for (name, case) in cases {
        if name.contains(word) {
            say(name);
            case.await;
        }
    }
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
    let context = BaseContext { dirs, events, clock, images: None, cancel: CancellationToken::new() };
    let debian = DebianBase { suite: "bookworm".into(), mirror: None, packages: Vec::new() };
    prepare(&Base::Debian(debian), &context).await.unwrap()
}

fn spec(base: &PreparedBase) -> VmSpec {
    VmSpec {
        name: "vm".into(),
        build: BUILD.into(),
        disk: base.disk.clone(),
        layers: Vec::new(),
        overlay: None,
        format: base.format,
        size: 4 << 30,
        login: Login::Credentials,
        kernel: base.kernel.clone(),
        machine: machine(),
        calibration: Calibration { accelerator: Accel::Tcg, reason: "the test says so".into(), slowness: 4.0 },
    }
}

fn machine() -> QemuMachine {
    QemuMachine {
        memory: ByteSize::gib(1),
        cpus: 2,
        disk: ByteSize::gib(4),
        accelerator: Accelerator::Tcg,
        checkpoints: CheckpointKind::Memory,
        boot_timeout: Duration::from_mins(5),
        shutdown_timeout: Duration::from_mins(2),
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
        Self::at(root, dirs).await
    }

    async fn at(root: tempfile::TempDir, dirs: Dirs) -> Self {
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
    let exit = running.guest().run(&Command::new(script, Duration::from_mins(2)), &collect).await.unwrap();
    assert!(exit.success(), "{script}: {exit:?}");
    String::from_utf8(collect.0.into_inner().unwrap()).unwrap()
}

/// A machine with a disk of zeros, which never boots, and quiet enough to be left alone.
fn empty(root: &Path) -> VmSpec {
    let disk = root.join("empty.raw");
    std::fs::File::create(&disk).unwrap().set_len(1 << 20).unwrap();
    VmSpec {
        name: "vm".into(),
        build: BUILD.into(),
        disk,
        layers: Vec::new(),
        overlay: None,
        format: DiskFormat::Raw,
        size: 1 << 20,
        login: Login::Credentials,
        kernel: None,
        machine: machine(),
        calibration: Calibration { accelerator: Accel::Tcg, reason: "the test says so".into(), slowness: 1.0 },
    }
}

/// A machine that stays in its firmware: a boot sector that does nothing for ever.
fn hanging(root: &Path) -> VmSpec {
    let spec = empty(root);
    let mut bytes = vec![0; 1 << 20];
    // `jmp $`
    bytes[..2].copy_from_slice(&[0xeb, 0xfe]);
    bytes[510..512].copy_from_slice(&[0x55, 0xaa]);
    std::fs::write(&spec.disk, bytes).unwrap();
    spec
}

fn identity(dirs: &Dirs) -> Option<Identity> {
    let outstanding = ledger::read(&dirs.build(BUILD)).ok()?.outstanding;
    outstanding.iter().find_map(|entry| match &entry.resource {
        ledger::Resource::Process { identity, .. } if entry.what == "VM" => identity.clone(),
        _ => None,
    })
}

async fn until<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    let policy =
        Policy { first: Duration::from_millis(10), max: Duration::from_millis(100), deadline: Duration::from_mins(5) };
    let probe = || {
        let found = found();
        async move { found.map_or(Attempt::Again(()), Attempt::Done) }
    };
    let found = poll_until(&SystemClock::new(), policy, &CancellationToken::new(), probe).await;
    found.unwrap_or_else(|_| panic!("never: {what}"))
}

/// Nothing of the machine is left: no process, no file beside the logs.
fn assert_nothing_left(dirs: &Dirs, vm: &Identity) {
    assert!(!vm.alive());
    assert!(ledger::read(&dirs.build(BUILD)).unwrap().outstanding.is_empty());
    let entries = std::fs::read_dir(dirs.build(BUILD)).unwrap().flatten();
    let mut left: Vec<_> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    left.retain(|name| !["guard.log", "ledger.jsonl", "vm.console", "vm.log"].contains(&name.as_str()));
    assert!(left.is_empty(), "{left:?}");
}

async fn calibrates_to_an_accelerator_that_answers() {
    let bench = Bench::new().await;
    let host = CalibrationHost::new(&bench.dirs, &Say, &bench.clock, &bench.cancel);
    let start = Instant::now();
    let first = calibrate(Accelerator::Auto, &host).await.unwrap();
    say(&format!("calibrated in {:.1?}: {first:?}", start.elapsed()));
    assert_eq!(calibrate(Accelerator::Auto, &host).await.unwrap(), first);
    assert_eq!(calibrate(Accelerator::Tcg, &host).await.unwrap().accelerator, Accel::Tcg);
    match calibrate(Accelerator::Kvm, &host).await {
        Ok(forced) => assert_eq!(forced.accelerator, Accel::Kvm),
        Err(BootError::Kvm { reason }) => assert!(first.reason.ends_with(&reason), "{reason}"),
        Err(other) => panic!("{other}"),
    }
}

async fn a_machine_that_qemu_refuses_shows_its_words_and_the_command() {
    let bench = Bench::new().await;
    let mut spec = empty(bench.root.path());
    spec.machine.cpus = 5000;
    let error = bench.boot(spec).await.unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, BootError::Refused { .. }), "{text}");
    assert!(text.contains("exited with status 1") && text.contains("CPUs") && text.contains("-smp 5000"), "{text}");
    bench.guard.close().await.unwrap();
}

async fn a_disk_that_does_not_boot_is_found_out_early() {
    let bench = Bench::new().await;
    let error = bench.boot(empty(bench.root.path())).await.unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, BootError::Stuck { .. }), "{text}");
    assert!(text.contains("found nothing to boot") && text.contains("    No bootable device."), "{text}");
    assert!(!bench.guard.close().await.unwrap().failed.iter().any(|_| true));
}

/// Boots a machine that hangs, and does something to it once it runs.
async fn meanwhile(bench: &Bench, act: impl FnOnce(&Identity)) -> (BootError, Identity) {
    let spec = hanging(bench.root.path());
    let console = bench.dirs.build(BUILD).join("vm.console");
    let act = async {
        until("the firmware speaks", || std::fs::metadata(&console).ok().filter(|meta| meta.len() > 0)).await;
        let vm = identity(&bench.dirs).unwrap();
        act(&vm);
        vm
    };
    let (result, vm) = tokio::join!(bench.boot(spec), act);
    (result.unwrap_err(), vm)
}

async fn signal(vm: &Identity, signal: &str) {
    let kill = Spec::new("kill").args(["-s", signal, &vm.pid.to_string()]);
    run(&kill, &Limits::default(), &mut |_, _| {}).await.unwrap();
}

async fn a_crash_of_qemu_is_told_with_its_signal() {
    let bench = Bench::new().await;
    let (error, vm) = meanwhile(&bench, |vm| {
        let vm = vm.clone();
        tokio::spawn(async move { signal(&vm, "SEGV").await });
    })
    .await;
    let text = error.to_string();
    assert!(text.contains("was killed by signal 11") && text.contains("SeaBIOS"), "{text}");
    bench.guard.close().await.unwrap();
    assert_nothing_left(&bench.dirs, &vm);
}

async fn a_qemu_that_falls_silent_is_killed() {
    let bench = Bench::new().await;
    let (error, vm) = meanwhile(&bench, |vm| {
        let vm = vm.clone();
        tokio::spawn(async move { signal(&vm, "STOP").await });
    })
    .await;
    assert!(matches!(error, BootError::Silent { .. }), "{error}");
    assert!(!vm.alive());
    bench.guard.close().await.unwrap();
    assert_nothing_left(&bench.dirs, &vm);
}

async fn cancelling_a_boot_leaves_nothing() {
    let bench = Bench::new().await;
    let (error, vm) = meanwhile(&bench, |_| bench.cancel.cancel()).await;
    assert!(matches!(error, BootError::Cancelled), "{error}");
    bench.guard.close().await.unwrap();
    assert_nothing_left(&bench.dirs, &vm);
}

/// The part of a kiln that boots a machine for ever.
async fn play_kiln(root: &Path) {
    let bench = Bench::at(tempfile::TempDir::new().unwrap(), dirs(root)).await;
    let error = bench.boot(hanging(root)).await.unwrap_err();
    panic!("{error}");
}

async fn when_kiln_is_killed_while_booting_nothing_is_left() {
    let root = tempfile::tempdir().unwrap();
    let dirs = dirs(root.path());
    let mut kiln = Spec::new(std::env::current_exe().unwrap()).arg("play-kiln").arg(root.path());
    (kiln.stdout, kiln.stderr) = (Sink::Null, Sink::Append(root.path().join("errors")));
    let mut kiln = spawn(&kiln).await.unwrap();
    let vm = until("the machine runs", || identity(&dirs)).await;
    let console = dirs.build(BUILD).join("vm.console");
    until("the firmware speaks", || std::fs::metadata(&console).ok().filter(|meta| meta.len() > 0)).await;
    let listens = || std::fs::read_dir(format!("/proc/{}/fd", vm.pid)).is_ok_and(|entries| entries.count() > 0);
    assert!(vm.alive() && listens());
    kill_group(kiln.identity.pid, true);
    kiln.wait().await.unwrap();
    until("everything is released", || {
        ledger::read(&dirs.build(BUILD)).ok().filter(|journal| journal.outstanding.is_empty())
    })
    .await;
    assert_nothing_left(&dirs, &vm);
    assert_eq!(ledger::survey(&dirs).unwrap(), []);
}

async fn a_guest_that_ignores_the_order_to_go_down_is_unclean(base: &PreparedBase) {
    let bench = Bench::new().await;
    let mut spec = spec(base);
    spec.machine.shutdown_timeout = Duration::from_secs(5);
    let running = bench.boot(spec).await.unwrap_or_else(|error| panic!("{error}"));
    let vm = identity(&bench.dirs).unwrap();
    output_of(&running, "systemctl mask --runtime poweroff.target && systemctl daemon-reload").await;
    let error = running.shutdown().await.unwrap_err();
    assert!(matches!(error, ShutdownError::Ignored { .. }), "{error}");
    bench.guard.close().await.unwrap();
    assert_nothing_left(&bench.dirs, &vm);
}

async fn a_missing_root_file_system_is_found_out_early(base: &PreparedBase) {
    let bench = Bench::new().await;
    let mut spec = spec(base);
    if let Some(kernel) = &mut spec.kernel {
        kernel.command_line = "root=/dev/none ro rootdelay=1".into();
    }
    let error = bench.boot(spec).await.unwrap_err();
    assert!(matches!(&error, BootError::Stuck { what, .. } if what.contains("initramfs")), "{error}");
    bench.guard.close().await.unwrap();
}

/// Both at once. A machine so slow that a guest is not even up in time gets more of it.
async fn a_guest_without_network_and_one_without_sshd_are_told_apart(base: &PreparedBase) {
    let up = |console: &[String]| console.iter().any(|line| line.contains("login:"));
    for limit in [60, 120, 240, 480].map(Duration::from_secs) {
        let (no_network, no_sshd) = tokio::join!(
            unreachable(base, "systemd.mask=systemd-networkd.service systemd.mask=systemd-networkd.socket", limit),
            unreachable(base, "systemd.mask=ssh.service", limit),
        );
        if !up(&no_network.1) || !up(&no_sshd.1) {
            say(&format!("not up within {limit:?}; once more with twice the time"));
            continue;
        }
        assert!(no_network.0.contains("it boots but has no network"), "{}", no_network.0);
        assert!(no_sshd.0.contains("port 22 is closed"), "{}", no_sshd.0);
        return;
    }
    panic!("the guests did not come up within eight minutes");
}

/// Boots with these words for the kernel, to no avail: the stage that failed and the console's end.
async fn unreachable(base: &PreparedBase, words: &str, limit: Duration) -> (String, Vec<String>) {
    let bench = Bench::new().await;
    let mut spec = spec(base);
    spec.machine.boot_timeout = limit;
    spec.calibration.slowness = 1.0;
    if let Some(kernel) = &mut spec.kernel {
        kernel.command_line = format!("{} {words}", kernel.command_line);
    }
    let error = bench.boot(spec).await.unwrap_err();
    bench.guard.close().await.unwrap();
    match error {
        BootError::Unreachable { stage, console, .. } => (stage, console),
        other => panic!("{other}"),
    }
}

async fn a_seed_lets_kiln_into_a_cloud_image_booted_by_its_firmware(base: &PreparedBase) {
    let bench = Bench::new().await;
    let spec = VmSpec { login: Login::Nocloud, kernel: None, ..spec(base) };
    let running = bench.boot(spec).await.unwrap_or_else(|error| panic!("{error}"));
    // Cloud-init has done its part and no more: no other host key, no account, and the root file system fills the disk.
    assert_eq!(output_of(&running, "ls /etc/ssh/*_key").await, "/etc/ssh/ssh_host_ed25519_key\n");
    let status = output_of(&running, "cloud-init status --wait --long").await;
    assert!(status.contains("status: done"), "{status}");
    assert_eq!(output_of(&running, "getent passwd debian || echo none").await, "none\n");
    let size = output_of(&running, "df --output=size -BM / | tail -1").await;
    assert!(size.trim().trim_end_matches('M').parse::<u64>().unwrap() > 3500, "{size}");
    running.shutdown().await.unwrap_or_else(|error| panic!("{error}"));
    bench.guard.close().await.unwrap();
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
    let body = key.lines().nth(2).unwrap();
    let command_lines = std::fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path().join("cmdline"));
    for command_line in command_lines.filter_map(|path| std::fs::read(path).ok()) {
        assert!(!String::from_utf8_lossy(&command_line).contains(body), "the login key is on a command line");
    }
    running.guest().run(&Command::new("echo kept > /root/proof; sync", Duration::from_mins(1)), &Quiet).await.unwrap();
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
