//! The guard's own side: reads requests, runs programs, cleans up.

use std::{
    collections::BTreeMap,
    io::{self, Write as _},
    os::unix::process::ExitStatusExt as _,
    path::Path,
    process::ExitCode,
    time::Duration,
};

use tokio::{
    io::{AsyncBufReadExt as _, BufReader, Lines, Stdin},
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc,
};
use tokio_util::sync::CancellationToken;

use super::{Ended, GuardError, GuardSpec, Program, Released, Reply, Request};
use crate::{
    ledger::{self, Ledger, Resource, release_all},
    process::{self, Sink, Spec, Stdin as Input},
    time::{Attempt, Policy, SystemClock, poll_until},
};

/// Runs the guard of the build described in the file at `spec`, until the build is over and released.
///
/// Fails when something could not be released; what and why stands on its stderr.
pub fn run(spec: &Path) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return complain(&format!("cannot start: {error}")),
    };
    let code = match runtime.block_on(guard(spec)) {
        Ok(released) if released.failed.is_empty() => ExitCode::SUCCESS,
        Ok(released) => complain(&released.failed.join("\n")),
        Err(error) => complain(&error.to_string()),
    };
    // The thread that waits for stdin cannot be interrupted; the process ends without it.
    runtime.shutdown_background();
    code
}

fn complain(text: &str) -> ExitCode {
    let _ = writeln!(io::stderr(), "guard: {text}");
    ExitCode::FAILURE
}

/// What wakes the guard.
enum Wake {
    Request(Request),
    /// kiln closed its end, or somebody asks the guard to leave.
    Over,
    Ended(String, Ended),
}

#[derive(Debug)]
struct Server {
    ledger: Ledger,
    /// Cancelling a program's token kills it.
    programs: BTreeMap<String, CancellationToken>,
    ended: mpsc::UnboundedSender<(String, Ended)>,
    kept: bool,
}

async fn guard(spec: &Path) -> Result<Released, GuardError> {
    let read = |source| GuardError::Io { operation: "read", path: spec.to_owned(), source };
    let text = std::fs::read(spec).map_err(read)?;
    let spec: GuardSpec = serde_json::from_slice(&text).map_err(|error| read(io::Error::other(error)))?;
    let dirs = spec.dirs();
    let (ended, mut endings) = mpsc::unbounded_channel();
    let ledger = Ledger::join(&dirs, &spec.build)?;
    let mut server = Server { ledger, programs: BTreeMap::new(), ended, kept: false };
    let mut requests = Some(BufReader::new(tokio::io::stdin()).lines());
    let mut asked = signal(SignalKind::terminate()).ok();
    loop {
        match wake(&mut requests, &mut asked, &mut endings).await {
            Wake::Request(request) => server.serve(request).await,
            Wake::Ended(name, ended) => {
                server.programs.remove(&name);
                say(&Reply::Ended { name, ended });
            }
            Wake::Over => {
                requests = None;
                if !server.kept {
                    break;
                }
            }
        }
        if server.kept && server.programs.is_empty() {
            break;
        }
    }
    for kill in server.programs.values() {
        kill.cancel();
    }
    while !server.programs.is_empty() {
        let Some((name, _)) = endings.recv().await else { break };
        server.programs.remove(&name);
    }
    let directory = dirs.build(&spec.build);
    stragglers_end(&directory).await;
    let released = release(&server.ledger, &directory)?;
    say(&Reply::Released(released.clone()));
    Ok(released)
}

/// Waits for what a killed kiln had itself started for this build. The kernel ends it only after it has closed kiln's
/// files, which is what woke this process: until then it may still make a file that stands in the ledger.
async fn stragglers_end(directory: &Path) {
    let policy = Policy {
        first: Duration::from_millis(5),
        max: Duration::from_millis(50),
        // A person who looks at the log in this directory is not worth waiting for.
        deadline: Duration::from_secs(2),
    };
    let _ = poll_until(&SystemClock::new(), policy, &CancellationToken::new(), || async {
        if named_by_others(directory) { Attempt::Again(()) } else { Attempt::Done(()) }
    })
    .await;
}

