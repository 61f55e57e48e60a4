//! A registry in a directory: files that are written beside, synced and renamed, and locks that the kernel takes back.

mod blobs;

use std::{
    fs::{self, File, TryLockError},
    io::{self, Read as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use kiln_core::ImageName;
use kiln_io::{
    fs::{holder, lock_within},
    time::{Clock as _, SystemClock},
};

use super::{Held, Lease, Leases, Mark, Records};
use crate::{
    MARKER, OCI_LAYOUT, RegistryError,
    durable::{self, failed},
};

/// How long a collection waits for those who publish or read.
const COLLECTOR_WAITS: Duration = Duration::from_secs(3);
/// How long one waits for the lock of an image.
const PATIENCE: Duration = Duration::from_mins(1);
/// So long after its last change a file has a state that can be named.
const SETTLED: Duration = Duration::from_millis(100);

#[derive(Debug)]
pub(crate) struct Directory {
    root: PathBuf,
}

impl Directory {
    pub(crate) fn new(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    fn temporary(&self) -> PathBuf {
        self.root.join("tmp")
    }

    /// Removes the files that killed publishers were writing. The caller has the lock of `tmp` alone.
    fn sweep(&self) -> Result<(), RegistryError> {
        let directory = self.temporary();
        for entry in fs::read_dir(&directory).map_err(failed("read", &directory))? {
            let entry = entry.map_err(failed("read", &directory))?;
            if entry.file_name() != "lock" {
                fs::remove_file(entry.path()).map_err(failed("remove", &entry.path()))?;
            }
        }
        Ok(())
    }

    fn prepare_root(&self) -> Result<(), RegistryError> {
        let marker = self.root.join("registry.json");
        if !marker.exists() {
            durable::write(&self.temporary(), MARKER.as_bytes())?.create(&marker)?;
        }
        let layout = self.root.join("oci-layout");
        if !layout.exists() {
            durable::write(&self.temporary(), OCI_LAYOUT.as_bytes())?.create(&layout)?;
        }
        Ok(())
    }
}

impl Records for Directory {
    fn path(&self, key: &str) -> PathBuf {
        self.root.join(key)
    }

    fn read(&self, key: &str, longest: u64) -> io::Result<Option<(Vec<u8>, Mark)>> {
        let read = File::open(self.root.join(key)).and_then(|file| {
            let mark = mark(&file.metadata()?);
            let mut bytes = Vec::new();
            file.take(longest + 1).read_to_end(&mut bytes)?;
            Ok((bytes, mark))
        });
        match read {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            read => read.map(Some),
        }
    }

    fn create(&self, key: &str, bytes: &[u8]) -> Result<bool, RegistryError> {
        let path = self.root.join(key);
        path.parent().map_or(Ok(()), durable::directory)?;
        durable::write(&self.temporary(), bytes)?.create(&path)
    }

    /// Whoever replaces a file holds the lock of its image.
    fn replace(&self, key: &str, bytes: &[u8], _mark: &Mark) -> Result<Option<Mark>, RegistryError> {
        durable::write(&self.temporary(), bytes)?.replace(&self.root.join(key))?;
        Ok(Some(Mark::default()))
    }

    fn names(&self, folder: &str) -> io::Result<Vec<String>> {
        let entries = match fs::read_dir(self.root.join(folder)) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
    }

    fn mark(&self, key: &str) -> io::Result<Mark> {
        match fs::metadata(self.root.join(key)) {
            Ok(metadata) => Ok(mark(&metadata)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Mark::default()),
            Err(error) => Err(error),
        }
    }

    fn modified(&self, key: &str) -> Option<SystemTime> {
        fs::metadata(self.root.join(key)).and_then(|metadata| metadata.modified()).ok()
    }

    fn settle(&self, folder: &str) -> Result<(), RegistryError> {
        durable::sync_directory_of(&self.root.join(folder).join("entry"))
    }
}

impl Leases for Directory {
    /// The directories, and before them `registry.json`, which makes this a registry.
    fn prepare(&self, image: Option<&ImageName>) -> Result<(), RegistryError> {
        self.prepare_root()?;
        durable::directory(&self.root.join("blobs/sha256"))?;
        let Some(image) = image else { return Ok(()) };
        let image = self.root.join("images").join(image.as_str());
        durable::directory(&image.join("v"))?;
        durable::directory(&image.join("log"))
    }

    /// Removes what killed publishers left in `tmp`, if nobody publishes now. The returned lock says that we do.
    fn share(&self) -> Result<Lease, RegistryError> {
        let directory = self.temporary();
        durable::directory(&directory)?;
        let path = directory.join("lock");
        let file = open_lock(&path)?;
        if file.try_lock().is_ok() {
            self.sweep()?;
            file.unlock().map_err(failed("unlock", &path))?;
        }
        file.lock_shared().map_err(failed("lock", &path))?;
        Ok(Lease(Held::File { _locked: file }))
    }

    fn lease(&self) -> Result<Option<Lease>, RegistryError> {
        let path = self.temporary().join("lock");
        match File::open(&path) {
            Ok(file) => {
                file.lock_shared().map_err(failed("lock", &path))?;
                Ok(Some(Lease(Held::File { _locked: file })))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed("open", &path)(error)),
        }
    }

    fn alone(&self) -> Result<Option<Lease>, RegistryError> {
        let path = self.temporary().join("lock");
        let file = match File::options().read(true).write(true).open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed("open", &path)(error)),
        };
        if lock_within(&file, COLLECTOR_WAITS).map_err(failed("lock", &path))? {
            self.sweep()?;
            Ok(Some(Lease(Held::File { _locked: file })))
        } else {
            Err(RegistryError::Busy { path: self.root.clone() })
        }
    }

    fn lock(&self, image: &ImageName) -> Result<Option<Lease>, RegistryError> {
        lock(&self.root.join("images").join(image.as_str()).join("lock"))
            .map(|file| Some(Lease(Held::File { _locked: file })))
    }

    /// A lock on the record itself, which may lie on a disk that is mounted read-only.
    fn hold(&self, key: &str) -> Result<Option<Lease>, RegistryError> {
        let path = self.root.join(key);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed("open", &path)(error)),
        };
        match file.try_lock_shared() {
            Ok(()) => Ok(Some(Lease(Held::File { _locked: file }))),
            Err(TryLockError::WouldBlock) => Err(RegistryError::Collecting { path: self.root.clone() }),
            Err(TryLockError::Error(error)) => Err(failed("lock", &path)(error)),
        }
    }

    fn claim(&self, key: &str) -> Result<Option<Lease>, RegistryError> {
        let path = self.root.join(key);
        let file = File::open(&path).map_err(failed("open", &path))?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Lease(Held::File { _locked: file }))),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(failed("lock", &path)(error)),
        }
    }

    /// Under its lock nobody is overtaken.
    fn attempts(&self) -> usize {
        1
    }
}

