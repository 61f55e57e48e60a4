//! What a bake tells while it runs: typed events, drawn by the terminal or written as JSON lines.

use serde::{Deserialize, Serialize};

use crate::{Digest, ImageName, Version};

/// One event. The JSON form is an object with `"event"` and the fields below.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// First event of a bake.
    BuildStarted {
        build: String,
        image: ImageName,
        recipe: Digest,
        steps: usize,
        log: String,
    },
    /// A phase begins. Phases do not nest.
    PhaseStarted {
        phase: Phase,
        detail: String,
    },
    /// How far a phase or a step is. `total` 0 means unknown.
    Progress {
        phase: Phase,
        done: u64,
        total: u64,
        unit: Unit,
    },
    PhaseFinished {
        phase: Phase,
        milliseconds: u64,
        detail: String,
    },
    StepStarted {
        number: usize,
        name: String,
        provisioner: String,
    },
    /// Raw output of the running step or check, at most 64 KiB an event, bytes that are not UTF-8 replaced.
    Output {
        number: usize,
        stream: Stream,
        text: String,
    },
    StepFinished {
        number: usize,
        name: String,
        outcome: Outcome,
        milliseconds: u64,
    },
    /// A step that is in the machine already, which came from a checkpoint.
    StepCached {
        number: usize,
        name: String,
        /// When it ran, seconds since 1970.
        ran: u64,
        /// What it took then.
        milliseconds: u64,
    },
    /// The machine came back from a checkpoint. Step 0 is the boot.
    CheckpointUsed {
        number: usize,
        name: String,
        /// Seconds since 1970.
        made: u64,
        bytes: u64,
        /// Milliseconds that the boot and the steps in it took when they ran.
        saved: u64,
    },
    /// The first step that has to run, and why. Step 0 is the boot.
    CheckpointMissed {
        number: usize,
        name: String,
        reason: String,
    },
    /// A checkpoint was taken after this step.
    CheckpointTaken {
        number: usize,
        name: String,
        /// Milliseconds that the machine stood still.
        pause: u64,
        bytes: u64,
    },
    CheckFinished {
        number: usize,
        name: String,
        on: CheckedOn,
        passed: bool,
        evidence: String,
        milliseconds: u64,
    },
    HygieneFinding {
        id: String,
        level: String,
        path: String,
        detail: String,
        waived: Option<String>,
    },
    /// The image was baked once more without any checkpoint, and the file trees of both disks were compared.
    AuditFinished {
        /// Paths that are in either.
        paths: usize,
        /// Those that have the same kind, mode, owner and content in both.
        same: usize,
        differing: Vec<AuditDifference>,
    },
    /// Something a person should know: a fallback taken, a retry made.
    Warning {
        message: String,
    },
    /// The image is complete on disk.
    Sealed {
        disk: Digest,
        qcow2: String,
        bytes: u64,
    },
    Published {
        image: ImageName,
        version: Version,
        disk: Digest,
        registry: String,
        already: bool,
    },
    /// The only event of a build that has nothing to do.
    BuildSkipped {
        image: ImageName,
        version: Version,
        disk: Digest,
        reason: String,
    },
    /// The only event of a build that does not begin, because what it waits for is not there.
    BuildLeftOut {
        image: ImageName,
        reason: String,
    },
    /// The bake failed. What was kept and what to do next stand in `left` and `hint`.
    BuildFailed {
        message: String,
        causes: Vec<String>,
        hint: Option<String>,
        left: Vec<String>,
    },
    /// Last event of a bake that succeeded.
    BuildFinished {
        build: String,
        milliseconds: u64,
    },
}

/// A path that is not the same with checkpoints and without.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditDifference {
    pub path: String,
    /// `content`, `mode 0644 -> 0600`, `only in the first`: the first is the one baked with checkpoints.
    pub how: String,
    /// Why any two bakes differ there; empty where a checkpoint may be the reason.
    pub reason: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    Calibrate,
    Download,
    Base,
    Boot,
    Resume,
    Provision,
    Upload,
    Check,
    Clean,
    Shutdown,
    Placement,
    Seal,
    Hygiene,
    BootTest,
    Audit,
    Export,
    Publish,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Unit {
    Bytes,
    Items,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stream {
    Stdout,
    Stderr,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    Ok,
    Skipped,
    Failed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CheckedOn {
    Guest,
    Artifact,
}

/// Where events go. Cheap to call from any thread; must not block for long.
pub trait Events: Send + Sync + std::fmt::Debug {
    fn emit(&self, event: Event);
}
