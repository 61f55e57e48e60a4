//! A machine we can run commands in and copy files to: the trait that SSH and the tests' fake implement.

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
    time::Duration,
};

use async_trait::async_trait;
use kiln_core::{Secret, event::Stream};
use serde::{Deserialize, Serialize};

/// A running machine, reached over one connection.
#[async_trait]
pub trait Guest: Send + Sync + fmt::Debug {
    /// Runs a script and streams its output. Returns once the script itself has ended, also when something it
    /// started keeps its output open. A command that outlives its time limit is killed with its whole process group.
    async fn run(&self, command: &Command, output: &dyn Output) -> Result<Exit, GuestError>;

    /// Unpacks the entries beneath `directory` (made if missing), as one stream.
    async fn upload(&self, directory: &str, entries: &[Entry], progress: &dyn Progress) -> Result<(), GuestError>;

    /// Copies one file from the guest to `local`, replacing it only when complete.
    async fn download(&self, remote: &str, local: &Path) -> Result<u64, GuestError>;

    /// Opens a TCP connection from inside the guest, sends `request`, reads at most `limit` bytes until the other side closes.
    async fn exchange(
        &self,
        host: &str,
        port: u16,
        request: &[u8],
        limit: usize,
        deadline: Duration,
    ) -> Result<Vec<u8>, GuestError>;

    /// The kernel's boot id.
    async fn boot_id(&self) -> Result<String, GuestError>;

    /// Connects again after a reboot, until the boot id differs from `before` or the deadline passes.
    async fn reconnect_after_reboot(&self, before: &str, deadline: Duration) -> Result<(), GuestError>;

    /// How a program on the build host reaches this guest (for provisioners that run on the host).
    fn access(&self) -> Option<Access>;
}

/// A script for the guest's `sh`. The text, the environment and the secrets travel over stdin, never on a command line.
#[derive(Debug, Clone)]
pub struct Command {
    pub script: String,
    pub env: BTreeMap<String, String>,
    pub secrets: BTreeMap<String, Secret>,
    /// Working directory; `None` means `/root` or the login's home.
    pub directory: Option<String>,
    pub timeout: Duration,
    /// Laid down before the script starts and removed after it ended, in the same round trip where it is small.
    pub bundle: Option<Bundle>,
    /// The script ends the connection itself (it reboots): a lost connection is returned at once, without the wait that
    /// tells a reboot from a failing network.
    pub reboots: bool,
}

impl Command {
    /// A script without environment, secrets or files.
    pub fn new(script: impl Into<String>, timeout: Duration) -> Self {
        Self {
            script: script.into(),
            env: BTreeMap::new(),
            secrets: BTreeMap::new(),
            directory: None,
            timeout,
            bundle: None,
            reboots: false,
        }
    }
}

/// Files that belong to one command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bundle {
    /// Absolute; made anew with mode 0700, whatever was there before is removed.
    pub directory: String,
    pub entries: Vec<Entry>,
}

/// How a command ended. The guest's shell reports a death by signal as 128 and the signal's number, so a script that
/// exits with such a status itself counts as killed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Exit {
    Code(i32),
    /// `TERM`, `KILL`.
    Signal(String),
}

impl Exit {
    pub fn success(&self) -> bool {
        *self == Self::Code(0)
    }
}

/// Takes the output of a command as it arrives. Chunks are at most 64 KiB and may hold any bytes.
pub trait Output: Send + Sync {
    fn write(&self, stream: Stream, bytes: &[u8]);
}

/// Takes the number of bytes done.
pub trait Progress: Send + Sync {
    fn at(&self, done: u64);
}

/// Drops everything.
#[derive(Debug, Clone, Copy)]
pub struct Quiet;

impl Output for Quiet {
    fn write(&self, _: Stream, _: &[u8]) {}
}

impl Progress for Quiet {
    fn at(&self, _: u64) {}
}

/// One file, directory or link of an upload. Owned by root in the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Relative to the upload's directory; never absolute, never with `..`. Any bytes a file name may hold.
    pub path: PathBuf,
    /// Permission bits.
    pub mode: u32,
    pub content: Content,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    Directory,
    Bytes(Vec<u8>),
    /// Read from the host while streaming.
    File {
        path: PathBuf,
        bytes: u64,
    },
    Link(PathBuf),
}

/// SSH connection details. A build that keeps its guest writes them to [`Access::FILE`] in its directory, where
/// `kiln ssh` finds them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Access {
    pub host: String,
    pub port: u16,
    pub user: String,
    /// Private key file, mode 0600.
    pub key: PathBuf,
    /// `known_hosts` file that pins the guest's key.
    pub known_hosts: PathBuf,
    /// A shell command whose input and output are the connection, if it is not reached directly.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proxy: Option<String>,
}

/// How far a connection came. In the order in which a booting guest reaches them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Nothing accepts connections at the address.
    Listener,
    /// Something accepts, but no SSH server speaks: the guest's network or sshd is not up.
    Banner,
    /// An SSH server speaks, but no encrypted connection comes about.
    Handshake,
    /// The login was accepted, but no shell runs.
    Shell,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Listener => "nothing listens",
            Self::Banner => "no SSH server answers",
            Self::Handshake => "the SSH handshake failed",
            Self::Shell => "the login's shell does not run",
        })
    }
}

impl Access {
    /// JSON in the build's directory.
    pub const FILE: &'static str = "access.json";

    /// The proxy as OpenSSH's `ProxyCommand` wants it, where `%` begins a token.
    pub fn proxy_command(&self) -> Option<String> {
        self.proxy.as_ref().map(|command| command.replace('%', "%%"))
    }
}

/// What can go wrong with a guest.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    #[error("no connection to the guest at {address}: {stage}: {reason}")]
    Connect { address: String, stage: Stage, reason: String },
    #[error("the guest at {address} shows the host key {found}, expected {expected}")]
    HostKey { address: String, expected: String, found: String },
    #[error("the guest at {address} refused the login of `{user}`")]
    Login { address: String, user: String },
    #[error("the connection to the guest was lost {after:?} into `{during}`; whether it finished is unknown")]
    Lost { during: String, after: Duration },
    #[error("timed out after {limit:?}; its processes were killed{tree}")]
    TimedOut { limit: Duration, tree: String },
    #[error("the guest rebooted while `{during}` ran (its boot id changed)")]
    Rebooted { during: String },
    #[error("`{path}` arrived in the guest with other bytes than were sent")]
    Corrupted { path: String },
    #[error("cancelled")]
    Cancelled,
    #[error("cannot copy to or from the local file `{path}`")]
    Local {
        path: String,
        #[source]
        source: std::io::Error,
    },
    #[error("{operation} failed in the guest: {reason}")]
    Remote { operation: String, reason: String },
}
