//! A lock on a directory that dies with its holder.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Seek as _, Write as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::fs::{FlockOperation, fcntl_lock, flock, major, minor};

use super::failed;
use tokio_util::sync::CancellationToken;

use crate::{
    error::FsError,
    time::{Attempt, Clock, GaveUp, Policy, done_within, poll_until},
};

/// What a program that was just started may hold a lock of its parent for.
const MOMENT: Duration = Duration::from_millis(100);

/// Holds `<directory>/.lock` by flock(2) until dropped, or until the process ends however it ends.
#[derive(Debug)]
pub struct Lock {
    _file: File,
    path: PathBuf,
}

impl Lock {
    /// Takes the lock at once or says who has it. `holder` is for people: `build b-1 (pid 7)`.
    pub fn take(directory: &Path, holder: &str) -> Result<Self, FsError> {
        let path = directory.join(".lock");
        let opened = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(&path);
        let mut file = opened.map_err(failed("open the lock", &path, 0))?;
        if !lock_within(&file, MOMENT).map_err(failed("lock", &path, 0))? {
            let holder = fs::read_to_string(&path).unwrap_or_default().trim().to_owned();
            let holder = if holder.is_empty() { "another kiln".to_owned() } else { holder };
            return Err(FsError::Locked { path: directory.to_owned(), holder });
        }
        let named = file.set_len(0).and_then(|()| file.rewind()).and_then(|()| writeln!(file, "{holder}"));
        named.map_err(failed("write", &path, holder.len() as u64))?;
        Ok(Self { _file: file, path })
    }

    /// The same, waiting as long as `policy` allows while somebody has it; `busy` is told once who that is.
    pub async fn wait(
        directory: &Path,
        holder: &str,
        clock: &dyn Clock,
        policy: Policy,
        cancel: &CancellationToken,
        busy: impl FnOnce(&FsError),
    ) -> Result<Self, GaveUp<FsError>> {
        let mut busy = Some(busy);
        let attempt = || {
            let attempt = match Self::take(directory, holder) {
                Ok(lock) => Attempt::Done(lock),
                Err(error @ FsError::Locked { .. }) => {
                    if let Some(busy) = busy.take() {
                        busy(&error);
                    }
                    Attempt::Again(error)
                }
                Err(error) => Attempt::Stop(error),
            };
            std::future::ready(attempt)
        };
        poll_until(clock, policy, cancel, attempt).await
    }

