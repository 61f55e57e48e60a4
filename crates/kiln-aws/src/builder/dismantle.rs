//! Everything that carries the mark of a bake, taken away in the order in which things depend on each other.

use std::{
    collections::BTreeSet,
    sync::{Mutex, PoisonError},
};

use aws_sdk_ec2::types::InstanceStateName;
use kiln_io::ledger::Remote;

use super::state::state;
use crate::{
    Region,
    call::{Age, Look},
    error::{AwsError, acknowledged},
    intent::{TAG, tagged},
    reconcile::Swept,
};

/// Whether what was made for `remote` was made for a bake or a trial, and none of it is to stay.
pub(crate) fn is_temporary(remote: &Remote) -> bool {
    remote.catalog.as_os_str().is_empty()
}

impl Region {
    /// Takes away what can be seen of it now: instances, and when they have ended, AMIs, volumes, snapshots, groups, keys.
    pub(crate) async fn dismantle(&self, intent: &str) -> Result<Swept, AwsError> {
        let mut swept = Swept::default();
        for (instance, gone) in self.end_instances(intent).await? {
            swept.note(instance, gone);
        }
        for image in self.images_of(intent).await? {
            let gone = self.deregister(&image.ami).await?;
            swept.note(image.ami, gone);
        }
        for volume in self.volumes_of(intent).await? {
            let gone = self.delete_volume(&volume).await?;
            swept.note(volume, gone);
        }
        for snapshot in self.snapshots_of(intent).await? {
            let Some(id) = snapshot.snapshot_id else { continue };
            let gone = self.delete_snapshot(&id).await?;
            swept.note(id, gone);
        }
        for group in self.groups_of(intent).await? {
            let gone = self.delete_group(&group).await?;
            swept.note(group, gone);
        }
        for key in self.keys_of(intent).await? {
            let delete = || self.ec2.delete_key_pair().key_name(&key).send();
            let gone = acknowledged(self.caller.call("DeleteKeyPair", Age::Old, delete).await)?;
            swept.note(key, gone);
        }
        Ok(swept)
    }

    /// Ends every instance of the intent and waits until it holds neither volume nor group any more; whether EC2 acknowledged that.
    async fn end_instances(&self, intent: &str) -> Result<Vec<(String, bool)>, AwsError> {
        let all = self.instances_of(intent).await?;
        let told = Mutex::new(BTreeSet::new());
        let end = async |instance: &String| {
            if self.terminate(instance).await? {
                told.lock().unwrap_or_else(PoisonError::into_inner).insert(instance.clone());
            }
            Ok::<_, AwsError>(())
        };
        let running = living(&all);
        for instance in &running {
            end(instance).await?;
        }
        let look = || async {
            let left = living(&self.instances_of(intent).await?);
            // Again each time: one that could not be seen for a moment was not told.
            for instance in &left {
                end(instance).await?;
            }
            Ok(if left.is_empty() { Look::Done(()) } else { Look::Under(left.join(", ")) })
        };
        if !running.is_empty() {
            self.caller.wait("the end of the instance", look).await?;
        }
        let told = told.into_inner().unwrap_or_else(PoisonError::into_inner);
        Ok(all.into_iter().map(|(instance, lives)| (instance.clone(), !lives || told.contains(&instance))).collect())
    }

    /// Instances, and whether they are not over yet.
    async fn instances_of(&self, intent: &str) -> Result<Vec<(String, bool)>, AwsError> {
        pages(|next| async move {
            let look = || {
                let request = self.ec2.describe_instances().filters(tagged(TAG, intent));
                request.set_next_token(next.clone()).send()
            };
            let found = self.caller.call("DescribeInstances", Age::Old, look).await?;
            let instances = found.reservations.unwrap_or_default().into_iter().filter_map(|found| found.instances);
            let each = instances.flatten().filter_map(|instance| {
                let lives = state(&instance) != Some(InstanceStateName::Terminated);
                Some((instance.instance_id?, lives))
            });
            Ok((each.collect(), found.next_token))
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

    /// Their names. Key pairs come on one page.
    async fn keys_of(&self, intent: &str) -> Result<Vec<String>, AwsError> {
        let look = || self.ec2.describe_key_pairs().filters(tagged(TAG, intent)).send();
        let found = self.caller.call("DescribeKeyPairs", Age::Old, look).await?;
        Ok(found.key_pairs.unwrap_or_default().into_iter().filter_map(|key| key.key_name).collect())
    }

    /// A volume that is still being detached is waited for.
    async fn delete_volume(&self, volume: &str) -> Result<bool, AwsError> {
        let delete = || self.ec2.delete_volume().volume_id(volume).send();
        acknowledged(self.caller.call("DeleteVolume", Age::Freed, delete).await)
    }

    /// A group that a vanishing interface still belongs to is waited for.
    async fn delete_group(&self, group: &str) -> Result<bool, AwsError> {
        let delete = || self.ec2.delete_security_group().group_id(group).send();
        acknowledged(self.caller.call("DeleteSecurityGroup", Age::Freed, delete).await)
    }
}

fn living(instances: &[(String, bool)]) -> Vec<String> {
    instances.iter().filter(|(_, lives)| *lives).map(|(instance, _)| instance.clone()).collect()
}

/// What all pages list; `page` gives one, and the token of the next.
async fn pages<T, F>(page: impl Fn(Option<String>) -> F) -> Result<Vec<T>, AwsError>
where
    F: Future<Output = Result<(Vec<T>, Option<String>), AwsError>>,
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
