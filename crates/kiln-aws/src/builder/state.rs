//! Which state an instance is in, and what becomes of it.

use std::time::Duration;

use aws_sdk_ec2::types::{
    EbsInstanceBlockDeviceSpecification, Instance, InstanceBlockDeviceMappingSpecification, InstanceStateName,
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use kiln_core::plan::{Address, Ec2Machine};
use kiln_io::time::{Attempt, GaveUp, Policy, poll_until};

use crate::{
    Region,
    call::{Age, Look},
    error::{AwsError, acknowledged},
};

/// Lines of the console that are quoted.
const QUOTED: usize = 20;

/// An instance that runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Up {
    pub(super) address: String,
    /// The root volume.
    pub(super) volume: String,
}

impl Region {
    /// Waits until the instance runs and has an address and its root volume.
    pub(super) async fn up(&self, id: &str, machine: &Ec2Machine, root: &str) -> Result<Up, AwsError> {
        let look = || async {
            let Some(instance) = self.instance(id, Age::New).await? else {
                return Ok(Look::Under("not to be seen".to_owned()));
            };
            let state = state(&instance);
            match state {
                Some(InstanceStateName::Running) => {}
                Some(InstanceStateName::Pending) | None => return Ok(Look::Under("pending".to_owned())),
                Some(_) => return Err(self.over(id, &instance)),
            }
            let address = match machine.address {
                Address::Public => instance.public_ip_address.clone(),
                Address::Private => instance.private_ip_address.clone(),
            };
            let up = address.filter(|address| !address.is_empty()).zip(root_volume(&instance, root));
            Ok(match up {
                Some((address, volume)) => Look::Done(Up { address, volume }),
                None => Look::Under("running, without an address".to_owned()),
            })
        };
        self.caller.wait("the instance", look).await
    }

    /// Returns when the instance does not run any more. That nobody can say is no trouble yet: whoever needs to know will ask.
    pub(super) async fn watch_instance(&self, id: &str) -> AwsError {
        let pauses = self.caller.patience.progress;
        let policy = Policy { first: pauses.max, max: pauses.max, deadline: Duration::MAX };
        let watched = poll_until(self.caller.clock.as_ref(), policy, &self.caller.cancel, || async {
            match self.instance(id, Age::New).await {
                Ok(Some(instance)) if !is_alive(&instance) => Attempt::Done(self.over(id, &instance)),
                _ => Attempt::<_, ()>::Again(()),
            }
        });
        watched.await.unwrap_or(AwsError::Stopped)
    }

    /// Waits until the instance has ended by itself.
    pub(super) async fn ended(&self, id: &str, limit: Duration) -> Result<(), AwsError> {
        let policy = Policy { deadline: limit, ..self.caller.patience.progress };
        let ended = poll_until(self.caller.clock.as_ref(), policy, &self.caller.cancel, || async {
            let again = || AwsError::StaysUp { instance: id.to_owned(), region: self.name.clone(), limit };
            match self.instance(id, Age::New).await {
                Ok(Some(instance)) if state(&instance) == Some(InstanceStateName::Terminated) => Attempt::Done(()),
                // Forgotten already.
                Ok(None) => Attempt::Done(()),
                Ok(Some(_)) => Attempt::Again(again()),
                Err(error) => Attempt::Stop(error),
            }
        });
        ended.await.map_err(|gave_up| match gave_up {
            GaveUp::Cancelled => AwsError::Stopped,
            GaveUp::Deadline(error) | GaveUp::Stopped(error) => error,
        })
    }

    /// The root volume stays when the instance ends.
    pub(super) async fn keep_volume(&self, id: &str, root: &str) -> Result<(), AwsError> {
        let volume = EbsInstanceBlockDeviceSpecification::builder().delete_on_termination(false).build();
        let device = InstanceBlockDeviceMappingSpecification::builder().device_name(root).ebs(volume).build();
        let modify =
            || self.ec2.modify_instance_attribute().instance_id(id).block_device_mappings(device.clone()).send();
        self.caller.call("ModifyInstanceAttribute", Age::New, modify).await.map(drop)
    }

    /// Ends an instance; gone already is as good, and `false`.
    pub(super) async fn terminate(&self, id: &str) -> Result<bool, AwsError> {
        let terminate = || self.ec2.terminate_instances().instance_ids(id).send();
        acknowledged(self.caller.call("TerminateInstances", Age::Old, terminate).await)
    }

    /// The last lines of what the guest wrote to its serial console.
    pub(super) async fn console(&self, id: &str) -> Result<Vec<String>, AwsError> {
        // What it says right now, which only types on Nitro tell; the others what they said when they last started or stopped.
        let ask = |latest| move || self.ec2.get_console_output().instance_id(id).latest(latest).send();
        let answer = match self.caller.call("GetConsoleOutput", Age::New, ask(true)).await {
            Err(AwsError::Refused { code, .. }) if code == "UnsupportedOperation" => {
                self.caller.call("GetConsoleOutput", Age::New, ask(false)).await?
            }
            answer => answer?,
        };
        let bytes = STANDARD.decode(answer.output.unwrap_or_default()).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        let lines: Vec<_> = text.lines().map(|line| line.trim_end().to_owned()).collect();
        Ok(lines[lines.len().saturating_sub(QUOTED)..].to_vec())
    }

    async fn instance(&self, id: &str, age: Age) -> Result<Option<Instance>, AwsError> {
        let look = || self.ec2.describe_instances().instance_ids(id).send();
        match self.caller.call("DescribeInstances", age, look).await {
            Ok(found) => {
                let mut instances = found.reservations.unwrap_or_default().into_iter().filter_map(|r| r.instances);
                Ok(instances.next().and_then(|instances| instances.into_iter().next()))
            }
            Err(error) if error.is_missing() => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn over(&self, id: &str, instance: &Instance) -> AwsError {
        let reason = instance.state_reason.as_ref().and_then(|reason| reason.message.clone());
        AwsError::Instance {
            instance: id.to_owned(),
            region: self.name.clone(),
            state: state(instance).map_or_else(|| "gone".to_owned(), |state| state.to_string()),
            reason: reason.unwrap_or_else(|| "no reason is given".to_owned()),
        }
    }
}

pub(super) fn state(instance: &Instance) -> Option<InstanceStateName> {
    instance.state.as_ref()?.name.clone()
}

fn is_alive(instance: &Instance) -> bool {
    matches!(state(instance), Some(InstanceStateName::Pending | InstanceStateName::Running) | None)
}

fn root_volume(instance: &Instance, root: &str) -> Option<String> {
    let mapping = instance.block_device_mappings().iter().find(|mapping| mapping.device_name() == Some(root))?;
    Some(mapping.ebs()?.volume_id()?.to_owned())
}
