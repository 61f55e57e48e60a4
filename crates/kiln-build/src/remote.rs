//! Machines that somebody else runs, as a bake sees them. Who runs them is the business of whoever implements this.

use std::{fmt, path::Path};

use async_trait::async_trait;
use kiln_core::plan::{Ec2Machine, Plan};
use kiln_disk::seal::Sealed;
use kiln_io::ledger::Ledger;
use tokio_util::sync::CancellationToken;

use crate::qemu::LoginKeys;

/// Starts machines.
#[async_trait]
pub trait Machines: Send + Sync + fmt::Debug {
    /// Starts the machine of a plan. Everything that is made for it is in the ledger first; on an error nothing is left, or it
    /// stands in the ledger.
    async fn start(&self, order: Order<'_>, ami: &str) -> Result<Box<dyn Machine>, RemoteError>;

    /// The same from a sealed disk that is not published yet. What the disk was brought there for may stay until [`Machines::release`].
    async fn try_out(&self, order: Order<'_>, disk: SealedDisk<'_>) -> Result<Box<dyn Machine>, RemoteError>;

    /// Gives back whatever is still held for the build, once nobody needs it any more.
    async fn release(&self) -> Result<(), RemoteError>;
}

/// What a machine is started with.
#[derive(Debug, Clone, Copy)]
pub struct Order<'a> {
    pub plan: &'a Plan,
    pub machine: &'a Ec2Machine,
    pub build: &'a str,
    pub ledger: &'a Ledger,
    /// What kiln logs in with, and what the guest is to show.
    pub keys: &'a LoginKeys,
    pub cancel: &'a CancellationToken,
}

/// A sealed disk in its file.
#[derive(Debug, Clone, Copy)]
pub struct SealedDisk<'a> {
    pub file: &'a Path,
    pub sealed: &'a Sealed,
}

/// A machine that was started.
#[async_trait]
pub trait Machine: Send + Sync + fmt::Debug {
    /// What it is and where it answers.
    fn place(&self) -> &Place;

    /// Looks after it; returns only when something is wrong with it.
    async fn watch(&self) -> RemoteError;

    /// The last lines of its console, where there are any.
    async fn console(&self) -> Vec<String>;

    /// From now on its disk outlives it; it is about to power off.
    async fn let_go(&self) -> Result<(), RemoteError>;

    /// Waits until it has powered off, and writes its disk to `to`. Returns the size in bytes.
    async fn disk(&self, to: &Path, progress: &(dyn Fn(u64, u64) + Send + Sync)) -> Result<u64, RemoteError>;

    /// Takes it away, and everything that was made for it; the ledger is told.
    async fn release(&self) -> Result<(), RemoteError>;
}

/// What a machine is and where it answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// `m6i.large`
    pub kind: String,
    /// For people: `i-0123 in eu-west-1a, on demand`.
    pub what: String,
    pub host: String,
    pub port: u16,
    pub user: String,
    /// A shell command whose input and output are the connection, if it is not reached directly.
    pub proxy: Option<String>,
}

/// What went wrong with a machine, in the words of whoever runs it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct RemoteError {
    pub message: String,
    pub hint: Option<String>,
    /// Somebody asked for the bake to stop.
    pub cancelled: bool,
}
