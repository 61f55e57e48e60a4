//! Files that are there completely or not at all: written beside, synced, renamed, and the directory synced too.

use std::{
    fs::{self, File, OpenOptions, Permissions},
    io::{self, Write as _},
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use kiln_core::{ByteSize, Digest};
use kiln_io::{
    fs::{free_space, holds_another_file},
    random::nonce,
};
use sha2::{Digest as _, Sha256};

use crate::error::{RegistryError, Shortage};

/// Reads are of this size: large enough that hashing, not the system calls, takes the time.
const BLOCK: usize = 1 << 20;

/// A file that is removed again unless it was put at its final place.
#[derive(Debug)]
pub(crate) struct Temporary {
    path: PathBuf,
    placed: bool,
}

impl Temporary {
    /// A path in `directory` that no other publisher uses; nothing is created yet.
    pub(crate) fn in_directory(directory: &Path) -> Self {
        Self { path: directory.join(format!(".kiln-{}", nonce())), placed: false }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Moves the file to `target`, replacing what is there, and syncs the directory.
    pub(crate) fn replace(self, target: &Path) -> Result<(), RegistryError> {
        self.rename(target)?;
        sync_directory_of(target)
    }

    /// Moves the file to `target`, replacing what is there. The caller syncs the directory.
    pub(crate) fn rename(mut self, target: &Path) -> Result<(), RegistryError> {
        fs::rename(&self.path, target).map_err(failed("move into place", target))?;
        self.placed = true;
        // Between two names of one file `rename` does nothing at all, and both stay.
        let _ = fs::remove_file(&self.path);
        Ok(())
    }

    /// Moves the file to `target` unless something is there already; says whether it did.
    pub(crate) fn create(self, target: &Path) -> Result<bool, RegistryError> {
        // A second name, then the first removed: like a rename, but it never replaces, on every local file system.
        match fs::hard_link(&self.path, target) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(false),
            Err(error) => return Err(failed("create", target)(error)),
        }
        sync_directory_of(target)?;
        Ok(true)
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.placed {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Turns an I/O error of `operation` on `path` into ours.
pub(crate) fn failed(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> RegistryError + use<> {
    failed_to_store(operation, path, ENTRY)
}

/// What a directory entry and its file may take at the least.
const ENTRY: u64 = 8 << 10;

/// The same while `bytes` are being stored: a full disk becomes an error that says how much is needed.
pub(crate) fn failed_to_store(
    operation: &'static str,
    path: &Path,
    bytes: u64,
) -> impl FnOnce(io::Error) -> RegistryError + use<> {
    let path = path.to_owned();
    move |source| {
        let shortage = match source.kind() {
            io::ErrorKind::QuotaExceeded => Shortage::Quota,
            io::ErrorKind::StorageFull if !holds_another_file(&path) => Shortage::Files,
            io::ErrorKind::StorageFull => {
                Shortage::Bytes { needed: ByteSize(bytes), free: ByteSize(free_space(&path).unwrap_or(0)) }
            }
            _ => return RegistryError::Io { operation, path, source },
        };
        RegistryError::Full { operation, path, shortage }
    }
}

/// Writes `bytes` into a new temporary file and syncs it.
pub(crate) fn write(directory: &Path, bytes: &[u8]) -> Result<Temporary, RegistryError> {
    let temporary = Temporary::in_directory(directory);
    let path = temporary.path().to_owned();
    let mut file = create_file(&path)?;
    file.write_all(bytes).map_err(failed("write", &path))?;
    file.sync_all().map_err(failed("sync", &path))?;
    Ok(temporary)
}

/// Writes `bytes` into a new temporary file that nobody may write to again. The caller syncs it.
pub(crate) fn write_unsynced(directory: &Path, bytes: &[u8]) -> Result<Temporary, RegistryError> {
    let temporary = Temporary::in_directory(directory);
    let path = temporary.path();
    let mut file =
        OpenOptions::new().write(true).create_new(true).mode(0o444).open(path).map_err(failed("create", path))?;
    file.write_all(bytes).map_err(failed_to_store("write", path, bytes.len() as u64))?;
    drop(file);
    Ok(temporary)
}

/// Brings `source` into `directory` as a temporary file, by a second name for it where the file system allows, else by
/// copying; reads every byte, compares with `expected`, and syncs.
pub(crate) fn bring(
    source: &Path,
    directory: &Path,
    expected: Digest,
    watch: &dyn Fn(u64) -> bool,
) -> Result<Temporary, RegistryError> {
    let temporary = Temporary::in_directory(directory);
    let path = temporary.path().to_owned();
    let metadata = fs::symlink_metadata(source).map_err(failed("read", source))?;
    if !metadata.is_file() {
        return Err(failed("read", source)(io::Error::other("it is not a regular file")));
    }
    let (found, file) = if fs::hard_link(source, &path).is_ok() {
        let mut file = File::open(&path).map_err(failed("open", &path))?;
        (hash(&mut file, None, source, watch)?, file)
    } else {
        let mut file = create_file(&path)?;
        let mut input = File::open(source).map_err(failed("open", source))?;
        (copy(&mut input, source, &mut file, &path, metadata.len(), watch)?, file)
    };
    if found != expected {
        return Err(RegistryError::Altered { path: source.to_owned(), expected, found });
    }
    // What is published is never written to again, not by accident either.
    file.set_permissions(Permissions::from_mode(0o444)).map_err(failed("protect", &path))?;
    file.sync_all().map_err(failed("sync", &path))?;
    Ok(temporary)
}

/// Copies `input`, which is called `source` in errors, into the new file `output`, which is called `path`, hashing on the way.
pub(crate) fn copy(
    input: &mut dyn io::Read,
    source: &Path,
    output: &mut File,
    path: &Path,
    bytes: u64,
    watch: &dyn Fn(u64) -> bool,
) -> Result<Digest, RegistryError> {
    hash(input, Some((output, path, bytes)), source, watch)
}

fn hash(
    input: &mut dyn io::Read,
    mut output: Option<(&mut File, &Path, u64)>,
    source: &Path,
    watch: &dyn Fn(u64) -> bool,
) -> Result<Digest, RegistryError> {
    let mut buffer = vec![0; BLOCK];
    let mut hasher = Sha256::new();
    let mut done = 0_u64;
    loop {
        let count = match input.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(failed("read", source)(error)),
        };
        hasher.update(&buffer[..count]);
        if let Some((output, path, bytes)) = output.as_mut() {
            output.write_all(&buffer[..count]).map_err(failed_to_store("write", path, bytes.saturating_sub(done)))?;
        }
        done += count as u64;
        if !watch(done) {
            return Err(RegistryError::Stopped { path: source.to_owned() });
        }
    }
    Ok(Digest::from_bytes(hasher.finalize().into()))
}

fn create_file(path: &Path) -> Result<File, RegistryError> {
    OpenOptions::new().write(true).create_new(true).mode(0o644).open(path).map_err(failed("create", path))
}

/// Makes `path` and syncs its parent, when it is not there yet.
pub(crate) fn directory(path: &Path) -> Result<(), RegistryError> {
    if path.is_dir() {
        return Ok(());
    }
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        directory(parent)?;
    }
    match fs::create_dir(path) {
        Ok(()) => sync_directory_of(path),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(failed("create", path)(error)),
    }
}

pub(crate) fn sync_directory_of(path: &Path) -> Result<(), RegistryError> {
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    File::open(parent).and_then(|directory| directory.sync_all()).map_err(failed("sync", parent))
}
