//! The directory of checkpoints: finding, leasing, setting aside, making room.

mod evict;

use std::{
    fs::{self, File},
    io::Read as _,
    path::{Path, PathBuf},
    time::SystemTime,
};

use kiln_core::{Digest, Secret};
use kiln_io::{
    dirs::Dirs,
    fs::{Lock, create_private_dir, failed, write_atomic, write_private},
    keys::KeyPair,
    random,
};
use sha2::{Digest as _, Sha256};

use self::evict::remove;
pub use self::evict::{Budget, Pruned, last_used};
use super::{Checkpoint, CheckpointError, DISK, HOST_KEY, LOGIN_KEY, Lease, RECORD, Record, Stored};
use crate::qemu::LoginKeys;

/// The file with the key that digests of secrets are made with.
const SECRET_KEY: &str = "secret.key";
const DAMAGED: &str = "damaged.json";

/// `<cache>/checkpoints`.
#[derive(Debug, Clone)]
pub struct Store {
    directory: PathBuf,
}

impl Store {
    /// Opens the store, made if missing.
    pub fn open(dirs: &Dirs) -> Result<Self, CheckpointError> {
        let store = Self::at(dirs);
        create_private_dir(&store.directory)?;
        Ok(store)
    }

    /// The store without making anything.
    pub fn at(dirs: &Dirs) -> Self {
        Self { directory: dirs.cache.join("checkpoints") }
    }

    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// A directory for a new layer; nothing is made yet.
    pub(crate) fn place(&self) -> (String, PathBuf) {
        let id = format!("c-{}", &random::nonce()[..16]);
        let directory = self.directory.join(&id);
        (id, directory)
    }

    /// Every complete checkpoint, the newest first.
    pub fn list(&self) -> Vec<Checkpoint> {
        let entries = fs::read_dir(&self.directory).into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        let mut found: Vec<_> = names.filter(|name| name.starts_with("c-")).filter_map(|id| self.read(id)).collect();
        found.sort_by(|a, b| (b.record.made, &b.id).cmp(&(a.record.made, &a.id)));
        found
    }

    fn read(&self, id: String) -> Option<Checkpoint> {
        let directory = self.directory.join(&id);
        let record: Record = serde_json::from_slice(&fs::read(directory.join(RECORD)).ok()?).ok()?;
        (record.format == kiln_core::checkpoint::FORMAT).then_some(Checkpoint { id, directory, record })
    }

    /// Keeps the layers of a machine from being removed as long as the lease lives. A layer that is gone, or is just
    /// being removed, is an error.
    pub fn lease(&self, layers: &[String]) -> Result<Lease, CheckpointError> {
        let lock = |id: &String| {
            let directory = self.directory.join(id);
            let lock = Lock::share(&directory).map_err(|_| CheckpointError::LayerGone)?;
            if directory.join(DISK).exists() { Ok(lock) } else { Err(CheckpointError::LayerGone) }
        };
        Ok(Lease { _locks: layers.iter().map(lock).collect::<Result<_, _>>()? })
    }

    /// A lease on a layer that is being made.
    pub(crate) fn hold(&self, id: &str) -> Result<Lease, CheckpointError> {
        Ok(Lease { _locks: vec![Lock::share(&self.directory.join(id))?] })
    }

    /// The disks of the layers, the lowest first.
    pub(crate) fn disks(&self, layers: &[String]) -> Vec<PathBuf> {
        layers.iter().map(|id| self.directory.join(id).join(DISK)).collect()
    }

    /// Reads every layer of a checkpoint and holds it against its checksum.
    pub(crate) fn verify_disks(&self, checkpoint: &Checkpoint) -> Result<(), CheckpointError> {
        for id in &checkpoint.record.layers {
            let below = self.read(id.clone()).ok_or(CheckpointError::LayerGone)?;
            let found = digest_of(&below.directory.join(DISK))?;
            let expected = below.record.disk;
            if found != expected {
                let (expected, found) = (expected.sha256, found.sha256);
                return Err(CheckpointError::Damaged { file: "disk", expected, found });
            }
        }
        Ok(())
    }

