//! Everything that can be known before the first slow step: tools, room on the disk and in memory.

use kiln_core::{
    ByteSize,
    plan::{Base, Builder, Ec2Machine, OutputFormat, Plan, QemuMachine},
};
use kiln_io::{fs, memory, process};

use super::{BakeContext, BakeError};
use crate::checkpoint::Take;

/// What a bake's files take beside the guest's disk: log, seed, console.
const OVERHEAD: u64 = 64 << 20;
/// A base's tarball, its tree and its disk exist side by side for a moment.
const BASE_ROOM: u64 = 3 << 30;

/// Refuses a bake that cannot succeed.
pub(super) fn check(plan: &Plan, context: &BakeContext) -> Result<(), BakeError> {
    match &plan.builder {
        Builder::Qemu(machine) => here(plan, machine, context),
        Builder::Ec2(machine) => elsewhere(plan, machine, context),
    }
}

/// The guest's disk comes here as a sparse file, and becomes the artifact.
fn elsewhere(plan: &Plan, machine: &Ec2Machine, context: &BakeContext) -> Result<(), BakeError> {
    let converts = plan.outputs.iter().any(|format| matches!(format, OutputFormat::Vmdk | OutputFormat::Vhd));
    if converts && process::which("qemu-img").is_err() {
        return Err(BakeError::MissingTools { tools: "qemu-img".to_owned() });
    }
    let disk = machine.volume.map_or(0, ByteSize::bytes) / 2 + OVERHEAD;
    Ok(fs::require_space("bake", &context.dirs.state, disk)?)
}

fn here(plan: &Plan, machine: &QemuMachine, context: &BakeContext) -> Result<(), BakeError> {
    let mut tools = vec!["qemu-system-x86_64", "qemu-img", "setpriv"];
    if matches!(plan.base, Base::Debian(_)) {
        tools.push("mmdebstrap");
    }
    let missing: Vec<_> = tools.into_iter().filter(|tool| process::which(tool).is_err()).collect();
    if !missing.is_empty() {
        return Err(BakeError::MissingTools { tools: missing.join("`, `") });
    }
    // The overlay holds what the bake writes, the artifact what the disk holds compressed: half the disk is generous for
    // both together on a system image, and a disk that is really full is met again while running.
    let disk = machine.disk.bytes() / 2 + OVERHEAD;
    fs::require_space("bake", &context.dirs.state, disk)?;
    if context.checkpoints.take != Take::Off {
        fs::require_space("bake", &context.dirs.cache, disk)?;
    }
    // A guest that the machine cannot hold would be killed in the middle of the bake, or take others with it.
    if let Some(available) = memory::available().map(ByteSize).filter(|available| *available < machine.memory) {
        return Err(BakeError::Memory { memory: machine.memory, available });
    }
    fs::require_space("make the base", &context.dirs.cache, BASE_ROOM)?;
    Ok(())
}
