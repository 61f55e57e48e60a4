//! Why a bake stopped.

use std::time::Duration;

use kiln_core::{ByteSize, plan::OutputFormat};
use kiln_io::{
    error::{FsError, ProcessError},
    guard::GuardError,
    guest::{Exit, GuestError},
    ledger::LedgerError,
};
use kiln_provision::error::StepError;

use crate::{
    base::BaseError,
    check::CheckError,
    checkpoint::CheckpointError,
    clean::CleanError,
    qemu::{BootError, MachineError, ShutdownError},
    remote::RemoteError,
};

fn last_words(console: &[String]) -> String {
    if console.is_empty() { String::new() } else { format!("; its console ended with\n{}", console.join("\n")) }
}

/// Everything that can stop a bake.
#[derive(Debug, thiserror::Error)]
pub enum BakeError {
    #[error("`{tools}` is not installed")]
    MissingTools { tools: String },
    #[error("the guest's memory of {memory} does not fit into what this machine has left, {}", available.approximate())]
    Memory { memory: ByteSize, available: ByteSize },
    #[error(transparent)]
    Fs(#[from] FsError),
    #[error(transparent)]
    Process(#[from] ProcessError),
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    #[error(transparent)]
    Guard(#[from] GuardError),
    #[error("working with a checkpoint failed")]
    Checkpoint(#[source] Box<CheckpointError>),
    #[error("the base could not be made ready")]
    Base(#[source] Box<BaseError>),
    #[error("the disk of {disk} is smaller than its base, which has {base}")]
    DiskTooSmall { disk: ByteSize, base: ByteSize },
    #[error("the machine did not come up")]
    Boot(#[source] Box<BootError>),
    #[error("the sealed image does not boot")]
    BootTest(#[source] Box<BootError>),
    #[error(transparent)]
    Step(Box<StepError>),
    #[error("a check failed")]
    Check(#[source] CheckError),
    #[error("a check failed on the sealed image")]
    ArtifactCheck(#[source] CheckError),
    #[error("the root file system could not be grown to the disk's size")]
    Grow(#[source] GuestError),
    #[error("growing the root file system failed ({exit:?}): {output}")]
    GrowFailed { exit: Exit, output: String },
    #[error("the guest could not be cleaned")]
    Clean(#[source] CleanError),
    #[error("the guest was not shut down cleanly, so its disk is not sealed")]
    Unclean(#[source] Box<ShutdownError>),
    #[error("the guest powered off without unmounting, so its disk is not sealed: {}", unclean.join("; "))]
    DirtyFileSystem { unclean: Vec<String> },
    #[error("the machine failed")]
    Machine(#[source] Box<MachineError>),
    #[error("this kiln has nobody who starts instances on EC2")]
    NoMachines,
    #[error("nobody has looked up which AMI the base is")]
    NotLookedUp,
    #[error("the machine on EC2 is of no use")]
    Remote(#[source] Box<RemoteError>),
    #[error("the sealed image does not come up on EC2")]
    Trial(#[source] Box<BakeError>),
    #[error("{what} does not answer at {address} within {}{}", kiln_core::duration::format(*limit), last_words(console))]
    Unreachable {
        what: String,
        address: String,
        limit: Duration,
        console: Vec<String>,
        #[source]
        source: GuestError,
    },
    #[error("the disk could not be sealed")]
    Seal(#[source] Box<kiln_disk::Error>),
    #[error("the finished disk is not clean: {}", findings.join("; "))]
    Hygiene { findings: Vec<String> },
    #[error("writing the {format:?} file failed")]
    Output {
        format: OutputFormat,
        #[source]
        source: Box<BakeError>,
    },
    #[error("the record of the artifact cannot be written")]
    Record(#[source] serde_json::Error),
    #[error("cancelled")]
    Cancelled,
    #[error("{error} (not everything could be released: {})", left.join("; "))]
    Left { error: Box<BakeError>, left: Vec<String> },
}

impl From<CheckpointError> for BakeError {
    fn from(error: CheckpointError) -> Self {
        match error {
            CheckpointError::Cancelled => Self::Cancelled,
            error => Self::Checkpoint(Box::new(error)),
        }
    }
}

impl BakeError {
    // Each layer has its own word for a cancelled wait; a bake has one.

    pub(super) fn base(error: BaseError) -> Self {
        if matches!(error, BaseError::Cancelled) { Self::Cancelled } else { Self::Base(Box::new(error)) }
    }

    pub(super) fn boot(error: BootError) -> Self {
        if matches!(error, BootError::Cancelled) { Self::Cancelled } else { Self::Boot(Box::new(error)) }
    }

    pub(super) fn boot_test(error: BootError) -> Self {
        if matches!(error, BootError::Cancelled) { Self::Cancelled } else { Self::BootTest(Box::new(error)) }
    }

    pub(super) fn shutdown(error: ShutdownError) -> Self {
        if matches!(error, ShutdownError::Cancelled) { Self::Cancelled } else { Self::Unclean(Box::new(error)) }
    }

    pub(super) fn step(error: StepError) -> Self {
        if error.cancelled() { Self::Cancelled } else { Self::Step(Box::new(error)) }
    }

    pub(super) fn check(error: CheckError) -> Self {
        if matches!(error, CheckError::Cancelled) { Self::Cancelled } else { Self::Check(error) }
    }

    pub(super) fn artifact_check(error: CheckError) -> Self {
        if matches!(error, CheckError::Cancelled) { Self::Cancelled } else { Self::ArtifactCheck(error) }
    }

    pub(super) fn clean(error: CleanError) -> Self {
        if matches!(error, CleanError::Guest(GuestError::Cancelled)) { Self::Cancelled } else { Self::Clean(error) }
    }

    pub(super) fn grow(error: GuestError) -> Self {
        if matches!(error, GuestError::Cancelled) { Self::Cancelled } else { Self::Grow(error) }
    }

    pub(super) fn remote(error: RemoteError) -> Self {
        if error.cancelled { Self::Cancelled } else { Self::Remote(Box::new(error)) }
    }

    pub(super) fn trial(error: Self) -> Self {
        if error.is_cancelled() { error } else { Self::Trial(Box::new(error)) }
    }

    pub(super) fn seal(error: kiln_disk::Error) -> Self {
        if matches!(error, kiln_disk::Error::Cancelled) { Self::Cancelled } else { Self::Seal(Box::new(error)) }
    }

    /// The next thing to try.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Memory { .. } => "give `[builder.qemu]` less `memory`, or wait for other builds to end".to_owned(),
            Self::MissingTools { .. } => "`kiln doctor --install` installs what is missing".to_owned(),
            Self::Step(_) | Self::Check(_) => "rerun with `--on-error keep` and look inside with `kiln ssh`".to_owned(),
            Self::ArtifactCheck(_) => {
                "the check held before the machine was shut down: is the service enabled at boot?".to_owned()
            }
            Self::Hygiene { .. } => {
                "remove it in a last provision step, or accept it by name with `[[waive]]` and a reason".to_owned()
            }
            Self::Machine(error) if matches!(**error, MachineError::HostDisk { .. }) => {
                "free some space on this machine and bake again".to_owned()
            }
            Self::DiskTooSmall { base, .. } => format!("give `[builder.qemu]` a `disk` of {base} or more"),
            Self::Left { .. } => "`kiln clean` tries again".to_owned(),
            Self::NoMachines => "build kiln with the cargo feature `aws` (docs/aws.md)".to_owned(),
            Self::Unreachable { .. } => {
                "is the address right (`address`), the route there, and does the AMI have cloud-init?".to_owned()
            }
            Self::Trial(_) => {
                "the base came up, so it is what the bake left: the network, cloud-init, a service that holds up SSH?"
                    .to_owned()
            }
            Self::Remote(error) => return error.hint.clone(),
            Self::Base(error) => return error.hint().map(str::to_owned),
            _ => return None,
        })
    }

    /// Whether somebody asked for the bake to stop.
    pub fn is_cancelled(&self) -> bool {
        match self {
            Self::Cancelled => true,
            Self::Left { error, .. } => error.is_cancelled(),
            _ => false,
        }
    }
}