/// Whether the command line of another process names a file of `directory`. One that has ended has no command line.
fn named_by_others(directory: &Path) -> bool {
    let own = std::process::id().to_string();
    let name = directory.as_os_str().as_encoded_bytes();
    std::fs::read_dir("/proc").into_iter().flatten().flatten().any(|entry| {
        let file = entry.file_name();
        file.as_encoded_bytes().iter().all(u8::is_ascii_digit)
            && file.to_str() != Some(&own)
            && std::fs::read(entry.path().join("cmdline"))
                .is_ok_and(|line| line.windows(name.len()).any(|window| window == name))
    })
}

/// Everything in the ledger but the guard itself, which is gone when this process is.
fn release(ledger: &Ledger, directory: &Path) -> Result<Released, GuardError> {
    let own = std::process::id();
    let is_own = |resource: &Resource| matches!(resource, Resource::Process { identity: Some(identity), .. } if identity.pid == own);
    let (myself, others): (Vec<_>, Vec<_>) =
        ledger::read(directory)?.outstanding.into_iter().partition(|entry| is_own(&entry.resource));
    let (released, failed) = release_all(ledger, &others);
    for entry in myself {
        ledger.release(&entry.id)?;
    }
    Ok(Released { released, failed })
}

async fn wake(
    requests: &mut Option<Lines<BufReader<Stdin>>>,
    asked: &mut Option<Signal>,
    endings: &mut mpsc::UnboundedReceiver<(String, Ended)>,
) -> Wake {
    let line = async {
        match requests {
            Some(lines) => lines.next_line().await.ok().flatten(),
            None => std::future::pending().await,
        }
    };
    let terminated = async {
        match asked {
            Some(signal) => signal.recv().await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        Some((name, ended)) = endings.recv() => Wake::Ended(name, ended),
        line = line => match line.as_deref().map(serde_json::from_str) {
            Some(Ok(request)) => Wake::Request(request),
            // A line that is not ours means that kiln is no longer itself.
            Some(Err(_)) | None => Wake::Over,
        },
        _ = terminated => Wake::Over,
    }
}

impl Server {
    async fn serve(&mut self, request: Request) {
        match request {
            Request::Start(program) => {
                let name = program.name.clone();
                match self.start(program).await {
                    Ok(identity) => say(&Reply::Started { name, identity }),
                    Err(error) => say(&Reply::Failed { name, reason: chain(&error) }),
                }
            }
            Request::Kill(name) => {
                if let Some(kill) = self.programs.get(&name) {
                    kill.cancel();
                }
            }
            Request::Keep => {
                self.kept = self.ledger.keep().is_ok();
                if self.kept {
                    say(&Reply::Keeping);
                }
            }
        }
    }

    async fn start(&mut self, program: Program) -> Result<process::Identity, GuardError> {
        let id = self.ledger.acquire(&program.what, Resource::Process { marker: program.marker, identity: None })?;
        let mut spec = Spec::new(program.program).args(program.args).cwd(program.directory).stdin(Input::Null);
        spec.stdout = Sink::Append(program.output.clone());
        spec.stderr = Sink::Append(program.output);
        let mut running = match process::spawn(&spec).await {
            Ok(running) => running,
            Err(error) => {
                self.ledger.release(&id)?;
                return Err(GuardError::Start(error));
            }
        };
        let identity = running.identity.clone();
        self.ledger.started(&id, &identity)?;
        let kill = CancellationToken::new();
        self.programs.insert(program.name.clone(), kill.clone());
        let ended = self.ended.clone();
        tokio::spawn(async move {
            let status = tokio::select! {
                status = running.wait() => status.ok(),
                () = kill.cancelled() => None,
            };
            let status = if status.is_some() {
                status
            } else {
                // Nothing in a machine that is thrown away is worth a gentle end.
                process::kill_group(running.identity.pid, true);
                running.wait().await.ok()
            };
            let how = status.map_or(Ended::GuardGone, |status| {
                status.code().map_or_else(|| Ended::Signal(status.signal().unwrap_or_default()), Ended::Code)
            });
            running.let_go();
            let _ = ended.send((program.name, how));
        });
        Ok(identity)
    }
}

/// Tells kiln, if it is still there.
fn say(reply: &Reply) {
    let mut out = io::stdout().lock();
    if let Ok(line) = serde_json::to_string(reply) {
        let _ = writeln!(out, "{line}").and_then(|()| out.flush());
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
