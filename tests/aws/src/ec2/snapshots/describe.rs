//! What EC2 says of snapshots.

use crate::{
    blocks::BLOCK,
    ec2::{
        filters::{Filters, Page},
        names::{check, not_found},
        snapshots::{Phase, Snapshot},
        tags,
    },
    form::Form,
    refusal::Refusal,
    world::{Tags, World},
    xml::Xml,
};

const FILTERS: [&str; 8] =
    ["description", "encrypted", "owner-id", "snapshot-id", "start-time", "status", "volume-id", "volume-size"];

pub(crate) fn describe(world: &mut World, mut form: Form, xml: &mut Xml) -> Result<(), Refusal> {
    let (ids, owners) = (form.list("SnapshotId"), form.list("Owner"));
    let restorable_by = form.list("RestorableBy");
    let filters = Filters::of(&mut form, &FILTERS)?;
    let page = Page::of(&mut form, !ids.is_empty(), world.pace.page)?;
    form.finish()?;
    for id in &ids {
        check(id, "snap")?;
    }
    let (account, now) = (world.account.clone(), world.now().seconds());
    let near = world.regions.iter_mut().filter(|((region, _), _)| *region == world.region);
    let mut visible = Vec::new();
    for (_, region) in near {
        for snapshot in region.snapshots.values_mut() {
            snapshot.expire(now);
            if snapshot.owner == account || snapshot.shared.contains(&account) {
                let tags = region.tags.get(&snapshot.id).cloned().unwrap_or_default();
                visible.push((snapshot.clone(), tags));
            }
        }
    }
    let mut found = Vec::new();
    for (snapshot, tags) in visible {
        let own = snapshot.owner == account;
        let owned = |owner: &String| *owner == snapshot.owner || (owner == "self" && own);
        let restorable = |by: &String| (by == "self" && own) || snapshot.shared.contains(by);
        let wanted = (ids.is_empty() || ids.contains(&snapshot.id))
            && (owners.is_empty() || owners.iter().any(owned))
            && (restorable_by.is_empty() || restorable_by.iter().any(restorable));
        if wanted && filters.admit(&tags, |name| snapshot.field(name)) && (!own || world.sees(&snapshot.id)) {
            found.push((snapshot, tags));
        }
    }
    let missing = |id: &&String| filters.is_empty() && !found.iter().any(|(snapshot, _)| snapshot.id == **id);
    if let Some(missing) = ids.iter().find(missing) {
        return Err(not_found(missing));
    }
    let (shown, next) = page.cut(found);
    for (snapshot, _) in &shown {
        if let Some(snapshot) = world.here().snapshots.get_mut(&snapshot.id) {
            snapshot.look();
        }
    }
    xml.items("snapshotSet", &shown, |xml, (snapshot, tags)| snapshot.write(xml, tags));
    xml.maybe("nextToken", next);
    Ok(())
}

/// `DescribeSnapshotAttribute`.
pub(crate) fn shared(world: &mut World, mut form: Form, xml: &mut Xml) -> Result<(), Refusal> {
    let id = form.required("SnapshotId")?;
    form.choice("Attribute", &["createVolumePermission"])?;
    form.finish()?;
    let snapshot = world.here().snapshots.get(&id).ok_or_else(|| not_found(&id))?;
    xml.text("snapshotId", &id).items("createVolumePermission", &snapshot.shared, |xml, account| {
        xml.text("userId", account);
    });
    Ok(())
}

impl Snapshot {
    pub(super) fn write(&self, xml: &mut Xml, tags: &Tags) {
        let progress = match self.phase {
            Phase::Sealed(_) if self.is_completed() => "100%",
            Phase::Sealed(_) => "99%",
            _ => "0%",
        };
        xml.text("snapshotId", &self.id).text("volumeId", &self.volume).text("status", self.state());
        xml.text("startTime", self.started.rfc3339()).text("progress", progress).text("ownerId", &self.owner);
        xml.text("volumeSize", self.size).text("description", &self.description).text("encrypted", self.encrypted);
        xml.maybe("kmsKeyId", self.key.as_ref()).text("storageTier", "standard");
        if self.is_completed() {
            xml.maybe("completionTime", self.completed.map(|at| at.rfc3339()));
            xml.text("fullSnapshotSizeInBytes", self.blocks.len() * BLOCK);
        }
        tags::write(xml, tags);
    }

    fn field(&self, name: &str) -> Vec<String> {
        let value = match name {
            "description" => self.description.clone(),
            "encrypted" => self.encrypted.to_string(),
            "owner-id" => self.owner.clone(),
            "snapshot-id" => self.id.clone(),
            "start-time" => self.started.rfc3339(),
            "status" => self.state().to_owned(),
            "volume-id" => self.volume.clone(),
            "volume-size" => self.size.to_string(),
            _ => return Vec::new(),
        };
        vec![value]
    }
}
