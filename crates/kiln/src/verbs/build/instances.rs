//! Instances on EC2 for bakes, and the AMIs that come out of them.

use std::{path::Path, sync::Arc};

use async_trait::async_trait;
use kiln_aws::{Access, Account, AwsError, Instance, Patience, Publisher, Sharing, Silent, Wanted};
use kiln_build::remote::{Machine, Machines, Order, Place, RemoteError};
use kiln_core::{
    artifact::Artifact,
    event::{Event, Events as _, Phase},
    plan::{Builder, Ec2Machine, Plan},
};
use kiln_io::{dirs::Dirs, ledger::Ledger, time::SystemClock};
use kiln_registry::{Reference, Registry, Selector};
use tokio_util::sync::CancellationToken;

use super::{Session, place::Placed};
use crate::{failure::Failure, render::Broadcast, surroundings};

/// Who kiln is on the machine: cloud-init lets the key in as the administrator.
const USER: &str = "root";

/// Starts instances with the credentials of the environment.
#[derive(Debug)]
pub(super) struct Ec2 {
    pub(super) dirs: Dirs,
}

#[derive(Debug)]
struct OnEc2 {
    instance: Instance,
    place: Place,
}

/// AWS for a bake, which has its own way of telling.
fn access(cancel: &CancellationToken) -> Access {
    Access {
        stand_in: None,
        clock: Arc::new(SystemClock::new()),
        cancel: cancel.clone(),
        patience: Patience::default(),
        watch: Arc::new(Silent),
    }
}

#[async_trait]
impl Machines for Ec2 {
    async fn start(&self, order: Order<'_>) -> Result<Box<dyn Machine>, RemoteError> {
        let Order { plan, machine, ami, build, keys, cancel, .. } = order;
        let account = Account::open(access(cancel), &machine.region).await.map_err(in_words)?;
        let (login, host) = (&keys.login.public, &keys.host);
        let wanted = Wanted { machine, ami, image: &plan.image, build, login, host };
        let instance = Instance::start(&account, &self.dirs, wanted).await.map_err(in_words)?;
        let place = Place {
            kind: instance.instance_type().to_owned(),
            what: instance.description(),
            host: instance.address().to_owned(),
            port: machine.ssh_port,
            user: USER.to_owned(),
            proxy: machine.proxy(instance.address(), instance.id()),
        };
        Ok(Box::new(OnEc2 { instance, place }))
    }
}

#[async_trait]
impl Machine for OnEc2 {
    fn place(&self) -> &Place {
        &self.place
    }

    async fn watch(&self) -> RemoteError {
        in_words(self.instance.watch().await)
    }

    async fn console(&self) -> Vec<String> {
        self.instance.console().await
    }

    async fn let_go(&self) -> Result<(), RemoteError> {
        self.instance.let_go().await.map_err(in_words)
    }

    async fn disk(&self, to: &Path, progress: &(dyn Fn(u64, u64) + Send + Sync)) -> Result<u64, RemoteError> {
        self.instance.disk(to, progress).await.map_err(in_words)
    }

    async fn release(&self) -> Result<(), RemoteError> {
        self.instance.release().await.map(drop).map_err(in_words)
    }
}

#[expect(clippy::needless_pass_by_value, reason = "for `map_err`")]
fn in_words(error: AwsError) -> RemoteError {
    let cancelled = matches!(error, AwsError::Stopped);
    RemoteError { message: Failure::of(&error).on_one_line(), hint: error.hint(), cancelled }
}

impl Session {
    /// The same with an AMI, if one is to come of it.
    pub(super) async fn with_ami(
        &self,
        plan: &Plan,
        placed: Result<Placed, Failure>,
        build: &str,
        events: &Arc<Broadcast>,
    ) -> Result<Placed, Failure> {
        let mut placed = placed?;
        if let Some(artifact) = &placed.published {
            placed.said.extend(self.ami(plan, artifact, build, events).await?);
        }
        Ok(placed)
    }

    /// The image of a bake on EC2 becomes an AMI in the region where it was baked. What there is to say about it.
    async fn ami(
        &self,
        plan: &Plan,
        artifact: &Artifact,
        build: &str,
        events: &Arc<Broadcast>,
    ) -> Result<Option<String>, Failure> {
        let (Builder::Ec2(machine), Some(registry)) = (&plan.builder, &self.registry) else { return Ok(None) };
        // The template says itself what becomes of that region.
        if plan.publish.ami.as_ref().is_some_and(|target| target.regions.contains_key(&machine.region)) {
            return Ok(None);
        }
        events.emit(Event::PhaseStarted { phase: Phase::Publish, detail: format!("an AMI in {}", machine.region) });
        let began = events.elapsed();
        let ami = self.publish_ami(&registry.reading(&plan.image)?, machine, artifact, build).await?;
        events.emit(Event::PhaseFinished {
            phase: Phase::Publish,
            milliseconds: u64::try_from(events.elapsed().saturating_sub(began).as_millis()).unwrap_or(u64::MAX),
            detail: ami.clone(),
        });
        Ok(Some(format!("{} {} is {ami} in {}", artifact.image, artifact.version, machine.region)))
    }

    async fn publish_ami(
        &self,
        registry: &Registry,
        machine: &Ec2Machine,
        artifact: &Artifact,
        build: &str,
    ) -> Result<String, Failure> {
        let version = Reference::Named(artifact.version.clone());
        let record = registry.record(&Selector { image: artifact.image.clone(), reference: version })?;
        let account = Account::open(access(self.interruption.token()), &machine.region).await?;
        let ledger = Ledger::join(&self.dirs, build).map_err(|error| Failure::of(&error))?;
        let now = surroundings::seconds();
        let catalog = surroundings::lasting(&surroundings::registry_path(&self.arguments.registry)?)?;
        let publisher = Publisher { registry, catalog: &catalog, dirs: &self.dirs, ledger: &ledger, now };
        let place = kiln_aws::Place { region: machine.region.clone(), kms_key: machine.kms_key.clone() };
        let report = publisher.publish(&account, &record, &[place], &Sharing::default()).await;
        let again = format!("`kiln publish ami {}@{} --region {}`", artifact.image, artifact.version, machine.region);
        match report.regions.into_values().next() {
            Some(Ok(published)) => Ok(published.ami),
            Some(Err(error)) => {
                let failure = Failure::of(&error);
                Err(Failure::new("the version is published, and its AMI is not")
                    .because(failure.on_one_line())
                    .hint(format!("{again} goes on from there")))
            }
            None => Err(Failure::new("no region was published to")),
        }
    }
}
