//! `kiln push`: a version of a registry here to a server or a bucket.

use std::path::Path;

use kiln_core::{ByteSize, artifact::Artifact};
use kiln_registry::Published;

use crate::{
    arguments::{Push, RegistryArguments},
    failure::{Exit, Failure, Outcome},
    output,
    signals::Interruption,
    surroundings,
};

pub(crate) async fn run(arguments: Push) -> Outcome {
    let from = match arguments.from {
        Some(directory) => surroundings::registry(&RegistryArguments { registry: Some(directory) })?,
        None => surroundings::own_registry()?,
    };
    let interruption = Interruption::listen()?;
    let to = RegistryArguments { registry: Some(arguments.registry.clone().into()) };
    if surroundings::bucket(Path::new(&arguments.registry))?.is_some() {
        let to = surroundings::registry(&to)?;
        let record = from.usable(&arguments.image, surroundings::seconds(), false)?;
        let by = arguments.by.unwrap_or_else(surroundings::who);
        let copied = super::pull::copy(from, &to, record, by, false, &interruption).await?;
        let Published { artifact, already, .. } = copied.published;
        say(&artifact, already, (copied.sent, copied.whole), &format!("in `{}`", to.root().display()));
        return Ok(Exit::Done);
    }
    let remote = surroundings::server(&to, interruption.token())?.ok_or_else(|| {
        Failure::usage(format!("`{}` is not the URL of a server or a bucket", arguments.registry))
            .hint("`kiln push web@1.4.0 --registry http://images:8080`")
    })?;
    let record = from.usable(&arguments.image, surroundings::seconds(), false)?;
    let by = arguments.by.unwrap_or_else(surroundings::who);
    let pushed = remote.push(&record, &from, &by).await;
    if interruption.happened() {
        return Err(Failure::new("stopped")
            .hint("what the server got it keeps; the same command goes on from there")
            .exit(Exit::Interrupted));
    }
    let pushed = pushed?;
    say(&pushed.artifact, pushed.already, (pushed.sent, pushed.whole), &format!("on {}", remote.url()));
    Ok(Exit::Done)
}

fn say(artifact: &Artifact, already: bool, (sent, whole): (u64, u64), place: &str) {
    let name = format!("{}@{}", artifact.image, artifact.version);
    output::talk(&if already {
        format!("{name} is {place} already")
    } else {
        let (sent, whole) = (ByteSize(sent).approximate(), ByteSize(whole).approximate());
        format!("{name} is {place} now; {sent} of {whole} were sent")
    });
}
