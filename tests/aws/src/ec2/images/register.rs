//! `RegisterImage`: an image from snapshots.

use std::collections::BTreeSet;

use crate::{
    ec2::{
        images::{Image, Protection, mapping},
        tags::specified,
    },
    form::Form,
    refusal::Refusal,
    world::World,
    xml::Xml,
};

pub(crate) fn register(world: &mut World, mut form: Form, xml: &mut Xml) -> Result<(), Refusal> {
    let name = form.required("Name")?;
    let architecture = form.choice("Architecture", &["i386", "x86_64", "arm64"])?;
    let virtualization = form.choice("VirtualizationType", &["hvm", "paravirtual"])?;
    let boot_mode = form.choice("BootMode", &["legacy-bios", "uefi", "uefi-preferred"])?;
    let tpm = form.choice("TpmSupport", &["v2.0"])?;
    let mut image = Image {
        id: String::new(),
        owner: world.account.clone(),
        description: form.text("Description").unwrap_or_default(),
        // EC2's defaults are those of 2008.
        architecture: architecture.unwrap_or_else(|| "i386".to_owned()),
        virtualization: virtualization.unwrap_or_else(|| "paravirtual".to_owned()),
        imds: form.choice("ImdsSupport", &["v2.0"])?,
        uefi_data: form.text("UefiData"),
        sriov: form.choice("SriovNetSupport", &["simple"])?,
        ena: form.flag("EnaSupport")? == Some(true),
        root_device: form.text("RootDeviceName").unwrap_or_default(),
        mappings: Vec::new(),
        created: world.now(),
        progress: world.progress(),
        disabled: false,
        gone: None,
        deprecation: None,
        protection: Protection::None,
        launch: BTreeSet::new(),
        source_image: None,
        source_instance: None,
        name,
        boot_mode,
        tpm,
    };
    let wanted = mapping::wanted(&mut form)?;
    let tags = specified(&mut form, &["image"])?.remove("image").unwrap_or_default();
    form.finish()?;
    world.check_image_name(&image.name)?;
    check_firmware(&image)?;
    for device in wanted.into_iter().filter(|device| !device.none) {
        image.mappings.push(device.registered(world)?);
    }
    if image.root().is_none() {
        return Err(mapping::mistake("No root snapshot specified in device mapping."));
    }
    image.id = world.id("ami");
    xml.text("imageId", &image.id);
    world.note(&image.id.clone(), tags);
    world.here().images.insert(image.id.clone(), image);
    Ok(())
}

/// What does not go together.
fn check_firmware(image: &Image) -> Result<(), Refusal> {
    let refuse = |message: &str| Err(Refusal::client("InvalidParameterCombination", message));
    let uefi = matches!(image.boot_mode.as_deref(), Some("uefi" | "uefi-preferred"));
    let hvm = image.virtualization == "hvm";
    if (image.ena || image.sriov.is_some() || uefi) && !hvm {
        return refuse("Enhanced networking and UEFI require the virtualization type hvm.");
    }
    if image.architecture == "arm64" && image.boot_mode.as_deref().is_some_and(|mode| mode != "uefi") {
        return refuse("The architecture arm64 requires the boot mode uefi.");
    }
    if (image.tpm.is_some() || image.uefi_data.is_some()) && !uefi {
        return refuse("TpmSupport and UefiData require the boot mode uefi or uefi-preferred.");
    }
    Ok(())
}
