//! kiln's side of the guard.

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    process::{ChildStdin, ChildStdout},
    sync::{Mutex, watch},
};

use super::{Ended, GuardError, GuardSpec, Program, Released, Reply, Request, VERB};
use crate::{
    dirs::Dirs,
    fs,
    ledger::{EntryId, Ledger, Resource},
    process::{self, Identity, Running, Sink, Spec, Stdin},
};

/// The guard may take this long to release everything; deleting files and killing processes takes far less.
const CLOSES_WITHIN: Duration = Duration::from_secs(20);

/// A running guard. Dropping it, like dying, makes the guard release the build.
pub struct Guard {
    /// `None` only once it was closed or kept.
    process: Option<Running>,
    pid: u32,
    requests: Mutex<Option<ChildStdin>>,
    seen: watch::Receiver<Seen>,
    log: PathBuf,
    entry: EntryId,
}

impl fmt::Debug for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guard").field("pid", &self.pid).finish_non_exhaustive()
    }
}

/// What the guard has said.
#[derive(Debug, Clone, Default)]
struct Seen {
    programs: BTreeMap<String, State>,
    keeping: bool,
    released: Option<Released>,
    /// Its stdout is closed.
    gone: bool,
}

#[derive(Debug, Clone)]
enum State {
    Started { identity: Identity, ended: Option<Ended> },
    Failed(String),
}

impl Guard {
    /// Starts the guard of a build. `kiln` is the program whose verb [`VERB`] runs [`super::run`].
    pub async fn spawn(kiln: &Path, dirs: &Dirs, build: &str, ledger: &Ledger) -> Result<Self, GuardError> {
        let directory = dirs.build(build);
        let (path, log) = (directory.join("guard.json"), directory.join("guard.log"));
        let Dirs { cache, state, data } = dirs.clone();
        let spec = GuardSpec { build: build.to_owned(), cache, state, data };
        let io = |operation, path: &Path| {
            let path = path.to_owned();
            move |source| GuardError::Io { operation, path, source }
        };
        let text = serde_json::to_vec(&spec).map_err(|error| io("write", &path)(error.into()))?;
        ledger.acquire_file("guard file", &path)?;
        fs::write_private(&path, &text).map_err(|error| io("write", &path)(std::io::Error::other(error)))?;
        let marker = path.to_string_lossy().into_owned();
        let entry = ledger.acquire("guard", Resource::Process { marker, identity: None })?;
        let mut command = Spec::new(kiln).arg(VERB).arg(&path).stdin(Stdin::Pipe);
        command.stderr = Sink::Append(log.clone());
        command.dies_with_kiln = false;
        let mut process = process::spawn(&command).await.map_err(GuardError::Start)?;
        ledger.started(&entry, &process.identity)?;
        let (sender, seen) = watch::channel(Seen::default());
        if let Some(replies) = process.stdout.take() {
            tokio::spawn(listen(replies, sender));
        }
        let requests = Mutex::new(process.stdin.take());
        Ok(Self { pid: process.identity.pid, process: Some(process), requests, seen, log, entry })
    }

    /// Starts a program; returns once the kernel runs it. A name is used once a build.
    pub async fn start(&self, program: Program) -> Result<Identity, GuardError> {
        let name = program.name.clone();
        self.ask(&Request::Start(program)).await?;
        let mut seen = self.seen.clone();
        let state = seen.wait_for(|seen| seen.gone || seen.programs.contains_key(&name)).await;
        match state.ok().and_then(|seen| seen.programs.get(&name).cloned()) {
            Some(State::Started { identity, .. }) => Ok(identity),
            Some(State::Failed(reason)) => Err(GuardError::Program { name, reason }),
            None => Err(self.gone()),
        }
    }

    /// How a program ended, `None` while it runs.
    pub fn ended(&self, name: &str) -> Option<Ended> {
        ended(&self.seen.borrow(), name)
    }

    /// Waits until a program has ended.
    pub async fn wait(&self, name: &str) -> Ended {
        let mut seen = self.seen.clone();
        let state = seen.wait_for(|seen| ended(seen, name).is_some()).await;
        state.ok().and_then(|seen| ended(&seen, name)).unwrap_or(Ended::GuardGone)
    }

    /// Kills a program and waits until it is gone.
    pub async fn kill(&self, name: &str) -> Result<Ended, GuardError> {
        self.ask(&Request::Kill(name.to_owned())).await?;
        Ok(self.wait(name).await)
    }

    /// Leaves the running programs and everything in the ledger to a person: the guard stays until the last
    /// program ends, then releases the build.
    pub async fn keep(mut self) -> Result<(), GuardError> {
        self.ask(&Request::Keep).await?;
        let mut seen = self.seen.clone();
        let keeping = seen.wait_for(|seen| seen.gone || seen.keeping).await.is_ok_and(|seen| seen.keeping);
        if !keeping {
            return Err(self.gone());
        }
        if let Some(process) = self.process.take() {
            process.let_go();
        }
        Ok(())
    }

    /// Ends the build: kills what still runs and releases everything that stands in the ledger.
    pub async fn close(mut self) -> Result<Released, GuardError> {
        drop(self.requests.lock().await.take());
        let Some(process) = self.process.as_mut() else { return Err(self.gone()) };
        let left = tokio::time::timeout(CLOSES_WITHIN, process.wait()).await;
        if !matches!(left, Ok(Ok(_))) {
            return Err(self.gone());
        }
        let mut seen = self.seen.clone();
        let released = seen.wait_for(|seen| seen.gone).await.ok().and_then(|seen| seen.released.clone());
        released.ok_or_else(|| self.gone())
    }

    /// The guard's own entry in the ledger.
    pub fn entry(&self) -> &EntryId {
        &self.entry
    }

    async fn ask(&self, request: &Request) -> Result<(), GuardError> {
        let mut line = serde_json::to_vec(request).map_err(|_| self.gone())?;
        line.push(b'\n');
        match self.requests.lock().await.as_mut() {
            Some(pipe) => pipe.write_all(&line).await.map_err(|_| self.gone()),
            None => Err(self.gone()),
        }
    }

    fn gone(&self) -> GuardError {
        GuardError::Gone { log: self.log.clone() }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        // Not killed: it sees its stdin closed and releases the build.
        if let Some(process) = self.process.take() {
            process.let_go();
        }
    }
}

fn ended(seen: &Seen, name: &str) -> Option<Ended> {
    match seen.programs.get(name) {
        Some(State::Started { ended: Some(ended), .. }) => Some(ended.clone()),
        _ if seen.gone => Some(Ended::GuardGone),
        _ => None,
    }
}

async fn listen(replies: ChildStdout, sender: watch::Sender<Seen>) {
    let mut lines = BufReader::new(replies).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        let Ok(reply) = serde_json::from_str(&line) else { continue };
        sender.send_modify(|seen| match reply {
            Reply::Started { name, identity } => {
                seen.programs.insert(name, State::Started { identity, ended: None });
            }
            Reply::Failed { name, reason } => {
                seen.programs.insert(name, State::Failed(reason));
            }
            Reply::Ended { name, ended: how } => {
                if let Some(State::Started { ended, .. }) = seen.programs.get_mut(&name) {
                    *ended = Some(how);
                }
            }
            Reply::Keeping => seen.keeping = true,
            Reply::Released(released) => seen.released = Some(released),
        });
    }
    sender.send_modify(|seen| seen.gone = true);
}
