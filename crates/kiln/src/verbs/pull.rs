//! `kiln pull`: a version of a server or a bucket into a registry here.

use std::path::Path;

use kiln_core::{ByteSize, artifact::Artifact, plan::VersionSpec};
use kiln_registry::{Copied, Publication, Record, Reference, Registry, Selector};
use kiln_serve::client::{Allowed, Pulled, Remote};

use crate::{
    arguments::{Pull, RegistryArguments},
    calendar::Moment,
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
    let allowed = Allowed { revoked: arguments.allow_revoked, unproven: arguments.allow_unproven };
    let from = RegistryArguments { registry: Some(arguments.registry.clone().into()) };
    if surroundings::bucket(Path::new(&arguments.registry))?.is_some() {
        let from = surroundings::registry(&from)?;
        surroundings::refuse_old_state(&from, &arguments.image.image, allowed.unproven)?;
        let record = from.usable(&arguments.image, surroundings::seconds(), allowed.revoked)?;
        let by = format!("{} from {}", surroundings::who(), from.root().display());
        let copied = copy(from, &into, record, by, !allowed.unproven, &interruption).await?;
        say(&copied.published.artifact, copied.published.already, (copied.sent, copied.whole), &into);
        return Ok(Exit::Done);
    }
    let remote = surroundings::server(&from, interruption.token())?.ok_or_else(|| {
        Failure::usage(format!("`{}` is not the URL of a server or a bucket", arguments.registry))
            .hint("`kiln pull web@stable --registry http://images:8080`")
    })?;
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
    let (_, record) = surroundings::judged(remote, selector, allowed.revoked, allowed.unproven)?;
    // What was judged is pulled, wherever a channel points by then.
    let named =
        Selector { image: record.artifact.image.clone(), reference: Reference::Named(record.artifact.version.clone()) };
    let pulled = remote.pull(&named, allowed, into, &by).await;
    if interruption.happened() {
        return Err(Failure::new("stopped")
            .hint("what came is kept; the same command goes on from there")
            .exit(Exit::Interrupted));
    }
    let pulled = pulled?;
    say(&pulled.record.artifact, pulled.already, (pulled.fetched, pulled.whole), into);
    Ok(pulled)
}

fn say(artifact: &Artifact, already: bool, (came, whole): (u64, u64), into: &Registry) {
    let name = format!("{}@{}", artifact.image, artifact.version);
    output::talk(&if already {
        format!("{name} is in `{}` already", into.root().display())
    } else {
        let (came, whole) = (ByteSize(came).approximate(), ByteSize(whole).approximate());
        format!("{name} is in `{}` now; {came} of {whole} came", into.root().display())
    });
}

/// Copies a version between two registries, neither of which is a server.
pub(super) async fn copy(
    from: Registry,
    into: &Registry,
    record: Record,
    by: String,
    proven: bool,
    interruption: &Interruption,
) -> Result<Copied, Failure> {
    let now = surroundings::seconds();
    let version = VersionSpec::Fixed(record.artifact.version.clone());
    let date = Moment::of_seconds(now).date();
    let publication = Publication { version, date, now, by, allow_revoked: false };
    let (into, cancel) = (into.clone(), interruption.token().clone());
    let copying = tokio::task::spawn_blocking(move || {
        into.copy(&from, &record, &publication, proven, &|_| !cancel.is_cancelled())
    });
    let copied = copying.await.map_err(|error| Failure::new("the work was ended").because(error.to_string()))?;
    if interruption.happened() {
        return Err(Failure::new("stopped")
            .hint("what came is kept; the same command goes on from there")
            .exit(Exit::Interrupted));
    }
    Ok(copied?)
}
