//! What every step of a plan depends on besides the plan: the base, the machine as QEMU builds it, files of provisioners,
//! keyed digests of secrets.

use std::{collections::BTreeMap, path::Path};

use kiln_core::{
    Digest,
    artifact::BaseRecord,
    checkpoint::Ground,
    plan::{Ami, CheckpointKind, Ec2Machine, Plan},
};
use kiln_io::guest::Content;
use kiln_provision::Library;

use super::{
    CheckpointError, Store,
    store::{digest_of, keyed},
};
use crate::{base, qemu::VmSpec};

/// Where a plan is baked.
#[derive(Debug, Clone, Copy)]
pub struct Surroundings<'a> {
    pub base: &'a BaseRecord,
    /// The machine; its places on the disk do not matter.
    pub machine: &'a VmSpec,
    pub qemu: &'a str,
    pub library: &'a Library,
    pub store: &'a Store,
    /// Whether this user's key for secrets may be made; without it no step with secrets is ever the same as another.
    pub may_write: bool,
}

/// Everything a checkpoint's key covers and a plan does not say.
pub fn ground(plan: &Plan, around: Surroundings<'_>) -> Result<Ground, CheckpointError> {
    let spec = around.machine;
    let mut facts = base_facts(around.base);
    // A machine that boots from a disk does not care what wrote it.
    let memory = [
        ("QEMU".to_owned(), around.qemu.to_owned()),
        ("accelerator".to_owned(), spec.calibration.accelerator.name().to_owned()),
        ("machine as QEMU is told".to_owned(), Digest::of(spec.shape().as_bytes()).to_string()),
        ("what kiln does after a boot".to_owned(), Digest::of(base::grow_script().as_bytes()).to_string()),
    ];
    if spec.machine.checkpoints == CheckpointKind::Disk {
        facts.push(("checkpoints".to_owned(), "of the disk alone".to_owned()));
    } else {
        facts.extend(memory);
    }
    if spec.machine.checkpoints == CheckpointKind::Memory && spec.calibration.accelerator == crate::qemu::Accel::Kvm {
        // The guest sees the host's own processor.
        facts.push(("processor".to_owned(), crate::qemu::processor_here()));
    }
    with_steps(plan, facts, around.library, around.store, around.may_write)
}

/// The same of an instance of EC2, which no checkpoint is taken of: whether a bake would give what an earlier one gave.
pub(super) fn ground_on_ec2(
    plan: &Plan,
    machine: &Ec2Machine,
    ami: &Ami,
    library: &Library,
    store: &Store,
) -> Result<Ground, CheckpointError> {
    let machine = serde_json::to_string(machine).unwrap_or_default();
    let facts = [("base", ami.ami.clone()), ("instance", Digest::of(machine.as_bytes()).to_string())];
    let facts = facts.map(|(what, value)| (what.to_owned(), value)).to_vec();
    with_steps(plan, facts, library, store, false)
}

fn with_steps(
    plan: &Plan,
    facts: Vec<(String, String)>,
    library: &Library,
    store: &Store,
    may_write: bool,
) -> Result<Ground, CheckpointError> {
    let mut provisioners = BTreeMap::new();
    for step in plan.steps.iter().filter(|step| step.skipped.is_none()) {
        if let Ok(found) = library.find(&step.provisioner) {
            let files = found.entries.iter().filter_map(|entry| {
                let digest = match &entry.content {
                    Content::Bytes(bytes) => Digest::of(bytes),
                    Content::File { path, .. } => digest_of(path).ok()?.sha256,
                    Content::Link(target) => Digest::of(target.as_os_str().as_encoded_bytes()),
                    Content::Directory => return None,
                };
                Some((shown(&entry.path), digest))
            });
            provisioners.insert(step.provisioner.clone(), files.collect());
        }
    }
    let mut secrets = BTreeMap::new();
    if !plan.secrets.is_empty()
        && let Some(key) = store.secret_key(may_write)?
    {
        secrets.extend(plan.secrets.iter().map(|(name, value)| (name.clone(), keyed(&key, value))));
    }
    Ok(Ground { facts, provisioners, secrets })
}

/// A published image is its disk, whatever it is called and however it is compressed.
fn base_facts(base: &BaseRecord) -> Vec<(String, String)> {
    match &base.parent {
        Some(parent) => vec![("base".to_owned(), format!("image, {}", parent.disk))],
        None => vec![
            ("base".to_owned(), format!("{} {}", base.name, base.digest.short())),
            ("base's digest".to_owned(), base.digest.to_string()),
            ("base's inputs".to_owned(), base.key.to_string()),
        ],
    }
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}
