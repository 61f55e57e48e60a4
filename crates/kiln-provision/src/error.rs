//! What can go wrong with provisioners: finding one, packing a step, running it.

use std::{path::PathBuf, time::Duration};

use kiln_core::diagnostic::Diagnostics;
use kiln_io::{
    error::{FsError, ProcessError},
    guest::GuestError,
};

/// A provisioner could not be had.
#[derive(Debug, thiserror::Error)]
pub enum LibraryError {
    #[error("no provisioner is called `{name}`")]
    Unknown { name: String },
    #[error("`{name}` cannot name a provisioner: use `a-z`, `0-9`, `-`, `_`, beginning with a letter")]
    Name { name: String },
    #[error("the manifest `{}` has mistakes", file)]
    Manifest { file: String, mistakes: Diagnostics },
    #[error("the provisioner in `{origin}` calls itself `{found}`; its name must be that of its directory, `{name}`")]
    OtherName { name: String, origin: String, found: String },
    #[error("the provisioner `{name}` in {origin} has no executable `{run}`, which its manifest names")]
    NoRun { name: String, origin: String, run: String },
    #[error("cannot read the provisioner `{name}`")]
    Read {
        name: String,
        #[source]
        source: FsError,
    },
}

/// A step could not be packed.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    #[error(transparent)]
    Library(#[from] LibraryError),
    #[error("{what} changed since the plan was made; run again")]
    Changed { what: String },
    #[error("the option `{option}` holds a NUL byte, which no program's environment can carry")]
    Nul { option: String },
    #[error("the options `{one}` and `{two}` would both be the variable `{variable}`; rename one of them")]
    Collision { one: String, two: String, variable: String },
    #[error(
        "the options make {bytes} bytes of environment, over the limit of {limit}; declare the large ones as `text` or `path`"
    )]
    TooLarge { bytes: usize, limit: usize },
    #[error("the option `{option}` is not {expected}")]
    Kind { option: String, expected: &'static str },
    #[error("the step names the secret `{name}`, which has no value")]
    NoSecret { name: String },
    #[error(transparent)]
    Input(#[from] FsError),
}

/// A step failed. The source says why; [`StepError::hint`] what to try.
#[derive(Debug, thiserror::Error)]
#[error("provisioner `{provisioner}` failed at step {number} of {total}")]
pub struct StepError {
    pub provisioner: String,
    pub number: usize,
    pub total: usize,
    #[source]
    pub fault: Fault,
}

impl StepError {
    /// What a person can do about it, beyond looking into the kept guest.
    pub fn hint(&self) -> Option<String> {
        match &self.fault {
            Fault::Exit { hint, .. } => hint.clone(),
            Fault::TimedOut { .. } => Some(format!(
                "raise the step's `timeout`, or look for a prompt: step {} has no terminal and its stdin is closed",
                self.number
            )),
            Fault::Unknown { .. } => {
                Some("a step is repeated after a lost connection only if its provisioner is `idempotent`".to_owned())
            }
            Fault::Guest(GuestError::Rebooted { .. }) => {
                Some("a reboot must be a step of its own: `use = \"reboot\"`".to_owned())
            }
            Fault::Stayed { .. } => {
                Some("its `run` must end in a reboot; see the serial console with `kiln logs`".to_owned())
            }
            _ => None,
        }
    }

    pub fn cancelled(&self) -> bool {
        matches!(
            self.fault,
            Fault::Cancelled | Fault::Guest(GuestError::Cancelled) | Fault::Host(ProcessError::Cancelled)
        )
    }
}

/// Why a step failed.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    #[error("`{run}` {status}{}{}", tail(last), detail.as_deref().unwrap_or_default())]
    Exit {
        run: String,
        /// `exited with status 100`.
        status: String,
        /// The last lines of its stderr, or of its stdout where stderr is empty.
        last: Vec<String>,
        /// What the guest showed afterwards: a full disk, a wrong clock.
        detail: Option<String>,
        hint: Option<String>,
    },
    #[error("timed out after {limit:?}; its processes were killed{tree}{}", tail(last))]
    TimedOut { limit: Duration, tree: String, last: Vec<String> },
    #[error("the connection was lost {after:?} into the step and it is not safe to repeat: its outcome is unknown")]
    Unknown { after: Duration },
    #[error("the guest did not reboot within {limit:?}")]
    Stayed {
        limit: Duration,
        #[source]
        source: GuestError,
    },
    #[error("it runs on the build host, and this guest cannot be reached from there over SSH")]
    NoAccess,
    #[error("cannot make its work directory `{}`", path.display())]
    Work {
        path: PathBuf,
        #[source]
        source: FsError,
    },
    #[error("cancelled")]
    Cancelled,
    #[error(transparent)]
    Bundle(#[from] BundleError),
    #[error(transparent)]
    Guest(#[from] GuestError),
    #[error(transparent)]
    Host(#[from] ProcessError),
}

fn tail(lines: &[String]) -> String {
    if lines.is_empty() { String::new() } else { format!("; its last words:\n    {}", lines.join("\n    ")) }
}
