//! `kiln export`: a disk image out of the registry, in any format.

use std::path::{Path, PathBuf};

use kiln_core::ByteSize;
use kiln_io::{
    fs::Unnamed,
    process::{self, Limits, Spec},
};
use kiln_registry::{Record, Registry, RegistryError};
use kiln_serve::client::Allowed;
use tokio_util::sync::CancellationToken;

use crate::{
    arguments::Export,
    failure::{Exit, Failure, Outcome},
    output,
    signals::Interruption,
    surroundings,
};

pub(crate) async fn run(arguments: Export) -> Outcome {
    let to = arguments.to;
    if to.exists() && !arguments.force {
        return Err(Failure::usage(format!("`{}` exists already", to.display())).hint("`--force` replaces it"));
    }
    if to.is_dir() {
        return Err(Failure::usage(format!("`{}` is a directory", to.display())).hint("name the file to write"));
    }
    let interruption = Interruption::listen()?;
    let (registry, record) = match surroundings::server(&arguments.registry, interruption.token())? {
        None => {
            let registry = surroundings::registry(&arguments.registry)?;
            surroundings::refuse_old_state(&registry, &arguments.image.image, arguments.allow_unproven)?;
            let record = registry.usable(&arguments.image, surroundings::seconds(), arguments.allow_revoked)?;
            (registry, record)
        }
        // The user's own registry is the cache: what it has already does not come again.
        Some(remote) => {
            let own = surroundings::own_registry()?;
            let allowed = Allowed { revoked: arguments.allow_revoked, unproven: arguments.allow_unproven };
            let pulled = super::pull::pull(&remote, &arguments.image, allowed, &own, &interruption).await?;
            (own, pulled.record)
        }
    };
    surroundings::refuse_unproven(&registry, &record, arguments.allow_unproven)?;
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
    let watch = move |_| !cancel.is_cancelled();
    waited(move || registry.export(&record, &format, &to, &watch)).await
}

/// Writes a format that is not stored, from the qcow2, which is laid down beside it. Neither has a name before it is whole.
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
    let failed = |error| Failure::from(kiln_io::fs::failed("write", to, 0)(error));
    let target = Unnamed::beside(to).map_err(failed)?;
    let source = {
        let (cancel, to, source) = (cancel.clone(), to.to_owned(), Unnamed::beside(to).map_err(failed)?);
        let watch = move |_| !cancel.is_cancelled();
        waited(move || registry.export_into(&source, &record, "qcow2", &to, &watch).map(|_| source)).await?
    };
    let spec = Spec::new("qemu-img").args(["convert", "-f", "qcow2"]).args(options);
    let spec = spec.arg(source.path()).arg(target.path());
    process::run(&spec, &Limits { deadline: None, cancel }, &mut |_, _| {}).await?;
    let bytes = target.file().metadata().map_err(failed)?.len();
    target.place(to).map_err(failed)?;
    Ok(bytes)
}

/// Does what blocks on a thread of its own.
async fn waited<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, RegistryError> + Send + 'static,
) -> Result<T, Failure> {
    let done = tokio::task::spawn_blocking(work).await;
    Ok(done.map_err(|error| Failure::new("the work was ended").because(error.to_string()))??)
}
