//! Finds the accelerator that works, by trying: [our own boot sector](super::boot_sector) under TCG, then under KVM with a
//! deadline. That `/dev/kvm` can be opened proves nothing: there are machines where every guest under it hangs.

use std::{
    fs,
    io::{self, ErrorKind},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use kiln_core::{
    event::{Event, Events},
    plan::Accelerator,
};
use kiln_io::{
    dirs::Dirs,
    error::ProcessError,
    fs::{create_private_dir, write_atomic},
    process::{self, Finished, Limits, Spec},
    time::Clock,
};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use super::{
    Accel, BootError, Calibration,
    boot::QEMU,
    boot_sector::{DISK_BYTES, EXIT, ROUNDS, SAYS, boot_sector},
};

/// How long the boot sector takes under TCG where the default deadlines were measured: two cores of 2.9 GHz, QEMU 7.2, at
/// work with other things besides.
const REFERENCE: Duration = Duration::from_millis(500);
/// Emulation is slow on a busy machine, but not this slow.
const EMULATED_WITHIN: Duration = Duration::from_mins(3);
/// KVM gets this many times what TCG took, and at least so long.
const KVM_PATIENCE: (u32, Duration) = (4, Duration::from_secs(5));
/// A verdict against KVM is tried again after this long: the machine may just have been having a bad day.
const DOUBT: Duration = Duration::from_hours(7 * 24);
const FORMAT: u32 = 1;
const FILE: &str = "calibration.json";

/// The world as calibration needs it.
#[derive(Debug, Clone)]
pub struct CalibrationHost<'a> {
    pub dirs: &'a Dirs,
    pub events: &'a dyn Events,
    pub clock: &'a dyn Clock,
    pub cancel: &'a CancellationToken,
    /// `qemu-system-x86_64`, or a path.
    pub qemu: PathBuf,
    /// `/dev/kvm`.
    pub device: PathBuf,
}

impl<'a> CalibrationHost<'a> {
    /// The machine itself.
    pub fn new(dirs: &'a Dirs, events: &'a dyn Events, clock: &'a dyn Clock, cancel: &'a CancellationToken) -> Self {
        Self { dirs, events, clock, cancel, qemu: QEMU.into(), device: "/dev/kvm".into() }
    }
}

