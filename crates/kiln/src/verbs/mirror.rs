//! `kiln mirror`: a version in an OCI registry, for stock clients.

use std::sync::Arc;

use kiln_core::ByteSize;
use kiln_io::time::SystemClock;
use kiln_registry::Reference;
use kiln_serve::mirror::{self, Mirror};

use crate::{
    arguments::Mirror as Arguments,
    failure::{Exit, Failure, Outcome},
    output,
    signals::Interruption,
    surroundings,
};

pub(crate) async fn run(arguments: Arguments) -> Outcome {
    let directory = match arguments.registry {
        Some(directory) => directory,
        None => surroundings::dirs()?.data.join("registry"),
    };
    let registry = surroundings::read(&directory, &arguments.image.image)?;
    surroundings::refuse_old_state(&registry, &arguments.image.image, arguments.allow_unproven)?;
    let record = registry.usable(&arguments.image, surroundings::seconds(), arguments.allow_revoked)?;
    // Stock clients verify nothing: what is not proven here is proven nowhere behind it.
    surroundings::refuse_unproven(&registry, &record, arguments.allow_unproven)?;
    let version = &record.artifact.version;
    let interruption = Interruption::listen()?;
    let clock = Arc::new(SystemClock::new());
    let mirror = Mirror::new(&arguments.to, arguments.plain_http, clock, interruption.token().clone())?;
    // What was asked for by a channel's name is found there by it.
    let channels: Vec<_> = match &arguments.image.reference {
        Reference::Newest => vec!["latest".to_owned()],
        Reference::Named(name) if name != version => vec![name.to_string()],
        Reference::Named(_) | Reference::Disk(_) => Vec::new(),
    };
    let sent = mirror.send(&record, &registry, &channels).await;
    if interruption.happened() {
        return Err(Failure::new("stopped; the version is not there yet, what was sent is not sent again")
            .exit(Exit::Interrupted));
    }
    let sent = sent?;
    let tags: Vec<_> = std::iter::once(mirror::tag(version)).chain(channels).collect();
    output::talk(&format!(
        "{} {version} is in {} as {}: {} sent of {}",
        record.artifact.image,
        mirror.name(),
        tags.join(" and "),
        ByteSize(sent.sent).approximate(),
        ByteSize(sent.whole).approximate()
    ));
    output::data(&format!("{}@{}\n", mirror.name(), record.manifest.digest))?;
    Ok(Exit::Done)
}
