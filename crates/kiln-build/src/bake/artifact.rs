//! The record of a bake, from what happened.

use std::collections::BTreeMap;

use kiln_core::{
    artifact::{Artifact, BootRecord, Disk, FORMAT, File, Machine, Placement},
    plan::{Builder, Plan, VersionSpec},
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
    pub(super) base: &'a PreparedBase,
    pub(super) calibration: &'a Calibration,
    pub(super) disk: Disk,
    pub(super) placement: Option<Placement>,
    pub(super) files: Vec<File>,
    /// When the bake began and when it was proven, seconds since 1970, UTC.
    pub(super) started: u64,
    pub(super) created: u64,
}

pub(super) fn disk(sealed: &Sealed) -> Disk {
    Disk {
        digest: sealed.disk_digest,
        size: sealed.size,
        chunk_size: u32::try_from(CHUNK).unwrap_or(u32::MAX),
        chunks: sealed.stored_chunks(),
    }
}

pub(super) fn record(facts: Facts<'_>, journal: &Journal<'_>, tools: BTreeMap<String, String>) -> Artifact {
    let Facts { plan, context, base, calibration, disk, placement, files, started, created } = facts;
    let Builder::Qemu(machine) = &plan.builder;
    let mut tools = tools;
    tools.extend(base.tools.clone());
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
        base: base.record.clone(),
        placement,
        boot: Some(BootRecord {
            login: base.login,
            command_line: base.kernel.as_ref().map(|kernel| kernel.command_line.clone()),
        }),
        machine: Machine {
            builder: "qemu".to_owned(),
            accelerator: calibration.accelerator.name().to_owned(),
            reason: calibration.reason.clone(),
            memory: machine.memory.bytes(),
            cpus: machine.cpus,
        },
        steps: journal.steps.clone(),
        checks: journal.checks.clone(),
        hygiene: journal.findings.clone(),
        tools,
        times: journal.times.clone(),
    }
}
