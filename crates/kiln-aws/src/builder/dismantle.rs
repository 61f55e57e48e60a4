//! Everything that carries the mark of a bake, taken away in the order in which things depend on each other.

use aws_sdk_ec2::types::InstanceStateName;
use kiln_io::ledger::Remote;

use super::state::state;
use crate::{
    Region,
    call::{Age, Look},
    error::AwsError,
    intent::{TAG, tagged},
};

/// Whether what was made for `remote` was made for a bake or a trial, and none of it is to stay.
pub(crate) fn is_temporary(remote: &Remote) -> bool {
    remote.catalog.as_os_str().is_empty()
}

impl Region {
    /// Takes away what can be seen of it now: instances, and when they have ended, AMIs, volumes, snapshots, groups, keys. The ids of what
    /// there was.
    pub(crate) async fn dismantle(&self, intent: &str) -> Result<Vec<String>, AwsError> {
        let mut gone = self.end_instances(intent).await?;
        for image in self.images_of(intent).await? {
            self.deregister(&image.ami).await?;
            gone.push(image.ami);
        }
        for volume in self.volumes_of(intent).await? {
            self.delete_volume(&volume).await?;
            gone.push(volume);
        }
        for snapshot in self.snapshots_of(intent).await? {
            let Some(id) = snapshot.snapshot_id else { continue };
            self.delete_snapshot(&id).await?;
            gone.push(id);
        }
        for group in self.groups_of(intent).await? {
            self.delete_group(&group).await?;
            gone.push(group);
        }
        for key in self.keys_of(intent).await? {
            let delete = || self.ec2.delete_key_pair().key_pair_id(&key).send();
            missing_is_fine(self.caller.call("DeleteKeyPair", Age::Old, delete).await)?;
            gone.push(key);
        }
        Ok(gone)
    }

    /// Ends every instance of the intent and waits until it holds neither volume nor group any more.
    async fn end_instances(&self, intent: &str) -> Result<Vec<String>, AwsError> {
        let running = self.instances_of(intent).await?;
        for instance in &running {
            self.terminate(instance).await?;
        }
        let look = || async {
            let left = self.instances_of(intent).await?;
            Ok(if left.is_empty() { Look::Done(()) } else { Look::Under(left.join(", ")) })
        };
        if !running.is_empty() {
            self.caller.wait("the end of the instance", look).await?;
        }
        Ok(running)
    }

    /// Instances that are not over.
    async fn instances_of(&self, intent: &str) -> Result<Vec<String>, AwsError> {
        pages(|next| async move {
            let look = || {
                let request = self.ec2.describe_instances().filters(tagged(TAG, intent));
                request.set_next_token(next.clone()).send()
            };
            let found = self.caller.call("DescribeInstances", Age::Old, look).await?;
            let instances = found.reservations.unwrap_or_default().into_iter().filter_map(|found| found.instances);
            let living = instances.flatten().filter(|instance| state(instance) != Some(InstanceStateName::Terminated));
            Ok((living.filter_map(|instance| instance.instance_id).collect(), found.next_token))
        })
        .await
    }

    async fn volumes_of(&self, intent: &str) -> Result<Vec<String>, AwsError> {
        pages(|next| async move {
            let look = || {
                let request = self.ec2.describe_volumes().filters(tagged(TAG, intent));
                request.set_next_token(next.clone()).send()
            };
            let found = self.caller.call("DescribeVolumes", Age::Old, look).await?;
            let volumes = found.volumes.unwrap_or_default().into_iter().filter_map(|volume| volume.volume_id);
            Ok((volumes.collect(), found.next_token))
        })
        .await
    }

    async fn groups_of(&self, intent: &str) -> Result<Vec<String>, AwsError> {
        pages(|next| async move {
            let look = || {
                let request = self.ec2.describe_security_groups().filters(tagged(TAG, intent));
                request.set_next_token(next.clone()).send()
            };
            let found = self.caller.call("DescribeSecurityGroups", Age::Old, look).await?;
            let groups = found.security_groups.unwrap_or_default().into_iter().filter_map(|group| group.group_id);
            Ok((groups.collect(), found.next_token))
        })
        .await
    }

    /// Key pairs come on one page.
    async fn keys_of(&self, intent: &str) -> Result<Vec<String>, AwsError> {
        let look = || self.ec2.describe_key_pairs().filters(tagged(TAG, intent)).send();
        let found = self.caller.call("DescribeKeyPairs", Age::Old, look).await?;
        Ok(found.key_pairs.unwrap_or_default().into_iter().filter_map(|key| key.key_pair_id).collect())
    }

    /// A volume that is still being detached is waited for.
    async fn delete_volume(&self, volume: &str) -> Result<(), AwsError> {
        let look = || async {
            let delete = || self.ec2.delete_volume().volume_id(volume).send();
            held(self.caller.call("DeleteVolume", Age::Old, delete).await, &["VolumeInUse", "IncorrectState"])
        };
        self.caller.wait("the volume", look).await
    }

    /// A group that a vanishing interface still belongs to is waited for.
    async fn delete_group(&self, group: &str) -> Result<(), AwsError> {
        let look = || async {
            let delete = || self.ec2.delete_security_group().group_id(group).send();
            held(self.caller.call("DeleteSecurityGroup", Age::Old, delete).await, &["DependencyViolation"])
        };
        self.caller.wait("the security group", look).await
    }
}

/// What all pages list; `page` gives one, and the token of the next.
async fn pages<F>(page: impl Fn(Option<String>) -> F) -> Result<Vec<String>, AwsError>
where
    F: Future<Output = Result<(Vec<String>, Option<String>), AwsError>>,
{
    let (mut all, mut next) = (Vec::new(), None);
    loop {
        let (ids, more) = page(next).await?;
        all.extend(ids);
        next = more.filter(|token| !token.is_empty());
        if next.is_none() {
            return Ok(all);
        }
    }
}

/// Done, unless somebody still holds it, for which EC2 has these words.
fn held<T>(deleted: Result<T, AwsError>, words: &[&str]) -> Result<Look<()>, AwsError> {
    match missing_is_fine(deleted) {
        Ok(()) => Ok(Look::Done(())),
        Err(AwsError::Refused { code, .. }) if words.contains(&code.as_str()) => Ok(Look::Under(code)),
        Err(error) => Err(error),
    }
}

fn missing_is_fine<T>(deleted: Result<T, AwsError>) -> Result<(), AwsError> {
    match deleted {
        Err(error) if !error.is_missing() => Err(error),
        _ => Ok(()),
    }
}
