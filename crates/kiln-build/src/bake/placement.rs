//! The same place as last time: before it is sealed, the disk's file tree is brought to the places of the version before.
//!
//! The result is proven by `e2fsck` and by reading both trees; where it cannot be had, the disk is sealed as it is, and
//! the reason is a warning.

use std::{
    fmt,
    fs::File,
    path::{Path, PathBuf},
    sync::Arc,
};

use async_trait::async_trait;
use kiln_core::{
    Version,
    artifact::{Artifact, Placement},
    event::{Event, Phase},
    plan::{Plan, VersionSpec},
};
use kiln_disk::{
    DiskFile, FileBytes, GuestDisk, ReadAt,
    placement::{self, PlacementError},
    seal::StoredFrames,
};
use kiln_io::{
    error::{FsError, ProcessError},
    fs,
    ledger::{EntryId, Ledger},
    process::{self, Limits, Spec},
};

use super::{BakeContext, BakeError, journal::Journal, prove::blocking};

/// Versions in a row that are placed on the one before; the next is laid out anew, so that nothing frays for ever.
const GENERATIONS: u32 = 30;

/// The version of the image before this one.
#[derive(Debug, Clone)]
pub struct Previous {
    pub artifact: Artifact,
    pub disk: Arc<dyn PublishedDisk>,
}

/// A disk that is published.
#[async_trait]
pub trait PublishedDisk: Send + Sync + fmt::Debug {
    /// Writes the raw disk to `to`; what went wrong in words.
    async fn lay_down(&self, to: &Path) -> Result<(), String>;

    /// Its stored frames, which are taken for what did not change; `None` when they are not on this machine. May read files.
    fn frames(&self) -> Option<Box<dyn StoredFrames>>;
}

/// What became of the disk.
pub(super) enum Placed {
    /// The tree is that of the version before.
    Same(Version),
    /// A disk of one raw file with the same tree; its directory's entry in the ledger.
    Anew { disk: PathBuf, entry: EntryId, record: Placement },
    /// It is sealed as it is.
    AsItIs,
}

#[derive(Debug, thiserror::Error)]
enum Obstacle {
    #[error("{0}")]
    LayDown(String),
    #[error(transparent)]
    Placement(#[from] PlacementError),
    #[error(transparent)]
    Tool(#[from] ProcessError),
    #[error(transparent)]
    Fs(#[from] FsError),
    #[error(transparent)]
    Disk(#[from] kiln_disk::Error),
    #[error("cannot work in `{}`: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
}

/// Brings the tree of the disk in `layers` to the places of the version before, if there is one and the template lets it.
pub(super) async fn place(
    layers: &[DiskFile],
    plan: &Plan,
    context: &BakeContext,
    journal: &mut Journal<'_>,
    ledger: &Ledger,
) -> Result<Placed, BakeError> {
    let Some(previous) = context.previous.as_ref().filter(|_| plan.publish.placement) else {
        return Ok(Placed::AsItIs);
    };
    let generation = previous.artifact.placement.as_ref().map_or(0, |placement| placement.generation) + 1;
    if generation > GENERATIONS {
        return Ok(Placed::AsItIs);
    }
    let directory = ledger.directory().join("placement");
    let entry = ledger.acquire_directory("placement", &directory)?;
    let work = Work { layers, previous, context, directory: &directory };
    let version = &previous.artifact.version;
    let phase = journal.phase(Phase::Placement, &format!("on {version}"), work.run(), Outcome::in_words).await;
    match phase {
        Ok(Outcome { changed: false, .. }) if plan.version == VersionSpec::Auto => Ok(Placed::Same(version.clone())),
        Ok(Outcome { disk, kept, written, .. }) => {
            let record = Placement { on: version.clone(), generation, kept, written };
            Ok(Placed::Anew { disk, entry, record })
        }
        Err(_) if context.cancel.is_cancelled() => Err(BakeError::Cancelled),
        Err(obstacle) => {
            context.events.emit(Event::Warning {
                message: format!("this version will share less with {version} than it could: {obstacle}"),
            });
            std::fs::remove_dir_all(&directory).map_err(fs::failed("remove", &directory, 0))?;
            ledger.release(&entry)?;
            Ok(Placed::AsItIs)
        }
    }
}

struct Outcome {
    disk: PathBuf,
    changed: bool,
    kept: usize,
    written: usize,
}

impl Outcome {
    fn in_words(&self) -> String {
        match self.written {
            0 if !self.changed => "the same tree".to_owned(),
            written => format!("{written} files are new, {} stay where they were", self.kept),
        }
    }
}

struct Work<'a> {
    layers: &'a [DiskFile],
    previous: &'a Previous,
    context: &'a BakeContext,
    directory: &'a Path,
}

impl Work<'_> {
    async fn run(&self) -> Result<Outcome, Obstacle> {
        fs::create_private_dir(self.directory)?;
        let disk = self.directory.join("disk.raw");
        let artifact = &self.previous.artifact;
        let needed = artifact.disk.chunks.saturating_mul(artifact.disk.chunk_size.into());
        fs::require_space("place the image's files", self.directory, needed)?;
        self.previous.disk.lay_down(&disk).await.map_err(Obstacle::LayDown)?;
        let (layers, directory, placed) = (self.layers.to_vec(), self.directory.to_owned(), disk.clone());
        let (plan, moved) = self.blocking(move || prepare(&layers, &directory, &placed)).await?;
        let changed = plan.changed || moved;
        let (kept, written) = (plan.kept, plan.written);
        if changed {
            let target = format!("disk.raw?offset={}", plan.offset());
            self.tool("debugfs", &["-w", "-f", placement::SCRIPT, &target]).await?;
            self.tool("e2fsck", &["-f", "-n", &target]).await?;
            let placed = disk.clone();
            self.blocking(move || Ok(plan.prove(&open(&placed)?)?)).await?;
        }
        Ok(Outcome { disk, changed, kept, written })
    }

    async fn tool(&self, program: &str, arguments: &[&str]) -> Result<(), Obstacle> {
        // Other users than root do not have it on their path.
        let program = process::which(program).unwrap_or_else(|_| Path::new("/usr/sbin").join(program));
        let spec = Spec::new(program).args(arguments.iter().copied()).cwd(self.directory);
        let limits = Limits { cancel: self.context.cancel.clone(), ..Limits::default() };
        process::run(&spec, &limits, &mut |_, _| {}).await?;
        Ok(())
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, Obstacle> + Send + 'static,
    ) -> Result<T, Obstacle> {
        blocking(move || Ok(work())).await.unwrap_or_else(|_: BakeError| Err(ProcessError::Cancelled.into()))
    }
}

/// Compares the trees and writes what `debugfs` will read; whether anything outside the file system differed.
fn prepare(layers: &[DiskFile], directory: &Path, placed: &Path) -> Result<(placement::Plan, bool), Obstacle> {
    let new: Arc<dyn ReadAt> = Arc::new(GuestDisk::open(layers)?);
    let plan = placement::Plan::new(&open(placed)?, &new)?;
    plan.write(directory)?;
    let failed = |source| Obstacle::Io { path: placed.to_owned(), source };
    let file = File::options().read(true).write(true).open(placed).map_err(failed)?;
    plan.rewrite(&file)?;
    let moved = plan.copy_the_rest(new.as_ref(), &file)?;
    Ok((plan, moved))
}

fn open(path: &Path) -> Result<Arc<dyn ReadAt>, Obstacle> {
    let failed = |source| Obstacle::Io { path: path.to_owned(), source };
    Ok(Arc::new(File::open(path).and_then(FileBytes::new).map_err(failed)?))
}
