//! `DescribeImages`.

use crate::{
    ec2::{
        filters::{Filters, Page},
        images::{Image, Protection},
        names::{check, not_found},
        tags,
    },
    form::Form,
    refusal::Refusal,
    world::{Stage, Tags, World},
    xml::Xml,
};

const FILTERS: [&str; 19] = [
    "architecture",
    "block-device-mapping.encrypted",
    "block-device-mapping.snapshot-id",
    "block-device-mapping.volume-size",
    "block-device-mapping.volume-type",
    "creation-date",
    "description",
    "ena-support",
    "hypervisor",
    "image-id",
    "image-type",
    "is-public",
    "name",
    "owner-alias",
    "owner-id",
    "root-device-name",
    "root-device-type",
    "state",
    "virtualization-type",
];

/// Accounts that have a name: those of AWS itself.
const ALIASES: [(&str, &str); 2] = [("137112412989", "amazon"), ("679593333241", "aws-marketplace")];

fn alias(account: &str) -> Option<&'static str> {
    ALIASES.iter().find(|(known, _)| *known == account).map(|(_, alias)| *alias)
}

pub(crate) fn describe(world: &mut World, mut form: Form, xml: &mut Xml) -> Result<(), Refusal> {
    let (ids, owners, executable_by) = (form.list("ImageId"), form.list("Owner"), form.list("ExecutableBy"));
    let deprecated = form.flag("IncludeDeprecated")? == Some(true);
    let disabled = form.flag("IncludeDisabled")? == Some(true);
    let filters = Filters::of(&mut form, &FILTERS)?;
    let page = Page::of(&mut form, !ids.is_empty(), world.pace.page)?;
    form.finish()?;
    for id in &ids {
        check(id, "ami")?;
    }
    let account = world.account.clone();
    let now = world.now().seconds();
    let mut found = Vec::new();
    for (image, tags) in world.images_in_sight() {
        let own = image.owner == account;
        let named = ids.contains(&image.id);
        let hidden = (!named && !own && !deprecated && image.deprecation.is_some_and(|at| at.seconds() <= now))
            || (image.disabled && !(own && (disabled || named)));
        let owned = owners.is_empty() || owners.iter().any(|owner| is_owner(owner, &image, &account));
        let executable = executable_by.is_empty() || executable_by.iter().any(|by| is_executable(by, &image, &account));
        let wanted = (ids.is_empty() || named) && owned && executable && !hidden;
        if wanted && filters.admit(&tags, |name| field(&image, name)) && (!own || world.sees(&image.id)) {
            found.push((image, tags));
        }
    }
    // Not "does not exist" but "not now": EC2 does not tell them apart.
    let missing = |id: &&String| filters.is_empty() && !found.iter().any(|(image, _)| image.id == **id);
    if let Some(missing) = ids.iter().find(missing) {
        return Err(not_found(missing));
    }
    let (shown, next) = page.cut(found);
    for (image, _) in shown.iter().filter(|(image, _)| image.owner == account) {
        if image.gone == Some(1) {
            world.here().leaving.remove(&image.id);
        } else if let Some((leaving, _)) = world.here().leaving.get_mut(&image.id) {
            leaving.gone = leaving.gone.map(|reads| reads - 1);
        }
        if let Some(image) = world.here().images.get_mut(&image.id) {
            image.progress.look();
        }
    }
    xml.items("imagesSet", &shown, |xml, (image, tags)| {
        write(xml, image, if image.owner == account { Some(tags) } else { None });
    });
    xml.maybe("nextToken", next);
    Ok(())
}

impl World {
    /// Every image that the caller may launch, with its tags.
    fn images_in_sight(&self) -> Vec<(Image, Tags)> {
        let near = self.regions.iter().filter(|((region, _), _)| *region == self.region);
        let all = near.flat_map(|(_, region)| {
            let there = region.images.values().map(|image| (image, region.tags(&image.id)));
            there.chain(region.leaving.values().map(|(image, tags)| (image, tags.clone())))
        });
        let visible = all.filter(|(image, _)| image.may_launch(&self.account));
        visible.map(|(image, tags)| (image.clone(), tags)).collect()
    }
}

