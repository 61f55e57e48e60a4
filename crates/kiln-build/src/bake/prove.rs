//! From a guest that was shut down to a proven artifact: seal, read the finished disk, write further formats.

use std::{
    fs::File,
    path::{Path, PathBuf},
    sync::Arc,
};

use kiln_core::{
    artifact::{self, FindingRecord},
    event::{Event, Phase, Unit},
    plan::{OutputFormat, Plan},
};
use kiln_disk::{
    DiskFile, FileBytes, GuestDisk, ReadAt,
    hygiene::{self, Asked},
    qcow2::{header::Limits, image::Image},
    raw::{self, Watch},
    residue::{Needle, Scan},
    seal::{self, Options, Sealed},
};
use kiln_io::{
    fs,
    process::{self, Spec},
};

use super::{BakeContext, BakeError};
use crate::qemu::LoginKeys;

/// The qcow2 of every artifact.
pub(super) const QCOW2: &str = "disk.qcow2";

/// What must not be on the disk: the values of secrets and the keys this bake made.
pub(super) fn needles(plan: &Plan, keys: &LoginKeys) -> Vec<Needle> {
    let secrets = plan.secrets.iter().map(|(name, value)| Needle::new(format!("the secret `{name}`"), value.reveal()));
    let keys = [("the login key of this bake", &keys.login), ("the host key of this bake", &keys.host)];
    let keys = keys.into_iter().flat_map(|(name, pair)| Needle::private_key(name, pair.private.reveal()));
    secrets.chain(keys).collect()
}

/// Seals the guest's disk into `directory` and searches every byte of it on the way.
pub(super) async fn seal(
    layers: Vec<DiskFile>,
    directory: &Path,
    needles: Vec<Needle>,
    context: &BakeContext,
) -> Result<(Sealed, Scan), BakeError> {
    fs::create_private_dir(directory)?;
    let path = directory.join(QCOW2);
    let (events, cancel) = (Arc::clone(&context.events), context.cancel.clone());
    let previous = context.previous.clone();
    blocking(move || {
        let before = previous.and_then(|previous| previous.disk.frames());
        let disk = without_free_space(&layers).map_err(BakeError::seal)?;
        let scan = Scan::new(&needles);
        let progress =
            |done, total| events.emit(Event::Progress { phase: Phase::Seal, done, total, unit: Unit::Bytes });
        let cancelled = || cancel.is_cancelled();
        let options = Options {
            progress: &progress,
            cancelled: &cancelled,
            tap: Some(&scan),
            before: before.as_deref(),
            ..Options::default()
        };
        let sealed = seal::seal(&disk, &path, &options).map_err(BakeError::seal)?;
        Ok((sealed, scan))
    })
    .await
}

/// The disk with zeros in its free space: deleted files do not travel, and cost nothing. The guest cannot trim what is
/// freed on its way down, such as a program that was replaced while it ran.
fn without_free_space(layers: &[DiskFile]) -> kiln_disk::Result<GuestDisk> {
    let disk: Arc<dyn ReadAt> = Arc::new(GuestDisk::open(layers)?);
    let free = hygiene::free_space(&disk).map_err(|source| kiln_disk::Error::Read { offset: 0, source })?;
    Ok(GuestDisk::open(layers)?.blanked(free))
}

/// Refuses a disk whose file systems were not unmounted.
pub(super) async fn clean_file_systems(layers: Vec<DiskFile>) -> Result<(), BakeError> {
    blocking(move || {
        let disk: Arc<dyn ReadAt> = Arc::new(GuestDisk::open(&layers).map_err(BakeError::seal)?);
        let unclean = hygiene::unclean_file_systems(&disk)
            .map_err(|source| BakeError::seal(kiln_disk::Error::Read { offset: 0, source }))?;
        if unclean.is_empty() { Ok(()) } else { Err(BakeError::DirtyFileSystem { unclean }) }
    })
    .await
}

