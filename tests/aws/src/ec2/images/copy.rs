//! `CopyImage`: an image of another region, or once more of this one, with copies of its snapshots.

use std::collections::BTreeSet;

use crate::{
    ec2::{
        images::{Image, Protection},
        names::{check, not_found},
        tags::specified,
    },
    form::Form,
    refusal::Refusal,
    world::World,
    xml::Xml,
};

pub(crate) fn copy(world: &mut World, mut form: Form, xml: &mut Xml) -> Result<(), Refusal> {
    let token = form.text("ClientToken");
    let request = format!("{form:?}");
    let (name, from) = (form.required("Name")?, form.required("SourceRegion")?);
    let source_id = form.required("SourceImageId")?;
    let description = form.text("Description");
    let (encrypted, key) = (form.flag("Encrypted")? == Some(true), form.text("KmsKeyId"));
    let copy_tags = form.flag("CopyImageTags")? == Some(true);
    let mut tags = specified(&mut form, &["image", "snapshot"])?;
    form.finish()?;
    check(&source_id, "ami")?;
    if let Some(id) = world.repeated("CopyImage", token.as_deref(), &request)? {
        xml.text("imageId", id);
        return Ok(());
    }
    if key.is_some() && !encrypted {
        let message = "The parameter KmsKeyId requires the parameter Encrypted to be set.";
        return Err(Refusal::client("InvalidParameterDependency", message));
    }
    let (source, source_tags) = world.image_to_copy(&from, &source_id)?;
    world.check_image_name(&name)?;
    let id = world.id("ami");
    let mut image = Image {
        id: id.clone(),
        owner: world.account.clone(),
        name,
        description: description.unwrap_or_else(|| source.description.clone()),
        created: world.now(),
        progress: world.progress(),
        deprecation: None,
        protection: Protection::None,
        launch: BTreeSet::new(),
        source_image: Some((from.clone(), source_id.clone())),
        source_instance: None,
        ..source
    };
    let of_snapshots = tags.remove("snapshot").unwrap_or_default();
    for ebs in image.mappings.iter_mut().filter_map(|mapping| mapping.ebs.as_mut()) {
        let note =
            format!("Copied for DestinationAmi {id} from SourceAmi {source_id} for SourceSnapshot {}.", ebs.snapshot);
        let mut snapshot = world.copy_of(&from, &source.owner, &ebs.snapshot, note)?;
        snapshot.encrypt(encrypted, key.as_deref());
        ebs.encrypted = snapshot.encrypted;
        ebs.snapshot.clone_from(&snapshot.id);
        world.note(&snapshot.id.clone(), of_snapshots.clone());
        world.here().snapshots.insert(snapshot.id.clone(), snapshot);
    }
    let mut all = if copy_tags { source_tags } else { crate::world::Tags::new() };
    all.extend(tags.remove("image").unwrap_or_default());
    world.note(&id, all);
    world.here().images.insert(id.clone(), image);
    world.remember("CopyImage", token.as_deref(), &request, &id);
    xml.text("imageId", id);
    Ok(())
}

impl World {
    /// The source of a copy and its tags, in another region or in this one.
    fn image_to_copy(&self, from: &str, id: &str) -> Result<(Image, crate::world::Tags), Refusal> {
        let mut near = self.regions.iter().filter(|((region, _), _)| region == from);
        let found = near.find_map(|(_, region)| Some((region.images.get(id)?, region.tags(id))));
        let (image, tags) = found.filter(|(image, _)| image.may_launch(&self.account)).ok_or_else(|| not_found(id))?;
        if !image.is_available() {
            let message = format!("The image {id} is in the state {}", image.state());
            return Err(Refusal::client("InvalidAMIID.Unavailable", message));
        }
        Ok((image.clone(), tags))
    }
}