/// `calibration.json`: what was measured, and for which machine it holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Measured {
    format: u32,
    key: Key,
    /// Seconds since 1970.
    at: u64,
    tcg_milliseconds: u64,
    kvm: Kvm,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Key {
    kernel: String,
    processor: String,
    qemu: String,
    /// Whether `/dev/kvm` opened, so that a new group membership counts at once.
    device: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Kvm {
    Milliseconds(u64),
    Unusable(String),
}

/// Says which accelerator to use and why. `auto` falls back to emulation with a warning; a `kvm` that does not work is an
/// error that names the cause.
pub async fn calibrate(asked: Accelerator, host: &CalibrationHost<'_>) -> Result<Calibration, BootError> {
    let device = device(&host.device);
    let key = Key {
        kernel: first_line("/proc/sys/kernel/osrelease"),
        processor: processor(&fs::read_to_string("/proc/cpuinfo").unwrap_or_default()),
        qemu: process::version(&host.qemu).await?,
        device: device.clone().err().unwrap_or_default(),
    };
    let path = host.dirs.cache.join(FILE);
    let now = host.clock.wall().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let measured = if let Some(measured) = remembered(&path, &key, now) {
        measured
    } else {
        let measured = measure(host, key, device, now).await?;
        let text = serde_json::to_vec_pretty(&measured).unwrap_or_default();
        write_atomic(&path, &text, 0o600)?;
        measured
    };
    let calibration = decide(asked, &measured)?;
    if asked == Accelerator::Auto && calibration.accelerator == Accel::Tcg {
        let message = format!(
            "{}; the guest is emulated (TCG): several times slower, and no isolation boundary, so bake only what you trust",
            calibration.reason
        );
        host.events.emit(Event::Warning { message });
    }
    Ok(calibration)
}

/// What was found out earlier, without measuring anything.
pub(crate) async fn calibrated(asked: Accelerator, host: &CalibrationHost<'_>) -> Option<Calibration> {
    let key = Key {
        kernel: first_line("/proc/sys/kernel/osrelease"),
        processor: processor_here(),
        qemu: process::version(&host.qemu).await.ok()?,
        device: device(&host.device).err().unwrap_or_default(),
    };
    let now = host.clock.wall().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    decide(asked, &remembered(&host.dirs.cache.join(FILE), &key, now)?).ok()
}

/// The measurement in the cache, if it was made on this very machine and needs no second opinion yet.
fn remembered(path: &Path, key: &Key, now: u64) -> Option<Measured> {
    let measured: Measured = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
    let fresh = matches!(measured.kvm, Kvm::Milliseconds(_)) || now.abs_diff(measured.at) < DOUBT.as_secs();
    (measured.format == FORMAT && measured.key == *key && fresh).then_some(measured)
}

/// The verdict on a measurement.
fn decide(asked: Accelerator, measured: &Measured) -> Result<Calibration, BootError> {
    let tcg = Duration::from_millis(measured.tcg_milliseconds);
    let slowness = |took: Duration| (took.as_secs_f64() / REFERENCE.as_secs_f64()).max(1.0);
    let chosen = |accelerator, reason: String, took| Ok(Calibration { accelerator, reason, slowness: slowness(took) });
    match (asked, &measured.kvm) {
        (Accelerator::Tcg, _) => chosen(Accel::Tcg, "the template asks for emulation".into(), tcg),
        (Accelerator::Kvm, Kvm::Unusable(reason)) => Err(BootError::Kvm { reason: reason.clone() }),
        (Accelerator::Auto, Kvm::Unusable(reason)) => {
            chosen(Accel::Tcg, format!("KVM does not work here: {reason}"), tcg)
        }
        (Accelerator::Kvm, Kvm::Milliseconds(kvm)) => {
            let kvm = Duration::from_millis(*kvm);
            chosen(Accel::Kvm, format!("asked for; a test guest answered after {kvm:.1?}"), kvm)
        }
        (Accelerator::Auto, Kvm::Milliseconds(kvm)) => {
            let kvm = Duration::from_millis(*kvm);
            if kvm < tcg {
                chosen(Accel::Kvm, format!("a test guest answered after {kvm:.1?} under KVM, {tcg:.1?} emulated"), kvm)
            } else {
                let reason =
                    format!("KVM is slower than emulation here: a test guest took {kvm:.1?} against {tcg:.1?}");
                chosen(Accel::Tcg, reason, tcg)
            }
        }
    }
}

async fn measure(
    host: &CalibrationHost<'_>,
    key: Key,
    device: Result<(), String>,
    now: u64,
) -> Result<Measured, BootError> {
    create_private_dir(&host.dirs.cache)?;
    let disk = host.dirs.cache.join("boot-sector.img");
    let mut bytes = boot_sector(ROUNDS).to_vec();
    bytes.resize(usize::try_from(DISK_BYTES).unwrap_or_default(), 0);
    write_atomic(&disk, &bytes, 0o600)?;
    let tcg = match run(host, &disk, "tcg", EMULATED_WITHIN).await {
        Ok(finished) if answered(&finished) => finished.took,
        Ok(finished) => return Err(BootError::Emulator { reason: words(&finished) }),
        Err(ProcessError::Cancelled) => return Err(BootError::Cancelled),
        Err(error) => return Err(error.into()),
    };
    let kvm = match device {
        Err(reason) => Kvm::Unusable(reason),
        Ok(()) => under_kvm(host, &disk, tcg).await?,
    };
    Ok(Measured { format: FORMAT, key, at: now, tcg_milliseconds: milliseconds(tcg), kvm })
}

async fn under_kvm(host: &CalibrationHost<'_>, disk: &Path, tcg: Duration) -> Result<Kvm, BootError> {
    let patience = (tcg * KVM_PATIENCE.0).max(KVM_PATIENCE.1);
    match run(host, disk, "kvm", patience).await {
        Ok(finished) if answered(&finished) => Ok(Kvm::Milliseconds(milliseconds(finished.took))),
        Ok(finished) => Ok(Kvm::Unusable(cause(&words(&finished)))),
        Err(ProcessError::TimedOut { .. }) => Ok(Kvm::Unusable(format!(
            "`/dev/kvm` opens, but a test guest that takes {tcg:.1?} emulated did not answer within {patience:.1?}"
        ))),
        Err(ProcessError::Cancelled) => Err(BootError::Cancelled),
        Err(error) => Err(error.into()),
    }
}

async fn run(host: &CalibrationHost<'_>, disk: &Path, accel: &str, limit: Duration) -> Result<Finished, ProcessError> {
    let blockdev = serde_json::json!({
        "node-name": "disk", "driver": "raw", "read-only": true,
        "file": {"driver": "file", "filename": disk, "read-only": true},
    });
    let spec = Spec::new(&host.qemu)
        .args(["-nodefaults", "-no-user-config", "-display", "none", "-machine", "q35", "-m", "64", "-accel", accel])
        .args(["-blockdev", &blockdev.to_string(), "-device", "virtio-blk-pci,drive=disk,bootindex=1"])
        .args(["-chardev", "stdio,id=port,signal=off", "-device", "isa-debugcon,iobase=0xe9,chardev=port"])
        .args(["-device", "isa-debug-exit,iobase=0xf4,iosize=1"]);
    let limits = Limits { deadline: Some(limit), cancel: host.cancel.clone() };
    process::run_to_end(&spec, &limits, &mut |_, _| {}).await
}

fn answered(finished: &Finished) -> bool {
    finished.status.code() == Some(EXIT) && finished.stdout == SAYS
}

fn words(finished: &Finished) -> String {
    let said = finished.stderr.join("; ");
    if said.is_empty() { format!("QEMU ended with {} and no words", finished.status) } else { said }
}

/// Whether the device opens for reading and writing, else why not.
fn device(path: &Path) -> Result<(), String> {
    let opened = fs::OpenOptions::new().read(true).write(true).open(path);
    opened.map(drop).map_err(|error| refusal(path, &error))
}

fn refusal(path: &Path, error: &io::Error) -> String {
    let path = path.display();
    match error.kind() {
        ErrorKind::NotFound => format!(
            "there is no `{path}`; is virtualisation switched on in the firmware, or nested virtualisation on the host above?"
        ),
        ErrorKind::PermissionDenied => denied(),
        ErrorKind::ResourceBusy => busy(),
        _ => format!("`{path}` does not open: {error}"),
    }
}

/// The cause in what QEMU says when it cannot make a virtual machine.
fn cause(words: &str) -> String {
    if words.contains("Permission denied") {
        denied()
    } else if words.contains("Device or resource busy") {
        busy()
    } else {
        format!("a virtual machine could not be made: {words}")
    }
}

fn denied() -> String {
    "you may not open `/dev/kvm`; add your user to the group `kvm` (`sudo usermod -aG kvm $USER`) and log in again"
        .into()
}

fn busy() -> String {
    "another hypervisor holds the processor's virtualisation; stop it (VirtualBox, VMware) and try again".into()
}

fn processor(cpuinfo: &str) -> String {
    let line = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    line.map_or_else(|| "unknown".to_owned(), |(_, name)| name.trim().to_owned())
}

/// The host's processor, which a guest under KVM sees as its own.
pub(crate) fn processor_here() -> String {
    processor(&fs::read_to_string("/proc/cpuinfo").unwrap_or_default())
}

fn first_line(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().lines().next().unwrap_or_default().to_owned()
}

fn milliseconds(took: Duration) -> u64 {
    u64::try_from(took.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