/// The state that a file is in. The kernel's times have steps of up to 10 ms, and the number of a removed file is given again: so a
/// file that was changed just now has no name yet, as in the index of git.
fn mark(file: &fs::Metadata) -> Mark {
    let seconds = |seconds: i64, nanoseconds: i64| {
        Some(Duration::new(u64::try_from(seconds).ok()?, u32::try_from(nanoseconds).ok()?))
    };
    let changed = seconds(file.ctime(), file.ctime_nsec());
    let now = SystemClock::new().wall().duration_since(SystemTime::UNIX_EPOCH).ok();
    let settled = changed.zip(now).is_some_and(|(changed, now)| changed + SETTLED <= now);
    let name = || {
        let times = (file.mtime(), file.mtime_nsec(), file.ctime(), file.ctime_nsec());
        format!("{}.{}.{}.{times:?}", file.dev(), file.ino(), file.size())
    };
    Mark(settled.then(name))
}

/// Takes the lock `path`. It is held for moments; one that is held for longer belongs to somebody who stands still.
fn lock(path: &Path) -> Result<File, RegistryError> {
    lock_for(path, PATIENCE)
}

fn lock_for(path: &Path, patience: Duration) -> Result<File, RegistryError> {
    let file = open_lock(path)?;
    if lock_within(&file, patience).map_err(failed("lock", path))? {
        return Ok(file);
    }
    let holder = holder(&file).unwrap_or_else(|| "another process".to_owned());
    Err(RegistryError::Locked { path: path.to_owned(), holder })
}

fn open_lock(path: &Path) -> Result<File, RegistryError> {
    File::options().create(true).truncate(false).read(true).write(true).open(path).map_err(failed("open", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_that_somebody_keeps_is_refused_with_the_holder_by_name() {
        let path = std::env::temp_dir().join(format!("kiln-registry-lock-{}", std::process::id()));
        let held = lock(&path).unwrap();
        let error = lock_for(&path, Duration::ZERO).unwrap_err();
        assert!(error.to_string().contains(&format!("(pid {})", std::process::id())), "{error}");
        drop(held);
        drop(lock(&path).unwrap());
        fs::remove_file(&path).unwrap();
    }
}
