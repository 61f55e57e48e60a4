use std::{
    os::unix::fs::PermissionsExt as _,
    sync::{Mutex, PoisonError},
};

use kiln_io::time::SystemClock;

use super::*;

#[derive(Debug, Default)]
struct Heard(Mutex<Vec<Event>>);

impl Events for Heard {
    fn emit(&self, event: Event) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(event);
    }
}

impl Heard {
    fn warnings(&self) -> Vec<String> {
        let events = self.0.lock().unwrap();
        events
            .iter()
            .filter_map(|event| if let Event::Warning { message } = event { Some(message.clone()) } else { None })
            .collect()
    }
}

struct Bench {
    root: tempfile::TempDir,
    dirs: Dirs,
    heard: Heard,
    clock: SystemClock,
    cancel: CancellationToken,
}

/// A QEMU that answers as QEMU does when the guest is done.
const ANSWERS: &str = "printf KO; exit 33";

impl Bench {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        let dirs = Dirs { cache: at("cache"), state: at("state"), data: at("data") };
        fs::write(at("kvm"), "").unwrap();
        Self { root, dirs, heard: Heard::default(), clock: SystemClock::new(), cancel: CancellationToken::new() }
    }

    /// A fake QEMU that notes each start and does this under KVM and that under TCG.
    async fn calibrate(&self, asked: Accelerator, kvm: &str, tcg: &str) -> Result<Calibration, BootError> {
        let qemu = self.root.path().join("qemu");
        let runs = self.root.path().join("runs");
        let script = format!(
            "#!/bin/sh\n[ \"$1\" = --version ] && {{ echo 'QEMU emulator version 7.2.0'; exit; }}\n\
             case \"$*\" in *'-accel kvm'*) echo kvm >> {runs}; {kvm} ;; *) echo tcg >> {runs}; {tcg} ;; esac\n",
            runs = runs.display()
        );
        fs::write(&qemu, script).unwrap();
        fs::set_permissions(&qemu, fs::Permissions::from_mode(0o755)).unwrap();
        let device = self.root.path().join("kvm");
        let host = CalibrationHost {
            qemu,
            device,
            ..CalibrationHost::new(&self.dirs, &self.heard, &self.clock, &self.cancel)
        };
        calibrate(asked, &host).await
    }

    fn runs(&self) -> usize {
        fs::read_to_string(self.root.path().join("runs")).unwrap_or_default().lines().count()
    }
}

fn measured(tcg: u64, kvm: Kvm) -> Measured {
    let key = Key { kernel: "6.1".into(), processor: "x".into(), qemu: "7.2".into(), device: String::new() };
    Measured { format: FORMAT, key, at: 1_000_000, tcg_milliseconds: tcg, kvm }
}

#[test]
fn the_faster_that_answers_wins_and_speed_scales_deadlines() {
    let auto = |tcg, kvm| decide(Accelerator::Auto, &measured(tcg, kvm)).unwrap();
    assert_eq!(auto(600, Kvm::Milliseconds(200)).accelerator, Accel::Kvm);
    let slow = auto(600, Kvm::Milliseconds(7000));
    assert_eq!(slow.accelerator, Accel::Tcg);
    assert!(slow.reason.contains("7.0s against 600.0ms"), "{}", slow.reason);
    assert_eq!(
        auto(2000, Kvm::Unusable("x".into())),
        Calibration { accelerator: Accel::Tcg, reason: "KVM does not work here: x".into(), slowness: 4.0 }
    );
    assert!((auto(100, Kvm::Unusable("x".into())).slowness - 1.0).abs() < f64::EPSILON);
    assert_eq!(decide(Accelerator::Kvm, &measured(600, Kvm::Milliseconds(7000))).unwrap().accelerator, Accel::Kvm);
    assert_eq!(decide(Accelerator::Tcg, &measured(600, Kvm::Milliseconds(1))).unwrap().accelerator, Accel::Tcg);
}

