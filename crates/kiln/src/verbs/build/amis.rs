//! AMIs that templates ask for: made of the version once it is in the registry, also when nothing had to be baked for it.

use std::sync::{Arc, atomic::Ordering};

use kiln_aws::{Place, Sharing};
use kiln_core::{
    artifact::Artifact,
    plan::{AmiTarget, Plan},
};
use kiln_registry::{Reference, Selector};
use tokio_util::sync::CancellationToken;

use super::Session;
use crate::{
    failure::{Exit, Failure},
    surroundings,
    verbs::publish::{
        ami::access,
        job::{Job, Say},
    },
};

/// Refuses what cannot be, before anything slow begins: no account, no right to it.
pub(super) async fn check(plans: &[&Plan]) -> Result<(), Failure> {
    let targets: Vec<&AmiTarget> = plans.iter().filter_map(|plan| plan.publish.ami.as_ref()).collect();
    let Some(region) = targets.first().and_then(|target| target.regions.keys().next()) else { return Ok(()) };
    kiln_aws::Account::open(access(&CancellationToken::new()), region).await?;
    Ok(())
}

impl Session {
    /// Makes the AMIs of a version. What fails takes nothing back: the image is published, and this is told.
    pub(super) async fn amis(self: &Arc<Self>, plan: &Plan, artifact: &Artifact) {
        let (Some(target), Some(registry)) = (&plan.publish.ami, &self.registry) else { return };
        let (session, image) = (self.clone(), plan.image.clone());
        let say = Say(Arc::new(move |line| session.stage.talk(&image, line)));
        let made = match registry.reading(&plan.image) {
            Ok(registry) => self.make_amis(target, &registry, artifact, &say).await,
            Err(failure) => Err(failure),
        };
        if let Err(failure) = made {
            self.partly.store(true, Ordering::Relaxed);
            self.stage.complain(&plan.image, &failure.exit(Exit::Partial));
        }
    }

    async fn make_amis(
        &self,
        target: &AmiTarget,
        registry: &kiln_registry::Registry,
        artifact: &Artifact,
        say: &Say,
    ) -> Result<(), Failure> {
        let (image, version) = (artifact.image.clone(), artifact.version.clone());
        let selector = Selector { image: image.clone(), reference: Reference::Named(version.clone()) };
        let record = registry.usable(&selector, surroundings::seconds(), self.arguments.allow_revoked)?;
        let job = Job {
            format: Job::FORMAT,
            registry: surroundings::lasting(&surroundings::registry_path(&self.arguments.registry)?)?,
            image,
            version,
            places: target
                .regions
                .iter()
                .map(|(name, region)| Place { region: name.clone(), kms_key: region.kms_key.clone() })
                .collect(),
            optional: target
                .regions
                .iter()
                .filter(|(_, region)| !region.required)
                .map(|(name, _)| name.clone())
                .collect(),
            sharing: sharing(target, artifact, surroundings::seconds()),
            channel: target.channel.clone(),
            parameter: target.parameter.clone(),
            allow_revoked: self.arguments.allow_revoked,
        };
        let account = job.account(self.interruption.token(), say).await?;
        job.carry_out(registry, &record, &account, say).await?.failure.map_or(Ok(()), Err)
    }
}

/// The days of deprecation count from the bake, so that building again does not put it off. A day that is over is not set: AWS
/// takes none.
fn sharing(target: &AmiTarget, artifact: &Artifact, now: u64) -> Sharing {
    Sharing {
        with: target.share_with.clone(),
        public: target.public,
        deprecate_at: target.deprecate_after.map(|after| artifact.created + after).filter(|at| *at > now),
        protect: target.protect,
    }
}
