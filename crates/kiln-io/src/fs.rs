//! Files that are whole or absent, private directories, locks, free space, and paths that stay beneath their root.

mod beneath;
mod lock;
mod unnamed;

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

pub use beneath::{resolve_beneath, resolve_within};
pub use lock::{Lock, holder, is_open_elsewhere, lock_within};
pub use unnamed::Unnamed;

use crate::{error::FsError, random};

/// Turns an error of the system into one that names operation and path; a full disk or quota says how much was
/// needed and how much is free.
pub fn failed(operation: &'static str, path: &Path, need: u64) -> impl FnOnce(io::Error) -> FsError {
    let path = path.to_owned();
    move |source| match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            let free = nearest_existing(&path).and_then(|there| free_space(there).ok()).unwrap_or(0);
            FsError::NoSpace { operation, path, need, free }
        }
        _ => FsError::Io { operation, path, source },
    }
}

/// Replaces `path` by a file with these bytes and permission bits: temporary file beside it, fsync, rename, fsync of the
/// directory. Whoever reads sees the old file or the new one.
pub fn write_atomic(path: &Path, bytes: &[u8], mode: u32) -> Result<(), FsError> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(format!(".{}.part", &random::nonce()[..8]));
    let temporary = directory.join(name);
    let written = (|| {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        File::open(directory)?.sync_all()
    })();
    written.map_err(|error| {
        let _ = fs::remove_file(&temporary);
        failed("write", path, bytes.len() as u64)(error)
    })
}

/// Like [`write_atomic`], readable by nobody else (0600).
pub fn write_private(path: &Path, bytes: &[u8]) -> Result<(), FsError> {
    write_atomic(path, bytes, 0o600)
}

/// Makes a directory, and its parents, that nobody else may enter (0700). An existing one is given that mode.
pub fn create_private_dir(path: &Path) -> Result<(), FsError> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(0o700))).map_err(failed("make", path, 0))
}

/// Bytes an ordinary user may still write on the file system that holds `path`.
pub fn free_space(path: &Path) -> Result<u64, FsError> {
    let there = nearest_existing(path).unwrap_or(Path::new("/"));
    let found = rustix::fs::statvfs(there).map_err(|error| failed("measure the space at", path, 0)(error.into()))?;
    Ok(found.f_bavail.saturating_mul(found.f_frsize))
}

/// Whether the file system that holds `path` has a place for one more file. Many have no limit.
pub fn holds_another_file(path: &Path) -> bool {
    let found = rustix::fs::statvfs(nearest_existing(path).unwrap_or(Path::new("/")));
    found.is_ok_and(|found| found.f_files == 0 || found.f_favail > 0)
}

/// Refuses to begin what would not fit: `need` bytes for `operation` at `path`.
pub fn require_space(operation: &'static str, path: &Path, need: u64) -> Result<(), FsError> {
    match free_space(path)? {
        free if free < need => Err(FsError::NoSpace { operation, path: path.to_owned(), need, free }),
        _ => Ok(()),
    }
}

/// Reads a whole text file.
pub fn read_text(path: &Path) -> Result<String, FsError> {
    fs::read_to_string(path).map_err(failed("read", path, 0))
}

fn nearest_existing(path: &Path) -> Option<&Path> {
    path.ancestors()
        .map(|part| if part.as_os_str().is_empty() { Path::new(".") } else { part })
        .find(|part| part.exists())
}

/// The absolute path of something that exists, links resolved.
pub fn canonical(path: &Path) -> Result<PathBuf, FsError> {
    path.canonicalize().map_err(failed("find", path, 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_replaces_the_whole_file_and_leaves_nothing_beside_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a");
        write_atomic(&path, b"first", 0o644).unwrap();
        write_private(&path, b"second").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"second");
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_failed_write_names_the_path_and_leaves_nothing() {
        let error = write_atomic(Path::new("/nowhere/at/all"), b"", 0o644).unwrap_err();
        assert_eq!(error.to_string(), "cannot write `/nowhere/at/all`");
    }

    #[test]
    fn a_full_disk_names_path_and_need() {
        let full = failed("write", Path::new("/tmp/x"), 1234)(io::Error::from_raw_os_error(28)).to_string();
        assert!(full.contains("`/tmp/x`: 1234 more bytes are needed"), "{full}");
        let quota = failed("write", Path::new("/tmp/x"), 1)(io::Error::from_raw_os_error(122));
        assert!(matches!(quota, FsError::NoSpace { .. }));
        let error = require_space("download the base to", Path::new("/tmp/none/yet"), u64::MAX).unwrap_err();
        assert!(matches!(error, FsError::NoSpace { free, .. } if free > 0));
    }

    #[test]
    fn a_private_directory_stays_private() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a/b");
        create_private_dir(&path).unwrap();
        create_private_dir(&path).unwrap();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o700);
    }
}
