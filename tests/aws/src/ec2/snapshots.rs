//! Snapshots as EC2 shows them; EBS direct writes and reads their blocks.

pub(crate) mod change;
pub(crate) mod describe;

use std::collections::{BTreeMap, BTreeSet};

use kiln_core::moment::Moment;
use sha2::{Digest as _, Sha256};

use crate::{
    blocks::{BLOCK, Block},
    ec2::{
        names::{check, not_found},
        volumes::OWN_KEY,
    },
    refusal::Refusal,
    world::{Progress, Stage, World},
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
            self.key = Some(key.unwrap_or(OWN_KEY).to_owned());
        }
    }

    /// Encrypted with the key that no policy opens to others.
    pub(crate) fn has_own_key(&self) -> bool {
        self.key.as_deref().is_some_and(|key| key == OWN_KEY || key.ends_with("key/default-of-ebs"))
    }

    fn state(&self) -> &'static str {
        match self.phase.stage() {
            Stage::Waiting => "pending",
            Stage::Ready => "completed",
            Stage::Failed => "error",
        }
    }
}

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
