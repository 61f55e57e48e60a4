//! Taking a checkpoint of a running machine: it stands still, its disk gets a new layer, its memory goes to a file, it goes
//! on. And proving that a machine that came back from one is the machine that was saved.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use kiln_core::Digest;
use kiln_io::{
    guest::{Command, Guest as _, Output},
    ledger::EntryId,
    process::{self, Limits, Spec},
    random,
};
use serde_json::json;

use super::{Running, args, memory, running::ANSWERS_WITHIN};
use crate::checkpoint::{CheckpointError, DISK, MEMORY, Stored};

/// Where the guest keeps the nonce: memory only.
const NONCE: &str = "/run/kiln-checkpoint";
/// What kiln itself runs in the guest around a checkpoint.
const AROUND: Duration = Duration::from_mins(1);

/// What was taken.
#[derive(Debug)]
pub(crate) struct Frozen {
    /// The directory that holds it: the one the machine's overlay was in.
    pub(crate) directory: PathBuf,
    /// Its entry in the build's ledger.
    pub(crate) entry: EntryId,
    pub(crate) memory: Stored,
    pub(crate) pause: Duration,
    pub(crate) boot_id: String,
    pub(crate) nonce: String,
}

/// An attempt that failed.
#[derive(Debug)]
pub(crate) struct NotFrozen {
    pub(crate) error: CheckpointError,
    /// Whether the machine runs on as if nothing had been tried.
    pub(crate) runs: bool,
}

