//! A machine that is up, until it is shut down, killed or kept.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use kiln_io::{
    fs,
    guard::Ended,
    guest::{Access, Command, Guest as _, Quiet},
    ledger::EntryId,
    ssh::SshGuest,
    time::{Attempt, GaveUp, Policy, poll_until},
};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::{BootError, LoginKeys, MachineError, ShutdownError, VmHost, VmSpec, console, qmp::Qmp};

/// A guest that answers, with its machine.
pub struct Running<'a> {
    pub(super) spec: VmSpec,
    pub(super) host: VmHost<'a>,
    pub(super) guest: SshGuest,
    pub(super) qmp: Qmp,
    pub(super) disk: Mutex<Disk>,
    pub(super) console: PathBuf,
    pub(super) keys: LoginKeys,
}

/// What a machine writes to, and what it wrote to before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Disk {
    pub(super) overlay: PathBuf,
    /// In the build's ledger.
    pub(super) entry: EntryId,
    /// Overlays that became checkpoints while it ran, the lowest first.
    pub(super) frozen: Vec<PathBuf>,
}

/// The disk of a machine that went down by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stopped {
    /// A qcow2 overlay over the base and the layers.
    pub disk: PathBuf,
    /// What lies between it and the base, the lowest first.
    pub layers: Vec<PathBuf>,
    /// Its entry in the build's ledger.
    pub entry: EntryId,
}

/// How long QEMU may take for one answer; it has nothing to do but to answer.
pub(super) const ANSWERS_WITHIN: Duration = Duration::from_secs(20);
/// Tells a guest to power off, whatever its init is.
pub(crate) const POWER_OFF: &str = "sync; systemctl poweroff --no-block || poweroff";
/// How often it is looked after.
const WATCH: Duration = Duration::from_secs(1);

impl fmt::Debug for Running<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Running").field("name", &self.spec.name).field("guest", &self.guest).finish_non_exhaustive()
    }
}

