//! Images: what one is, who may see it, and where it is in its life.

pub(crate) mod attributes;
pub(crate) mod copy;
pub(crate) mod create;
pub(crate) mod describe;
pub(crate) mod lifecycle;
pub(crate) mod mapping;
pub(crate) mod references;
pub(crate) mod register;

use std::collections::BTreeSet;

use kiln_core::moment::Moment;

use crate::{
    ec2::{
        images::mapping::{Ebs, Mapping},
        names::{check, not_found},
    },
    refusal::Refusal,
    world::{Progress, Stage, World},
};

#[expect(clippy::struct_field_names, reason = "EC2's own names")]
#[derive(Debug, Clone)]
pub(crate) struct Image {
    pub(crate) id: String,
    pub(crate) owner: String,
    pub(crate) name: String,
    pub(crate) description: String,
    pub(crate) architecture: String,
    pub(crate) virtualization: String,
    pub(crate) boot_mode: Option<String>,
    pub(crate) tpm: Option<String>,
    pub(crate) imds: Option<String>,
    pub(crate) uefi_data: Option<String>,
    pub(crate) sriov: Option<String>,
    pub(crate) ena: bool,
    pub(crate) root_device: String,
    pub(crate) mappings: Vec<Mapping>,
    pub(crate) created: Moment,
    pub(crate) progress: Progress,
    pub(crate) disabled: bool,
    /// It was deregistered, and is listed for so many reads all the same.
    pub(crate) gone: Option<u32>,
    /// Until then, everybody who may launch it also finds it.
    pub(crate) deprecation: Option<Moment>,
    pub(crate) protection: Protection,
    pub(crate) launch: BTreeSet<Grantee>,
    pub(crate) source_image: Option<(String, String)>,
    pub(crate) source_instance: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protection {
    None,
    On,
    /// Once taken off, it holds for another day.
    WithCooldown,
    Cooling {
        until: u64,
    },
}

/// Who may launch an image: the name of the attribute, and its value.
pub(crate) type Grantee = (&'static str, String);

impl Image {
    /// An image of somebody else, as base images are.
    pub(crate) fn published(world: &World, id: &str, name: &str, architecture: &str, snapshot: &str) -> Self {
        let mode = if architecture == "arm64" { "uefi" } else { "uefi-preferred" };
        Self {
            id: id.to_owned(),
            owner: world.account.clone(),
            name: name.to_owned(),
            description: String::new(),
            architecture: architecture.to_owned(),
            virtualization: "hvm".to_owned(),
            boot_mode: Some(mode.to_owned()),
            tpm: None,
            imds: None,
            uefi_data: None,
            sriov: Some("simple".to_owned()),
            ena: true,
            root_device: "/dev/xvda".to_owned(),
            mappings: vec![Mapping::root("/dev/xvda", snapshot, 1)],
            created: world.now(),
            progress: Progress::DONE,
            disabled: false,
            gone: None,
            deprecation: None,
            protection: Protection::None,
            launch: BTreeSet::from([("group", "all".to_owned())]),
            source_image: None,
            source_instance: None,
        }
    }

    pub(crate) fn root(&self) -> Option<&Ebs> {
        self.mappings.iter().find(|mapping| mapping.device == self.root_device)?.ebs.as_ref()
    }

    pub(crate) fn snapshots(&self) -> impl Iterator<Item = &str> {
        self.mappings.iter().filter_map(|mapping| mapping.ebs.as_ref()).map(|ebs| ebs.snapshot.as_str())
    }

    pub(crate) fn is_public(&self) -> bool {
        self.launch.iter().any(|(kind, _)| *kind == "group")
    }

    /// Organisations count for nothing here: the fake does not know who belongs to one.
    pub(crate) fn may_launch(&self, account: &str) -> bool {
        self.owner == account
            || self.is_public()
            || self.launch.iter().any(|(kind, value)| *kind == "userId" && value == account)
    }

    pub(crate) fn state(&self) -> &'static str {
        match self.progress.stage() {
            _ if self.gone.is_some() => "deregistered",
            Stage::Waiting => "pending",
            Stage::Failed => "failed",
            Stage::Ready if self.disabled => "disabled",
            Stage::Ready => "available",
        }
    }

    pub(crate) fn is_available(&self) -> bool {
        self.state() == "available"
    }
}

impl World {
    /// An image of the caller's own, to be changed.
    pub(crate) fn own_image(&mut self, id: &str) -> Result<&mut Image, Refusal> {
        check(id, "ami")?;
        if !self.here().images.contains_key(id) {
            let foreign = self.visible_image(id).is_some();
            let message = format!("You are not authorized to change the image {id}");
            return Err(if foreign { Refusal::new(403, "AuthFailure", message) } else { not_found(id) });
        }
        if !self.sees(id) {
            return Err(not_found(id));
        }
        self.here().images.get_mut(id).ok_or_else(|| not_found(id))
    }

    /// An image that the caller may launch, whoever owns it.
    pub(crate) fn launchable_image(&mut self, id: &str) -> Result<Image, Refusal> {
        check(id, "ami")?;
        if self.here().images.contains_key(id) && !self.sees(id) {
            return Err(not_found(id));
        }
        self.visible_image(id).cloned().ok_or_else(|| not_found(id))
    }

    pub(crate) fn visible_image(&self, id: &str) -> Option<&Image> {
        let mut near = self.regions.iter().filter(|((region, _), _)| *region == self.region);
        let image = near.find_map(|(_, region)| region.images.get(id))?;
        image.may_launch(&self.account).then_some(image)
    }

    /// Refuses what is no name of an image, and a name that one of the caller's images has.
    pub(crate) fn check_image_name(&mut self, name: &str) -> Result<(), Refusal> {
        let legal = |letter: char| letter.is_ascii_alphanumeric() || "()[] ./-'@_".contains(letter);
        if !(3..=128).contains(&name.len()) || !name.chars().all(legal) {
            let message = "AMI names must be between 3 and 128 characters long, and may contain letters, numbers, and ()[] ./-'@_";
            return Err(Refusal::client("InvalidAMIName.Malformed", message));
        }
        match self.here().images.values().find(|image| image.name == name) {
            None => Ok(()),
            Some(image) => {
                let message = format!("AMI name {name} is already in use by AMI {}", image.id);
                Err(Refusal::client("InvalidAMIName.Duplicate", message))
            }
        }
    }
}
