//! `kiln resume`: goes on with AMIs that were asked for and are not all there.

use kiln_registry::{Reference, Selector};

use super::{
    ami,
    job::{Job, Say},
};
use crate::{
    arguments::Resume,
    failure::{Failure, Outcome},
    signals::Interruption,
    surroundings,
};

pub(super) async fn run(arguments: Resume) -> Outcome {
    let dirs = surroundings::dirs()?;
    let job = Job::read(&dirs.build(&arguments.build))?.ok_or_else(|| {
        Failure::usage(format!("there is nothing of {} to go on with", arguments.build))
            .hint("a bake begins anew with `kiln build`, from its last checkpoint; only the making of AMIs is resumed")
    })?;
    let registry = surroundings::read(&job.registry, &job.image)?;
    let selector = Selector { image: job.image.clone(), reference: Reference::Named(job.version.clone()) };
    // Whoever asked for it has seen that it is proven; revoked it may be since.
    let record = registry.usable(&selector, surroundings::seconds(), job.allow_revoked)?;
    let (interruption, say) = (Interruption::listen()?, Say::talk());
    let account = job.account(interruption.token(), &say).await?;
    ami::ended(job.carry_out(&registry, &record, &account, None, &say).await?, arguments.json)
}
