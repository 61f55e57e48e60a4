//! `provisioner.toml`: what a provisioner is, what it takes, where it runs.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

mod parse;

pub use parse::parse;

/// The version of the provisioner contract this kiln speaks.
pub const API: u32 = 1;

/// A checked manifest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    pub api: u32,
    pub name: String,
    pub summary: String,
    /// Where `run` is executed.
    pub runs_on: RunsOn,
    /// The executable inside the provisioner's directory, `run` unless said otherwise.
    pub run: String,
    /// Whether repeating the step after a failure is safe. `retries` is refused otherwise.
    pub idempotent: bool,
    /// Whether the step ends in a reboot that kiln waits for.
    pub reboots: bool,
    /// Default time limit in seconds.
    pub timeout_seconds: u64,
    /// The `ID` values of `/etc/os-release` it supports; empty means any.
    pub supports: Vec<String>,
    pub options: BTreeMap<String, OptionSpec>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RunsOn {
    Guest,
    Host,
}

/// One option of a provisioner, or one field of a table option.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OptionSpec {
    pub kind: OptionKind,
    pub doc: String,
    pub required: bool,
    pub default: Option<serde_json::Value>,
    /// The allowed values of a string; empty means any.
    pub one_of: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OptionKind {
    String,
    /// A string of any size: reaches the guest as a file, its path stands in the options.
    Text,
    Integer,
    Bool,
    /// A local file or directory: uploaded, its path in the guest stands in the options.
    Path,
    /// `"90s"`, `"10 min"`: reaches the guest as a whole number of seconds.
    Duration,
    /// `"512 MiB"`: reaches the guest as a number of bytes.
    Size,
    /// A list whose items are all of one kind.
    List(Box<OptionKind>),
    /// String keys to values of one kind.
    Map(Box<OptionKind>),
    /// A table with fixed fields.
    Table(BTreeMap<String, OptionSpec>),
}
