//! The QEMU builder: boots a machine on an overlay over a base, reaches it over SSH, shuts it down with proof.
//!
//! Nothing is detected that can be tried: the accelerator is calibrated, the port is read back from QEMU, the guest's
//! host key is made here and pinned. What is made stands in the build's ledger first; the machine itself is run by the
//! build's guard.

mod args;
mod boot;
mod boot_sector;
mod calibrate;
mod console;
mod error;
mod freeze;
mod login;
mod memory;
mod qmp;
mod running;

use std::path::PathBuf;

use kiln_core::{
    event::Events,
    plan::{Login, QemuMachine},
};
use kiln_io::{
    dirs::Dirs,
    guard::Guard,
    keys::KeyPair,
    ledger::{EntryId, Ledger},
    time::Clock,
};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

pub use args::qemu_args;
pub use boot::boot;
pub(crate) use boot::{Saved, boot_again, resume};
pub use calibrate::{CalibrationHost, calibrate};
pub(crate) use calibrate::{calibrated, processor_here};
pub use error::{BootError, MachineError, ShutdownError};
pub(crate) use freeze::{Frozen, NotFrozen};
pub(crate) use running::POWER_OFF;
pub use running::{Running, Stopped};

use crate::base::{DirectKernel, DiskFormat};

/// What a machine is made of.
#[derive(Debug, Clone)]
pub struct VmSpec {
    /// Names it within the build: `vm`, `boot-test`. Its files are `<name>.*` in the build's directory.
    pub name: String,
    pub build: String,
    /// Never written to; the machine gets an overlay.
    pub disk: PathBuf,
    pub format: DiskFormat,
    /// Overlays between `disk` and the machine's own, the lowest first; never written to either.
    pub layers: Vec<PathBuf>,
    /// Where the machine's own overlay is made, a directory in the ledger; `None`: in the build's, for itself.
    pub overlay: Option<Place>,
    /// Virtual size of the overlay in bytes, at least that of `disk`.
    pub size: u64,
    pub login: Login,
    /// Boots this kernel; `None` boots the disk by its firmware.
    pub kernel: Option<DirectKernel>,
    pub machine: QemuMachine,
    pub calibration: Calibration,
}

/// A directory for an overlay, and its entry in the build's ledger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    pub directory: PathBuf,
    pub entry: EntryId,
}

/// The world as a machine needs it.
#[derive(Debug, Clone, Copy)]
pub struct VmHost<'a> {
    pub dirs: &'a Dirs,
    pub guard: &'a Guard,
    pub ledger: &'a Ledger,
    pub events: &'a dyn Events,
    pub clock: &'a dyn Clock,
    pub cancel: &'a CancellationToken,
}

/// The keys made for one machine. They must be nowhere on its disk once it is sealed.
#[derive(Debug, Clone)]
pub struct LoginKeys {
    /// What kiln logs in with.
    pub login: KeyPair,
    /// What the guest shows.
    pub host: KeyPair,
}

impl LoginKeys {
    pub(crate) fn fresh() -> Result<Self, BootError> {
        Ok(Self { login: KeyPair::generate("kiln")?, host: KeyPair::generate("")? })
    }
}

/// How this machine emulates best, and how fast.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Calibration {
    pub accelerator: Accel,
    /// Why this one, for people and for the record.
    pub reason: String,
    /// How many times slower than the machine the default deadlines were measured on; never below 1.
    pub slowness: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accel {
    Kvm,
    Tcg,
}

impl Accel {
    /// `kvm` or `tcg`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        }
    }
}

impl DiskFormat {
    /// As QEMU calls it.
    const fn driver(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        }
    }
}

impl Calibration {
    /// A deadline meant for the reference machine, on this one.
    pub(crate) fn scaled(&self, deadline: std::time::Duration) -> std::time::Duration {
        deadline.mul_f64(self.slowness.clamp(1.0, 100.0))
    }
}
