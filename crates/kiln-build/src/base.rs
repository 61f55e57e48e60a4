//! What a bake starts from, made ready on this machine: a disk that overlays can stand on.
//!
//! Everything lies in `<cache>/bases` and may be deleted at any time: [`debian`] systems under the digest of their inputs,
//! disks made elsewhere under their own digest, published images under their disk digest.

mod bootstrap;
mod cache;
mod debian;
mod disk;
mod image;
mod qcow2;
mod release;
mod sources;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use kiln_core::{
    Digest, ImageName,
    artifact::BaseRecord,
    event::{Event, Events},
    plan::{Base, ImageVersion, Login},
};
use kiln_io::{
    dirs::Dirs,
    download::DownloadError,
    error::{FsError, ProcessError},
    fs::Lock,
    time::Clock,
};
use tokio_util::sync::CancellationToken;

use self::cache::{Cache, Work};

/// A base in the cache, verified and never written to again.
#[derive(Debug, Clone)]
pub struct PreparedBase {
    pub disk: PathBuf,
    pub format: DiskFormat,
    /// Virtual size in bytes.
    pub size: u64,
    pub login: Login,
    /// Kernel and initrd to boot directly, where the base has them beside the disk.
    pub kernel: Option<DirectKernel>,
    pub record: BaseRecord,
    /// Tool name to version of what made it.
    pub tools: BTreeMap<String, String>,
    /// Keeps it in the cache as long as it is used, where others may make room.
    pub lease: Option<Arc<Lock>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskFormat {
    Raw,
    Qcow2,
}

#[derive(Debug, Clone)]
pub struct DirectKernel {
    pub kernel: PathBuf,
    pub initrd: PathBuf,
    /// Without the console and without what kiln adds for a bake.
    pub command_line: String,
}

/// The world as a base needs it.
#[derive(Debug, Clone)]
pub struct BaseContext {
    pub dirs: Dirs,
    pub events: Arc<dyn Events>,
    pub clock: Arc<dyn Clock>,
    /// Where the disks of published images come from.
    pub images: Option<Arc<dyn Images>>,
    pub cancel: CancellationToken,
}

/// Lays down the disks of published images.
pub trait Images: Send + Sync + std::fmt::Debug {
    /// Writes the qcow2 of a version to `to`, every byte verified. `watch` gets the bytes done and says whether to go on.
    fn lay_down(
        &self,
        image: &ImageName,
        version: &ImageVersion,
        to: &Path,
        watch: &dyn Fn(u64) -> bool,
    ) -> Result<(), NotLaidDown>;
}

/// Why the disk of a published image is not there.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct NotLaidDown {
    pub message: String,
    pub hint: Option<String>,
}

/// Why a base is not ready.
#[derive(Debug, thiserror::Error)]
pub enum BaseError {
    #[error("{wanted} is an AMI, and those are not on this machine")]
    Elsewhere { wanted: String },
    #[error("cannot build the base `{name}`: mmdebstrap failed{}", cause.as_deref().map(|cause| format!(": {cause}")).unwrap_or_default())]
    Bootstrap {
        name: String,
        /// Its own words for why, where they are known.
        cause: Option<String>,
        hint: Option<String>,
        #[source]
        source: Box<ProcessError>,
    },
    #[error("kiln cannot build a base for Debian `{suite}`; it knows `bookworm` and `trixie`")]
    Suite { suite: String },
    #[error("cannot write the disk of the base `{name}`")]
    Disk {
        name: String,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("the base `{name}` is not a disk image that kiln accepts")]
    Refused {
        name: String,
        #[source]
        source: kiln_disk::qcow2::header::Refusal,
    },
    #[error("the base `{path}` is not the file that was planned with: expected {expected}, got {got}")]
    Changed { path: String, expected: Digest, got: Digest },
    #[error("the disk of `{name}` cannot be laid down")]
    Image {
        name: String,
        #[source]
        source: NotLaidDown,
    },
    #[error("the base `{name}` is not built yet")]
    NotBuilt { name: String },
    #[error(transparent)]
    Download(Box<DownloadError>),
    #[error(transparent)]
    Fs(#[from] FsError),
    #[error(transparent)]
    Process(#[from] ProcessError),
    #[error("cancelled")]
    Cancelled,
}

impl From<DownloadError> for BaseError {
    fn from(error: DownloadError) -> Self {
        match error {
            DownloadError::Cancelled => Self::Cancelled,
            error => Self::Download(Box::new(error)),
        }
    }
}

impl BaseError {
    /// What to try next, where that is known.
    pub fn hint(&self) -> Option<&str> {
        match self {
            Self::Bootstrap { hint, .. } => hint.as_deref(),
            Self::Image { source, .. } => source.hint.as_deref(),
            _ => None,
        }
    }
}

/// Finds the base in the cache or makes it. Several kilns may ask for the same at once; one makes it.
pub async fn prepare(base: &Base, context: &BaseContext) -> Result<PreparedBase, BaseError> {
    if let Err(error) = sweep(&context.dirs).await {
        let message = format!("what an interrupted kiln left of a base is still there: {error}");
        context.events.emit(Event::Warning { message });
    }
    let prepared = match base {
        Base::Debian(debian) => debian::prepare(debian, context).await,
        Base::Qcow2(qcow2) => qcow2::prepare(qcow2, context).await,
        Base::Image(image) => image::prepare(image, context).await,
        Base::Ami(ami) => Err(BaseError::Elsewhere { wanted: ami.wanted.to_string() }),
    }?;
    Cache::at(&context.dirs).used(&prepared.disk, context.clock.wall());
    Ok(prepared)
}

/// The base as the cache has it, without asking anybody: `None` when it is not there. A mirror may know a newer one.
pub fn known(base: &Base, dirs: &Dirs) -> Option<PreparedBase> {
    match base {
        Base::Debian(debian) => debian::known(debian, dirs),
        Base::Qcow2(qcow2) => qcow2::known(qcow2, dirs),
        Base::Image(image) => image::known(image, dirs),
        Base::Ami(_) => None,
    }
}

/// How many bases killed kilns left half made.
pub fn half_made(dirs: &Dirs) -> usize {
    Cache::at(dirs).abandoned().iter().map(|(_lock, left)| left.len()).sum()
}

/// Removes what killed kilns left of bases that they were making; how many those were. One that cannot be removed keeps
/// none of the others.
pub async fn sweep(dirs: &Dirs) -> Result<usize, BaseError> {
    let mut swept = Ok(0);
    for (_lock, left) in Cache::at(dirs).abandoned() {
        for directory in left {
            let removed = bootstrap::sweep(&Work::inherit(directory)).await;
            swept = swept.and_then(|count| removed.map(|()| count + 1));
        }
    }
    swept
}

/// Calls `remove` with the path of every base, and of what else is kept to make one, that was not used for `age`, while
/// nobody can begin to use it. A `dry` run leaves no trace of itself.
pub fn forget_older(dirs: &Dirs, age: Duration, now: SystemTime, dry: bool, remove: &mut dyn FnMut(&Path)) {
    Cache::at(dirs).forget_older(age, now, dry, remove);
}

/// A shell script that gives the root file system the whole disk, to be run as root in the guest before anything else:
/// the overlay of a bake is as large as the template asks for, the base is not. Quick where there is nothing to do.
pub fn grow_script() -> &'static str {
    include_str!("base/grow.sh")
}