    /// The keys of the machine in a checkpoint.
    pub(crate) fn login(checkpoint: &Checkpoint) -> Result<LoginKeys, CheckpointError> {
        let pair = |file: &'static str, line: &str| {
            let path = checkpoint.directory.join(file);
            let private = fs::read_to_string(&path).map_err(failed("read", &path, 0))?;
            Ok::<_, CheckpointError>(KeyPair::restore(Secret::new(private), line)?)
        };
        Ok(LoginKeys {
            login: pair(LOGIN_KEY, &checkpoint.record.login)?,
            host: pair(HOST_KEY, &checkpoint.record.host)?,
        })
    }

    /// Completes the checkpoint in the directory `id`.
    pub(crate) fn complete(&self, id: &str, record: &Record, keys: &LoginKeys) -> Result<(), CheckpointError> {
        let directory = self.directory.join(id);
        write_private(&directory.join(LOGIN_KEY), keys.login.private.reveal().as_bytes())?;
        write_private(&directory.join(HOST_KEY), keys.host.private.reveal().as_bytes())?;
        let text = serde_json::to_vec_pretty(record).unwrap_or_default();
        Ok(write_atomic(&directory.join(RECORD), &text, 0o600)?)
    }

    /// Notes that a checkpoint and what it stands on were used.
    pub(crate) fn touch(&self, layers: &[String], now: SystemTime) {
        for id in layers {
            // Only the order of eviction depends on it.
            let _ = File::open(self.directory.join(id).join(RECORD)).and_then(|file| file.set_modified(now));
        }
    }

    /// Puts a checkpoint that cannot be used out of the way.
    pub(crate) fn set_aside(&self, id: &str) {
        // It stays where it is: its disk may be a layer of a machine that runs.
        let directory = self.directory.join(id);
        let _ = fs::rename(directory.join(RECORD), directory.join(DAMAGED));
    }

    /// Checkpoints with these keys are not found any more; what nobody uses of them goes at once.
    pub(crate) fn forget(&self, keys: &[Digest]) {
        for checkpoint in self.list().into_iter().filter(|checkpoint| keys.contains(&checkpoint.record.key)) {
            if !remove(&checkpoint.directory) {
                let _ = fs::remove_file(checkpoint.directory.join(RECORD));
            }
        }
    }

    /// The key that digests of this user's secrets are made with; made if missing and `make`.
    pub(crate) fn secret_key(&self, make: bool) -> Result<Option<Vec<u8>>, CheckpointError> {
        let path = self.directory.join(SECRET_KEY);
        if !path.exists() {
            if !make {
                return Ok(None);
            }
            create_private_dir(&self.directory)?;
            write_private(&path, &random::bytes::<32>())?;
        }
        Ok(Some(fs::read(&path).map_err(failed("read", &path, 0))?))
    }
}

/// A digest of a secret that means nothing without the key.
pub(crate) fn keyed(key: &[u8], secret: &Secret) -> Digest {
    let inner = Digest::of(&[key, secret.reveal().as_bytes()].concat());
    Digest::of(&[key, inner.as_bytes()].concat())
}

/// Bytes and digest of a file.
pub(crate) fn digest_of(path: &Path) -> Result<Stored, CheckpointError> {
    let mut file = File::open(path).map_err(failed("read", path, 0))?;
    let (mut hash, mut bytes, mut buffer) = (Sha256::new(), 0, vec![0; 1 << 20]);
    loop {
        let read = file.read(&mut buffer).map_err(failed("read", path, 0))?;
        if read == 0 {
            return Ok(Stored { bytes, sha256: Digest::from_bytes(hash.finalize().into()) });
        }
        hash.update(&buffer[..read]);
        bytes += read as u64;
    }
}

#[cfg(test)]
mod tests;