#[test]
fn causes_are_named_with_what_to_do() {
    let refused = |code| refusal(Path::new("/dev/kvm"), &io::Error::from_raw_os_error(code));
    assert!(refused(13).contains("add your user to the group `kvm`"));
    assert!(refused(16).contains("another hypervisor"));
    assert!(refused(2).contains("there is no `/dev/kvm`"));
    assert!(cause("Could not access KVM kernel module: Permission denied").contains("group `kvm`"));
    assert!(cause("ioctl(KVM_CREATE_VM) failed: 16 Device or resource busy").contains("another hypervisor"));
    assert!(cause("ioctl(KVM_CREATE_VM) failed: 22 Invalid argument").contains("Invalid argument"));
}

#[tokio::test]
async fn measures_once_and_again_when_qemu_or_the_device_changes() {
    let bench = Bench::new();
    for _ in 0..2 {
        bench.calibrate(Accelerator::Auto, ANSWERS, ANSWERS).await.unwrap();
        assert_eq!(bench.runs(), 2);
    }
    fs::remove_file(bench.root.path().join("kvm")).unwrap();
    let calibration = bench.calibrate(Accelerator::Auto, ANSWERS, ANSWERS).await.unwrap();
    assert_eq!((calibration.accelerator, bench.runs()), (Accel::Tcg, 3));
    assert!(calibration.reason.contains("there is no"), "{}", calibration.reason);
}

#[test]
fn a_verdict_against_kvm_is_doubted_after_a_week() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(FILE);
    let store = |measured: &Measured| fs::write(&path, serde_json::to_vec(measured).unwrap()).unwrap();
    let against = measured(1, Kvm::Unusable("x".into()));
    store(&against);
    let week = 7 * 24 * 3600;
    assert!(remembered(&path, &against.key, against.at + week - 1).is_some());
    assert!(remembered(&path, &against.key, against.at + week).is_none());
    let favour = measured(1, Kvm::Milliseconds(1));
    store(&favour);
    assert!(remembered(&path, &favour.key, favour.at + 100 * week).is_some());
    fs::write(&path, "torn{").unwrap();
    assert!(remembered(&path, &favour.key, favour.at).is_none());
}

#[tokio::test]
async fn auto_falls_back_with_a_warning_that_speaks_of_isolation_and_kvm_is_refused() {
    let bench = Bench::new();
    let failing = "echo 'ioctl(KVM_CREATE_VM) failed: 16 Device or resource busy' >&2; exit 1";
    let calibration = bench.calibrate(Accelerator::Auto, failing, ANSWERS).await.unwrap();
    assert_eq!(calibration.accelerator, Accel::Tcg);
    let warning = bench.heard.warnings().concat();
    assert!(warning.contains("another hypervisor") && warning.contains("no isolation boundary"), "{warning}");
    let error = bench.calibrate(Accelerator::Kvm, failing, ANSWERS).await.unwrap_err().to_string();
    assert!(error.contains("KVM does not work here: another hypervisor"), "{error}");
}

#[tokio::test]
async fn a_kvm_that_hangs_is_given_up_and_killed() {
    let bench = Bench::new();
    let hangs = format!("mkfifo {0}; read line < {0}", bench.root.path().join("fifo").display());
    let calibration = bench.calibrate(Accelerator::Auto, &hangs, ANSWERS).await.unwrap();
    assert_eq!(calibration.accelerator, Accel::Tcg);
    assert!(calibration.reason.contains("did not answer within 5.0s"), "{}", calibration.reason);
}

#[tokio::test]
async fn an_emulator_that_does_not_emulate_is_an_error_with_its_words() {
    let bench = Bench::new();
    let error = bench.calibrate(Accelerator::Auto, ANSWERS, "echo 'no such device' >&2; exit 1").await.unwrap_err();
    assert!(error.to_string().contains("no such device"), "{error}");
    assert!(!bench.dirs.cache.join(FILE).exists());
}
