//! What a bake would find, without changing anything or asking anybody: for `kiln plan`, and to know whether there is
//! anything to do.

use std::{fs, path::PathBuf, time::UNIX_EPOCH};

use kiln_core::{
    Digest, ImageName, Version,
    checkpoint::{Key, keys},
    event::{Event, Events},
    plan::{Accelerator, AmiBase, Base, Builder, Ec2Machine, Plan},
};
use kiln_io::{
    dirs::Dirs,
    fs::{create_private_dir, write_atomic},
    process,
    time::{Clock, SystemClock},
};
use kiln_provision::Library;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use super::{CheckpointError, Choice, Miss, Store, Surroundings, Trail, Wish, choose, ground, ground::ground_on_ec2};
use crate::{
    base,
    qemu::{self, CalibrationHost, VmSpec},
};

/// What a bake would find.
#[derive(Debug, Clone)]
pub struct Outlook {
    pub keys: Vec<Key>,
    pub choice: Choice,
    /// Seconds since 1970.
    pub now: u64,
}

/// What a bake of this plan would find; `None` where that is not known before one has run: without the base, on a
/// machine whose accelerator was not calibrated, or for an instance of EC2 before its AMI is looked up.
pub async fn outlook(
    plan: &Plan,
    dirs: &Dirs,
    library: &Library,
    accelerator: Option<Accelerator>,
    wish: &Wish,
) -> Result<Option<Outlook>, CheckpointError> {
    let clock = SystemClock::new();
    let machine = match &plan.builder {
        Builder::Qemu(machine) => machine,
        Builder::Ec2(machine) => return on_ec2(plan, machine, dirs, library, &clock),
    };
    let Some(base) = base::known(&plan.base, dirs) else { return Ok(None) };
    let cancel = CancellationToken::new();
    let host = CalibrationHost::new(dirs, &Nobody, &clock, &cancel);
    let wanted = accelerator.unwrap_or(machine.accelerator);
    let Some(calibration) = qemu::calibrated(wanted, &host).await else { return Ok(None) };
    let Ok(qemu) = process::version("qemu-system-x86_64").await else { return Ok(None) };
    let spec = VmSpec::on(&base, machine, &calibration, "");
    let store = Store::at(dirs);
    let around =
        Surroundings { base: &base.record, machine: &spec, qemu: &qemu, library, store: &store, may_write: false };
    let keys = keys(plan, &ground(plan, around)?);
    let now = seconds(&clock);
    let choice = choose(&keys, &store, &Trail::read(dirs, &plan.image), wish, now);
    Ok(Some(Outlook { keys, choice, now }))
}

/// Every step runs; still it is known what the bake depends on.
fn on_ec2(
    plan: &Plan,
    machine: &Ec2Machine,
    dirs: &Dirs,
    library: &Library,
    clock: &SystemClock,
) -> Result<Option<Outlook>, CheckpointError> {
    let Base::Ami(AmiBase { found: Some(ami), .. }) = &plan.base else { return Ok(None) };
    let ground = ground_on_ec2(plan, machine, ami, library, &Store::at(dirs))?;
    if ground.secrets.len() < plan.secrets.len() {
        // Without this user's key for them, another value would look the same.
        return Ok(None);
    }
    let keys = keys(plan, &ground);
    let reason = "instances of EC2 leave no checkpoints";
    let miss = |key: &Key| Miss { number: key.number, name: key.name.clone(), reason: reason.to_owned() };
    let choice = Choice { usable: Vec::new(), misses: keys.iter().map(miss).collect() };
    Ok(Some(Outlook { keys, choice, now: seconds(clock) }))
}

fn seconds(clock: &SystemClock) -> u64 {
    clock.wall().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// An image that was baked and published: `<cache>/results/<digest of its inputs>.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Known {
    pub image: ImageName,
    pub version: Version,
    pub disk: Digest,
    /// Seconds since 1970.
    pub baked: u64,
    pub boot_tested: bool,
}

impl Outlook {
    /// Over everything that decides what the bake of this plan gives on this machine.
    pub fn inputs(&self, plan: &Plan) -> Digest {
        let last = self.keys.last().map(|key| key.digest.to_string()).unwrap_or_default();
        Digest::of(format!("{last} {} {}", plan.recipe, plan.image).as_bytes())
    }

    /// For how many seconds after a bake its result may stand for another one; 0: never.
    pub fn good_for(&self) -> u64 {
        self.keys.iter().map(|key| key.good_for).min().unwrap_or(0)
    }
}

impl Known {
    pub fn read(dirs: &Dirs, inputs: &Digest) -> Option<Self> {
        serde_json::from_slice(&fs::read(path(dirs, inputs)).ok()?).ok()
    }

    pub fn write(&self, dirs: &Dirs, inputs: &Digest) -> Result<(), CheckpointError> {
        let path = path(dirs, inputs);
        if let Some(parent) = path.parent() {
            create_private_dir(parent)?;
        }
        Ok(write_atomic(&path, &serde_json::to_vec(self).unwrap_or_default(), 0o600)?)
    }
}

fn path(dirs: &Dirs, inputs: &Digest) -> PathBuf {
    dirs.cache.join("results").join(format!("{}.json", inputs.hex()))
}

/// Looking tells nobody anything.
#[derive(Debug)]
struct Nobody;

impl Events for Nobody {
    fn emit(&self, _: Event) {}
}
