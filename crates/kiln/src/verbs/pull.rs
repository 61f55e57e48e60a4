//! `kiln pull`: a version of a server into a registry here.

use kiln_core::ByteSize;
use kiln_registry::{Registry, Selector};
use kiln_serve::client::{Allowed, Pulled, Remote};

use crate::{
    arguments::{Pull, RegistryArguments},
    failure::{Exit, Failure, Outcome},
    output,
    signals::Interruption,
    surroundings,
};

pub(crate) async fn run(arguments: Pull) -> Outcome {
    let into = match arguments.into {
        Some(directory) => surroundings::registry(&RegistryArguments { registry: Some(directory) })?,
        None => surroundings::own_registry()?,
    };
    let interruption = Interruption::listen()?;
    let from = RegistryArguments { registry: Some(arguments.registry.clone().into()) };
    let remote = surroundings::server(&from, interruption.token())?.ok_or_else(|| {
        Failure::usage(format!("`{}` is not the URL of a server", arguments.registry))
            .hint("`kiln pull web@stable --registry http://images:8080`")
    })?;
    let allowed = Allowed { revoked: arguments.allow_revoked, unproven: arguments.allow_unproven };
    pull(&remote, &arguments.image, allowed, &into, &interruption).await?;
    Ok(Exit::Done)
}

/// Brings what `selector` means into `into`, and says what came.
pub(super) async fn pull(
    remote: &Remote,
    selector: &Selector,
    allowed: Allowed,
    into: &Registry,
    interruption: &Interruption,
) -> Result<Pulled, Failure> {
    let by = format!("{} from {}", surroundings::who(), remote.url());
    let pulled = remote.pull(selector, allowed, into, &by).await;
    if interruption.happened() {
        return Err(Failure::new("stopped")
            .hint("what came is kept; the same command goes on from there")
            .exit(Exit::Interrupted));
    }
    let pulled = pulled?;
    let name = format!("{}@{}", pulled.record.artifact.image, pulled.record.artifact.version);
    output::talk(&if pulled.already {
        format!("{name} is in `{}` already", into.root().display())
    } else {
        let (fetched, whole) = (ByteSize(pulled.fetched).approximate(), ByteSize(pulled.whole).approximate());
        format!("{name} is in `{}` now; {fetched} of {whole} came", into.root().display())
    });
    Ok(pulled)
}
