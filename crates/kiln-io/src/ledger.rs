//! What a build has acquired and not yet released: one append-only file of JSON lines a build, `ledger.jsonl`.
//!
//! A record is on the disk before the thing it names is made, so whatever kills kiln, the next run knows what may be
//! left. A last line without its end was never acted upon and does not count.

mod activity;
mod reap;
mod record;

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Component, Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
};
use serde::{Deserialize, Serialize};

pub use activity::{Activity, last_activity};
pub use reap::{BuildReport, Choice, Condition, reap, release_all, survey};

use crate::{dirs::Dirs, process::Identity};
use record::Record;

/// The format this kiln writes, and the newest it reads. 2: things in the account of a provider.
pub const FORMAT: u32 = 2;

/// The file's name in the build's directory.
pub const FILE: &str = "ledger.jsonl";
/// How often the lock of an owner is looked at before it is believed.
const LOOKS: usize = 4;
const BETWEEN_LOOKS: Duration = Duration::from_millis(5);

/// Something that must not outlive the build.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Resource {
    /// A process that has `marker` as one whole argument. `identity` is unknown until it has started.
    Process {
        marker: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        identity: Option<Identity>,
    },
    File {
        path: PathBuf,
    },
    /// A directory with everything in it.
    Directory {
        path: PathBuf,
    },
    /// Everything in an account that carries the mark `intent`. Only who knows the provider can release it.
    Remote(Remote),
}

/// What is made in somebody's account on behalf of one intent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remote {
    /// `aws`.
    pub provider: String,
    pub account: String,
    pub region: String,
    /// Nobody else ever has the same; stands as a tag on all that is made.
    pub intent: String,
    /// What it is for; who wants the same thing takes an abandoned intent over.
    pub subject: String,
    /// The registry that knows the thing once it is whole and no longer to be released.
    pub catalog: PathBuf,
}

/// Names one acquired thing within its ledger.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct EntryId(String);

/// Something acquired and not released.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outstanding {
    pub id: EntryId,
    /// A noun for people: `VM`, `overlay`.
    pub what: String,
    pub resource: Resource,
}

/// What a ledger says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Journal {
    pub build: String,
    /// The kiln that runs the build; the last one that opened the ledger.
    pub owner: Identity,
    /// A person wants what is outstanding (`--on-error keep`).
    pub kept: bool,
    /// In the order of acquisition.
    pub outstanding: Vec<Outstanding>,
}

/// The ledger cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    #[error("cannot {operation} the ledger `{}`", path.display())]
    Io {
        operation: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the ledger `{}` has format {format}, written by kiln {kiln}; this kiln reads up to format {FORMAT}: use kiln {kiln} or newer to clean it", path.display())]
    Newer { path: PathBuf, format: u32, kiln: String },
    #[error("the ledger `{}` is damaged at line {line}: {reason}; look at it and remove what it names by hand", path.display())]
    Damaged { path: PathBuf, line: usize, reason: String },
    #[error("`{}` lies outside `{}` and `{}`; kiln only ever releases what is inside", path.display(), build.display(), cache.display())]
    Outside { path: PathBuf, build: PathBuf, cache: PathBuf },
}

/// An open ledger. Several processes may append to the same file.
#[derive(Debug)]
pub struct Ledger {
    file: Mutex<File>,
    path: PathBuf,
    bounds: Bounds,
    /// Unique among the processes that append.
    prefix: String,
    /// The owner's lock on the build's directory. It ends with the owner, and is seen where its process is not: in another
    /// container.
    _claim: Option<File>,
    next: AtomicU64,
}

/// The directories inside which something may be deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Bounds {
    pub(crate) build: PathBuf,
    pub(crate) cache: PathBuf,
}

impl Ledger {
    /// Opens the ledger of a build, made if missing together with the build's directory, and records this process as
    /// the build's owner.
    pub fn open(dirs: &Dirs, build: &str) -> Result<Self, LedgerError> {
        let directory = dirs.build(build);
        let made = fs::DirBuilder::new();
        let ledger = make_private(made, &directory)
            .map_err(|source| LedgerError::Io {
                operation: "make the directory of",
                path: directory.join(FILE),
                source,
            })
            .and_then(|()| Self::append(dirs, build))?;
        let owner = Identity::of(std::process::id()).ok_or_else(|| LedgerError::Io {
            operation: "find kiln's own process for",
            path: ledger.path.clone(),
            source: io::ErrorKind::NotFound.into(),
        })?;
        let kiln = env!("CARGO_PKG_VERSION").to_owned();
        // A file system without locks leaves the process to tell who lives. Nobody holds the other lock for longer than a look.
        let claim = File::open(&directory).ok();
        let claim = claim.filter(|claim| flock(claim, FlockOperation::LockShared).is_ok());
        ledger.write(&Record::Opened { format: FORMAT, kiln, build: build.to_owned(), owner })?;
        Ok(Self { _claim: claim, ..ledger })
    }

    /// Appends to an existing ledger without becoming the owner.
    pub fn join(dirs: &Dirs, build: &str) -> Result<Self, LedgerError> {
        read(&dirs.build(build))?;
        Self::append(dirs, build)
    }