fn is_owner(wanted: &str, image: &Image, account: &str) -> bool {
    match wanted {
        "self" => image.owner == account,
        wanted => image.owner == wanted || alias(&image.owner) == Some(wanted),
    }
}

fn is_executable(by: &str, image: &Image, account: &str) -> bool {
    let granted = |account: &str| image.launch.iter().any(|(kind, value)| *kind == "userId" && value == account);
    match by {
        "all" => image.is_public(),
        "self" => granted(account),
        by => granted(by),
    }
}

fn field(image: &Image, name: &str) -> Vec<String> {
    let devices = || image.mappings.iter().filter_map(|mapping| mapping.ebs.as_ref());
    let one = |value: &str| vec![value.to_owned()];
    match name {
        "architecture" => one(&image.architecture),
        "block-device-mapping.encrypted" => devices().map(|ebs| ebs.encrypted.to_string()).collect(),
        "block-device-mapping.snapshot-id" => image.snapshots().map(str::to_owned).collect(),
        "block-device-mapping.volume-size" => devices().map(|ebs| ebs.size.to_string()).collect(),
        "block-device-mapping.volume-type" => devices().map(|ebs| ebs.volume_type.clone()).collect(),
        "creation-date" => one(&image.created.rfc3339()),
        "description" => one(&image.description),
        "ena-support" => one(if image.ena { "true" } else { "false" }),
        "hypervisor" => one("xen"),
        "image-id" => one(&image.id),
        "image-type" => one("machine"),
        "is-public" => one(if image.is_public() { "true" } else { "false" }),
        "name" => one(&image.name),
        "owner-alias" => alias(&image.owner).map(str::to_owned).into_iter().collect(),
        "owner-id" => one(&image.owner),
        "root-device-name" => one(&image.root_device),
        "root-device-type" => one("ebs"),
        "state" => one(image.state()),
        "virtualization-type" => one(&image.virtualization),
        _ => Vec::new(),
    }
}

fn write(xml: &mut Xml, image: &Image, tags: Option<&Tags>) {
    let alias = alias(&image.owner);
    xml.text("imageId", &image.id).text("imageLocation", format!("{}/{}", alias.unwrap_or(&image.owner), image.name));
    xml.text("imageState", image.state()).text("imageOwnerId", &image.owner).maybe("imageOwnerAlias", alias);
    xml.text("creationDate", image.created.rfc3339()).text("isPublic", image.is_public());
    xml.text("architecture", &image.architecture).text("imageType", "machine");
    xml.text("platformDetails", "Linux/UNIX").text("usageOperation", "RunInstances");
    xml.text("name", &image.name).maybe("description", Some(&image.description).filter(|text| !text.is_empty()));
    xml.text("rootDeviceType", "ebs").text("rootDeviceName", &image.root_device);
    xml.items("blockDeviceMapping", &image.mappings, |xml, mapping| mapping.write(xml));
    xml.text("virtualizationType", &image.virtualization).text("hypervisor", "xen").text("enaSupport", image.ena);
    xml.maybe("sriovNetSupport", image.sriov.as_ref()).maybe("bootMode", image.boot_mode.as_ref());
    xml.maybe("tpmSupport", image.tpm.as_ref()).maybe("imdsSupport", image.imds.as_ref());
    xml.maybe("deprecationTime", image.deprecation.map(|at| at.rfc3339()));
    xml.text("deregistrationProtection", image.protection.name());
    if let Some((region, id)) = &image.source_image {
        xml.text("sourceImageId", id).text("sourceImageRegion", region);
    }
    xml.maybe("sourceInstanceId", image.source_instance.as_ref());
    if image.progress.stage() == Stage::Failed {
        xml.node("stateReason", |xml| {
            xml.text("code", "Client.InternalError").text("message", "Client.InternalError: the fake was told to fail");
        });
    }
    if let Some(tags) = tags {
        tags::write(xml, tags);
    }
}

impl Protection {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::None => "disabled",
            Self::On => "enabled-without-cooldown",
            Self::WithCooldown => "enabled-with-cooldown",
            Self::Cooling { .. } => "disabled-with-cooldown",
        }
    }
}
