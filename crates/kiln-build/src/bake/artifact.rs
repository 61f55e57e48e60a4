//! The record of a bake, from what happened.

use std::collections::BTreeMap;

use kiln_core::{
    artifact::{Artifact, BaseRecord, BootRecord, Disk, FORMAT, File, Machine, Placement},
    plan::{Plan, QemuMachine, VersionSpec},
};
use kiln_disk::{CHUNK, seal::Sealed};

use super::{BakeContext, journal::Journal};
use crate::{base::PreparedBase, qemu::Calibration};

/// Stands for a version that the registry chooses when it publishes.
pub const UNPUBLISHED: &str = "unpublished";

/// The record of one bake; `sealed` without its files, which come with `files`.
pub(super) struct Facts<'a> {
    pub(super) plan: &'a Plan,
    pub(super) context: &'a BakeContext,
    pub(super) about: About,
    pub(super) disk: Disk,
    pub(super) placement: Option<Placement>,
    pub(super) files: Vec<File>,
    /// When the bake began and when it was proven, seconds since 1970, UTC.
    pub(super) started: u64,
    pub(super) created: u64,
}

/// What a bake stood on.
#[derive(Debug)]
pub(super) struct About {
    pub(super) base: BaseRecord,
    pub(super) boot: BootRecord,
    pub(super) machine: Machine,
    /// Tools that took part, with their versions.
    pub(super) tools: BTreeMap<String, String>,
}

impl About {
    pub(super) fn here(base: &PreparedBase, machine: &QemuMachine, calibration: &Calibration) -> Self {
        Self {
            base: base.record.clone(),
            boot: BootRecord {
                login: base.login,
                command_line: base.kernel.as_ref().map(|kernel| kernel.command_line.clone()),
            },
            machine: Machine {
                builder: "qemu".to_owned(),
                accelerator: calibration.accelerator.name().to_owned(),
                reason: calibration.reason.clone(),
                memory: machine.memory.bytes(),
                cpus: machine.cpus,
            },
            tools: base.tools.clone(),
        }
    }
}

pub(super) fn disk(sealed: &Sealed) -> Disk {
    Disk {
        digest: sealed.disk_digest,
        size: sealed.size,
        chunk_size: u32::try_from(CHUNK).unwrap_or(u32::MAX),
        chunks: sealed.stored_chunks(),
    }
}

pub(super) fn record(facts: Facts<'_>, journal: &Journal<'_>) -> Artifact {
    let Facts { plan, context, about, disk, placement, files, started, created } = facts;
    let About { base, boot, machine, mut tools } = about;
    tools.insert("kiln".to_owned(), env!("CARGO_PKG_VERSION").to_owned());
    let version = match &plan.version {
        VersionSpec::Fixed(version) => version.clone(),
        VersionSpec::Auto => UNPUBLISHED.parse().unwrap_or_else(|_| unreachable!("a constant that is a version")),
    };
    Artifact {
        format: FORMAT,
        image: plan.image.clone(),
        version,
        description: plan.description.clone(),
        member: plan.member.clone(),
        build: context.build.clone(),
        started: Some(started),
        created,
        variables: plan.variables.clone(),
        recipe: plan.recipe,
        disk,
        files,
        base,
        placement,
        boot: Some(boot),
        machine,
        steps: journal.steps.clone(),
        checks: journal.checks.clone(),
        hygiene: journal.findings.clone(),
        tools,
        times: journal.times.clone(),
    }
}
