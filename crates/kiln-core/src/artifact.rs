//! `artifact.json`: what a sealed image is and where it came from.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{Digest, ImageName, Version, plan::Login};

/// The format of this record.
pub const FORMAT: u32 = 1;

/// The record beside every sealed image.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Artifact {
    pub format: u32,
    pub image: ImageName,
    pub version: Version,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub member: BTreeMap<String, String>,
    pub build: String,
    /// When the bake began, seconds since 1970, UTC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started: Option<u64>,
    /// When it was sealed and proven, seconds since 1970, UTC.
    pub created: u64,
    /// The template's variables and their values, without the sensitive ones.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub variables: BTreeMap<String, String>,
    pub recipe: Digest,
    pub disk: Disk,
    /// The files of this artifact beside the record, the qcow2 first.
    pub files: Vec<File>,
    pub base: BaseRecord,
    /// The version whose places the unchanged files have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub placement: Option<Placement>,
    /// How a bake on this image gets into it; not in records of the first kilns.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot: Option<BootRecord>,
    pub machine: Machine,
    pub steps: Vec<StepRecord>,
    pub checks: Vec<CheckRecord>,
    pub hygiene: Vec<FindingRecord>,
    /// Name to version of every tool that took part: kiln, qemu, mmdebstrap, zstd.
    pub tools: BTreeMap<String, String>,
    /// Phase to milliseconds.
    pub times: BTreeMap<String, u64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// Over the ordered list of chunk digests; names the guest's bytes whatever the file format.
    pub digest: Digest,
    /// Virtual size in bytes.
    pub size: u64,
    pub chunk_size: u32,
    /// Chunks that are not all zeros.
    pub chunks: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct File {
    pub name: String,
    pub format: String,
    pub bytes: u64,
    pub sha256: Digest,
}

/// A disk whose unchanged files lie where an earlier version has them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placement {
    pub on: Version,
    /// How many versions in a row were placed on the one before.
    pub generation: u32,
    /// Files that kept their place, and files that were written.
    pub kept: usize,
    pub written: usize,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BaseRecord {
    /// `debian bookworm`, a URL or a path.
    pub name: String,
    /// The SHA-256 of the base's disk file.
    pub digest: Digest,
    /// The cache key, from the base's inputs.
    pub key: Digest,
    /// The version of the registry that it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<ParentRecord>,
}

/// A published version that an image was baked on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ParentRecord {
    pub image: ImageName,
    pub version: Version,
    /// The disk digest.
    pub disk: Digest,
}

/// How a machine on a disk is logged in to, and booted without its boot loader.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootRecord {
    pub login: Login,
    /// Kernel arguments that name the root file system; the kernel itself is `/vmlinuz` on the disk. `None`: only its boot loader
    /// boots it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command_line: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    pub builder: String,
    pub accelerator: String,
    /// Why this accelerator.
    pub reason: String,
    pub memory: u64,
    pub cpus: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepRecord {
    pub name: String,
    pub provisioner: String,
    pub provisioner_digest: Digest,
    pub outcome: String,
    pub milliseconds: u64,
    /// When it ran, seconds since 1970, if it was not run for this image but taken from a checkpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cached: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckRecord {
    pub name: String,
    pub on: String,
    pub passed: bool,
    pub milliseconds: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FindingRecord {
    pub id: String,
    pub level: String,
    pub path: String,
    pub detail: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waived: Option<String>,
}
