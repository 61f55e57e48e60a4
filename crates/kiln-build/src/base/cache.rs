//! The directory of finished bases: an entry is whole or absent, one kiln makes it, and what a killed one left is swept.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use kiln_core::artifact::BaseRecord;
use kiln_io::{
    dirs::Dirs,
    fs::{Lock, create_private_dir, failed, is_open_elsewhere, write_atomic},
    random,
    time::{GaveUp, Policy},
};
use serde::{Deserialize, Serialize};

use super::{BaseContext, BaseError};

const RECORD: &str = "base.json";
/// `.lock-<name>` is the directory whose lock is held by whoever makes `name`, in `.work-<name>-<random>`.
const LOCK: &str = ".lock-";
const WORK: &str = ".work-";
/// How long one kiln waits for another that makes the same base.
const PATIENCE: Policy =
    Policy { first: Duration::from_millis(100), max: Duration::from_secs(1), deadline: Duration::from_hours(1) };

/// `base.json`: what an entry is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Entry {
    pub(super) record: BaseRecord,
    /// The disk's file name.
    pub(super) disk: String,
    pub(super) size: u64,
    /// Kernel arguments that name the root file system.
    pub(super) command_line: Option<String>,
    pub(super) tools: BTreeMap<String, String>,
    /// Seconds since 1970.
    pub(super) made: u64,
    /// Seconds and nanoseconds of the disk file's last change: a disk that somebody wrote to is not used again.
    pub(super) changed: (i64, i64),
}

/// `<cache>/bases`.
#[derive(Debug)]
pub(super) struct Cache {
    directory: PathBuf,
}

impl Cache {
    pub(super) fn open(context: &BaseContext) -> Result<Self, BaseError> {
        let directory = context.dirs.cache.join("bases");
        create_private_dir(&directory)?;
        Ok(Self { directory })
    }

    /// The cache without making anything.
    pub(super) fn at(dirs: &Dirs) -> Self {
        Self { directory: dirs.cache.join("bases") }
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// The entry, if it is there and its disk is what was put there.
    pub(super) fn find(&self, name: &str) -> Option<Entry> {
        let directory = self.path(name);
        let entry: Entry = serde_json::from_slice(&fs::read(directory.join(RECORD)).ok()?).ok()?;
        let disk = directory.join(&entry.disk).metadata().ok()?;
        (entry.changed == (disk.mtime(), disk.mtime_nsec())).then_some(entry)
    }

    /// Waits until no other kiln works on `name`; the lock is held as long as the value lives.
    pub(super) async fn lock(&self, name: &str, context: &BaseContext) -> Result<Lock, BaseError> {
        let directory = self.path(&format!("{LOCK}{name}"));
        create_private_dir(&directory)?;
        let holder = format!("kiln with pid {}", std::process::id());
        let lock = Lock::wait(&directory, &holder, &*context.clock, PATIENCE, &context.cancel, |_| {}).await;
        lock.map_err(|gave_up| match gave_up {
            GaveUp::Cancelled => BaseError::Cancelled,
            GaveUp::Deadline(error) | GaveUp::Stopped(error) => error.into(),
        })
    }

    /// A fresh directory to work in, for the holder of the lock on `name`.
    pub(super) fn work(&self, name: &str) -> Result<Work, BaseError> {
        let directory = self.path(&format!("{WORK}{name}-{}", &random::nonce()[..8]));
        create_private_dir(&directory)?;
        Ok(Work { directory })
    }

    /// What killed kilns were working on, with the locks on it.
    pub(super) fn abandoned(&self) -> Vec<(Lock, Vec<PathBuf>)> {
        let mut left: BTreeMap<String, Vec<PathBuf>> = BTreeMap::new();
        for entry in fs::read_dir(&self.directory).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if let Some((name, _)) = name.strip_prefix(WORK).and_then(|name| name.rsplit_once('-')) {
                left.entry(name.to_owned()).or_default().push(entry.path());
            }
        }
        let locked = left.into_iter().filter_map(|(name, work)| {
            let lock =
                Lock::take(&self.path(&format!("{LOCK}{name}")), "kiln, which removes what is left of it").ok()?;
            Some((lock, work))
        });
        locked.collect()
    }

    /// Names of all entries that start with `prefix`, the newest first.
    pub(super) fn entries(&self, prefix: &str) -> Vec<(String, Entry)> {
        let listed = fs::read_dir(&self.directory).into_iter().flatten().flatten();
        let names = listed.map(|entry| entry.file_name().to_string_lossy().into_owned());
        let names = names.filter(|name| name.starts_with(prefix));
        let mut entries: Vec<_> = names.filter_map(|name| self.find(&name).map(|entry| (name, entry))).collect();
        entries.sort_by_key(|(_, entry)| std::cmp::Reverse(entry.made));
        entries
    }

    /// Removes entries that start with `prefix`, oldest first, until `count` are left. One that cannot be removed stays.
    pub(super) fn forget_all_but_the_newest(&self, prefix: &str, count: usize) {
        for (name, _) in self.entries(prefix).into_iter().skip(count) {
            let _ = fs::remove_dir_all(self.path(&name));
        }
    }

    /// Removes entries that `which` means, oldest first, until `count` are left. One that somebody uses stays.
    pub(super) fn forget_unused(&self, which: impl Fn(&str, &Entry) -> bool, count: usize) {
        for (name, entry) in self.entries("").into_iter().filter(|(name, entry)| which(name, entry)).skip(count) {
            let directory = self.path(&name);
            let Ok(_alone) = Lock::take(&directory, "kiln, which removes it") else { continue };
            // The machine of a build that was kept has no kiln any more.
            if !is_open_elsewhere(&directory.join(&entry.disk)) {
                let _ = fs::remove_dir_all(&directory);
            }
        }
    }

    /// Keeps an entry from being forgotten as long as the value lives; `None` when it is just being removed.
    pub(super) fn lease(&self, name: &str) -> Option<Lock> {
        let lock = Lock::share(&self.path(name)).ok()?;
        self.find(name).map(|_| lock)
    }

    /// Makes `work` the entry `name`: record written last, then one rename.
    pub(super) fn put(&self, name: &str, work: &Work, mut entry: Entry) -> Result<Entry, BaseError> {
        let disk = work.path(&entry.disk);
        let metadata = disk.metadata().map_err(failed("read", &disk, 0))?;
        entry.changed = (metadata.mtime(), metadata.mtime_nsec());
        let json = serde_json::to_vec_pretty(&entry).unwrap_or_default();
        write_atomic(&work.path(RECORD), &json, 0o644)?;
        let target = self.path(name);
        if target.exists() {
            // Only an entry whose disk was tampered with is found here: `find` refused it, and we hold the lock.
            fs::remove_dir_all(&target).map_err(failed("remove", &target, 0))?;
        }
        fs::rename(&work.directory, &target).map_err(failed("put into the cache", &target, 0))?;
        Ok(entry)
    }
}

/// A directory that becomes an entry, or goes away when dropped.
#[derive(Debug)]
pub(super) struct Work {
    directory: PathBuf,
}

impl Work {
    /// Takes over what somebody else worked on.
    pub(super) const fn inherit(directory: PathBuf) -> Self {
        Self { directory }
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}
