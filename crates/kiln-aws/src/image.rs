//! An AMI: found by its name, or registered; then waited for.

use std::collections::BTreeMap;

use aws_sdk_ec2::types::{
    ArchitectureValues, BlockDeviceMapping, BootModeValues, EbsBlockDevice, Filter, Image, ImageState,
    ImdsSupportValues, ResourceType, Tag, TagSpecification, VolumeType,
};
use kiln_disk::hygiene::Firmware;
use kiln_registry::Record;

use crate::{
    Region,
    call::{Age, Look},
    error::{AwsError, acknowledged},
    intent::{DISK, TAG, ec2_tags, tag, tagged},
    upload::{DEFAULT_KEY, Snapshot},
};

/// The root volume's name, as Debian's own AMIs have it.
const ROOT: &str = "/dev/xvda";

/// An AMI that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) ami: String,
    pub(crate) snapshot: String,
    pub(crate) kms_key: Option<String>,
    pub(crate) intent: Option<String>,
}

impl Region {
    /// The AMI of this version that is in the region already, whoever registered it. One of the same name with another disk is
    /// refused; one of `intent` that failed is deregistered and does not count.
    pub(crate) async fn find_image(&self, record: &Record, intent: &str) -> Result<Option<Found>, AwsError> {
        let name = name(record);
        let images = self.images(Filter::builder().name("name").values(&name).build()).await?;
        let Some(image) = images.into_iter().next() else { return Ok(None) };
        let disk = record.artifact.disk.digest;
        let found = found(&image);
        if tag(image.tags(), DISK) == Some(disk.to_string().as_str())
            && let Some(found) = found
        {
            let failed = matches!(image.state, Some(ImageState::Failed | ImageState::Error | ImageState::Invalid));
            if !failed || found.intent.as_deref() != Some(intent) {
                return Ok(Some(found));
            }
            self.deregister(&found.ami).await?;
            return Ok(None);
        }
        let ami = image.image_id.unwrap_or_default();
        Err(AwsError::NameTaken { name, ami, region: self.name.clone(), disk })
    }

    /// The AMIs of ours with the mark of `intent`.
    pub(crate) async fn images_of(&self, intent: &str) -> Result<Vec<Found>, AwsError> {
        Ok(self.images(tagged(TAG, intent)).await?.iter().filter_map(found).collect())
    }

    async fn images(&self, filter: Filter) -> Result<Vec<Image>, AwsError> {
        let (mut images, mut next) = (Vec::new(), None);
        loop {
            let look = || {
                let request = self.ec2.describe_images().owners("self").filters(filter.clone());
                // Deprecated and disabled ones are ours all the same.
                request.include_deprecated(true).include_disabled(true).set_next_token(next.clone()).send()
            };
            let page = self.caller.call("DescribeImages", Age::Old, look).await?;
            // One that was deregistered a moment ago is listed for a while.
            let there = |image: &Image| image.state != Some(ImageState::Deregistered);
            images.extend(page.images.unwrap_or_default().into_iter().filter(there));
            next = page.next_token.filter(|token| !token.is_empty());
            if next.is_none() {
                return Ok(images);
            }
        }
    }

    /// The state of an AMI that was there before; `None`: somebody deregistered it.
    pub(crate) async fn state(&self, ami: &str) -> Result<Option<ImageState>, AwsError> {
        let image = self.image(ami).await?;
        Ok(image.and_then(|image| image.state))
    }

    /// An AMI of ours, in whatever state but deregistered.
    pub(crate) async fn image(&self, ami: &str) -> Result<Option<Image>, AwsError> {
        let look = || {
            let request = self.ec2.describe_images().image_ids(ami).owners("self");
            request.include_deprecated(true).include_disabled(true).send()
        };
        let found = match self.caller.call("DescribeImages", Age::Old, look).await {
            Ok(found) => found.images.unwrap_or_default().into_iter().next(),
            Err(error) if error.is_missing() => None,
            Err(error) => return Err(error),
        };
        Ok(found.filter(|image| image.state != Some(ImageState::Deregistered)))
    }

    /// Registers `snapshot`. When somebody else was faster, what that one registered.
    pub(crate) async fn register(
        &self,
        record: &Record,
        snapshot: &Snapshot,
        boot_mode: &BootModeValues,
        tags: &BTreeMap<String, String>,
    ) -> Result<Found, AwsError> {
        let (name, description) = (name(record), description(record));
        let intent = tags.get(TAG).map_or("", String::as_str);
        self.register_as(&name, description, snapshot, boot_mode, tags, || self.find_image(record, intent)).await
    }

    /// Registers `snapshot` under a name that nobody else has: the intent.
    pub(crate) async fn register_trial(
        &self,
        snapshot: &Snapshot,
        boot_mode: &BootModeValues,
        tags: &BTreeMap<String, String>,
    ) -> Result<Found, AwsError> {
        let intent = tags.get(TAG).map_or("", String::as_str);
        let find = || async { Ok(self.images_of(intent).await?.pop()) };
        self.register_as(&format!("kiln-trial-{intent}"), None, snapshot, boot_mode, tags, find).await
    }

