//! Instances: what one is, and which state it is in.

pub(crate) mod change;
pub(crate) mod describe;
pub(crate) mod run;

use kiln_core::moment::Moment;

use crate::{
    ec2::names::{check, not_found},
    refusal::Refusal,
    world::{Progress, Stage, World},
};

#[expect(clippy::struct_field_names, reason = "EC2's own names")]
#[derive(Debug, Clone)]
pub(crate) struct Instance {
    pub(crate) id: String,
    pub(crate) reservation: String,
    pub(crate) image: String,
    pub(crate) instance_type: String,
    pub(crate) architecture: String,
    pub(crate) subnet: String,
    pub(crate) zone: String,
    pub(crate) vpc: String,
    pub(crate) key: Option<String>,
    pub(crate) groups: Vec<String>,
    /// In Base64, as it came.
    pub(crate) user_data: Option<String>,
    pub(crate) metadata: Metadata,
    /// Whether shutting down from inside ends it.
    pub(crate) ends_on_shutdown: bool,
    pub(crate) protected: bool,
    pub(crate) spot: bool,
    pub(crate) token: Option<String>,
    pub(crate) launched: Moment,
    pub(crate) address: String,
    pub(crate) profile: Option<String>,
    pub(crate) root_device: String,
    pub(crate) volumes: Vec<String>,
    /// The state it is in, or on its way to.
    pub(crate) goal: Goal,
    pub(crate) progress: Progress,
    /// Why it ended.
    pub(crate) reason: Option<&'static str>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Metadata {
    pub(crate) tokens: String,
    pub(crate) hops: u32,
    pub(crate) endpoint: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Goal {
    Running,
    Stopped,
    Terminated,
}

impl Instance {
    /// EC2's number and name of the state.
    pub(crate) fn state(&self) -> (u8, &'static str) {
        match (self.goal, self.progress.stage()) {
            (Goal::Running, Stage::Waiting) => (0, "pending"),
            (Goal::Running, Stage::Ready) => (16, "running"),
            (Goal::Stopped, Stage::Waiting) => (64, "stopping"),
            (Goal::Stopped, Stage::Ready | Stage::Failed) => (80, "stopped"),
            (Goal::Terminated, Stage::Waiting) => (32, "shutting-down"),
            // A launch that fails ends where a termination ends.
            (Goal::Terminated, _) | (Goal::Running, Stage::Failed) => (48, "terminated"),
        }
    }

    /// Whether nothing of it is left but the record, or soon will be.
    pub(crate) fn is_over(&self) -> bool {
        self.goal == Goal::Terminated || self.state().1 == "terminated"
    }

    /// Sends it towards a state.
    pub(crate) fn head(&mut self, goal: Goal, progress: Progress) {
        (self.goal, self.progress) = (goal, progress);
    }
}

impl World {
    /// Refuses the first id that is none, or of nothing that is found.
    pub(crate) fn check_instances(&mut self, ids: &[String]) -> Result<(), Refusal> {
        if ids.is_empty() {
            return Err(Refusal::missing("InstanceId"));
        }
        for id in ids {
            check(id, "i")?;
            if !self.here().instances.contains_key(id) || !self.sees(id) {
                return Err(not_found(id));
            }
        }
        Ok(())
    }

    /// Ends an instance, with those of its volumes that go with it.
    pub(crate) fn end_instance(&mut self, id: &str, reason: &'static str) {
        let progress = self.settling();
        let Some(instance) = self.here().instances.get_mut(id) else { return };
        if instance.is_over() {
            return;
        }
        instance.head(Goal::Terminated, progress);
        instance.reason = Some(reason);
        self.deleted.push(id.to_owned());
        self.ends.push(id.to_owned());
        for volume in std::mem::take(&mut self.instance_volumes(id)) {
            let Some(known) = self.here().volumes.get_mut(&volume) else { continue };
            known.instance.clear();
            if known.delete {
                self.here().volumes.remove(&volume);
                self.forget(&volume);
            }
        }
    }

    fn instance_volumes(&mut self, id: &str) -> Vec<String> {
        self.here().instances.get(id).map(|instance| instance.volumes.clone()).unwrap_or_default()
    }

    /// Where a guest really listens.
    pub(crate) fn readdress(&mut self, place: (&str, &str), id: &str, address: &str) {
        let region = self.regions.get_mut(&(place.0.to_owned(), place.1.to_owned()));
        if let Some(instance) = region.and_then(|region| region.instances.get_mut(id)) {
            address.clone_into(&mut instance.address);
        }
    }
}

/// What happens to instances without anybody calling EC2.
impl crate::Fake {
    /// The guest shuts itself down: it stops or ends, as it was launched.
    pub fn power_off(&self, account: &str, region: &str, instance: &str) {
        let mut world = crate::server::lock(&self.shared().world);
        world.enter(account, region, None);
        let progress = world.settling();
        let Some(known) = world.here().instances.get_mut(instance) else { return };
        if known.ends_on_shutdown {
            world.end_instance(instance, "Client.InstanceInitiatedShutdown");
        } else {
            known.head(Goal::Stopped, progress);
        }
    }

    /// EC2 takes a spot instance back, or a host dies.
    pub fn reclaim(&self, account: &str, region: &str, instance: &str) {
        let mut world = crate::server::lock(&self.shared().world);
        world.enter(account, region, None);
        world.end_instance(instance, "Server.SpotInstanceTermination");
    }
}
