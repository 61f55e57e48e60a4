//! `CreateImage`: an image of an instance's volumes.

use std::{collections::BTreeSet, sync::Arc};

use crate::{
    ec2::{
        images::{
            Image, Protection,
            mapping::{self, Ebs, Mapping},
        },
        tags::specified,
    },
    form::Form,
    machines::Machines,
    refusal::Refusal,
    world::World,
    xml::Xml,
};

pub(crate) fn create(
    world: &mut World,
    mut form: Form,
    xml: &mut Xml,
    machines: &Arc<dyn Machines>,
) -> Result<(), Refusal> {
    let (instance_id, name) = (form.required("InstanceId")?, form.required("Name")?);
    let description = form.text("Description").unwrap_or_default();
    form.flag("NoReboot")?;
    let wanted = mapping::wanted(&mut form)?;
    let mut tags = specified(&mut form, &["image", "snapshot"])?;
    form.finish()?;
    world.check_instances(std::slice::from_ref(&instance_id))?;
    world.check_image_name(&name)?;
    let instance = world.here().instances.get(&instance_id).cloned();
    let instance = instance.ok_or_else(|| crate::ec2::names::not_found(&instance_id))?;
    if !["running", "stopped"].contains(&instance.state().1) {
        let message = format!(
            "The instance '{instance_id}' is {}: only running or stopped ones can be imaged",
            instance.state().1
        );
        return Err(Refusal::client("IncorrectState", message));
    }
    let source = world.launchable_image(&instance.image)?;
    let id = world.id("ami");
    let of_snapshots = tags.remove("snapshot").unwrap_or_default();
    let mut mappings = Vec::new();
    for volume_id in &instance.volumes {
        let Some(volume) = world.here().volumes.get(volume_id).cloned() else { continue };
        let change = wanted.iter().find(|device| device.device == volume.device);
        if change.is_some_and(|device| device.none) {
            continue;
        }
        let change = change.and_then(|device| device.ebs.clone()).unwrap_or_default();
        let note = format!("Created by CreateImage({instance_id}) for {id}");
        let snapshot = world.snapshot_of_volume(volume_id, note, machines)?;
        mappings.push(Mapping {
            device: volume.device,
            virtual_name: None,
            ebs: Some(Ebs {
                snapshot: snapshot.id.clone(),
                size: change.size.unwrap_or(volume.size),
                volume_type: change.volume_type.unwrap_or(volume.volume_type),
                iops: change.iops,
                throughput: change.throughput,
                delete: change.delete.unwrap_or(volume.delete),
                encrypted: snapshot.encrypted,
            }),
        });
        world.note(&snapshot.id.clone(), of_snapshots.clone());
        world.here().snapshots.insert(snapshot.id.clone(), snapshot);
    }
    let image = Image {
        id: id.clone(),
        owner: world.account.clone(),
        name,
        description,
        mappings,
        created: world.now(),
        progress: world.progress(),
        disabled: false,
        gone: None,
        deprecation: None,
        protection: Protection::None,
        launch: BTreeSet::new(),
        source_image: None,
        source_instance: Some(instance_id),
        ..source
    };
    world.note(&id, tags.remove("image").unwrap_or_default());
    world.here().images.insert(id.clone(), image);
    xml.text("imageId", id);
    Ok(())
}
