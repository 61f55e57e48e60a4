//! Starts programs in a session of their own and holds the ones that run long.

use std::{
    fs::{File, OpenOptions},
    io,
    os::{fd::OwnedFd, unix::net::UnixStream},
    process::{ExitStatus, Stdio},
    sync::{Mutex, OnceLock, PoisonError, mpsc},
    time::Duration,
};

use tokio::{
    process::{Child, ChildStderr, ChildStdin, ChildStdout, Command},
    runtime::Handle,
    sync::oneshot,
};

use super::{Identity, Sink, Spec, Stdin, kill_group, which};
use crate::error::ProcessError;

/// How long a program may take to leave after TERM before KILL follows.
const GRACE: Duration = Duration::from_secs(3);

/// A program that runs until it ends or is ended. Dropping it kills its whole process group, unless it was
/// [let go](Running::let_go).
#[derive(Debug)]
pub struct Running {
    pub identity: Identity,
    pub stdin: Option<ChildStdin>,
    pub stdout: Option<ChildStdout>,
    pub stderr: Option<ChildStderr>,
    child: Child,
    command: String,
    held: bool,
}

impl Running {
    pub async fn wait(&mut self) -> Result<ExitStatus, ProcessError> {
        let waited = self.child.wait().await;
        waited.map_err(|source| ProcessError::Io { operation: "wait for", command: self.command.clone(), source })
    }

    /// `None` while it runs.
    pub fn exited(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// TERM for the whole group, three seconds, then KILL.
    pub async fn end(&mut self) {
        if self.exited().is_none() {
            kill_group(self.identity.pid, false);
            let _ = tokio::time::timeout(GRACE, self.child.wait()).await;
        }
        // Also when the leader left by itself: its children may not have.
        kill_group(self.identity.pid, true);
        let _ = self.child.wait().await;
        self.held = false;
    }

    /// Leaves it running when this value is dropped.
    pub fn let_go(mut self) -> Identity {
        self.held = false;
        self.identity.clone()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.held {
            kill_group(self.identity.pid, true);
        }
    }
}

/// Starts a program in its own session.
pub async fn spawn(spec: &Spec) -> Result<Running, ProcessError> {
    start(spec, command(spec)?).await
}

/// The same with a socket for its input and output, whose other end is returned.
pub async fn spawn_on_socket(spec: &Spec) -> Result<(Running, UnixStream), ProcessError> {
    let failed = |source| ProcessError::Io { operation: "make a socket for", command: spec.to_string(), source };
    let (ours, theirs) = UnixStream::pair().map_err(failed)?;
    let mut command = command(spec)?;
    command.stdin(OwnedFd::from(theirs.try_clone().map_err(failed)?)).stdout(OwnedFd::from(theirs));
    Ok((start(spec, command).await?, ours))
}

async fn start(spec: &Spec, command: Command) -> Result<Running, ProcessError> {
    let failed = |operation| {
        let command = spec.to_string();
        move |source| ProcessError::Io { operation, command, source }
    };
    let mut child = on_the_spawning_thread(command).await.map_err(failed("start"))?;
    // A child that is not waited for keeps its entry in /proc, so it is there even if it has ended already.
    let identity = child.id().and_then(Identity::of);
    let identity = identity.ok_or_else(|| failed("find")(io::ErrorKind::NotFound.into()))?;
    Ok(Running {
        identity,
        stdin: child.stdin.take(),
        stdout: child.stdout.take(),
        stderr: child.stderr.take(),
        child,
        command: spec.to_string(),
        held: true,
    })
}

/// `setsid [setpriv --pdeathsig KILL] program ...`: both replace themselves, so the pid is the program's own.
#[expect(clippy::disallowed_methods, reason = "this is the door the lint leads to")]
fn command(spec: &Spec) -> Result<Command, ProcessError> {
    let failed = |operation| move |source| ProcessError::Io { operation, command: spec.to_string(), source };
    let program = which(&spec.program)?;
    let mut command = Command::new(which("setsid")?);
    if spec.dies_with_kiln {
        command.arg(which("setpriv")?).args(["--pdeathsig", "KILL"]);
    }
    command.arg(program).args(&spec.args).envs(&spec.env);
    if let Some(directory) = &spec.cwd {
        command.current_dir(directory);
    }
    command.stdin(match &spec.stdin {
        Stdin::Null => Stdio::null(),
        Stdin::Bytes(_) | Stdin::Pipe => Stdio::piped(),
        Stdin::File(path) => File::open(path).map_err(failed("open the input of"))?.into(),
    });
    let sink = |sink: &Sink| {
        Ok(match sink {
            Sink::Null => Stdio::null(),
            Sink::Pipe => Stdio::piped(),
            Sink::Append(path) => {
                let opened = OpenOptions::new().create(true).append(true).open(path);
                opened.map_err(failed("open the output of"))?.into()
            }
        })
    };
    command.stdout(sink(&spec.stdout)?).stderr(sink(&spec.stderr)?);
    Ok(command)
}

type Request = (Command, Handle, oneshot::Sender<io::Result<Child>>);

/// The kernel's parent-death signal is sent when the *thread* that started the child ends, so everything is
/// started from one thread that never ends.
async fn on_the_spawning_thread(command: Command) -> io::Result<Child> {
    static THREAD: OnceLock<Mutex<mpsc::Sender<Request>>> = OnceLock::new();
    let thread = THREAD.get_or_init(|| {
        let (sender, requests) = mpsc::channel::<Request>();
        std::thread::spawn(move || {
            for (mut command, runtime, answer) in requests {
                let _inside = runtime.enter();
                // A caller that went away drops the child, and its entry is reaped by tokio.
                let _ = answer.send(command.kill_on_drop(false).spawn());
            }
        });
        Mutex::new(sender)
    });
    let (answer, child) = oneshot::channel();
    let sent = thread.lock().unwrap_or_else(PoisonError::into_inner).send((command, Handle::current(), answer));
    sent.map_err(io::Error::other)?;
    child.await.map_err(io::Error::other)?
}

#[cfg(test)]
mod tests {
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::time::{Attempt, Policy, SystemClock, poll_until};