    /// Shares `<directory>/.lock` with other readers; whoever wants it alone is refused meanwhile.
    pub fn share(directory: &Path) -> Result<Self, FsError> {
        let path = directory.join(".lock");
        let opened = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(&path);
        let file = opened.map_err(failed("open the lock", &path, 0))?;
        match flock(&file, FlockOperation::NonBlockingLockShared) {
            Ok(()) => Ok(Self { _file: file, path }),
            Err(rustix::io::Errno::WOULDBLOCK) => {
                Err(FsError::Locked { path: directory.to_owned(), holder: "another kiln".to_owned() })
            }
            Err(error) => Err(failed("lock", &path, 0)(error.into())),
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Locks an open file for its holder alone, waiting for others up to `patience`; false if they still have it then. A program
/// that was just started holds what its parent had open until it runs: so a lock may outlive its holder for a moment.
pub fn lock_within(file: &File, patience: Duration) -> io::Result<bool> {
    done_within(patience, || match flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(false),
        Err(error) => Err(error.into()),
    })
}

/// Who holds a lock on `file` by flock(2), for people: `kiln promote (pid 7)`. `None` when the kernel does not say.
pub fn holder(file: &File) -> Option<String> {
    let metadata = file.metadata().ok()?;
    let name = format!("{:02x}:{:02x}:{}", major(metadata.dev()), minor(metadata.dev()), metadata.ino());
    let locks = fs::read_to_string("/proc/locks").ok()?;
    let pid = locks.lines().find_map(|line| {
        // `7: FLOCK  ADVISORY  WRITE 4711 fe:00:1234 0 EOF`; of one who waits, `->` stands before the kind.
        let fields: Vec<_> = line.split_whitespace().collect();
        let held = fields.get(1) == Some(&"FLOCK") && fields.get(5) == Some(&name.as_str());
        held.then(|| fields[4].parse::<u32>().ok())?
    })?;
    let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let mut words = arguments.split(|byte| *byte == 0).map(String::from_utf8_lossy);
    let program = words.next().map(|program| program.rsplit('/').next().unwrap_or_default().to_owned());
    let words: Vec<_> =
        program.into_iter().chain(words.next().map(Into::into)).filter(|word| !word.is_empty()).collect();
    Some(if words.is_empty() { format!("pid {pid}") } else { format!("{} (pid {pid})", words.join(" ")) })
}

/// Whether another process holds a record lock on a file, as QEMU does on every image it has open.
pub fn is_open_elsewhere(path: &Path) -> bool {
    let Ok(file) = OpenOptions::new().read(true).write(true).open(path) else { return false };
    let taken = fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive);
    // Dropping the file gives the lock back.
    taken.is_err()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Other tests start programs, which hold a lock of ours for a moment longer than we do.
    fn is_free(directory: &Path) -> bool {
        let file = File::options().read(true).write(true).open(directory.join(".lock")).unwrap();
        lock_within(&file, Duration::from_mins(1)).unwrap()
    }

    #[test]
    fn the_second_taker_learns_who_holds_it() {
        let directory = tempfile::tempdir().unwrap();
        let first = Lock::take(directory.path(), "build b-1").unwrap();
        let error = Lock::take(directory.path(), "build b-2").unwrap_err();
        assert!(error.to_string().ends_with("is in use by build b-1"), "{error}");
        drop(first);
        assert!(is_free(directory.path()));
    }

    #[test]
    fn waits_for_a_holder_that_is_about_to_go_and_gives_up_on_one_that_stays() {
        let directory = tempfile::tempdir().unwrap();
        let reader = Lock::share(directory.path()).unwrap();
        let file = File::options().read(true).write(true).open(reader.path()).unwrap();
        assert!(!lock_within(&file, Duration::ZERO).unwrap());
        let gone = std::thread::spawn(move || drop(reader));
        assert!(lock_within(&file, Duration::from_mins(1)).unwrap());
        gone.join().unwrap();
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "the holder is another program")]
    fn the_holder_of_a_lock_is_named_with_its_program_and_pid() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lock");
        let file = File::create(&path).unwrap();
        assert_eq!(holder(&file), None);
        let mut flock_sleep = std::process::Command::new("flock");
        let mut child = flock_sleep.arg("--no-fork").arg(&path).args(["sleep", "600"]).spawn().unwrap();
        while lock_within(&file, Duration::ZERO).unwrap() {
            flock(&file, FlockOperation::Unlock).unwrap();
            std::thread::yield_now();
        }
        // While it turns from `flock` into `sleep` it has no name.
        let mut named = String::new();
        let told: io::Result<bool> = done_within(Duration::from_mins(1), || {
            named = holder(&file).unwrap_or_default();
            Ok(!named.is_empty() && !named.starts_with("pid"))
        });
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(told.unwrap() && named.ends_with(&format!("(pid {})", child.id())), "{named}");
    }

    #[test]
    fn readers_share_and_keep_out_who_wants_it_alone() {
        let directory = tempfile::tempdir().unwrap();
        let readers = [Lock::share(directory.path()).unwrap(), Lock::share(directory.path()).unwrap()];
        assert!(matches!(Lock::take(directory.path(), "me"), Err(FsError::Locked { .. })));
        drop(readers);
        assert!(is_free(directory.path()));
        let alone = Lock::take(directory.path(), "me").unwrap();
        assert!(matches!(Lock::share(directory.path()), Err(FsError::Locked { .. })));
        drop(alone);
    }
}
