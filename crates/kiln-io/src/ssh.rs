//! The guest over SSH: one session on a thread of its own, one persistent shell, few round trips.
//!
//! This is the only place that knows ssh2. The session never blocks (`link`, `lane`); everything above it is async and
//! speaks through bounded queues (`pipe`).

mod connect;
mod lane;
mod link;
mod marker;
mod pipe;
mod proxy;
mod script;
mod shell;
mod tar;
mod transfer;
mod tree;

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use tokio::sync::MutexGuard;
use tokio_util::sync::CancellationToken;

use self::{
    link::Link,
    script::Words,
    shell::{Broken, Shell, Talk},
};
use crate::{
    guest::{Access, Command, Entry, Exit, Guest, GuestError, Output, Progress, Stage},
    keys::{KeyPair, PublicKey},
    time::{Attempt, GaveUp, Policy, SystemClock, poll_until},
};

/// Whom to reach, as whom, and whose host key to expect.
#[derive(Debug, Clone)]
pub struct Target {
    pub host: String,
    pub port: u16,
    pub user: String,
    /// A shell command whose input and output are the connection; `None`: a socket to `host` and `port`.
    pub proxy: Option<String>,
    pub host_key: PublicKey,
    pub login: KeyPair,
    /// The login's private key as a file, and the pinned host key as a `known_hosts` file: for programs on the host.
    pub key_file: PathBuf,
    pub known_hosts: PathBuf,
    /// How long one attempt to connect may take.
    pub attempt: Duration,
    /// After a lost connection: how long to wait for the guest to come back, to tell a reboot from a failing network.
    pub return_within: Duration,
    /// Directory in the guest for kiln's own files, in memory and private to the login: [`PRIVATE`].
    pub private: String,
}

/// Where kiln's own files live in a guest.
pub const PRIVATE: &str = "/run/kiln";

impl Target {
    fn address(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }
}

/// A guest reached over SSH.
#[derive(Debug)]
pub struct SshGuest {
    target: Target,
    cancel: CancellationToken,
    clock: SystemClock,
    link: Mutex<Arc<Link>>,
    boot_id: Mutex<String>,
    /// One command at a time; whoever holds this uses the shell.
    shell: tokio::sync::Mutex<Option<Shell>>,
}

impl SshGuest {
    /// One attempt to connect, log in and start a shell. When `cancel` fires, now or later, the connection closes at once
    /// and whatever runs over it returns [`GuestError::Cancelled`].
    pub async fn connect(target: Target, cancel: CancellationToken) -> Result<Self, GuestError> {
        let shell = establish(&target, &cancel).await?;
        Ok(Self {
            link: Mutex::new(shell.link.clone()),
            boot_id: Mutex::new(shell.boot_id.clone()),
            shell: tokio::sync::Mutex::new(Some(shell)),
            target,
            cancel,
            clock: SystemClock::new(),
        })
    }

