//! Snapshots as EC2 shows them; EBS direct writes and reads their blocks.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use kiln_core::moment::Moment;
use sha2::{Digest as _, Sha256};

use crate::{
    blocks::{BLOCK, Block},
    ec2::{
        filters::{Filters, Page},
        images::attributes::is_account,
        names::{check, not_found},
        tags::{self, specified},
    },
    form::Form,
    machines::Machines,
    refusal::Refusal,
    world::{Progress, Stage, Tags, World},
    xml::Xml,
};

/// What AWS gives as the volume of a snapshot that was not made from one.
const NO_VOLUME: &str = "vol-ffffffff";

#[derive(Debug, Clone)]
pub(crate) struct Snapshot {
    pub(crate) id: String,
    pub(crate) owner: String,
    pub(crate) description: String,
    /// In GiB.
    pub(crate) size: u64,
    pub(crate) encrypted: bool,
    pub(crate) key: Option<String>,
    pub(crate) volume: String,
    pub(crate) started: Moment,
    pub(crate) completed: Option<Moment>,
    pub(crate) parent: Option<String>,
    /// The same for snapshots that can be compared.
    pub(crate) lineage: String,
    pub(crate) blocks: BTreeMap<u32, Block>,
    /// What was put into this one, and not inherited.
    pub(crate) written: BTreeSet<u32>,
    pub(crate) phase: Phase,
    /// Who else may use it.
    pub(crate) shared: BTreeSet<String>,
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Phase {
    /// Blocks may be put; seconds, and when the last one was. `fate` is what comes after its completion.
    Written {
        timeout: u64,
        last: u64,
        fate: Progress,
    },
    Sealed(Progress),
    Expired,
}

impl Phase {
    pub(crate) fn stage(&self) -> Stage {
        match self {
            Self::Written { .. } => Stage::Waiting,
            Self::Sealed(progress) => progress.stage(),
            Self::Expired => Stage::Failed,
        }
    }
}

impl Snapshot {
    /// An empty one.
    pub(crate) fn new(world: &mut World, size: u64, description: String, started: Moment) -> Self {
        let id = world.id("snap");
        Self {
            owner: world.account.clone(),
            description,
            size,
            encrypted: false,
            key: None,
            volume: NO_VOLUME.to_owned(),
            started,
            completed: None,
            parent: None,
            lineage: id.clone(),
            blocks: BTreeMap::new(),
            written: BTreeSet::new(),
            phase: Phase::Sealed(world.progress()),
            shared: BTreeSet::new(),
            id,
        }
    }

    /// A complete one of a disk's bytes.
    pub(crate) fn of_disk(world: &mut World, disk: &[u8], size: u64) -> Self {
        let now = world.now();
        let mut snapshot = Self::new(world, size, String::new(), now);
        (snapshot.phase, snapshot.completed) = (Phase::Sealed(Progress::DONE), Some(now));
        for (index, chunk) in (0..).zip(disk.chunks(BLOCK)) {
            let mut block = chunk.to_vec();
            block.resize(BLOCK, 0);
            if block.iter().any(|byte| *byte != 0) {
                snapshot.keep(world, index, &block).expect("a temporary file takes the block");
            }
        }
        snapshot
    }

    pub(crate) fn keep(&mut self, world: &mut World, index: u32, bytes: &[u8]) -> std::io::Result<()> {
        let digest = Sha256::digest(bytes).into();
        world.blocks.keep(digest, bytes)?;
        world.puts += 1;
        self.blocks.insert(index, Block { digest, written: world.puts });
        Ok(())
    }

    pub(crate) fn is_being_written(&self) -> bool {
        matches!(self.phase, Phase::Written { .. })
    }

    pub(crate) fn is_completed(&self) -> bool {
        self.phase.stage() == Stage::Ready
    }

    /// One read of its state.
    pub(crate) fn look(&mut self) {
        if let Phase::Sealed(progress) = &mut self.phase {
            progress.look();
        }
    }

    /// Gives up what nobody wrote to for too long.
    pub(crate) fn expire(&mut self, now: u64) {
        if let Phase::Written { timeout, last, .. } = self.phase
            && now > last + timeout
        {
            self.phase = Phase::Expired;
        }
    }

    pub(crate) fn encrypt(&mut self, encrypted: bool, key: Option<&str>) {
        if encrypted {
            self.encrypted = true;
            self.key = Some(key.unwrap_or("alias/aws/ebs").to_owned());
        }
    }

    fn state(&self) -> &'static str {
        match self.phase.stage() {
            Stage::Waiting => "pending",
            Stage::Ready => "completed",
            Stage::Failed => "error",
        }
    }

    fn write(&self, xml: &mut Xml, tags: &Tags) {
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

const FILTERS: [&str; 8] =
    ["description", "encrypted", "owner-id", "snapshot-id", "start-time", "status", "volume-id", "volume-size"];

impl World {
    /// A complete snapshot that the caller may make a volume of.
    pub(crate) fn usable_snapshot(&mut self, id: &str) -> Result<Snapshot, Refusal> {
        check(id, "snap")?;
        let own = self.here().snapshots.contains_key(id);
        if own && !self.sees(id) {
            return Err(not_found(id));
        }
        let mut near = self.regions.iter().filter(|((region, _), _)| *region == self.region);
        let snapshot = near.find_map(|(_, region)| region.snapshots.get(id));
        let usable = |snapshot: &&Snapshot| own || snapshot.shared.contains(&self.account);
        let snapshot = snapshot.filter(usable).ok_or_else(|| not_found(id))?;
        if !snapshot.is_completed() {
            let message = format!("Snapshot {id} is in invalid state - {}", snapshot.state());
            return Err(Refusal::client("IncorrectState", message));
        }
        Ok(snapshot.clone())
    }

    /// A copy, here, of a snapshot elsewhere; it shares no lineage with it.
    pub(crate) fn copy_of(&mut self, region: &str, owner: &str, id: &str, note: String) -> Result<Snapshot, Refusal> {
        let source = self.regions.get(&(region.to_owned(), owner.to_owned()));
        let source = source.and_then(|region| region.snapshots.get(id)).ok_or_else(|| not_found(id))?.clone();
        if !source.is_completed() {
            let message = format!("Snapshot {id} is in invalid state - {}", source.state());
            return Err(Refusal::client("IncorrectState", message));
        }
        let now = self.now();
        let mut copy = Snapshot::new(self, source.size, note, now);
        copy.encrypt(source.encrypted, None);
        copy.blocks = source.blocks;
        copy.completed = Some(now);
        Ok(copy)
    }
}

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
    if snapshot.key.as_deref() == Some("alias/aws/ebs") && !add.is_empty() {
        let message = "Encrypted snapshots with EBS default key cannot be shared";
        return Err(Refusal::client("OperationNotPermitted", message));
    }
    snapshot.shared.extend(add);
    snapshot.shared.retain(|account| !remove.contains(account));
    xml.text("return", true);
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
