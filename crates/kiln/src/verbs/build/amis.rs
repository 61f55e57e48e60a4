//! AMIs that templates ask for, and that of the region of a bake on EC2: made of the version once it is in the registry, also when nothing
//! had to be baked for it.

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::Ordering},
};

use kiln_aws::{Place, Sharing, Tried};
use kiln_core::{
    artifact::Artifact,
    plan::{AmiRegion, AmiTarget, Plan},
};
use kiln_registry::{Reference, Selector};
use tokio_util::sync::CancellationToken;

use super::{
    Session,
    instances::{kms_key, region_of},
};
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
    let target = plans.iter().find_map(|plan| target(plan));
    let Some(target) = target.filter(|target| !target.regions.is_empty()) else { return Ok(()) };
    let regions: Vec<_> = target.regions.keys().collect();
    kiln_aws::Account::open_in(access(&CancellationToken::new()), &regions).await?;
    Ok(())
}

impl Session {
    /// Makes the AMIs of a version. What fails takes nothing back: the image is published, and this is told.
    pub(super) async fn amis(self: &Arc<Self>, plan: &Plan, artifact: &Artifact, tried: Option<&Tried>) {
        let Some(target) = target(plan) else { return };
        if let Err(failure) = self.make_amis(&target, artifact, tried).await {
            self.partly.store(true, Ordering::Relaxed);
            self.stage.complain(&plan.image, &failure.exit(Exit::Partial));
        }
    }

    async fn make_amis(
        self: &Arc<Self>,
        target: &AmiTarget,
        artifact: &Artifact,
        tried: Option<&Tried>,
    ) -> Result<(), Failure> {
        let Some(registry) = &self.registry else { return Ok(()) };
        let registry = registry.reading(&artifact.image)?;
        let (session, named) = (self.clone(), artifact.image.clone());
        let say = Say(Arc::new(move |line| session.stage.talk(&named, line)));
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
        let account = job.account(self.interruption.token(), &say).await?;
        job.carry_out(&registry, &record, &account, tried, &say).await?.failure.map_or(Ok(()), Err)
    }
}

/// The AMIs that the version of a plan is to have.
fn target(plan: &Plan) -> Option<AmiTarget> {
    let wanted = plan.publish.ami.clone();
    let Some(machine) = region_of(plan).filter(|_| plan.publish.registry) else { return wanted };
    let mut target = wanted.unwrap_or_else(|| AmiTarget {
        regions: BTreeMap::new(),
        share_with: Vec::new(),
        public: false,
        deprecate_after: None,
        protect: false,
        tags: machine.tags.clone(),
        channel: None,
        parameter: None,
    });
    let baked = AmiRegion { kms_key: kms_key(plan, machine).map(str::to_owned), required: true };
    target.regions.entry(machine.region.clone()).or_insert(baked);
    Some(target)
}

/// The days of deprecation count from the bake, so that building again does not put it off. A day that is over is not set: AWS
/// takes none.
fn sharing(target: &AmiTarget, artifact: &Artifact, now: u64) -> Sharing {
    Sharing {
        with: target.share_with.clone(),
        public: target.public,
        deprecate_at: target.deprecate_after.map(|after| artifact.created + after).filter(|at| *at > now),
        protect: target.protect,
        tags: target.tags.clone(),
    }
}
