//! `provisioner.toml`: what a provisioner is, what it takes, where it runs.

use std::{collections::BTreeMap, fmt};

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
    /// A regular expression that the whole of every string in it matches.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pattern: Option<String>,
    /// The same for the keys of a map.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keys: Option<String>,
    /// The least and the greatest that an integer may be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<i64>,
}

impl OptionSpec {
    /// An optional one without a default that may be anything of its kind.
    pub const fn new(kind: OptionKind, doc: String) -> Self {
        Self {
            kind,
            doc,
            required: false,
            default: None,
            one_of: Vec::new(),
            pattern: None,
            keys: None,
            min: None,
            max: None,
        }
    }
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

impl OptionKind {
    /// Whether this, or what it is a list or map of, is one of `kinds`.
    fn holds(&self, kinds: &[Self]) -> bool {
        match self {
            Self::List(item) | Self::Map(item) => item.holds(kinds),
            kind => kinds.contains(kind),
        }
    }

    fn has_keys(&self) -> bool {
        match self {
            Self::List(item) => item.has_keys(),
            kind => matches!(kind, Self::Map(_)),
        }
    }
}

/// As it is written in a manifest.
impl fmt::Display for OptionKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self {
            Self::String => "string",
            Self::Text => "text",
            Self::Integer => "integer",
            Self::Bool => "bool",
            Self::Path => "path",
            Self::Duration => "duration",
            Self::Size => "size",
            Self::Table(_) => "table",
            Self::List(item) => return write!(f, "list<{item}>"),
            Self::Map(item) => return write!(f, "map<{item}>"),
        };
        f.write_str(name)
    }
}
