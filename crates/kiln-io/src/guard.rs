//! A small process in a session of its own that outlives kiln by a moment: it runs a build's virtual machines and,
//! when kiln is gone for whatever reason, ends them and releases what stands in the build's ledger.
//!
//! The binary runs [`run`] as `kiln __guard <spec.json>`. kiln holds the other end of the guard's stdin; the kernel
//! closes it however kiln dies. The machines are started under `setpriv --pdeathsig KILL`, so that they do not
//! outlive the guard either.

mod client;
mod server;

use std::{ffi::OsString, io, path::PathBuf};

use serde::{Deserialize, Serialize};

pub use client::Guard;
pub use server::run;

use crate::{dirs::Dirs, error::ProcessError, ledger::LedgerError, process::Identity};

/// The hidden verb of the binary.
pub const VERB: &str = "__guard";

/// What the guard is told at its start, in `guard.json` in the build's directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuardSpec {
    pub build: String,
    pub cache: PathBuf,
    pub state: PathBuf,
    pub data: PathBuf,
}

/// A program for the guard to run until it ends or the build does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Program {
    /// Names it towards the guard: `vm`.
    pub name: String,
    /// The noun in the ledger: `VM`.
    pub what: String,
    pub program: OsString,
    pub args: Vec<OsString>,
    /// One of `args`, found nowhere else on this machine.
    pub marker: String,
    pub directory: PathBuf,
    /// Where its stdout and stderr are appended.
    pub output: PathBuf,
}

/// How a program ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ended {
    Code(i32),
    Signal(i32),
    /// Unknown: the guard itself is gone, and the program with it.
    GuardGone,
}

/// What the guard did at the end of the build.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Released {
    pub released: usize,
    /// What is left, and why. `kiln clean` tries again.
    pub failed: Vec<String>,
}

/// The guard could not do its work.
#[derive(Debug, thiserror::Error)]
pub enum GuardError {
    #[error("cannot start the guard process")]
    Start(#[source] ProcessError),
    #[error("cannot {operation} `{}`", path.display())]
    Io {
        operation: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    #[error("the guard could not start `{name}`: {reason}")]
    Program { name: String, reason: String },
    #[error("the guard process is gone; its last words are in `{}`", log.display())]
    Gone { log: PathBuf },
}

/// kiln to guard, one JSON object a line.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Request {
    Start(Program),
    Kill(String),
    /// Stay until the programs end by themselves, also when kiln is gone.
    Keep,
}

/// Guard to kiln, one JSON object a line.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Reply {
    Started { name: String, identity: Identity },
    Failed { name: String, reason: String },
    Ended { name: String, ended: Ended },
    Keeping,
    Released(Released),
}

impl GuardSpec {
    fn dirs(&self) -> Dirs {
        Dirs { cache: self.cache.clone(), state: self.state.clone(), data: self.data.clone() }
    }
}
