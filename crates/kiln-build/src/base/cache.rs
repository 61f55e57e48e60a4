//! The directory of finished bases: an entry is whole or absent, one kiln makes it, and what a killed one left is swept.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs::{self, File},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use kiln_core::artifact::BaseRecord;
use kiln_io::{
    dirs::Dirs,
    error::FsError,
    fs::{Lock, create_private_dir, failed, is_open_elsewhere, write_atomic},
    random,
    time::{GaveUp, Policy},
};
use serde::{Deserialize, Serialize};

use super::{BaseContext, BaseError};

const RECORD: &str = "base.json";
/// What boots an entry that has a command line, beside its disk.
pub(super) const KERNEL: &str = "vmlinuz";
pub(super) const INITRD: &str = "initrd";
/// In a work directory, a link to what lies outside of it.
pub(super) const NOTE: &str = "scratch";
/// `.lock-<name>` is the directory whose lock is held by whoever makes `name`, in `.work-<name>-<random>`.
const LOCK: &str = ".lock-";
const WORK: &str = ".work-";
/// Downloads on their way: `<digest>` and names that begin with it, for the holder of the lock on `qcow2-<digest>`.
pub(super) const DOWNLOADS: &str = ".downloads";
pub(super) const DOWNLOADED: &str = "qcow2-";
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

    /// The entry, if it is there, its disk is what was put there, and it can be booted as it says.
    pub(super) fn find(&self, name: &str) -> Option<Entry> {
        let directory = self.path(name);
        let entry: Entry = serde_json::from_slice(&fs::read(directory.join(RECORD)).ok()?).ok()?;
        let disk = directory.join(&entry.disk).metadata().ok()?;
        let holds = |name| directory.join(name).metadata().is_ok_and(|file| file.len() > 0);
        let boots = entry.command_line.is_none() || holds(KERNEL) && holds(INITRD);
        (boots && entry.changed == (disk.mtime(), disk.mtime_nsec())).then_some(entry)
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

    /// Calls `remove` with whatever nobody used for `age`, while nobody can begin to. Locks stay, and what is half made is for
    /// a sweep. A `dry` run leaves no trace of itself.
    pub(super) fn forget_older(&self, age: Duration, now: SystemTime, dry: bool, remove: &mut dyn FnMut(&Path)) {
        let old = |path: &Path| now.duration_since(last_used(path)).unwrap_or_default() >= age;
        for path in children(&self.directory) {
            let name = path.file_name().map(OsStr::to_string_lossy).unwrap_or_default();
            if name == DOWNLOADS {
                for part in children(&path).into_iter().filter(|part| old(part)) {
                    let name = part.file_name().map(OsStr::to_string_lossy).unwrap_or_default();
                    let digest = name.split('.').next().unwrap_or_default();
                    if let Ok(_alone) = alone(&self.path(&format!("{LOCK}{DOWNLOADED}{digest}")), dry) {
                        remove(&part);
                    }
                }
            } else if !name.starts_with(LOCK)
                && !name.starts_with(WORK)
                && old(&path)
                && let Ok(_alone) = alone(&path, dry)
                // The machine of a build that was kept has no kiln any more.
                && !files(&path).iter().any(|file| is_open_elsewhere(file))
            {
                remove(&path);
            }
        }
    }

    /// Notes that the entry of `disk` is used now; the disk's own time of reading is not kept everywhere.
    pub(super) fn used(&self, disk: &Path, now: SystemTime) {
        if let Some(entry) = disk.parent().filter(|entry| entry.parent() == Some(&self.directory)) {
            // One that is not ours to change is not ours to remove either.
            let _ = File::open(entry).and_then(|entry| entry.set_modified(now));
        }
    }

    /// Keeps an entry from being forgotten as long as the value lives; `None` when it is just being removed.
    pub(super) fn lease(&self, name: &str) -> Option<Lock> {
        let lock = Lock::share(&self.path(name)).ok()?;
        self.find(name).map(|_| lock)
    }

    /// Makes `work` the entry `name`: its files on the disk, the record after them, then one rename. A rename may outlive a
    /// power cut that bytes written before it do not.
    pub(super) fn put(&self, name: &str, work: &Work, mut entry: Entry) -> Result<Entry, BaseError> {
        for path in children(&work.directory).into_iter().filter(|path| path.is_file()) {
            File::open(&path).and_then(|file| file.sync_all()).map_err(failed("sync", &path, 0))?;
        }
        let disk = work.path(&entry.disk);
        let metadata = disk.metadata().map_err(failed("read", &disk, 0))?;
        entry.changed = (metadata.mtime(), metadata.mtime_nsec());
        let json = serde_json::to_vec_pretty(&entry).unwrap_or_default();
        // This syncs the directory too.
        write_atomic(&work.path(RECORD), &json, 0o644)?;
        let target = self.path(name);
        if target.exists() {
            // Only an entry that was tampered with is found here: `find` refused it, and we hold the lock.
            fs::remove_dir_all(&target).map_err(failed("remove", &target, 0))?;
        }
        fs::rename(&work.directory, &target).map_err(failed("put into the cache", &target, 0))?;
        Ok(entry)
    }
}

