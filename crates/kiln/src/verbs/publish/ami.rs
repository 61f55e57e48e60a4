//! `kiln publish ami`.

use std::collections::BTreeSet;

use kiln_aws::{Access, Place as Where, Sharing};
use tokio_util::sync::CancellationToken;

use super::job::{self, Job, Made, Say};
use crate::{
    arguments::PublishAmi,
    failure::{Exit, Failure, Outcome},
    output,
    signals::Interruption,
    surroundings::{self, Place},
};

const DAY: u64 = 86_400;

pub(crate) async fn run(arguments: PublishAmi) -> Outcome {
    let now = surroundings::seconds();
    let (registry, record) = match surroundings::place(&arguments.registry)? {
        Place::Here(registry) => {
            surroundings::refuse_old_state(&registry, &arguments.image.image, arguments.allow_unproven)?;
            let record = registry.usable(&arguments.image, now, arguments.allow_revoked)?;
            (registry, record)
        }
        Place::There(remote) => {
            surroundings::judged(&remote, &arguments.image, arguments.allow_revoked, arguments.allow_unproven)?
        }
    };
    surroundings::refuse_unproven(&registry, &record, arguments.allow_unproven)?;
    let names: BTreeSet<_> = arguments.regions.iter().map(|region| &region.name).collect();
    if names.len() < arguments.regions.len() {
        return Err(Failure::usage("a region is named twice").hint("name each region once, with or without a key"));
    }
    let job = Job {
        format: Job::FORMAT,
        registry: surroundings::lasting(&surroundings::registry_path(&arguments.registry)?)?,
        image: record.artifact.image.clone(),
        version: record.artifact.version.clone(),
        places: arguments
            .regions
            .into_iter()
            .map(|region| Where { region: region.name, kms_key: region.key })
            .collect(),
        optional: BTreeSet::new(),
        sharing: Sharing {
            with: arguments.share_with,
            public: arguments.public,
            deprecate_at: arguments.deprecate_after.map(|days| now + days * DAY),
            protect: arguments.protect,
            tags: arguments.tags.into_iter().map(|tag| (tag.key, tag.value)).collect(),
        },
        channel: arguments.to,
        parameter: None,
        allow_revoked: arguments.allow_revoked,
    };
    let (interruption, say) = (Interruption::listen()?, Say::talk());
    let account = job.account(interruption.token(), &say).await?;
    ended(job.carry_out(&registry, &record, &account, None, &say).await?, arguments.json)
}

/// How the verb ends.
pub(crate) fn ended(made: Made, json: bool) -> Outcome {
    if json {
        output::json(&made.report.json())?;
    }
    made.failure.map_or(Ok(Exit::Done), Err)
}

/// AWS as the environment describes it.
pub(crate) fn access(cancel: &CancellationToken) -> Access {
    job::access(cancel, &Say::talk())
}