    /// A killed process takes a moment to disappear.
    async fn gone(process: &Identity) {
        let step = Duration::from_millis(5);
        let policy = Policy { first: step, max: step, deadline: Duration::from_secs(30) };
        let look = || async { if process.alive() { Attempt::Again("still alive") } else { Attempt::Done(()) } };
        poll_until(&SystemClock::new(), policy, &CancellationToken::new(), look).await.unwrap();
    }

    #[tokio::test]
    async fn ending_takes_the_whole_group_along_even_if_it_ignores_the_first_signal() {
        let spec = Spec::new("sh").args(["-c", "trap '' TERM; (trap '' TERM; sleep 1000) & echo $!; wait"]);
        let mut running = spawn(&spec).await.unwrap();
        let mut line = String::new();
        let mut out = tokio::io::BufReader::new(running.stdout.take().unwrap());
        tokio::io::AsyncBufReadExt::read_line(&mut out, &mut line).await.unwrap();
        let inner = Identity::of(line.trim().parse().unwrap()).unwrap();
        assert!(inner.alive() && running.identity.alive());
        running.end().await;
        assert!(!running.identity.alive());
        gone(&inner).await;
    }

    #[tokio::test]
    async fn a_dropped_program_is_killed_and_one_let_go_is_not() {
        let dropped = spawn(&Spec::new("sleep").arg("1000")).await.unwrap();
        let mut kept = spawn(&Spec::new("sleep").arg("1000")).await.unwrap();
        let identity = dropped.identity.clone();
        drop(dropped);
        gone(&identity).await;
        assert!(kept.exited().is_none());
        kept.end().await;
        assert!(!kept.identity.alive());
    }

    #[tokio::test]
    async fn a_pipe_to_stdin_stays_open_until_closed() {
        let mut running = spawn(&Spec::new("cat").stdin(Stdin::Pipe)).await.unwrap();
        assert!(running.exited().is_none());
        drop(running.stdin.take());
        assert!(running.wait().await.unwrap().success());
    }
}
