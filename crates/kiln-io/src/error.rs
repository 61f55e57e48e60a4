//! What can go wrong with processes, files and keys. (The guest's errors stand with its trait.)

use std::{io, path::PathBuf, time::Duration};

/// A process could not be run, or failed.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    #[error("`{program}` is not installed or not in `PATH`; `kiln doctor` says how to get it")]
    Missing { program: String },
    #[error("cannot {operation} `{command}`")]
    Io {
        operation: &'static str,
        command: String,
        #[source]
        source: io::Error,
    },
    #[error("`{command}` {status}{}", tail(stderr))]
    Failed {
        command: String,
        /// `exited with status 100`, `was killed by signal 9`.
        status: String,
        /// The last lines of its stderr.
        stderr: Vec<String>,
    },
    #[error("`{command}` was killed after its time limit of {limit:?}{}", tail(stderr))]
    TimedOut { command: String, limit: Duration, stderr: Vec<String> },
    #[error("cancelled")]
    Cancelled,
}

fn tail(lines: &[String]) -> String {
    if lines.is_empty() { String::new() } else { format!("; the end of its stderr:\n    {}", lines.join("\n    ")) }
}

/// A file operation failed.
#[derive(Debug, thiserror::Error)]
pub enum FsError {
    #[error("cannot {operation} `{}`", path.display())]
    Io {
        operation: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("no space left to {operation} `{}`: {need} more bytes are needed, {free} are free; free some space or move kiln's directories (`KILN_CACHE_DIR`, `KILN_STATE_DIR`, `KILN_DATA_DIR`)", path.display())]
    NoSpace { operation: &'static str, path: PathBuf, need: u64, free: u64 },
    #[error("`{}` is in use by {holder}", path.display())]
    Locked { path: PathBuf, holder: String },
    #[error("`{}` {reason}", path.display())]
    Refused { path: PathBuf, reason: String },
}

/// No key could be made.
#[derive(Debug, thiserror::Error)]
#[error("cannot make an SSH key: {0}")]
pub struct KeyError(pub String);
