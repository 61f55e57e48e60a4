//! Checkpoints: disk and memory of a machine after a step, in `<cache>/checkpoints`, found again by their key.
//!
//! A checkpoint's directory has a name of its own that means nothing, so that two builds never write the same one. It is
//! complete once `checkpoint.json` is there; until then it stands in the ledger of the build that makes it. Its disk is
//! one layer: it stands on the layers of the checkpoints before it. It holds the memory of a guest, and with it whatever
//! the guest knew: the directory is its owner's alone. Nothing published ever stands on one.

mod choose;
mod ground;
mod outlook;
mod store;
mod trail;

use std::{collections::BTreeMap, path::PathBuf};

use kiln_core::{Digest, artifact::StepRecord};
use kiln_io::{
    error::{FsError, KeyError},
    fs::Lock,
};
use serde::{Deserialize, Serialize};

pub use choose::{Choice, Fresh, Miss, Take, Wish, ago, choose, step};
pub use ground::{Surroundings, ground};
pub use outlook::{Known, Outlook, outlook};
pub(crate) use store::digest_of;
pub use store::{Budget, Pruned, Store, last_used};
pub use trail::Trail;

/// The file that makes a checkpoint complete.
const RECORD: &str = "checkpoint.json";
/// The layer's disk.
pub(crate) const DISK: &str = "disk.qcow2";
/// The guest's memory and devices: QEMU's migration stream, compressed.
pub(crate) const MEMORY: &str = "memory.zst";
/// The key kiln logs in with, and the one the guest shows.
const LOGIN_KEY: &str = "login.key";
const HOST_KEY: &str = "host.key";

/// `checkpoint.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub format: u32,
    pub key: Digest,
    /// What was baked when it was taken.
    pub image: String,
    /// The build that booted the machine; its name is in the seed the guest may have read.
    pub origin: String,
    /// The last step in it; 0 is the machine that has just booted.
    pub number: usize,
    pub name: String,
    /// Seconds since 1970.
    pub made: u64,
    /// How long the machine stood still for it, in milliseconds.
    pub pause: u64,
    /// Names of the directories whose disks lie over the base, the lowest first, its own last.
    pub layers: Vec<String>,
    pub disk: Stored,
    /// Empty for a checkpoint of the disk alone.
    pub memory: Stored,
    pub login: String,
    pub host: String,
    pub boot_id: String,
    /// Stands in a file of the running guest, and nowhere else.
    pub nonce: String,
    /// Each step in it: the booted machine is number 0.
    pub steps: BTreeMap<usize, Ran>,
}

/// A file with its checksum.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stored {
    pub bytes: u64,
    pub sha256: Digest,
}

/// When a step really ran, and how long it took.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ran {
    /// Seconds since 1970.
    pub at: u64,
    pub milliseconds: u64,
    /// `None` for the boot.
    pub record: Option<StepRecord>,
}

/// A complete checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    /// The name of its directory.
    pub id: String,
    pub directory: PathBuf,
    pub record: Record,
}

/// Keeps the layers of a machine from being removed.
#[derive(Debug)]
pub struct Lease {
    _locks: Vec<Lock>,
}

/// Why a checkpoint cannot be taken or used.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    #[error("its {file} is damaged: expected {expected}, found {found}")]
    Damaged { file: &'static str, expected: Digest, found: Digest },
    #[error("its {file} cannot be read: {reason}")]
    Unreadable { file: &'static str, reason: String },
    #[error("one of its layers is gone")]
    LayerGone,
    #[error("QEMU refused: {0}")]
    Qemu(String),
    #[error("the guest that came up is not the one that was saved: {0}")]
    Stranger(String),
    #[error("the guest did not come up: {0}")]
    Boot(String),
    #[error("the disk of this machine has no room for it")]
    NoRoom,
    #[error(transparent)]
    Fs(#[from] FsError),
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error(transparent)]
    Ledger(#[from] kiln_io::ledger::LedgerError),
    #[error("cancelled")]
    Cancelled,
}

impl Checkpoint {
    /// Whether a machine boots from it instead of going on where it was.
    pub const fn is_disk_only(&self) -> bool {
        self.record.memory.bytes == 0
    }

    /// What it takes on the disk.
    pub const fn bytes(&self) -> u64 {
        self.record.disk.bytes + self.record.memory.bytes
    }

    /// What the steps in it and the boot took when they ran.
    pub fn saves(&self) -> u64 {
        // From the disk alone the machine boots again.
        let saved = self.record.steps.iter().filter(|(number, _)| **number > 0 || !self.is_disk_only());
        saved.map(|(_, ran)| ran.milliseconds).sum()
    }
}