/// When a file, or an entry with its files, was made, used or read last.
fn last_used(path: &Path) -> SystemTime {
    let read = files(path).into_iter().filter_map(|file| file.metadata().ok()?.accessed().ok());
    let changed = path.metadata().and_then(|metadata| metadata.modified()).ok();
    read.chain(changed).max().unwrap_or(SystemTime::UNIX_EPOCH)
}

/// What an entry is for: not its record, which everybody reads who looks for another.
fn files(entry: &Path) -> Vec<PathBuf> {
    children(entry).into_iter().filter(|file| !file.ends_with(RECORD) && !file.ends_with(".lock")).collect()
}

/// The lock that lies in `directory`, if nobody else has it.
fn alone(directory: &Path, dry: bool) -> Result<Option<Lock>, FsError> {
    // One that is not there has no holder; only who removes something has to make it.
    let free = !directory.is_dir() || dry && !directory.join(".lock").exists();
    if free { Ok(None) } else { Lock::take(directory, "kiln, which removes it").map(Some) }
}

fn children(directory: &Path) -> Vec<PathBuf> {
    let mut children: Vec<_> = fs::read_dir(directory).into_iter().flatten().flatten().map(|it| it.path()).collect();
    children.sort();
    children
}

/// A directory that becomes an entry, or goes away when dropped: but not as long as it alone knows what lies outside of it.
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
        if fs::read_link(self.path(NOTE)).is_err() {
            let _ = fs::remove_dir_all(&self.directory);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs::FileTimes, os::unix::fs::symlink};

    use kiln_core::Digest;

    use super::*;

    const DAY: Duration = Duration::from_hours(24);

    fn cache() -> (tempfile::TempDir, Cache) {
        let directory = tempfile::tempdir().unwrap();
        let cache = Cache { directory: directory.path().to_owned() };
        (directory, cache)
    }

    fn put(cache: &Cache, name: &str) -> PathBuf {
        let work = cache.work(name).unwrap();
        for file in ["disk.raw", KERNEL, INITRD] {
            fs::write(work.path(file), file).unwrap();
        }
        let digest = Digest::of(b"");
        let entry = Entry {
            record: BaseRecord { name: name.to_owned(), digest, key: digest, parent: None },
            disk: "disk.raw".to_owned(),
            size: 8,
            command_line: Some("ro".to_owned()),
            tools: BTreeMap::new(),
            made: 0,
            changed: (0, 0),
        };
        cache.put(name, &work, entry).unwrap();
        cache.path(name)
    }

    /// Makes everything in the cache as old as something can be.
    fn age(path: &Path) {
        if path.is_dir() {
            for child in children(path) {
                age(&child);
            }
        }
        let times = FileTimes::new().set_accessed(SystemTime::UNIX_EPOCH).set_modified(SystemTime::UNIX_EPOCH);
        File::open(path).unwrap().set_times(times).unwrap();
    }

    fn forgotten(cache: &Cache, dry: bool) -> Vec<String> {
        let mut names = Vec::new();
        cache.forget_older(DAY, SystemTime::UNIX_EPOCH + 30 * DAY, dry, &mut |path| {
            names.push(path.file_name().unwrap().to_string_lossy().into_owned());
        });
        names
    }

    #[test]
    fn an_entry_without_a_whole_kernel_or_initrd_is_none() {
        let (_directory, cache) = cache();
        for file in [KERNEL, INITRD] {
            let entry = put(&cache, "a");
            assert!(cache.find("a").is_some());
            fs::write(entry.join(file), "").unwrap();
            assert_eq!(cache.find("a"), None);
            fs::remove_file(entry.join(file)).unwrap();
            assert_eq!(cache.find("a"), None);
        }
    }

    #[test]
    fn work_that_notes_something_outside_of_it_stays() {
        let (_directory, cache) = cache();
        let work = cache.work("a").unwrap();
        let path = work.directory().to_owned();
        symlink("/var/tmp/kiln-base-x", path.join(NOTE)).unwrap();
        drop(work);
        assert!(path.exists());
        fs::remove_file(path.join(NOTE)).unwrap();
        drop(Work::inherit(path.clone()));
        assert!(!path.exists());
    }

    #[test]
    fn forgets_what_is_old_but_not_what_is_used_or_made() {
        let (directory, cache) = cache();
        for name in ["old", "leased", "used"] {
            put(&cache, name);
        }
        let work = cache.work("half").unwrap();
        for lock in ["half", "qcow2-aa"] {
            create_private_dir(&cache.path(&format!("{LOCK}{lock}"))).unwrap();
        }
        create_private_dir(&cache.path(DOWNLOADS)).unwrap();
        for part in ["aa.part", "aa.part.json", "bb.part"] {
            fs::write(cache.path(DOWNLOADS).join(part), "").unwrap();
        }
        let lease = cache.lease("leased").unwrap();
        let loading = Lock::take(&cache.path(".lock-qcow2-aa"), "a download").unwrap();
        age(directory.path());
        cache.used(&cache.path("used").join("disk.raw"), SystemTime::UNIX_EPOCH + 30 * DAY);
        for dry in [true, true, false] {
            assert_eq!(forgotten(&cache, dry), ["bb.part", "old"]);
        }
        drop((lease, loading, work));
        age(&cache.path("old"));
        assert_eq!(forgotten(&cache, false), ["aa.part", "aa.part.json", "bb.part", "leased", "old"]);
    }
}