impl Running<'_> {
    /// Takes a checkpoint. The overlay so far and the memory stay in the overlay's directory; the machine goes on with a
    /// new overlay in `next`, which must stand in the ledger as `entry`.
    pub(crate) async fn freeze(&self, next: PathBuf, entry: EntryId) -> Result<Frozen, NotFrozen> {
        let before = |error: CheckpointError| NotFrozen { error, runs: true };
        let (boot_id, nonce) = self.mark().await.map_err(before)?;
        let own = self.layers();
        let overlay = next.join(DISK);
        self.new_layer(&own.overlay, &overlay).await.map_err(before)?;
        let directory = own.overlay.parent().map(PathBuf::from).unwrap_or_default();
        let start = self.host.clock.monotonic();
        self.order("stop", json!({})).await.map_err(before)?;
        let saved = match self.swap(own.frozen.len() + 1, &overlay).await {
            Ok(()) => {
                self.write_to(overlay, entry);
                let socket = format!("{}.memory", self.spec.name);
                memory::save(&self.qmp, &self.host, &socket, &directory.join(MEMORY)).await
            }
            Err(error) => Err(error),
        };
        let goes_on = self.order("cont", json!({})).await;
        let pause = self.host.clock.monotonic().saturating_sub(start);
        match (saved, goes_on) {
            (Ok(memory), Ok(())) => Ok(Frozen { directory, entry: own.entry, memory, pause, boot_id, nonce }),
            (Err(error), Ok(())) => Err(NotFrozen { error, runs: true }),
            (_, Err(error)) => Err(NotFrozen { error, runs: false }),
        }
    }

    /// Takes a checkpoint of the disk alone: what the guest has written lies in it, and a boot replays the file system's journal.
    pub(crate) async fn freeze_disk(&self, next: PathBuf, entry: EntryId) -> Result<Frozen, NotFrozen> {
        let before = |error: CheckpointError| NotFrozen { error, runs: true };
        self.quietly(&Command::new("sync".to_owned(), AROUND)).await.map_err(before)?;
        let own = self.layers();
        let overlay = next.join(DISK);
        self.new_layer(&own.overlay, &overlay).await.map_err(before)?;
        let directory = own.overlay.parent().map(PathBuf::from).unwrap_or_default();
        let start = self.host.clock.monotonic();
        self.order("stop", json!({})).await.map_err(before)?;
        let swapped = self.swap(own.frozen.len() + 1, &overlay).await;
        if swapped.is_ok() {
            self.write_to(overlay, entry);
        }
        let goes_on = self.order("cont", json!({})).await;
        let pause = self.host.clock.monotonic().saturating_sub(start);
        match (swapped, goes_on) {
            (Ok(()), Ok(())) => {
                let memory = Stored { bytes: 0, sha256: Digest::of(b"") };
                let (boot_id, nonce) = (String::new(), String::new());
                Ok(Frozen { directory, entry: own.entry, memory, pause, boot_id, nonce })
            }
            (Err(error), Ok(())) => Err(NotFrozen { error, runs: true }),
            (_, Err(error)) => Err(NotFrozen { error, runs: false }),
        }
    }

    /// From now on the machine writes to another overlay.
    fn write_to(&self, overlay: PathBuf, entry: EntryId) {
        let mut disk = self.disk.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let below = std::mem::replace(&mut disk.overlay, overlay);
        disk.frozen.push(below);
        disk.entry = entry;
    }

    /// Writes a nonce into the guest's memory; the boot id and the nonce.
    async fn mark(&self) -> Result<(String, String), CheckpointError> {
        let nonce = random::nonce();
        let script = format!("umask 077; printf %s {nonce} > {NONCE}");
        self.quietly(&Command::new(script, AROUND)).await?;
        let boot_id = self.guest.boot_id().await.map_err(|error| CheckpointError::Stranger(error.to_string()))?;
        Ok((boot_id, nonce))
    }

    /// Proves that this is the guest that was saved, and gives it what time has spoiled: its clock, fresh randomness, an
    /// end of the connections that broke.
    pub(crate) async fn wake(&self, boot_id: &str, nonce: &str) -> Result<(), CheckpointError> {
        let now = self.host.clock.wall().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let mut command = Command::new(include_str!("wake.sh"), AROUND);
        for (name, value) in [
            ("KILN_BOOT_ID", boot_id.trim().to_owned()),
            ("KILN_NONCE", nonce.to_owned()),
            ("KILN_NONCE_FILE", NONCE.to_owned()),
            ("KILN_NOW", now.as_secs().to_string()),
            ("KILN_ENTROPY", [random::nonce(), random::nonce(), random::nonce(), random::nonce()].concat()),
        ] {
            command.env.insert(name.to_owned(), value);
        }
        self.quietly(&command).await
    }

    async fn quietly(&self, command: &Command) -> Result<(), CheckpointError> {
        let said = Said::default();
        match self.guest.run(command, &said).await {
            Ok(exit) if exit.success() => Ok(()),
            Ok(exit) => Err(CheckpointError::Stranger(format!("{exit:?}: {}", said.text()))),
            Err(kiln_io::guest::GuestError::Cancelled) => Err(CheckpointError::Cancelled),
            Err(error) => Err(CheckpointError::Stranger(error.to_string())),
        }
    }

    async fn new_layer(&self, below: &Path, overlay: &Path) -> Result<(), CheckpointError> {
        let spec = Spec::new("qemu-img")
            .args(["create", "-q", "-u", "-f", "qcow2", "-o", "lazy_refcounts=on", "-F", "qcow2", "-b"])
            .arg(below)
            .arg(overlay)
            .arg(self.spec.size.to_string());
        let limits = Limits { deadline: Some(Duration::from_mins(1)), cancel: self.host.cancel.clone() };
        let made = process::run(&spec, &limits, &mut |_, _| {}).await;
        made.map(|_| ()).map_err(|error| CheckpointError::Qemu(error.to_string()))
    }

    /// Puts the new layer on the disk.
    async fn swap(&self, number: usize, overlay: &Path) -> Result<(), CheckpointError> {
        let below = if number == 1 { "disk".to_owned() } else { format!("disk-{}", number - 1) };
        let name = format!("disk-{number}");
        let mut node = args::overlay(&name, &overlay.display().to_string());
        node["backing"] = serde_json::Value::Null;
        self.order("blockdev-add", node).await?;
        self.order("blockdev-snapshot", json!({"node": below, "overlay": name})).await
    }

    async fn order(&self, command: &str, arguments: serde_json::Value) -> Result<(), CheckpointError> {
        let limit = self.spec.calibration.scaled(ANSWERS_WITHIN);
        self.qmp.execute(command, arguments, limit).await.map(|_| ()).map_err(CheckpointError::Qemu)
    }
}

/// Keeps what a short script of ours says, for an error.
#[derive(Default)]
struct Said(std::sync::Mutex<Vec<u8>>);

impl Said {
    fn text(&self) -> String {
        let bytes = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        String::from_utf8_lossy(&bytes).trim().to_owned()
    }
}

impl Output for Said {
    fn write(&self, _: kiln_core::event::Stream, bytes: &[u8]) {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner).extend_from_slice(bytes);
    }
}