impl Running<'_> {
    pub fn guest(&self) -> &SshGuest {
        &self.guest
    }

    /// The keys made for this machine.
    pub fn keys(&self) -> &LoginKeys {
        &self.keys
    }

    /// The overlay. Not to be read while the machine runs.
    pub fn disk(&self) -> PathBuf {
        self.layers().overlay
    }

    pub(super) fn layers(&self) -> Disk {
        self.disk.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The serial console's file.
    pub fn console(&self) -> &Path {
        &self.console
    }

    /// The console's last lines, safe to print.
    pub fn console_tail(&self) -> Vec<String> {
        console::tail(&self.console, console::QUOTED)
    }

    /// What is known to be wrong with the machine.
    pub fn trouble(&self) -> Option<MachineError> {
        let seen = self.qmp.seen();
        if let Some(reason) = seen.disk_error {
            return Some(MachineError::HostDisk { reason });
        }
        let ended = self.host.guard.ended(&self.spec.name)?;
        let console = self.console_tail();
        Some(match ended {
            Ended::Code(0) if seen.shutdown.as_deref() == Some("guest-shutdown") => {
                MachineError::PoweredOff { console }
            }
            ended => MachineError::Died { how: how(&ended), console },
        })
    }

    /// Looks after the machine while it is used; returns only when something is wrong with it. A guest whose machine stands
    /// still would otherwise be waited for as long as its step may take.
    pub async fn watch(&self) -> MachineError {
        let answers = self.spec.calibration.scaled(ANSWERS_WITHIN);
        let scan = std::sync::Mutex::new(console::Scan::from_end(&self.console));
        let policy = Policy { first: WATCH, max: WATCH, deadline: Duration::MAX };
        // Whoever cancels the bake drops this.
        let never = CancellationToken::new();
        let trouble = poll_until(self.host.clock, policy, &never, || async {
            if let Some(trouble) = self.trouble() {
                return Attempt::Done(trouble);
            }
            let fatal = scan.lock().unwrap_or_else(PoisonError::into_inner).look(&self.console);
            if let Some(what) = fatal {
                return Attempt::Done(MachineError::Guest { what, console: self.console_tail() });
            }
            let answered = self.qmp.execute("query-status", json!({}), answers).await;
            if answered.is_err() && self.trouble().is_none() && !self.qmp.seen().closed {
                return Attempt::Done(MachineError::Silent { silent: answers, console: self.console_tail() });
            }
            Attempt::<_, ()>::Again(())
        });
        match trouble.await {
            Ok(trouble) => trouble,
            Err(_) => std::future::pending().await,
        }
    }

    /// Asks the guest to power off, and waits until it has and QEMU has ended by itself. Anything else kills it and is an
    /// error: the disk is then unclean and must not be sealed.
    pub async fn shutdown(self) -> Result<Stopped, ShutdownError> {
        let limit = self.spec.calibration.scaled(self.spec.machine.shutdown_timeout);
        let result = self.power_off(limit).await;
        if result.is_err() {
            // The error already says that the machine is gone; the guard reports what it could not end.
            let _ = self.host.guard.kill(&self.spec.name).await;
        }
        let Disk { overlay, entry, frozen } = self.layers();
        let layers = self.spec.layers.iter().cloned().chain(frozen).collect();
        result.map(|()| Stopped { disk: overlay, layers, entry })
    }

    async fn power_off(&self, limit: Duration) -> Result<(), ShutdownError> {
        let start = self.host.clock.monotonic();
        let asked = tokio::select! {
            () = self.host.cancel.cancelled() => return Err(ShutdownError::Cancelled),
            asked = self.ask_over_ssh() => asked,
        };
        if !asked {
            // The power button: whoever listens to it in the guest does the rest.
            let _ = self.qmp.execute("system_powerdown", json!({}), ANSWERS_WITHIN).await;
        }
        let left = limit.saturating_sub(self.host.clock.monotonic().saturating_sub(start));
        let policy = Policy { first: Duration::from_millis(50), max: Duration::from_millis(250), deadline: left };
        let ended = poll_until(self.host.clock, policy, self.host.cancel, || async {
            match (self.host.guard.ended(&self.spec.name), self.qmp.seen().disk_error) {
                (_, Some(reason)) => Attempt::Stop(ShutdownError::HostDisk { reason }),
                (Some(ended), None) => Attempt::Done(ended),
                (None, None) => Attempt::Again(ShutdownError::Ignored { limit, console: self.console_tail() }),
            }
        });
        match ended.await {
            Ok(Ended::Code(0)) if self.qmp.seen().shutdown.as_deref() == Some("guest-shutdown") => Ok(()),
            Ok(ended) => Err(ShutdownError::Died { how: how(&ended), console: self.console_tail() }),
            Err(GaveUp::Cancelled) => Err(ShutdownError::Cancelled),
            Err(GaveUp::Deadline(error) | GaveUp::Stopped(error)) => Err(error),
        }
    }

    /// Whether the guest took the order; the connection may well break under it.
    async fn ask_over_ssh(&self) -> bool {
        let timeout = self.spec.calibration.scaled(Duration::from_secs(15));
        let order = Command { reboots: true, ..Command::new(POWER_OFF, timeout) };
        match self.guest.run(&order, &Quiet).await {
            Ok(exit) => exit.success(),
            Err(_) => false,
        }
    }

    /// Ends the machine at once.
    pub async fn kill(self) -> Result<(), BootError> {
        self.host.guard.kill(&self.spec.name).await?;
        Ok(())
    }

    /// Leaves the machine running for `kiln ssh`: writes down how to reach it. The guard must be told to
    /// [keep](kiln_io::guard::Guard::keep) after this.
    pub fn keep(self) -> Result<Access, BootError> {
        let Some(access) = self.guest.access() else {
            return Err(BootError::Qmp { reason: "the guest has no address".into() });
        };
        let path = self.host.ledger.directory().join(Access::FILE);
        self.host.ledger.acquire_file("access file", &path)?;
        let text = serde_json::to_vec_pretty(&access).map_err(|error| BootError::Qmp { reason: error.to_string() })?;
        fs::write_private(&path, &text)?;
        Ok(access)
    }
}

/// `exited with status 1`, `was killed by signal 11`.
pub(super) fn how(ended: &Ended) -> String {
    match ended {
        Ended::Code(code) => format!("exited with status {code}"),
        Ended::Signal(signal) => format!("was killed by signal {signal}"),
        Ended::GuardGone => "is gone together with its guard process".to_owned(),
    }
}
