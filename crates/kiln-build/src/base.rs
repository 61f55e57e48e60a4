//! What a bake starts from, made ready on this machine: a disk that overlays can stand on.

use std::path::PathBuf;

use kiln_core::{artifact::BaseRecord, plan::Login};

/// A base in the cache, verified and never written to again.
#[derive(Debug, Clone)]
pub struct PreparedBase {
    pub disk: PathBuf,
    pub format: DiskFormat,
    /// Virtual size in bytes.
    pub size: u64,
    pub login: Login,
    /// Kernel and initrd to boot directly, where the base has them beside the disk.
    pub kernel: Option<DirectKernel>,
    pub record: BaseRecord,
    /// Tool name to version of what made it.
    pub tools: std::collections::BTreeMap<String, String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskFormat {
    Raw,
    Qcow2,
}

#[derive(Debug, Clone)]
pub struct DirectKernel {
    pub kernel: PathBuf,
    pub initrd: PathBuf,
    /// Without the console and without what kiln adds for a bake.
    pub command_line: String,
}
