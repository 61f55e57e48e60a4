//! Why a machine did not come up, or did not go down.

use std::time::Duration;

use kiln_io::{
    error::{FsError, KeyError, ProcessError},
    guard::GuardError,
    guest::GuestError,
    ledger::LedgerError,
};

/// No guest. Console lines are quoted with everything escaped that a terminal would act upon.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    #[error("QEMU {how} before the machine ran{}; the command was:\n    {command}", quoted("it said", said))]
    Refused { how: String, said: Vec<String>, command: String },
    #[error("QEMU {how} while the guest booted{}{}", quoted("it said", said), quoted("the console ends with", console))]
    Died { how: String, said: Vec<String>, console: Vec<String> },
    #[error("QEMU does not answer over QMP for {silent:?}; it was killed{}", quoted("the console ends with", console))]
    Silent { silent: Duration, console: Vec<String> },
    #[error("the guest does not boot: {what}{}", quoted("the console ends with", console))]
    Stuck { what: String, console: Vec<String> },
    #[error(
        "the host's disk is full or failing ({reason}); the machine was stopped before it could notice. Free some space and bake again"
    )]
    HostDisk { reason: String },
    #[error("the guest was not reachable within {limit:?}: {stage}{}", quoted("the console ends with", console))]
    Unreachable {
        limit: Duration,
        /// Which stage failed, in words.
        stage: String,
        console: Vec<String>,
        #[source]
        source: Option<Box<GuestError>>,
    },
    #[error("the guest is up but not ours{}", quoted("the console ends with", console))]
    Stranger {
        console: Vec<String>,
        #[source]
        source: GuestError,
    },
    #[error("cannot talk to QEMU over QMP: {reason}")]
    Qmp { reason: String },
    #[error("`accelerator = \"kvm\"` is asked for, but KVM does not work here: {reason}")]
    Kvm { reason: String },
    #[error("QEMU does not run even the smallest guest: {reason}")]
    Emulator { reason: String },
    #[error("cannot write the NoCloud seed: {reason}")]
    Seed { reason: String },
    #[error(transparent)]
    Fs(#[from] FsError),
    #[error(transparent)]
    Process(#[from] ProcessError),
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    #[error(transparent)]
    Guard(#[from] GuardError),
    #[error("cancelled")]
    Cancelled,
}

/// What happened to a machine while it was used.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    #[error("QEMU {how} while the bake ran{}", quoted("the console ends with", console))]
    Died { how: String, console: Vec<String> },
    #[error(
        "the guest was powered off from inside before the bake was done{}",
        quoted("the console ends with", console)
    )]
    PoweredOff { console: Vec<String> },
    #[error("QEMU does not answer over QMP for {silent:?}{}", quoted("the console ends with", console))]
    Silent { silent: Duration, console: Vec<String> },
    #[error("the guest failed: {what}{}", quoted("the console ends with", console))]
    Guest { what: &'static str, console: Vec<String> },
    #[error("the host's disk is full or failing ({reason}); the machine was stopped before it could notice")]
    HostDisk { reason: String },
}

/// The guest did not go down by itself. Its disk must not be sealed.
#[derive(Debug, thiserror::Error)]
pub enum ShutdownError {
    #[error(
        "the guest did not shut down within {limit:?} and was killed; its disk is unclean{}",
        quoted("the console ends with", console)
    )]
    Ignored { limit: Duration, console: Vec<String> },
    #[error("QEMU {how} instead of shutting down; the disk is unclean{}", quoted("the console ends with", console))]
    Died { how: String, console: Vec<String> },
    #[error(
        "the host's disk is full or failing ({reason}); the guest's disk is incomplete. Free some space and bake again"
    )]
    HostDisk { reason: String },
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    #[error("cancelled")]
    Cancelled,
}

fn quoted(what: &str, lines: &[String]) -> String {
    if lines.is_empty() { String::new() } else { format!("; {what}:\n    {}", lines.join("\n    ")) }
}
