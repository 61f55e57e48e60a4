//! Old AMIs: withdrawn first, deleted later, and only those that are ours beyond doubt and that nobody uses.
//!
//! Ours is what stands in the catalog and carries the tags that the catalog's record says, among them the intent. An AMI that another kiln
//! made and this one adopted is not. Withdrawn is deprecated and disabled: nothing starts from it, and it can be had back.

mod users;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::SystemTime,
};

use aws_sdk_ec2::{primitives::DateTime, types::ImageState};
use kiln_core::{ImageName, Version};
use kiln_registry::{Ami, Registry};
use serde::Serialize;

use self::users::Users;
use crate::{
    Region,
    call::Age,
    error::AwsError,
    intent::{DISK, TAG, tag},
};

/// When it was withdrawn, seconds since 1970, UTC.
pub(crate) const WITHDRAWN: &str = "kiln:withdrawn";
const DAY: u64 = 86_400;
/// How far ahead of now a deprecation begins, in seconds: EC2 rounds to minutes, and clocks differ.
const AHEAD: u64 = 900;

/// What is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keep {
    /// The newest so many versions that have an AMI in the region.
    pub newest: usize,
    /// How many days a withdrawn AMI stays.
    pub days: u64,
    /// Seconds since 1970, UTC.
    pub now: u64,
}

/// What becomes of an AMI.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "fate", content = "why")]
pub enum Fate {
    Kept(String),
    /// It is deprecated and disabled.
    Withdrawn,
    /// It was withdrawn long enough; it is deregistered, and its snapshot deleted.
    Deleted,
    /// It could not be told, or not be done. What is done already stays done, and the next run goes on.
    Failed(String),
}

/// One AMI of the catalog and what becomes of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Verdict {
    pub version: Version,
    pub region: String,
    pub ami: String,
    #[serde(flatten)]
    pub fate: Fate,
}

/// What is known of an AMI.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Standing {
    /// How many newer versions have an AMI there.
    newer: usize,
    channel: Option<String>,
    /// Why it is not ours to touch.
    foreign: Option<&'static str>,
    used_by: Option<String>,
    withdrawn: Option<u64>,
}

fn decide(standing: &Standing, keep: &Keep) -> Fate {
    if let Some(why) = standing.foreign {
        return Fate::Kept(why.to_owned());
    }
    if standing.newer < keep.newest {
        return Fate::Kept(format!("one of the newest {}", keep.newest));
    }
    if let Some(channel) = &standing.channel {
        return Fate::Kept(format!("{channel} points there"));
    }
    if let Some(user) = &standing.used_by {
        return Fate::Kept(format!("{user} uses it"));
    }
    match standing.withdrawn {
        None => Fate::Withdrawn,
        Some(since) if since.saturating_add(keep.days.saturating_mul(DAY)) <= keep.now => Fate::Deleted,
        Some(_) => Fate::Kept(format!("withdrawn, and deleted after {} days", keep.days)),
    }
}

impl Region {
    /// Says what `keep` makes of the AMIs of `image` here, and does it unless `dry`. One that cannot go keeps no other from going.
    pub async fn retain(
        &self,
        registry: &Registry,
        image: &ImageName,
        keep: &Keep,
        dry: bool,
    ) -> Result<Vec<Verdict>, AwsError> {
        let amis = self.catalogued(registry, image)?;
        let channels: BTreeMap<Version, String> =
            registry.channels(image)?.into_iter().map(|(name, channel)| (channel.version, name.to_string())).collect();
        let users = self.users().await?;
        let mut verdicts = Vec::new();
        for (newer, ami) in amis.into_iter().enumerate() {
            let place = Standing { newer, channel: channels.get(&ami.version).cloned(), ..Standing::default() };
            let fate = match self.judge(registry, &ami, place, &users, keep, dry).await {
                // Whatever comes next would say the same.
                Err(error @ (AwsError::Stopped | AwsError::NoCredentials { .. })) => return Err(error),
                Err(error) => Fate::Failed(error.to_string()),
                Ok(fate) => fate,
            };
            verdicts.push(Verdict { version: ami.version, region: self.name.clone(), ami: ami.ami, fate });
        }
        Ok(verdicts)
    }

    async fn judge(
        &self,
        registry: &Registry,
        ami: &Ami,
        place: Standing,
        users: &Users,
        keep: &Keep,
        dry: bool,
    ) -> Result<Fate, AwsError> {
        let Standing { newer, channel, .. } = place;
        let fate = decide(&Standing { newer, channel, ..self.standing(ami, users).await? }, keep);
        if !dry {
            self.carry_out(registry, ami, &fate, keep.now).await?;
        }
        Ok(fate)
    }

    /// The AMIs of `image` here by the catalog, the newest first.
    pub(crate) fn catalogued(&self, registry: &Registry, image: &ImageName) -> Result<Vec<Ami>, AwsError> {
        let mut amis = registry.amis_of(image)?;
        amis.retain(|ami| (&ami.account, &ami.region) == (&self.account, &self.name));
        amis.sort_by(|a, b| (b.published, &b.version).cmp(&(a.published, &a.version)));
        Ok(amis)
    }

    async fn carry_out(&self, registry: &Registry, ami: &Ami, fate: &Fate, now: u64) -> Result<(), AwsError> {
        match fate {
            Fate::Kept(_) | Fate::Failed(_) => Ok(()),
            Fate::Withdrawn => self.withdraw(ami, now).await,
            Fate::Deleted => {
                self.deregister(&ami.ami).await?;
                self.delete_snapshot(&ami.snapshot).await?;
                Ok(registry.forget_ami(ami)?)
            }
        }
    }

