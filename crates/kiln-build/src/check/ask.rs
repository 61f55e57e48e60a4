//! Asks the guest: one script for everything its shell can tell, one request for each command, port and URL.

use std::{sync::Mutex, time::Duration};

use kiln_core::{
    event::Stream,
    plan::{Check, CheckKind},
};
use kiln_io::guest::{Command, Exit, Guest, GuestError, Output, Quiet};

use super::{
    http::{self, Answer, Url},
    probe,
    verdict::{self, Verdict},
};

/// Limit of a probe, and of one attempt of a command check that has no longer `within`.
const PATIENCE: Duration = Duration::from_mins(1);
/// Limit of one attempt to reach a port or a web server.
const REACH: Duration = Duration::from_secs(20);
/// Bytes kept of a command's output and of a web server's answer.
const KEEP: usize = 4 << 20;

/// One verdict for each check, in their order.
pub(super) async fn all(guest: &dyn Guest, checks: &[&Check]) -> Result<Vec<Verdict>, GuestError> {
    let seen = probe::run(guest, checks, PATIENCE).await?;
    let mut verdicts = Vec::with_capacity(checks.len());
    for check in checks {
        verdicts.push(match &check.kind {
            CheckKind::Command { run, exit, contains } => {
                command(guest, run, *exit, contains.as_deref(), check.within.max(PATIENCE)).await?
            }
            CheckKind::Http { url, status, contains } => web(guest, url, *status, contains.as_deref()).await?,
            CheckKind::Port { port, address, open } => listening(guest, address, *port, *open).await?,
            kind => verdict::of(kind, seen.get(&check.number)),
        });
    }
    Ok(verdicts)
}

/// What systemd and the journal say about a service; empty where neither can be asked.
pub(super) async fn service_log(guest: &dyn Guest, name: &str) -> String {
    let kept = Kept::default();
    let _ = guest.run(&Command::new(probe::service_log(name), PATIENCE), &kept).await;
    kept.text().trim_end().to_owned()
}

async fn command(
    guest: &dyn Guest,
    run: &str,
    exit: i32,
    contains: Option<&str>,
    limit: Duration,
) -> Result<Verdict, GuestError> {
    let kept = Kept::default();
    let ended = match guest.run(&Command::new(run, limit), &kept).await {
        Ok(Exit::Code(code)) => Ok(code),
        Ok(Exit::Signal(signal)) => Err(format!("`{run}` was killed by signal {signal}")),
        Err(GuestError::TimedOut { limit, .. }) => Err(format!("`{run}` did not end within {limit:?}")),
        Err(error) => return Err(error),
    };
    let text = kept.text();
    Ok(match ended {
        Err(seen) => Verdict::Fails(seen),
        Ok(code) if code != exit => Verdict::Fails(format!(
            "`{run}` exited with status {code}, expected {exit}{}",
            verdict::quoted("its output ends", &text)
        )),
        Ok(_) => verdict::contains(&format!("the output of `{run}`"), &text, contains),
    })
}

async fn web(guest: &dyn Guest, url: &str, status: u16, contains: Option<&str>) -> Result<Verdict, GuestError> {
    let target = match Url::parse(url) {
        Ok(target) => target,
        Err(reason) => return Ok(Verdict::Fails(reason)),
    };
    let answer = if target.tls { over_curl(guest, url).await? } else { plainly(guest, &target).await? };
    Ok(match answer {
        Err(reason) => Verdict::Fails(format!("{url}: {reason}")),
        Ok(Answer { status: found, body }) if found != status => Verdict::Fails(format!(
            "{url} answered {found}, expected {status}{}",
            verdict::quoted("its text ends", &String::from_utf8_lossy(&body))
        )),
        Ok(answer) => {
            verdict::contains(&format!("the answer of {url}"), &String::from_utf8_lossy(&answer.body), contains)
        }
    })
}

async fn plainly(guest: &dyn Guest, target: &Url) -> Result<Result<Answer, String>, GuestError> {
    match guest.exchange(&target.host, target.port, &target.request(), KEEP, REACH).await {
        Ok(bytes) => Ok(http::parse(&bytes)),
        Err(GuestError::Remote { reason, .. }) => Ok(Err(reason)),
        Err(error) => Err(error),
    }
}

/// TLS is left to the guest's own curl: its trust store is the one that counts.
async fn over_curl(guest: &dyn Guest, url: &str) -> Result<Result<Answer, String>, GuestError> {
    let kept = Kept::default();
    let exit = guest.run(&Command::new(probe::curl(url, REACH), PATIENCE), &kept).await?;
    let (stdout, stderr) = kept.parts();
    Ok(match exit {
        Exit::Code(0) => http::parse(&stdout),
        Exit::Code(127) => {
            Err("the guest has no curl, which a check of an https URL needs; install it in a step".to_owned())
        }
        _ => Err(String::from_utf8_lossy(&stderr).trim().to_owned()),
    })
}

async fn listening(guest: &dyn Guest, address: &str, port: u16, open: bool) -> Result<Verdict, GuestError> {
    let (found, seen) = match guest.exchange(address, port, &[], 0, REACH).await {
        Ok(_) => (true, "a connection succeeds".to_owned()),
        Err(GuestError::Remote { reason, .. }) => (false, reason),
        Err(error) => return Err(error),
    };
    Ok(if found == open {
        Verdict::Holds
    } else {
        let expected = if open { "open" } else { "closed" };
        Verdict::Fails(format!("port {port} at {address} must be {expected}: {seen}"))
    })
}

/// The output of one command, up to a limit a stream.
#[derive(Default)]
pub(super) struct Kept(Mutex<(Vec<u8>, Vec<u8>)>);

impl Kept {
    pub(super) fn parts(self) -> (Vec<u8>, Vec<u8>) {
        self.0.into_inner().unwrap_or_default()
    }

    /// Both streams, stdout first.
    fn text(self) -> String {
        let (out, err) = self.parts();
        format!("{}{}", String::from_utf8_lossy(&out), String::from_utf8_lossy(&err))
    }
}

impl Output for Kept {
    fn write(&self, stream: Stream, bytes: &[u8]) {
        let Ok(mut kept) = self.0.lock() else { return Quiet.write(stream, bytes) };
        let buffer = match stream {
            Stream::Stdout => &mut kept.0,
            Stream::Stderr => &mut kept.1,
        };
        let room = KEEP.saturating_sub(buffer.len()).min(bytes.len());
        buffer.extend_from_slice(&bytes[..room]);
    }
}