/// Reads the finished file from outside. Findings that are not waived stop the bake.
pub(super) async fn hygiene(
    directory: &Path,
    scan: Scan,
    plan: &Plan,
    context: &BakeContext,
) -> Result<Vec<FindingRecord>, BakeError> {
    let path = directory.join(QCOW2);
    let findings = blocking(move || {
        let file: Arc<dyn ReadAt> = Arc::new(open(&path)?);
        Ok(hygiene::verify(file, &Asked { scan: Some(&scan), build_host_name: None, build_users: &[] }))
    })
    .await?;
    let verdict = hygiene::waive(&findings, &plan.waivers);
    for finding in &verdict.records {
        let FindingRecord { id, level, path, detail, waived } = finding.clone();
        context.events.emit(Event::HygieneFinding { id, level, path, detail, waived });
    }
    for waiver in &verdict.unused {
        let message = format!("nothing was found that the waiver of `{waiver}` is for; it can be removed");
        context.events.emit(Event::Warning { message });
    }
    if verdict.blocking.is_empty() {
        return Ok(verdict.records);
    }
    let words = |finding: &hygiene::Finding| format!("{} {} {}", finding.id, finding.path, finding.detail);
    Err(BakeError::Hygiene { findings: verdict.blocking.iter().map(words).collect() })
}

/// The files of the artifact: the qcow2 and every further format of the plan.
pub(super) async fn files(
    directory: &Path,
    sealed: Sealed,
    formats: &[OutputFormat],
    context: &BakeContext,
) -> Result<Vec<artifact::File>, BakeError> {
    let mut files = vec![artifact::File {
        name: QCOW2.to_owned(),
        format: "qcow2".to_owned(),
        bytes: sealed.bytes,
        sha256: sealed.qcow2,
    }];
    let sealed = Arc::new(sealed);
    for format in formats {
        let file = match format {
            OutputFormat::Raw | OutputFormat::RawZstd => ours(directory, *format, &sealed, context).await,
            OutputFormat::Vmdk => converted(directory, "vmdk", "disk.vmdk", "subformat=streamOptimized", context).await,
            OutputFormat::Vhd => {
                converted(directory, "vpc", "disk.vhd", "subformat=dynamic,force_size=on", context).await
            }
        };
        files.push(file.map_err(|source| BakeError::Output { format: *format, source: Box::new(source) })?);
    }
    Ok(files)
}

async fn ours(
    directory: &Path,
    format: OutputFormat,
    sealed: &Arc<Sealed>,
    context: &BakeContext,
) -> Result<artifact::File, BakeError> {
    let (from, sealed) = (directory.join(QCOW2), Arc::clone(sealed));
    let (events, cancel) = (Arc::clone(&context.events), context.cancel.clone());
    let to = directory.join(if format == OutputFormat::Raw { "disk.raw" } else { "disk.raw.zst" });
    blocking(move || {
        let bytes: Arc<dyn ReadAt> = Arc::new(open(&from)?);
        let progress =
            |done, total| events.emit(Event::Progress { phase: Phase::Export, done, total, unit: Unit::Bytes });
        let watch = Watch { progress: &progress, cancelled: &|| cancel.is_cancelled() };
        if format == OutputFormat::RawZstd {
            return raw::write_raw_zst(bytes.as_ref(), &sealed, &to, &watch).map_err(BakeError::seal);
        }
        let refused = |source| BakeError::seal(kiln_disk::Error::Refused { path: from.clone(), source });
        let image = Image::open(bytes, Limits::default()).map_err(refused)?;
        raw::write_raw(&image, &to, &watch).map_err(BakeError::seal)
    })
    .await
}

/// A format that `qemu-img` writes.
async fn converted(
    directory: &Path,
    format: &str,
    name: &str,
    options: &str,
    context: &BakeContext,
) -> Result<artifact::File, BakeError> {
    let path = directory.join(name);
    let spec = Spec::new("qemu-img")
        .args(["convert", "-f", "qcow2", "-O", format, "-o", options])
        .arg(directory.join(QCOW2))
        .arg(&path);
    let limits = process::Limits { cancel: context.cancel.clone(), ..process::Limits::default() };
    process::run(&spec, &limits, &mut |_, _| {}).await?;
    let (name, format) = (name.to_owned(), if format == "vpc" { "vhd" } else { format }.to_owned());
    blocking(move || {
        let mut file = File::open(&path).map_err(fs::failed("read", &path, 0))?;
        let bytes = file.metadata().map_err(fs::failed("read", &path, 0))?.len();
        let sha256 = seal::digest_of(&mut file).map_err(fs::failed("read", &path, 0))?;
        Ok(artifact::File { name, format, bytes, sha256 })
    })
    .await
}

fn open(path: &PathBuf) -> Result<FileBytes, BakeError> {
    let failed = || fs::failed("read", path, 0);
    FileBytes::new(File::open(path).map_err(failed())?).map_err(failed()).map_err(BakeError::from)
}

/// Runs work that keeps a processor busy away from the threads that drive the bake.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, BakeError> + Send + 'static,
) -> Result<T, BakeError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(stopped) => match stopped.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => Err(BakeError::Cancelled),
        },
    }
}