    /// `find` is what is there under the name already.
    async fn register_as<F: Future<Output = Result<Option<Found>, AwsError>>>(
        &self,
        name: &str,
        description: Option<String>,
        snapshot: &Snapshot,
        boot_mode: &BootModeValues,
        tags: &BTreeMap<String, String>,
        find: impl Fn() -> F,
    ) -> Result<Found, AwsError> {
        let volume = EbsBlockDevice::builder().snapshot_id(&snapshot.id).volume_type(VolumeType::Gp3);
        let root =
            BlockDeviceMapping::builder().device_name(ROOT).ebs(volume.delete_on_termination(true).build()).build();
        let marked =
            TagSpecification::builder().resource_type(ResourceType::Image).set_tags(Some(ec2_tags(tags))).build();
        let register = || {
            let request = self.ec2.register_image().name(name).root_device_name(ROOT);
            let request = request.block_device_mappings(root.clone()).tag_specifications(marked.clone());
            let request = request.architecture(ArchitectureValues::X8664).virtualization_type("hvm");
            let request = request.boot_mode(boot_mode.clone()).ena_support(true).imds_support(ImdsSupportValues::V20);
            request.set_description(description.clone()).send()
        };
        match self.caller.call("RegisterImage", Age::New, register).await {
            Ok(registered) => {
                let ami = registered.image_id.ok_or_else(|| self.caller.incomplete("RegisterImage", "imageId"))?;
                let (snapshot, kms_key) = (snapshot.id.clone(), snapshot.kms_key.clone());
                Ok(Found { ami, snapshot, kms_key, intent: tags.get(TAG).cloned() })
            }
            // Also when the answer to our own first attempt was lost; it may take a while until it can be seen.
            Err(error) if error.is_duplicate() => {
                self.caller
                    .wait("the AMI", || async {
                        let found = find().await?;
                        Ok(found.map_or_else(|| Look::Under("not to be seen".to_owned()), Look::Done))
                    })
                    .await
            }
            Err(error) => Err(error),
        }
    }

    /// Waits until `ami` can be used.
    pub(crate) async fn available(&self, ami: &str) -> Result<(), AwsError> {
        let look = || async {
            let look = || self.ec2.describe_images().image_ids(ami).send();
            let answer = self.caller.call("DescribeImages", Age::New, look).await?;
            let Some(image) = answer.images.unwrap_or_default().into_iter().next() else {
                return Ok(Look::Under("not to be seen".to_owned()));
            };
            match image.state {
                Some(ImageState::Available) => Ok(Look::Done(())),
                Some(
                    state @ (ImageState::Failed
                    | ImageState::Error
                    | ImageState::Invalid
                    | ImageState::Deregistered
                    | ImageState::Disabled),
                ) => {
                    let reason = image.state_reason.and_then(|reason| reason.message);
                    Err(AwsError::Image {
                        ami: ami.to_owned(),
                        region: self.name.clone(),
                        state: state.to_string(),
                        reason: reason.unwrap_or_else(|| "no reason is given".to_owned()),
                    })
                }
                state => Ok(Look::Under(state.map_or_else(String::new, |state| state.to_string()))),
            }
        };
        self.caller.wait("the AMI", look).await
    }

    /// Puts `tags` on what is there already.
    pub(crate) async fn mark(&self, resources: &[&str], tags: &BTreeMap<String, String>) -> Result<(), AwsError> {
        let mark = || {
            let request = self.ec2.create_tags().set_tags(Some(ec2_tags(tags)));
            request.set_resources(Some(resources.iter().map(|id| (*id).to_owned()).collect())).send()
        };
        self.caller.call("CreateTags", Age::New, mark).await.map(drop)
    }

    /// Takes the tag `key` off.
    pub(crate) async fn unmark(&self, resources: &[&str], key: &str) -> Result<(), AwsError> {
        let unmark = || {
            let request = self.ec2.delete_tags().tags(Tag::builder().key(key).build());
            request.set_resources(Some(resources.iter().map(|id| (*id).to_owned()).collect())).send()
        };
        self.caller.call("DeleteTags", Age::Old, unmark).await.map(drop)
    }

    /// Deregisters an AMI; gone already is as good, and `false`. Its snapshot stays.
    pub(crate) async fn deregister(&self, ami: &str) -> Result<bool, AwsError> {
        let deregister = || self.ec2.deregister_image().image_id(ami).send();
        acknowledged(self.caller.call("DeregisterImage", Age::Old, deregister).await)
    }
}

/// `web-1.4.0-0123abcd`: unique to the bytes of the disk, in the characters that EC2 allows, at most 128.
fn name(record: &Record) -> String {
    let artifact = &record.artifact;
    let end = format!("-{}", &artifact.disk.digest.hex()[..8]);
    let mut name = format!("{}-{}", artifact.image, artifact.version).replace('+', "_");
    name.truncate(128 - end.len());
    name + &end
}

fn description(record: &Record) -> Option<String> {
    record.artifact.description.as_ref().map(|text| text.chars().filter(char::is_ascii).take(255).collect())
}

/// How instances of a disk boot: both ways where it can, so that every type of instance takes it. `None`: not at all.
pub(crate) fn boot_mode(firmware: Firmware) -> Option<BootModeValues> {
    match (firmware.bios, firmware.uefi) {
        (true, true) => Some(BootModeValues::UefiPreferred),
        (true, false) => Some(BootModeValues::LegacyBios),
        (false, true) => Some(BootModeValues::Uefi),
        (false, false) => None,
    }
}

fn found(image: &Image) -> Option<Found> {
    let mut volumes = image.block_device_mappings().iter().filter_map(BlockDeviceMapping::ebs);
    let volume = volumes.find(|volume| volume.snapshot_id.is_some())?;
    let encrypted = volume.encrypted == Some(true);
    Some(Found {
        ami: image.image_id.clone()?,
        snapshot: volume.snapshot_id.clone()?,
        kms_key: encrypted.then(|| volume.kms_key_id.clone().unwrap_or_else(|| DEFAULT_KEY.to_owned())),
        intent: tag(image.tags(), TAG).map(str::to_owned),
    })
}
