//! Where a registry lies: in a directory or in a bucket. Both have the same keys, such as `images/web/head.json`; how a record
//! is written once, a head moved, a blob made last and collection kept away is theirs.

pub(crate) mod bucket;
pub(crate) mod directory;
mod stored;

use std::{fmt, io, path::PathBuf, time::SystemTime};

use kiln_core::{Digest, ImageName};

pub use self::stored::StoredBlob;
use crate::{RegistryError, durable::Temporary};

/// A place for everything a registry consists of.
pub(crate) trait Place: Records + Blobs + Leases {}

impl<T: Records + Blobs + Leases> Place for T {}

/// Which state of an object was read: its `ETag` in a bucket; in a directory the identity and the times of the file, when they are
/// old enough that they will never stand for other bytes. Writers need it in a bucket only: in a directory they hold a lock.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Mark(pub(crate) Option<String>);

/// Small files that are read and written whole.
pub(crate) trait Records: fmt::Debug + Send + Sync {
    /// What `key` is called in messages.
    fn path(&self, key: &str) -> PathBuf;

    /// The bytes under `key`, but not more than `longest + 1` of them.
    fn read(&self, key: &str, longest: u64) -> io::Result<Option<(Vec<u8>, Mark)>>;

    /// Makes `key` last, unless it is there already; says whether it did.
    fn create(&self, key: &str, bytes: &[u8]) -> Result<bool, RegistryError>;

    /// Replaces `key`, of which `mark` was read, and makes it last; `None` when somebody else did meanwhile.
    fn replace(&self, key: &str, bytes: &[u8], mark: &Mark) -> Result<Option<Mark>, RegistryError>;

    /// What lies directly under `folder`.
    fn names(&self, folder: &str) -> io::Result<Vec<String>>;

    /// Which state `key` is in, as [`Records::read`] says it. The default where that cannot be told.
    fn mark(&self, key: &str) -> io::Result<Mark>;

    /// When `key` was written last.
    fn modified(&self, key: &str) -> Option<SystemTime>;

    /// Makes names last that others made under `folder`.
    fn settle(&self, folder: &str) -> Result<(), RegistryError>;
}

/// Blobs, by their digest.
pub(crate) trait Blobs {
    /// Whether they lie on this machine, so that reading one costs less than compressing its bytes again.
    fn are_near(&self) -> bool;

    fn open(&self, digest: &Digest) -> io::Result<Option<StoredBlob>>;

    fn size(&self, digest: &Digest) -> io::Result<Option<u64>>;

    /// Every blob with its size. What has no digest for a name is none of ours.
    fn all(&self) -> Result<Vec<(Digest, u64)>, RegistryError>;

    /// Blobs on their way, each made last only by [`Batch::commit`].
    fn batch(&self) -> Box<dyn Batch + '_>;

    /// A file for a blob of `size` bytes that comes in pieces.
    fn spool(&self, digest: &Digest, size: u64) -> Result<Spool, RegistryError>;

    /// Makes what was written into `spool` last as the blob `digest`, which it is.
    fn finish(&self, spool: Spool, digest: &Digest, size: u64) -> Result<(), RegistryError>;

    /// Makes a file here the blob `digest`, if it is; how many bytes were new.
    fn bring(&self, source: &std::path::Path, digest: &Digest, size: u64) -> Result<u64, RegistryError>;

    /// Removes blobs that nobody needs, while `alone`.
    fn remove(&self, unneeded: &[(Digest, u64)], alone: &Lease) -> Result<(), RegistryError>;

    /// Takes the bad blob with this mark out of use; where it went, if it was still there.
    fn set_aside(&self, digest: &Digest, mark: &Mark) -> Result<Option<PathBuf>, RegistryError>;
}

/// Keeps publishers, readers and collection apart.
pub(crate) trait Leases {
    /// What has to be there before the first version of `image` is written, or the first blob.
    fn prepare(&self, image: Option<&ImageName>) -> Result<(), RegistryError>;

    /// Says that somebody publishes, and clears what killed publishers left.
    fn share(&self) -> Result<Lease, RegistryError>;

    /// Says that somebody reads or changes a head; `None` when that needs no saying.
    fn lease(&self) -> Result<Option<Lease>, RegistryError>;

    /// Keeps all others away, or fails when there are any. `None` when nobody ever published.
    fn alone(&self) -> Result<Option<Lease>, RegistryError>;

    /// Keeps others from changing `image`, where the place can.
    fn lock(&self, image: &ImageName) -> Result<Option<Lease>, RegistryError>;

    /// Says that somebody reads the version whose record is `key`, so that it is not removed; `None` where that cannot be said. Fails
    /// when it is being removed.
    fn hold(&self, key: &str) -> Result<Option<Lease>, RegistryError>;

    /// Keeps readers from the version whose record is `key`; `None` when somebody reads it.
    fn claim(&self, key: &str) -> Result<Option<Lease>, RegistryError>;

    /// How often a change that another writer overtook is tried again.
    fn attempts(&self) -> usize;
}

/// Blobs that are written together.
pub(crate) trait Batch {
    /// Takes a blob that is not in the batch yet.
    fn add(&mut self, digest: Digest, bytes: &[u8]) -> Result<(), RegistryError>;

    /// Makes everything last; how many bytes were not there before.
    fn commit(self: Box<Self>) -> Result<u64, RegistryError>;
}

/// A file that is to become a blob. Dropped, it leaves nothing.
#[derive(Debug)]
pub(crate) struct Spool {
    pub(crate) file: std::fs::File,
    pub(crate) name: SpoolName,
}

#[derive(Debug)]
pub(crate) enum SpoolName {
    Temporary(Temporary),
    Unnamed,
}

/// Keeps collection away until it is dropped.
#[derive(Debug)]
pub struct Lease(pub(crate) Held);

#[derive(Debug)]
pub(crate) enum Held {
    /// A locked file: the kernel takes it back when the process dies.
    File { _locked: std::fs::File },
    /// Nothing, where nobody can say that he reads.
    Nothing,
    /// An object that is renewed.
    Object(bucket::lease::Renewed),
}

impl Lease {
    /// Fails when it was lost: the process was stopped for longer than a lease lasts, and others went on without it.
    pub(crate) fn check(&self) -> Result<(), RegistryError> {
        match &self.0 {
            Held::File { .. } | Held::Nothing => Ok(()),
            Held::Object(renewed) => renewed.check(),
        }
    }

    /// The same for one of many steps: it is not looked at again what was looked at a moment ago.
    pub(crate) fn check_step(&self) -> Result<(), RegistryError> {
        match &self.0 {
            Held::File { .. } | Held::Nothing => Ok(()),
            Held::Object(renewed) => renewed.check_step(),
        }
    }
}

pub(crate) fn blob_key(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// The digest that a blob's name says.
pub(crate) fn digest_of_name(name: &str) -> Option<Digest> {
    format!("sha256:{name}").parse().ok()
}
