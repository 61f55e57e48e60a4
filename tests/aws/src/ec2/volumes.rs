//! The volumes of instances, and snapshots of them.

use std::{fs::File, io, os::unix::fs::FileExt as _, sync::Arc};

use crate::{
    blocks::BLOCK,
    ec2::{
        filters::{Filters, Page},
        names::not_found,
        snapshots::Snapshot,
        tags,
    },
    form::Form,
    machines::Machines,
    refusal::Refusal,
    world::World,
    xml::Xml,
};

/// The key that every account has; what it encrypts cannot be shared.
pub(crate) const OWN_KEY: &str = "alias/aws/ebs";

#[expect(clippy::struct_field_names, reason = "EC2's own names")]
#[derive(Debug, Clone)]
pub(crate) struct Volume {
    pub(crate) id: String,
    /// In GiB.
    pub(crate) size: u64,
    pub(crate) volume_type: String,
    pub(crate) snapshot: Option<String>,
    pub(crate) encrypted: bool,
    pub(crate) key: Option<String>,
    /// What the snapshot held when the volume was made.
    pub(crate) origin: Option<Snapshot>,
    pub(crate) device: String,
    /// Empty once the instance is gone.
    pub(crate) instance: String,
    /// Whose guest wrote to it, also when that is gone.
    pub(crate) writer: String,
    pub(crate) is_root: bool,
    pub(crate) delete: bool,
    pub(crate) zone: String,
}

impl World {
    /// A snapshot of what is on the volume: the guest's disk, if a real guest stands behind it.
    pub(crate) fn snapshot_of_volume(
        &mut self,
        id: &str,
        description: String,
        machines: &Arc<dyn Machines>,
    ) -> Result<Snapshot, Refusal> {
        let volume = self.here().volumes.get(id).ok_or_else(|| not_found(id))?.clone();
        let now = self.now();
        let mut snapshot = Snapshot::new(self, volume.size, description, now);
        volume.id.clone_into(&mut snapshot.volume);
        volume.id.clone_into(&mut snapshot.lineage);
        (snapshot.encrypted, snapshot.key) = (volume.encrypted, volume.key.clone());
        snapshot.completed = Some(now);
        if let Some(origin) = volume.origin {
            snapshot.blocks = origin.blocks;
        }
        if let Some(disk) = machines.disk(&volume.writer).filter(|_| volume.is_root) {
            let read = File::open(&disk).and_then(|disk| snapshot.read(self, &disk));
            read.map_err(|error| Refusal::new(500, "InternalError", format!("{}: {error}", disk.display())))?;
        }
        Ok(snapshot)
    }
}

impl Snapshot {
    fn read(&mut self, world: &mut World, disk: &File) -> io::Result<()> {
        self.blocks.clear();
        let length = disk.metadata()?.len();
        let mut block = vec![0; BLOCK];
        for (index, at) in (0..).zip((0..length).step_by(BLOCK)) {
            let most = usize::try_from(length - at).unwrap_or(BLOCK).min(BLOCK);
            block.fill(0);
            disk.read_exact_at(&mut block[..most], at)?;
            if block.iter().any(|byte| *byte != 0) {
                self.keep(world, index, &block)?;
            }
        }
        Ok(())
    }
}

pub(crate) fn delete(world: &mut World, mut form: Form, xml: &mut Xml) -> Result<(), Refusal> {
    let id = form.required("VolumeId")?;
    form.finish()?;
    let volume = world.here().volumes.get(&id).ok_or_else(|| not_found(&id))?;
    if !volume.instance.is_empty() {
        let message = format!("Volume {id} is currently attached to {}", volume.instance);
        return Err(Refusal::client("VolumeInUse", message));
    }
    world.here().volumes.remove(&id);
    world.forget(&id);
    xml.text("return", true);
    Ok(())
}

/// `GetEbsEncryptionByDefault`.
pub(crate) fn encryption(world: &mut World, form: Form, xml: &mut Xml) -> Result<(), Refusal> {
    form.finish()?;
    xml.text("ebsEncryptionByDefault", world.here().default_key.is_some());
    Ok(())
}

/// `GetEbsDefaultKmsKeyId`, which there is whether it is used or not.
pub(crate) fn default_key(world: &mut World, form: Form, xml: &mut Xml) -> Result<(), Refusal> {
    form.finish()?;
    xml.text("kmsKeyId", world.here().default_key.as_deref().unwrap_or(OWN_KEY));
    Ok(())
}

pub(crate) fn describe(world: &mut World, mut form: Form, xml: &mut Xml) -> Result<(), Refusal> {
    let ids = form.list("VolumeId");
    let filters = Filters::of(&mut form, &["volume-id", "attachment.instance-id", "snapshot-id", "status"])?;
    let page = Page::of(&mut form, !ids.is_empty(), world.pace.page)?;
    form.finish()?;
    let here = world.here();
    if let Some(missing) = ids.iter().find(|id| !here.volumes.contains_key(*id)) {
        return Err(not_found(missing));
    }
    let state = |volume: &Volume| if volume.instance.is_empty() { "available" } else { "in-use" };
    let admitted = |volume: &&Volume| {
        let field = |name: &str| {
            let value = match name {
                "volume-id" => volume.id.clone(),
                "attachment.instance-id" => volume.instance.clone(),
                "snapshot-id" => volume.snapshot.clone().unwrap_or_default(),
                _ => state(volume).to_owned(),
            };
            vec![value]
        };
        (ids.is_empty() || ids.contains(&volume.id)) && filters.admit(&here.tags(&volume.id), field)
    };
    let (shown, next) = page.cut(here.volumes.values().filter(admitted).collect());
    xml.items("volumeSet", shown, |xml, volume| {
        xml.text("volumeId", &volume.id).text("size", volume.size).text("status", state(volume));
        xml.maybe("snapshotId", volume.snapshot.as_ref()).text("availabilityZone", &volume.zone);
        xml.text("volumeType", &volume.volume_type).text("encrypted", volume.encrypted);
        let attached = Some(volume).filter(|volume| !volume.instance.is_empty());
        xml.items("attachmentSet", attached, |xml, volume| {
            xml.text("volumeId", &volume.id).text("instanceId", &volume.instance).text("device", &volume.device);
            xml.text("status", "attached").text("deleteOnTermination", volume.delete);
        });
        tags::write(xml, &here.tags(&volume.id));
    });
    xml.maybe("nextToken", next);
    Ok(())
}