    fn append(dirs: &Dirs, build: &str) -> Result<Self, LedgerError> {
        let directory = dirs.build(build);
        let path = directory.join(FILE);
        let failed = |operation| {
            let path = path.clone();
            move |source| LedgerError::Io { operation, path, source }
        };
        let mut options = OpenOptions::new();
        options.read(true).append(true).create(true).mode(0o600);
        let mut file = options.open(&path).map_err(failed("open"))?;
        drop_torn_line(&mut file).map_err(failed("repair"))?;
        let synced = File::open(&directory).and_then(|directory| directory.sync_all());
        synced.map_err(failed("sync the directory of"))?;
        Ok(Self {
            file: Mutex::new(file),
            bounds: Bounds { build: directory, cache: dirs.cache.clone() },
            prefix: format!("{}-{}", std::process::id(), &crate::random::nonce()[..6]),
            next: AtomicU64::new(1),
            _claim: None,
            path,
        })
    }

    /// Records that `resource` is about to exist. Make it only after this has returned.
    pub fn acquire(&self, what: &str, resource: Resource) -> Result<EntryId, LedgerError> {
        if let Resource::File { path } | Resource::Directory { path } = &resource {
            self.bounds.check(path)?;
        }
        let id = EntryId(format!("{}-{}", self.prefix, self.next.fetch_add(1, Ordering::Relaxed)));
        self.write(&Record::Acquired { id: id.clone(), what: what.to_owned(), resource })?;
        Ok(id)
    }

    /// Shorthand for a file.
    pub fn acquire_file(&self, what: &str, path: &Path) -> Result<EntryId, LedgerError> {
        self.acquire(what, Resource::File { path: path.to_owned() })
    }

    /// Shorthand for a directory.
    pub fn acquire_directory(&self, what: &str, path: &Path) -> Result<EntryId, LedgerError> {
        self.acquire(what, Resource::Directory { path: path.to_owned() })
    }

    /// A process acquired before now has started.
    pub fn started(&self, id: &EntryId, identity: &Identity) -> Result<(), LedgerError> {
        self.write(&Record::Started { id: id.clone(), identity: identity.clone() })
    }

    /// The thing is gone, or belongs to somebody else from now on.
    pub fn release(&self, id: &EntryId) -> Result<(), LedgerError> {
        self.write(&Record::Released { id: id.clone() })
    }

    /// What is outstanding stays when kiln leaves, because a person wants to look at it.
    pub fn keep(&self) -> Result<(), LedgerError> {
        self.write(&Record::Kept)
    }

    /// The build's directory.
    pub fn directory(&self) -> &Path {
        &self.bounds.build
    }

    pub(crate) fn bounds(&self) -> &Bounds {
        &self.bounds
    }

    fn write(&self, record: &Record) -> Result<(), LedgerError> {
        let failed = |source| LedgerError::Io { operation: "write", path: self.path.clone(), source };
        let mut line = serde_json::to_vec(record).map_err(|error| failed(io::Error::other(error)))?;
        line.push(b'\n');
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        // Two processes append to one ledger; the lock keeps one from cutting off what the other is writing.
        flock(&*file, FlockOperation::LockExclusive).map_err(|error| failed(error.into()))?;
        let written = append_line(&mut file, &line);
        let _ = flock(&*file, FlockOperation::Unlock);
        written.map_err(failed)
    }
}

/// Whether the owner of the build in `directory` lives, wherever its process is.
pub fn is_owned(directory: &Path, journal: &Journal) -> bool {
    journal.owner.alive() || is_claimed(directory)
}

fn is_claimed(directory: &Path) -> bool {
    let blocked = || {
        let look = File::open(directory).map(|directory| flock(&directory, FlockOperation::NonBlockingLockExclusive));
        matches!(look, Ok(Err(Errno::WOULDBLOCK)))
    };
    // Somebody else may be looking at the same moment, who is gone the next time.
    (0..LOOKS).all(|look| {
        if look > 0 {
            thread::sleep(BETWEEN_LOOKS);
        }
        blocked()
    })
}

/// What the ledger in a build's directory says.
pub fn read(directory: &Path) -> Result<Journal, LedgerError> {
    let path = directory.join(FILE);
    let text = fs::read(&path).map_err(|source| LedgerError::Io { operation: "read", path: path.clone(), source })?;
    record::replay(&path, &text)
}

fn make_private(mut builder: fs::DirBuilder, directory: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    builder.recursive(true).mode(0o700).create(directory)
}

/// Appends a whole line or, on a full disk, nothing.
fn append_line(file: &mut File, line: &[u8]) -> io::Result<()> {
    drop_torn_line(file)?;
    let before = file.metadata()?.len();
    file.write_all(line).and_then(|()| file.sync_data()).inspect_err(|_| {
        let _ = file.set_len(before);
    })
}

/// Cuts off a last line that a kill or a power cut left without its end.
fn drop_torn_line(file: &mut File) -> io::Result<()> {
    let mut last = [b'\n'];
    if file.metadata()?.len() > 0 {
        file.seek(SeekFrom::End(-1))?;
        file.read_exact(&mut last)?;
    }
    if last == *b"\n" {
        return Ok(());
    }
    let mut text = Vec::new();
    file.seek(SeekFrom::Start(0))?;
    file.read_to_end(&mut text)?;
    let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    file.set_len(whole as u64)
}

impl Bounds {
    /// Refuses a path that is not strictly inside the build's or the cache's directory, as written.
    pub(crate) fn check(&self, path: &Path) -> Result<(), LedgerError> {
        let plain = path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
        let inside = |root: &Path| path.starts_with(root) && path != root;
        if plain && path.is_absolute() && (inside(&self.build) || inside(&self.cache)) {
            return Ok(());
        }
        let Self { build, cache } = self.clone();
        Err(LedgerError::Outside { path: path.to_owned(), build, cache })
    }
}

#[cfg(test)]
mod tests;
