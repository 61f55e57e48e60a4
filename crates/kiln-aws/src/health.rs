//! Whether the AMIs of the catalog are still what was published: there, launchable, nobody else's business.
//!
//! An account is shared with people and other programs. What they did to an AMI is found here, before machines are to start from it.

use std::collections::BTreeMap;

use aws_sdk_ec2::types::{Image, ImageState};
use kiln_core::{ImageName, Version};
use kiln_registry::{Ami, Registry};
use serde::Serialize;

use crate::{
    Region,
    error::AwsError,
    intent::{DISK, TAG, tag},
    retention::WITHDRAWN,
};

/// How an AMI stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "health", content = "why")]
pub enum Health {
    Sound,
    /// By `kiln release retire`.
    Withdrawn,
    Broken(String),
}

/// One AMI of the catalog, and how it stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Checked {
    pub version: Version,
    pub region: String,
    pub ami: String,
    /// The channels that point to its version.
    pub channels: Vec<String>,
    #[serde(flatten)]
    pub health: Health,
}

impl Region {
    /// Looks at every AMI of `image` here, the newest first. Changes nothing. With `public`, that everybody may launch it is right.
    pub async fn check(&self, registry: &Registry, image: &ImageName, public: bool) -> Result<Vec<Checked>, AwsError> {
        let mut channels: BTreeMap<Version, Vec<String>> = BTreeMap::new();
        for (name, channel) in registry.channels(image)? {
            channels.entry(channel.version).or_default().push(name.to_string());
        }
        let mut checked = Vec::new();
        for ami in self.catalogued(registry, image)? {
            let health = match self.image(&ami.ami).await? {
                Some(found) => health(&ami, &found, public),
                None => Health::Broken(self.what_is_left(&ami).await?.to_owned()),
            };
            let channels = channels.get(&ami.version).cloned().unwrap_or_default();
            checked.push(Checked { version: ami.version, region: self.name.clone(), ami: ami.ami, channels, health });
        }
        Ok(checked)
    }

    /// Of an AMI that somebody deregistered.
    async fn what_is_left(&self, ami: &Ami) -> Result<&'static str, AwsError> {
        let snapshots = self.snapshots_of(&ami.intent).await?;
        let left = snapshots.iter().any(|found| found.snapshot_id.as_ref() == Some(&ami.snapshot));
        Ok(if left {
            "somebody deregistered it; `kiln publish ami` registers its snapshot again"
        } else {
            "it is gone, and its snapshot too; `kiln publish ami` sends it again"
        })
    }
}

fn health(ami: &Ami, found: &Image, public: bool) -> Health {
    let value = |key| tag(found.tags(), key);
    let broken = |why: &str| Health::Broken(why.to_owned());
    match &found.state {
        _ if value(DISK) != Some(&ami.disk.to_string()) => broken("it does not carry the tags of its record"),
        _ if value(TAG) != Some(&ami.intent) => broken("it does not carry the tags of its record"),
        Some(ImageState::Disabled) if value(WITHDRAWN).is_some() => Health::Withdrawn,
        Some(ImageState::Disabled) => broken("somebody disabled it; `aws ec2 enable-image` takes that back"),
        Some(ImageState::Available) if found.public == Some(true) && !public => broken(
            "everybody may launch it; `aws ec2 reset-image-attribute` takes that back, `--public` says that it is meant",
        ),
        Some(ImageState::Available) if value(WITHDRAWN).is_some() => broken(
            "it is withdrawn by half, or somebody enabled it again; `kiln publish ami` makes it whole, `kiln release retire` withdraws it",
        ),
        Some(ImageState::Available) => Health::Sound,
        state => Health::Broken(format!("it is {}", state.as_ref().map_or("in no state", ImageState::as_str))),
    }
}
