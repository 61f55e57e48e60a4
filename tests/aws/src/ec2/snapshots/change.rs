//! Snapshots made, shared and deleted.

use std::sync::Arc;

use crate::{
    ec2::{
        images::attributes::is_account,
        names::{check, not_found},
        tags::{self, specified},
    },
    form::Form,
    machines::Machines,
    refusal::Refusal,
    world::World,
    xml::Xml,
};

pub(crate) fn copy(world: &mut World, mut form: Form, xml: &mut Xml) -> Result<(), Refusal> {
    let (from, source) = (form.required("SourceRegion")?, form.required("SourceSnapshotId")?);
    let description = form.text("Description").unwrap_or_default();
    let (encrypted, key) = (form.flag("Encrypted")? == Some(true), form.text("KmsKeyId"));
    // The SDKs sign a request for the source on their own; it says the same.
    let (_, destination) = (form.text("PresignedUrl"), form.text("DestinationRegion"));
    let tags = specified(&mut form, &["snapshot"])?.remove("snapshot").unwrap_or_default();
    form.finish()?;
    check(&source, "snap")?;
    if destination.is_some_and(|destination| destination != world.region) {
        return Err(Refusal::invalid("DestinationRegion is not the region of the request"));
    }
    if key.is_some() && !encrypted {
        let message = "The parameter KmsKeyId requires the parameter Encrypted to be set.";
        return Err(Refusal::client("InvalidParameterDependency", message));
    }
    let owner = world.account.clone();
    let mut copy = world.copy_of(&from, &owner, &source, description)?;
    copy.encrypt(encrypted, key.as_deref());
    xml.text("snapshotId", &copy.id);
    tags::write(xml, &tags);
    world.note(&copy.id.clone(), tags);
    world.here().snapshots.insert(copy.id.clone(), copy);
    Ok(())
}

pub(crate) fn create(
    world: &mut World,
    mut form: Form,
    xml: &mut Xml,
    machines: &Arc<dyn Machines>,
) -> Result<(), Refusal> {
    let volume = form.required("VolumeId")?;
    let description = form.text("Description").unwrap_or_default();
    let tags = specified(&mut form, &["snapshot"])?.remove("snapshot").unwrap_or_default();
    form.finish()?;
    check(&volume, "vol")?;
    let snapshot = world.snapshot_of_volume(&volume, description, machines)?;
    snapshot.write(xml, &tags);
    world.note(&snapshot.id.clone(), tags);
    world.here().snapshots.insert(snapshot.id.clone(), snapshot);
    Ok(())
}

pub(crate) fn delete(world: &mut World, mut form: Form, xml: &mut Xml) -> Result<(), Refusal> {
    let id = form.required("SnapshotId")?;
    form.finish()?;
    check(&id, "snap")?;
    if !world.here().snapshots.contains_key(&id) || !world.sees(&id) {
        return Err(not_found(&id));
    }
    if let Some(image) = world.here().images.values().find(|image| image.snapshots().any(|used| used == id)) {
        let message = format!("The snapshot {id} is currently in use by {}", image.id);
        return Err(Refusal::client("InvalidSnapshot.InUse", message));
    }
    world.here().snapshots.remove(&id);
    world.forget(&id);
    xml.text("return", true);
    Ok(())
}

/// `ModifySnapshotAttribute`: who may make a volume of it.
pub(crate) fn share(world: &mut World, mut form: Form, xml: &mut Xml) -> Result<(), Refusal> {
    let id = form.required("SnapshotId")?;
    form.choice("Attribute", &["createVolumePermission"])?;
    let operation = form.choice("OperationType", &["add", "remove"])?;
    let (mut add, mut remove) = (Vec::new(), Vec::new());
    for (name, list) in [("Add", &mut add), ("Remove", &mut remove)] {
        for at in form.indexed(&format!("CreateVolumePermission.{name}")) {
            list.extend(form.text(&format!("{at}.UserId")));
        }
    }
    let listed = form.list("UserId");
    if operation.as_deref() == Some("remove") {
        remove.extend(listed);
    } else {
        add.extend(listed);
    }
    form.finish()?;
    check(&id, "snap")?;
    if let Some(wrong) = add.iter().chain(&remove).find(|account| !is_account(account)) {
        return Err(Refusal::invalid(format!("Invalid account {wrong}")));
    }
    if !world.sees(&id) {
        return Err(not_found(&id));
    }
    let snapshot = world.here().snapshots.get_mut(&id).ok_or_else(|| not_found(&id))?;
    if snapshot.has_own_key() && !add.is_empty() {
        let message = "Encrypted snapshots with EBS default key cannot be shared";
        return Err(Refusal::client("OperationNotPermitted", message));
    }
    snapshot.shared.extend(add);
    snapshot.shared.retain(|account| !remove.contains(account));
    xml.text("return", true);
    Ok(())
}
