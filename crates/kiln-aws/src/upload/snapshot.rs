//! Snapshots of ours: found by their intent, started, deleted.

use aws_sdk_ec2::types::SnapshotState;
use kiln_core::Digest;
use kiln_registry::Ami;

use super::{Parent, Wanted, journal};
use crate::{
    Note, Region, blocks,
    call::Age,
    error::{AwsError, acknowledged},
    intent::{DISK, Intent, TAG, tag, tagged},
    retention::WITHDRAWN,
};

/// How long EBS keeps an unfinished snapshot to which nothing is written, in minutes.
const KEPT: i32 = 24 * 60;

/// The key of an encrypted snapshot that EC2 does not name.
pub(crate) const DEFAULT_KEY: &str = "default";

/// A snapshot of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Snapshot {
    pub(crate) id: String,
    pub(crate) complete: bool,
    pub(crate) kms_key: Option<String>,
    pub(crate) parent: Option<String>,
}

impl Region {
    /// The snapshot of `intent`: the one that is there, else a new one. Those that are `spoiled` are deleted.
    pub(super) async fn snapshot(
        &self,
        intent: &Intent<'_>,
        wanted: &Wanted<'_>,
        spoiled: &[String],
    ) -> Result<Snapshot, AwsError> {
        // What the token of a request to start one is made of: a kiln that goes on for another, whose snapshot cannot be seen yet,
        // gets that one and no second.
        let mut basis = intent.id.clone();
        for id in spoiled {
            self.delete_snapshot(id).await?;
            basis.push_str(id);
        }
        if let Some(found) = self.find_snapshot(&intent.id, spoiled, &mut basis).await? {
            self.caller.watch.note(&self.name, Note::Resumed { snapshot: &found.id });
            return Ok(found);
        }
        self.start(wanted, &basis).await
    }

    /// The snapshot that carries the mark of `intent`. One that failed is deleted and does not count; `basis` gets its id.
    async fn find_snapshot(
        &self,
        intent: &str,
        spoiled: &[String],
        basis: &mut String,
    ) -> Result<Option<Snapshot>, AwsError> {
        let mut found = None;
        for snapshot in self.snapshots_of(intent).await? {
            let Some(id) = snapshot.snapshot_id else { continue };
            if spoiled.contains(&id) {
                continue;
            }
            if snapshot.state == Some(SnapshotState::Error) {
                self.delete_snapshot(&id).await?;
                basis.push_str(&id);
                continue;
            }
            let parent = journal::parent_of(snapshot.description.as_deref());
            let complete = snapshot.state == Some(SnapshotState::Completed);
            let encrypted = snapshot.encrypted == Some(true);
            let kms_key = encrypted.then(|| snapshot.kms_key_id.unwrap_or_else(|| DEFAULT_KEY.to_owned()));
            found = Some(Snapshot { id, complete, kms_key, parent });
        }
        Ok(found)
    }

    /// The snapshot of an AMI that was published and is gone, if it is what it was; and whether it was withdrawn.
    pub(crate) async fn kept_snapshot(&self, gone: &Ami) -> Result<Option<(Snapshot, bool)>, AwsError> {
        let snapshots = self.snapshots_of(&gone.intent).await?;
        let disk = gone.disk.to_string();
        let kept = snapshots.into_iter().find(|snapshot| {
            snapshot.snapshot_id.as_ref() == Some(&gone.snapshot)
                && snapshot.state == Some(SnapshotState::Completed)
                && tag(snapshot.tags(), DISK) == Some(&disk)
        });
        let (id, kms_key) = (gone.snapshot.clone(), gone.kms_key.clone());
        Ok(kept.map(|kept| {
            let withdrawn = tag(kept.tags(), WITHDRAWN).is_some();
            (Snapshot { id, complete: true, kms_key, parent: None }, withdrawn)
        }))
    }

    /// Every snapshot of ours with the mark of `intent`.
    pub(crate) async fn snapshots_of(&self, intent: &str) -> Result<Vec<aws_sdk_ec2::types::Snapshot>, AwsError> {
        let mut snapshots = Vec::new();
        let mut next = None;
        loop {
            let look = || {
                let request = self.ec2.describe_snapshots().owner_ids("self").filters(tagged(TAG, intent));
                request.set_next_token(next.clone()).send()
            };
            let page = self.caller.call("DescribeSnapshots", Age::Old, look).await?;
            snapshots.extend(page.snapshots.unwrap_or_default());
            next = page.next_token.filter(|token| !token.is_empty());
            if next.is_none() {
                return Ok(snapshots);
            }
        }
    }

    /// Deletes a snapshot whose AMI is deregistered; gone already is as good, and `false`.
    pub(crate) async fn delete_snapshot(&self, id: &str) -> Result<bool, AwsError> {
        let delete = || self.ec2.delete_snapshot().snapshot_id(id).send();
        acknowledged(self.caller.call("DeleteSnapshot", Age::Freed, delete).await)
    }

    async fn start(&self, wanted: &Wanted<'_>, basis: &str) -> Result<Snapshot, AwsError> {
        for parent in wanted.parents {
            match self.start_on(wanted, Some(parent), basis).await {
                // Deleted by somebody, or not ours to build on.
                Err(AwsError::Refused { code, .. })
                    if code == "ResourceNotFoundException" || code == "ValidationException" => {}
                started => return started,
            }
        }
        self.start_on(wanted, None, basis).await
    }

    async fn start_on(&self, wanted: &Wanted<'_>, parent: Option<&Parent>, basis: &str) -> Result<Snapshot, AwsError> {
        let size = wanted.disk.layout.size;
        let gib = i64::try_from(blocks::volume(size)).unwrap_or(i64::MAX);
        let token = Digest::of(format!("{basis} {:?}", parent.map(|parent| &parent.snapshot)).as_bytes()).hex();
        let tags: Vec<_> = wanted
            .tags
            .iter()
            .map(|(key, value)| aws_sdk_ebs::types::Tag::builder().key(key).value(value).build())
            .collect();
        let start = || {
            let mut request = self.ebs.start_snapshot().volume_size(gib).client_token(&token).timeout(KEPT);
            request = request.description(journal::description(parent.map(|parent| parent.snapshot.as_str())));
            request = request.set_tags(Some(tags.clone()));
            // A child is encrypted as its parent is; EBS refuses both in one request.
            request = match parent {
                Some(parent) => request.parent_snapshot_id(&parent.snapshot),
                None => request
                    .set_encrypted(wanted.kms_key.map(|_| true))
                    .set_kms_key_arn(wanted.kms_key.map(str::to_owned)),
            };
            request.send()
        };
        let started = self.caller.call("StartSnapshot", Age::Old, start).await?;
        let id = started.snapshot_id.ok_or_else(|| self.caller.incomplete("StartSnapshot", "SnapshotId"))?;
        let parent = parent.map(|parent| parent.snapshot.clone());
        Ok(Snapshot { id, complete: false, kms_key: started.kms_key_arn, parent })
    }
}
