//! `kiln export`: a disk image out of the registry, in any format.

use std::{
    fs,
    path::{Path, PathBuf},
};

use kiln_core::ByteSize;
use kiln_io::{
    process::{self, Limits, Spec},
    random,
};
use kiln_registry::{Record, Registry};
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
    let record = registry.usable(&arguments.image, surroundings::seconds(), arguments.allow_revoked)?;
    let to = arguments.to;
    if to.exists() && !arguments.force {
        return Err(Failure::usage(format!("`{}` exists already", to.display())).hint("`--force` replaces it"));
    }
    if to.is_dir() {
        return Err(Failure::usage(format!("`{}` is a directory", to.display())).hint("name the file to write"));
    }
    let interruption = Interruption::listen()?;
    let cancel = interruption.token().clone();
    let laid_down = ["qcow2", "raw", "raw.zst"].contains(&arguments.format.as_str());
    let name = format!("{} {}", record.artifact.image, record.artifact.version);
    let result = if laid_down || record.file(&arguments.format).is_some() {
        write(registry, record, arguments.format.clone(), to.clone(), cancel).await
    } else {
        convert(registry, record, &arguments.format, &to, cancel).await
    };
    if interruption.happened() {
        return Err(Failure::new("stopped; nothing was written").exit(Exit::Interrupted));
    }
    let bytes = result?;
    output::talk(&format!("{name} as {}: {} ({})", arguments.format, to.display(), ByteSize(bytes).approximate()));
    Ok(Exit::Done)
}

async fn write(
    registry: Registry,
    record: Record,
    format: String,
    to: PathBuf,
    cancel: CancellationToken,
) -> Result<u64, Failure> {
    let written =
        tokio::task::spawn_blocking(move || registry.export(&record, &format, &to, &|_| !cancel.is_cancelled()));
    let written = written.await.map_err(|error| Failure::new("the work was ended").because(error.to_string()))?;
    Ok(written?.bytes)
}

/// Writes a format that is not stored, from the qcow2, which is laid down beside it. The file appears when it is complete.
async fn convert(
    registry: Registry,
    record: Record,
    format: &str,
    to: &Path,
    cancel: CancellationToken,
) -> Result<u64, Failure> {
    let options: &[&str] = match format {
        "vmdk" => &["-O", "vmdk", "-o", "subformat=streamOptimized"],
        _ => &["-O", "vpc", "-o", "subformat=dynamic,force_size=on"],
    };
    let (source, temporary) = (Temporary::beside(to), Temporary::beside(to));
    write(registry, record, "qcow2".to_owned(), source.0.clone(), cancel.clone()).await?;
    let spec = Spec::new("qemu-img").args(["convert", "-f", "qcow2"]).args(options).arg(&source.0).arg(&temporary.0);
    process::run(&spec, &Limits { deadline: None, cancel }, &mut |_, _| {}).await?;
    let placed = fs::File::open(&temporary.0).and_then(|file| {
        file.sync_all()?;
        fs::rename(&temporary.0, to)?;
        file.metadata()
    });
    placed.map(|metadata| metadata.len()).map_err(|error| kiln_io::fs::failed("write", to, 0)(error).into())
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
