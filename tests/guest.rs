//! Short ways to a guest in tests.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use kiln_core::event::Stream;
use kiln_io::{
    guest::{Command, Exit, Guest, GuestError, Output},
    ssh::SshGuest,
    time::{Attempt, Policy, SystemClock, poll_until},
};
use tokio_util::sync::CancellationToken;

use crate::sshd::Sshd;

/// No test waits for this; it ends one that hangs.
pub const LONG: Duration = Duration::from_mins(5);

/// Keeps both streams.
#[derive(Debug, Default)]
pub struct Kept(Mutex<(Vec<u8>, Vec<u8>)>);

impl Output for Kept {
    fn write(&self, stream: Stream, bytes: &[u8]) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if stream == Stream::Stdout { kept.0.extend(bytes) } else { kept.1.extend(bytes) }
    }
}

impl Kept {
    /// Stdout and stderr.
    pub fn bytes(self) -> (Vec<u8>, Vec<u8>) {
        self.0.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stdout so far.
    pub fn stdout(&self) -> Vec<u8> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).0.clone()
    }
}

/// A guest on a test server, directly.
///
/// # Panics
/// When the connection fails; the message quotes the server's log.
pub async fn connect(sshd: &Sshd) -> SshGuest {
    connect_through(sshd, sshd.port).await
}

/// A guest on a test server, through a proxy.
///
/// # Panics
/// When the connection fails; the message quotes the server's log.
pub async fn connect_through(sshd: &Sshd, port: u16) -> SshGuest {
    let connected = SshGuest::connect(sshd.target(port), CancellationToken::new()).await;
    connected.unwrap_or_else(|error| panic!("{error}\n{}", sshd.log()))
}

/// Runs a script; gives its end and both streams.
pub async fn run(guest: &dyn Guest, command: &Command) -> Result<(Exit, String, String), GuestError> {
    let kept = Kept::default();
    let exit = guest.run(command, &kept).await?;
    let (out, err) = kept.bytes();
    Ok((exit, String::from_utf8_lossy(&out).into_owned(), String::from_utf8_lossy(&err).into_owned()))
}

/// Waits until something holds.
///
/// # Panics
/// When it does not within a minute.
pub async fn eventually(what: &str, holds: impl Fn() -> bool) {
    let step = Duration::from_millis(10);
    let policy = Policy { first: step, max: step, deadline: Duration::from_mins(1) };
    let (clock, never) = (SystemClock::new(), CancellationToken::new());
    let look = || async { if holds() { Attempt::Done(()) } else { Attempt::Again(()) } };
    assert!(poll_until(&clock, policy, &never, look).await.is_ok(), "{what}");
}
