//! Instances on EC2 for bakes, and for trials of what comes out of them.

use std::{path::Path, sync::Arc};

use async_trait::async_trait;
use kiln_aws::{
    Access, Account, AwsError, Instance, Note, Patience, Trial, Tried, Trying, Wanted, Watch, blocks::BLOCK,
};
use kiln_build::remote::{Machine, Machines, Order, Place, RemoteError, SealedDisk};
use kiln_core::{
    event::{Event, Events as _, Phase, Unit},
    plan::{Builder, Ec2Machine, Plan},
};
use kiln_io::{dirs::Dirs, time::SystemClock};
use kiln_registry::Registry;
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use super::Session;
use crate::{failure::Failure, render::Broadcast};

/// Who kiln is on the machine: cloud-init lets the key in as the administrator.
const USER: &str = "root";

/// Starts instances with the credentials of the environment, for one build.
#[derive(Debug)]
pub(super) struct Ec2 {
    dirs: Dirs,
    /// Where the versions before are.
    registry: Option<Registry>,
    trial: Mutex<Option<Trial>>,
    events: Arc<Broadcast>,
}

/// Tells how far the disk is that is to be tried.
#[derive(Debug)]
struct Sending(Arc<Broadcast>);

impl Watch for Sending {
    fn note(&self, _: &str, note: Note<'_>) {
        let event = match note {
            Note::Sent { done, blocks } => {
                let bytes = |blocks: usize| blocks as u64 * BLOCK as u64;
                let (done, total) = (bytes(done), bytes(blocks));
                Event::Progress { phase: Phase::BootTest, done, total, unit: Unit::Bytes }
            }
            Note::NoAnswer { problem } => Event::Warning { message: format!("{problem}; it is asked again") },
            _ => return,
        };
        self.0.emit(event);
    }
}

#[derive(Debug)]
struct OnEc2 {
    instance: Instance,
    place: Place,
}

/// AWS for a bake, which has its own way of telling.
fn access(cancel: &CancellationToken, events: &Arc<Broadcast>) -> Access {
    Access {
        stand_in: None,
        clock: Arc::new(SystemClock::new()),
        cancel: cancel.clone(),
        patience: Patience::default(),
        watch: Arc::new(Sending(events.clone())),
    }
}

impl Session {
    /// For a build of `plan`.
    pub(super) fn ec2(&self, plan: &Plan, events: &Arc<Broadcast>) -> Arc<Ec2> {
        let place = self.registry.as_ref().filter(|_| plan.publish.registry);
        // Without the versions before, more is sent.
        let registry = place.and_then(|place| place.reading(&plan.image).ok());
        Arc::new(Ec2 { dirs: self.dirs.clone(), registry, trial: Mutex::default(), events: events.clone() })
    }
}

/// The key that encrypts the AMI of a bake in the region where it is baked.
pub(super) fn kms_key<'a>(plan: &'a Plan, machine: &'a Ec2Machine) -> Option<&'a str> {
    let target = plan.publish.ami.as_ref().and_then(|target| target.regions.get(&machine.region));
    target.map_or(machine.kms_key.as_deref(), |region| region.kms_key.as_deref())
}

impl Ec2 {
    /// What was tried, as long as it is there.
    pub(super) async fn tried(&self) -> Option<Tried> {
        self.trial.lock().await.as_ref().map(|trial| trial.tried().clone())
    }

    async fn machine(&self, order: Order<'_>, ami: &str, account: &Account) -> Result<Box<dyn Machine>, RemoteError> {
        let Order { plan, machine, build, keys, .. } = order;
        let (login, host) = (&keys.login.public, &keys.host);
        let wanted = Wanted { machine, ami, image: &plan.image, build, login, host };
        let instance = Instance::start(account, &self.dirs, wanted).await.map_err(in_words)?;
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
impl Machines for Ec2 {
    async fn start(&self, order: Order<'_>, ami: &str) -> Result<Box<dyn Machine>, RemoteError> {
        let account =
            Account::open(access(order.cancel, &self.events), &order.machine.region).await.map_err(in_words)?;
        self.machine(order, ami, &account).await
    }

    async fn try_out(&self, order: Order<'_>, disk: SealedDisk<'_>) -> Result<Box<dyn Machine>, RemoteError> {
        let Order { plan, machine, build, cancel, .. } = order;
        let account = Account::open(access(cancel, &self.events), &machine.region).await.map_err(in_words)?;
        let trying = Trying {
            image: &plan.image,
            build,
            file: disk.file,
            sealed: disk.sealed,
            region: &machine.region,
            kms_key: kms_key(plan, machine),
            tags: &machine.tags,
            registry: self.registry.as_ref(),
        };
        let trial = Trial::prepare(&account, &self.dirs, trying).await.map_err(in_words)?;
        let ami = trial.ami().to_owned();
        *self.trial.lock().await = Some(trial);
        // It starts as machines will that nobody tells anything but keys.
        let machine = Ec2Machine { user_data: None, ..machine.clone() };
        self.machine(Order { machine: &machine, ..order }, &ami, &account).await
    }

    async fn release(&self) -> Result<(), RemoteError> {
        let mut trial = self.trial.lock().await;
        if let Some(held) = trial.as_ref() {
            held.release().await.map_err(in_words)?;
        }
        *trial = None;
        Ok(())
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

/// The region of a bake on EC2, which gets an AMI whatever else the template says.
pub(super) fn region_of(plan: &Plan) -> Option<&Ec2Machine> {
    match &plan.builder {
        Builder::Ec2(machine) => Some(machine),
        Builder::Qemu(_) => None,
    }
}