    fn link(&self) -> Arc<Link> {
        self.link.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn known_boot_id(&self) -> String {
        self.boot_id.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Uses a new connection from now on; says whether the guest has rebooted since the last one.
    fn adopt(&self, shell: Shell, slot: &mut Option<Shell>) -> bool {
        *self.link.lock().unwrap_or_else(PoisonError::into_inner) = shell.link.clone();
        let before =
            std::mem::replace(&mut *self.boot_id.lock().unwrap_or_else(PoisonError::into_inner), shell.boot_id.clone());
        let rebooted = before != shell.boot_id;
        *slot = Some(shell);
        rebooted
    }

    /// The shell, on a connection that lives: a dead one is replaced once, and an unwanted reboot shows itself here.
    async fn shell(&self, during: &str) -> Result<(MutexGuard<'_, Option<Shell>>, Shell), GuestError> {
        let mut slot = self.shell.lock().await;
        let link = self.link();
        if link.is_dead() {
            let shell = establish(&self.target, &self.cancel).await?;
            if self.adopt(shell, &mut slot) {
                return Err(GuestError::Rebooted { during: during.to_owned() });
            }
        }
        let shell = match slot.take() {
            Some(shell) => shell,
            None => Shell::open(self.link(), &self.target).await.map_err(|broken| refused(&self.target, broken))?,
        };
        Ok((slot, shell))
    }

    /// The connection broke under a command. Never runs it again; finds out whether the guest rebooted.
    async fn lost(&self, during: String, start: Instant, wait: bool, slot: &mut Option<Shell>) -> GuestError {
        let lost = GuestError::Lost { during: during.clone(), after: start.elapsed() };
        if self.cancel.is_cancelled() {
            return GuestError::Cancelled;
        }
        if !wait {
            return lost;
        }
        let policy = reconnecting(self.target.return_within);
        let back = poll_until(&self.clock, policy, &self.cancel, || async {
            match establish(&self.target, &self.cancel).await {
                Ok(shell) => Attempt::Done(shell),
                Err(error @ GuestError::Connect { .. }) => Attempt::Again(error),
                Err(error) => Attempt::Stop(error),
            }
        });
        match back.await {
            Ok(shell) => {
                let rebooted = self.adopt(shell, slot);
                if rebooted { GuestError::Rebooted { during } } else { lost }
            }
            Err(GaveUp::Cancelled) => GuestError::Cancelled,
            Err(_) => lost,
        }
    }

    async fn run_inner(&self, command: &Command, output: &dyn Output) -> Result<Exit, GuestError> {
        let start = Instant::now();
        let deadline = tokio::time::Instant::now() + command.timeout;
        let during = title(&command.script);
        let words = Words::new();
        let large = command.bundle.as_ref().filter(|bundle| tar::size(&bundle.entries) > script::INLINE);
        if let Some(bundle) = large {
            self.upload_bundle(bundle).await?;
        }
        let (mut slot, mut shell) = self.shell(&during).await?;
        shell.discard_leftovers();
        let text = match script::request(&shell.files, &words, command, large.is_some()) {
            Ok(text) => text,
            Err(error) => {
                *slot = Some(shell);
                return Err(error);
            }
        };
        let mut talk = Talk::new(&words.marker);
        let ended = tokio::time::timeout_at(deadline, async {
            shell.send(text).await?;
            shell.listen(&mut talk, output).await
        });
        match ended.await {
            Ok(Ok(status)) => {
                *slot = Some(shell);
                exit(&status)
            }
            Ok(Err(Broken::Link(_))) => Err(self.lost(during, start, !command.reboots, &mut slot).await),
            // Something in the guest killed the shell; the next command gets a new one.
            Ok(Err(_)) => Err(GuestError::Lost { during, after: start.elapsed() }),
            Err(_) => {
                let (tree, usable) = shell.end(&mut talk, output).await;
                *slot = Some(shell).filter(|_| usable);
                Err(GuestError::TimedOut { limit: command.timeout, tree })
            }
        }
    }

    async fn unless_cancelled<T>(&self, work: impl Future<Output = Result<T, GuestError>>) -> Result<T, GuestError> {
        let result = tokio::select! {
            biased;
            () = self.cancel.cancelled() => Err(GuestError::Cancelled),
            result = work => result,
        };
        if self.cancel.is_cancelled() { Err(GuestError::Cancelled) } else { result }
    }
}

#[async_trait]
impl Guest for SshGuest {
    async fn run(&self, command: &Command, output: &dyn Output) -> Result<Exit, GuestError> {
        self.unless_cancelled(self.run_inner(command, output)).await
    }

    async fn upload(&self, directory: &str, entries: &[Entry], progress: &dyn Progress) -> Result<(), GuestError> {
        self.unless_cancelled(self.upload_entries(directory, entries, progress)).await
    }

    async fn download(&self, remote: &str, local: &Path) -> Result<u64, GuestError> {
        self.unless_cancelled(self.download_file(remote, local)).await
    }

    async fn exchange(
        &self,
        host: &str,
        port: u16,
        request: &[u8],
        limit: usize,
        deadline: Duration,
    ) -> Result<Vec<u8>, GuestError> {
        self.unless_cancelled(self.exchange_bytes(host, port, request, limit, deadline)).await
    }

    async fn boot_id(&self) -> Result<String, GuestError> {
        let (mut slot, shell) = self.unless_cancelled(self.shell("reading the boot id")).await?;
        // A connection does not outlive its kernel, so the id it began with is the id.
        *slot = Some(shell);
        Ok(self.known_boot_id())
    }

    async fn reconnect_after_reboot(&self, before: &str, deadline: Duration) -> Result<(), GuestError> {
        let mut slot = self.shell.lock().await;
        *slot = None;
        let back = poll_until(&self.clock, reconnecting(deadline), &self.cancel, || async {
            match establish(&self.target, &self.cancel).await {
                Ok(shell) if shell.boot_id == before => Attempt::Again(GuestError::Remote {
                    operation: "rebooting".to_owned(),
                    reason: "the guest still runs with the same boot id".to_owned(),
                }),
                Ok(shell) => Attempt::Done(shell),
                Err(error @ (GuestError::HostKey { .. } | GuestError::Cancelled)) => Attempt::Stop(error),
                Err(error) => Attempt::Again(error),
            }
        });
        match back.await {
            Ok(shell) => {
                self.adopt(shell, &mut slot);
                Ok(())
            }
            Err(GaveUp::Cancelled) => Err(GuestError::Cancelled),
            Err(GaveUp::Deadline(error) | GaveUp::Stopped(error)) => Err(error),
        }
    }

    fn access(&self) -> Option<Access> {
        Some(Access {
            host: self.target.host.clone(),
            port: self.target.port,
            user: self.target.user.clone(),
            key: self.target.key_file.clone(),
            known_hosts: self.target.known_hosts.clone(),
            proxy: self.target.proxy.clone(),
        })
    }
}

async fn establish(target: &Target, cancel: &CancellationToken) -> Result<Shell, GuestError> {
    let link = Arc::new(Link::open(target, cancel).await?);
    Shell::open(link, target).await.map_err(|broken| refused(target, broken))
}

fn refused(target: &Target, broken: Broken) -> GuestError {
    let reason = match broken {
        Broken::Link(why) => format!("the connection was lost at once: {why}"),
        Broken::Shell => "it ended at once".to_owned(),
        Broken::Refused(reason) => reason,
    };
    GuestError::Connect { address: target.address(), stage: Stage::Shell, reason }
}

const fn reconnecting(deadline: Duration) -> Policy {
    Policy { first: Duration::from_millis(200), max: Duration::from_secs(2), deadline }
}

/// The first line of a script, for messages.
fn title(script: &str) -> String {
    let line =
        script.lines().map(str::trim).find(|line| !line.is_empty() && !line.starts_with('#')).unwrap_or("a command");
    let short: String = line.chars().take(60).collect();
    if short.len() < line.len() { short + "..." } else { short }
}

fn exit(status: &str) -> Result<Exit, GuestError> {
    const SIGNALS: [&str; 31] = [
        "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE", "ALRM",
        "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ", "VTALRM", "PROF",
        "WINCH", "IO", "PWR", "SYS",
    ];
    match status.parse::<i32>() {
        Ok(code) => {
            let signal = usize::try_from(code - 129).ok().and_then(|index| SIGNALS.get(index));
            Ok(signal.map_or(Exit::Code(code), |name| Exit::Signal((*name).to_owned())))
        }
        Err(_) => Err(GuestError::Remote {
            operation: "laying down the command's files".to_owned(),
            reason: "see the output above; is the guest's `/run` or disk full?".to_owned(),
        }),
    }
}
