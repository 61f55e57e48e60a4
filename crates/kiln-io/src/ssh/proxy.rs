//! A connection through a program: a bastion, Session Manager, whatever moves bytes between its input and output and an SSH server.

use std::{
    net::TcpStream,
    os::fd::OwnedFd,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::io::AsyncReadExt as _;
use tokio_util::sync::CancellationToken;

use super::Target;
use crate::{
    guest::{GuestError, Stage},
    process::{Running, Spec, spawn_on_socket},
};

/// How much is kept of what it says, for a message.
const WORDS: usize = 1000;

/// How long its last words may take, once it has ended.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// A proxy that runs. Dropped, it is killed.
#[derive(Debug)]
pub(super) struct Proxy {
    running: Running,
    said: Arc<Mutex<Vec<u8>>>,
    /// Fires when it has nothing more to say.
    silent: CancellationToken,
}

impl Proxy {
    /// Starts `command`, and the end of it that is the connection.
    pub(super) async fn start(target: &Target, command: &str) -> Result<(Self, TcpStream), GuestError> {
        let started = spawn_on_socket(&Spec::new("sh").args(["-c", command])).await;
        let (mut running, socket) = started.map_err(|error| GuestError::Connect {
            address: target.address(),
            stage: Stage::Listener,
            reason: format!("the proxy `{command}` does not start: {error}"),
        })?;
        let (said, silent) = (Arc::new(Mutex::new(Vec::new())), CancellationToken::new());
        if let Some(mut words) = running.stderr.take() {
            let (said, ends) = (Arc::clone(&said), silent.clone().drop_guard());
            tokio::spawn(async move {
                let _ends = ends;
                let mut buffer = [0; WORDS];
                while let Ok(count @ 1..) = words.read(&mut buffer).await {
                    let mut said = said.lock().unwrap_or_else(PoisonError::into_inner);
                    said.extend_from_slice(&buffer[..count]);
                    let surplus = said.len().saturating_sub(WORDS);
                    said.drain(..surplus);
                }
            });
        }
        // A socket of another family; all that is done with it is done in the same way.
        Ok((Self { running, said, silent }, TcpStream::from(OwnedFd::from(socket))))
    }

    /// Ends it; `error` with the last line that it said, which tells more than that it hung up.
    pub(super) async fn explain(mut self, error: GuestError) -> GuestError {
        self.running.end().await;
        let _ = tokio::time::timeout(LAST_WORDS, self.silent.cancelled()).await;
        let said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        let text = String::from_utf8_lossy(&said);
        let last = text.lines().map(str::trim).rfind(|line| !line.is_empty());
        match (error, last) {
            (GuestError::Connect { address, stage, reason }, Some(last)) => {
                let last = last.escape_debug();
                GuestError::Connect { address, stage, reason: format!("{reason}; the proxy said: {last}") }
            }
            (error, _) => error,
        }
    }
}