    /// Twice is as good as once. The tags come first, so that it is never disabled without it being known since when; the
    /// snapshot has one for when the AMI is gone.
    async fn withdraw(&self, ami: &Ami, now: u64) -> Result<(), AwsError> {
        self.mark(&[&ami.ami, &ami.snapshot], &BTreeMap::from([(WITHDRAWN.to_owned(), now.to_string())])).await?;
        // EC2 wants a date that is still to come when the request arrives, by its own clock.
        let clock = self.caller.clock.wall().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let at = DateTime::from_secs(i64::try_from(clock.as_secs().max(now) + AHEAD).unwrap_or(i64::MAX));
        let deprecate = || self.ec2.enable_image_deprecation().image_id(&ami.ami).deprecate_at(at).send();
        self.caller.call("EnableImageDeprecation", Age::Old, deprecate).await?;
        let disable = || self.ec2.disable_image().image_id(&ami.ami).send();
        self.caller.call("DisableImage", Age::Old, disable).await.map(drop)
    }

    /// Takes off what `withdraw` left on an AMI that somebody enabled again.
    pub(crate) async fn restore(&self, ami: &Ami) -> Result<(), AwsError> {
        let image = self.image(&ami.ami).await?;
        if image.is_none_or(|image| tag(image.tags(), WITHDRAWN).is_none()) {
            return Ok(());
        }
        let offer = || self.ec2.disable_image_deprecation().image_id(&ami.ami).send();
        self.caller.call("DisableImageDeprecation", Age::Old, offer).await?;
        self.unmark(&[&ami.ami, &ami.snapshot], WITHDRAWN).await
    }

    async fn standing(&self, ami: &Ami, users: &Users) -> Result<Standing, AwsError> {
        let Some(image) = self.image(&ami.ami).await? else { return self.remains(ami).await };
        let value = |key| tag(image.tags(), key);
        let ours = value(DISK) == Some(&ami.disk.to_string()) && value(TAG) == Some(&ami.intent);
        let foreign = match image.deregistration_protection.as_deref() {
            _ if !ours => Some("it does not carry the tags of its record"),
            // Also while it cools down after protection was taken off.
            Some(protection) if protection != "disabled" => Some("it is protected"),
            _ => None,
        };
        // Half withdrawn, or enabled again: the days count from when it is disabled.
        let disabled = image.state == Some(ImageState::Disabled);
        let withdrawn = value(WITHDRAWN).and_then(|since| since.parse().ok()).filter(|_| disabled);
        let used_by = match users.of(&ami.ami) {
            Some(user) => Some(user.clone()),
            None if foreign.is_none() => self.user_of(&ami.ami).await?,
            None => None,
        };
        Ok(Standing { foreign, used_by, withdrawn, ..Standing::default() })
    }

    /// The same of an AMI that is gone: what a run that was interrupted deregistered, or somebody else.
    async fn remains(&self, ami: &Ami) -> Result<Standing, AwsError> {
        let snapshots = self.snapshots_of(&ami.intent).await?;
        let snapshot = snapshots.into_iter().find(|found| found.snapshot_id.as_ref() == Some(&ami.snapshot));
        let Some(snapshot) = snapshot else {
            // Nothing but the record.
            return Ok(Standing { withdrawn: Some(0), ..Standing::default() });
        };
        let withdrawn = tag(snapshot.tags(), WITHDRAWN).and_then(|since| since.parse().ok());
        let foreign = withdrawn.is_none().then_some("somebody deregistered it; `kiln publish ami` brings it back");
        Ok(Standing { foreign, withdrawn, ..Standing::default() })
    }

    /// Something that uses `ami`: an instance, a launch template, a parameter, a recipe of Image Builder.
    async fn user_of(&self, ami: &str) -> Result<Option<String>, AwsError> {
        let mut next = None;
        let mut users = BTreeSet::new();
        loop {
            let look = || {
                let request = self.ec2.describe_image_references().image_ids(ami).include_all_resource_types(true);
                request.set_next_token(next.clone()).send()
            };
            let page = self.caller.call("DescribeImageReferences", Age::Old, look).await?;
            users.extend(page.image_references.unwrap_or_default().into_iter().filter_map(|user| user.arn));
            next = page.next_token.filter(|token| !token.is_empty());
            if next.is_none() || !users.is_empty() {
                return Ok(users.pop_first());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEEP: Keep = Keep { newest: 2, days: 7, now: 100 * DAY };

    #[test]
    fn what_is_new_used_pointed_to_or_not_ours_is_kept() {
        let old = Standing { newer: 2, ..Standing::default() };
        let kept = [
            Standing { newer: 1, ..old.clone() },
            Standing { channel: Some("stable".to_owned()), ..old.clone() },
            Standing { used_by: Some("i-1".to_owned()), ..old.clone() },
            Standing { foreign: Some("it does not carry the tags of its record"), newer: 50, ..old.clone() },
        ];
        for standing in kept {
            let withdrawn = Standing { withdrawn: Some(0), ..standing.clone() };
            for standing in [standing, withdrawn] {
                assert!(matches!(decide(&standing, &KEEP), Fate::Kept(_)), "{standing:?}");
            }
        }
        assert_eq!(decide(&old, &KEEP), Fate::Withdrawn);
    }

    #[test]
    fn it_is_withdrawn_first_and_deleted_days_later() {
        let since = |day| Standing { newer: 9, withdrawn: Some(day * DAY), ..Standing::default() };
        assert!(matches!(decide(&since(94), &KEEP), Fate::Kept(_)));
        assert_eq!(decide(&since(93), &KEEP), Fate::Deleted);
    }
}
