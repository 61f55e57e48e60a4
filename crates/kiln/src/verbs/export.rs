//! `kiln export`: a disk image out of the registry, in any format.

use std::{
    fs,
    path::{Path, PathBuf},
};

use kiln_core::{ByteSize, artifact::Artifact};
use kiln_disk::{DiskFile, GuestDisk, raw};
use kiln_io::{
    process::{self, Limits, Spec},
    random,
};
use kiln_registry::{Registry, RegistryError};
use tokio_util::sync::CancellationToken;

use crate::{
    arguments::Export,
    failure::{Exit, Failure, Outcome},
    output,
    signals::Interruption,
    surroundings,
};

pub(crate) async fn run(arguments: Export) -> Outcome {
    let registry = surroundings::registry(&arguments.registry)?;
    let artifact = registry.artifact(&arguments.image)?;
    let to = arguments.to;
    if to.exists() && !arguments.force {
        return Err(Failure::usage(format!("`{}` exists already", to.display())).hint("`--force` replaces it"));
    }
    if to.is_dir() {
        return Err(Failure::usage(format!("`{}` is a directory", to.display())).hint("name the file to write"));
    }
    let interruption = Interruption::listen()?;
    let cancel = interruption.token().clone();
    let stored = artifact.files.iter().any(|file| file.format == arguments.format);
    let name = format!("{} {}", artifact.image, artifact.version);
    let result = if stored {
        copy(registry, artifact, arguments.format.clone(), to.clone(), cancel).await
    } else {
        convert(registry, artifact, &arguments.format, &to, cancel).await
    };
    if interruption.happened() {
        return Err(Failure::new("stopped; nothing was written").exit(Exit::Interrupted));
    }
    let bytes = result?;
    output::talk(&format!("{name} as {}: {} ({})", arguments.format, to.display(), ByteSize(bytes).approximate()));
    Ok(Exit::Done)
}

async fn copy(
    registry: Registry,
    artifact: Artifact,
    format: String,
    to: PathBuf,
    cancel: CancellationToken,
) -> Result<u64, Failure> {
    let copied = blocking(move || registry.export(&artifact, &format, &to, &|_| !cancel.is_cancelled())).await?;
    Ok(copied?.bytes)
}

/// Writes a format that is not stored, from the stored qcow2. The file appears when it is complete.
async fn convert(
    registry: Registry,
    artifact: Artifact,
    format: &str,
    to: &Path,
    cancel: CancellationToken,
) -> Result<u64, Failure> {
    let unknown = || RegistryError::UnknownFormat {
        image: artifact.image.clone(),
        version: artifact.version.clone(),
        format: format.to_owned(),
        stored: artifact.files.iter().map(|file| file.format.clone()).collect(),
    };
    let verifying = (registry.clone(), artifact.clone(), cancel.clone());
    let source = blocking(move || {
        let (registry, artifact, cancel) = verifying;
        registry.verify(&artifact, "qcow2", &|_| !cancel.is_cancelled())
    })
    .await??;
    let temporary = Temporary::beside(to);
    match format {
        "raw" => write_raw(source, temporary.0.clone(), cancel).await?,
        "vmdk" => qemu_img(&source, &temporary.0, &["-O", "vmdk", "-o", "subformat=streamOptimized"], cancel).await?,
        "vhd" => {
            qemu_img(&source, &temporary.0, &["-O", "vpc", "-o", "subformat=dynamic,force_size=on"], cancel).await?;
        }
        _ => {
            return Err(Failure::from(unknown())
                .hint(format!("bake it with `outputs = [\"{format}\"]`, or export raw and compress that")));
        }
    }
    let placed = fs::File::open(&temporary.0).and_then(|file| {
        file.sync_all()?;
        fs::rename(&temporary.0, to)?;
        file.metadata()
    });
    placed.map(|metadata| metadata.len()).map_err(|error| kiln_io::fs::failed("write", to, 0)(error).into())
}

async fn write_raw(source: PathBuf, to: PathBuf, cancel: CancellationToken) -> Result<(), Failure> {
    let written = blocking(move || {
        let disk = GuestDisk::open(&[DiskFile::qcow2(source)])?;
        raw::write_raw(&disk, &to, &raw::Watch { progress: &|_, _| {}, cancelled: &|| cancel.is_cancelled() })
    })
    .await?;
    written.map(|_| ()).map_err(|error| Failure::of(&error))
}

async fn qemu_img(source: &Path, to: &Path, format: &[&str], cancel: CancellationToken) -> Result<(), Failure> {
    let spec = Spec::new("qemu-img").args(["convert", "-f", "qcow2"]).args(format).arg(source).arg(to);
    process::run(&spec, &Limits { deadline: None, cancel }, &mut |_, _| {}).await?;
    Ok(())
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Failure> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| Failure::new("the work was ended").because(error.to_string()))
}

/// A file that is removed unless it was renamed.
struct Temporary(PathBuf);

impl Temporary {
    fn beside(to: &Path) -> Self {
        let name = to.file_name().unwrap_or_default().to_string_lossy();
        Self(to.with_file_name(format!(".{name}.{}.part", &random::nonce()[..8])))
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}
