//! `kiln push`: a version of a registry here to a server.

use kiln_core::ByteSize;

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
    let remote = surroundings::server(&to, interruption.token())?.ok_or_else(|| {
        Failure::usage(format!("`{}` is not the URL of a server", arguments.registry))
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
    let name = format!("{}@{}", pushed.artifact.image, pushed.artifact.version);
    output::talk(&if pushed.already {
        format!("{name} is on {} already", remote.url())
    } else {
        let (sent, whole) = (ByteSize(pushed.sent).approximate(), ByteSize(pushed.whole).approximate());
        format!("{name} is on {} now; {sent} of {whole} were sent", remote.url())
    });
    Ok(Exit::Done)
}
