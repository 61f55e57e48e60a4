//! Ctrl-C, SIGTERM and SIGHUP: the first asks for a clean stop, the second wants out at once.

use std::{io, time::Duration};

use kiln_io::time::{Clock as _, SystemClock};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::failure::Failure;

/// How long a clean stop may take before kiln leaves anyway.
const CLEAN_WITHIN: Duration = Duration::from_secs(10);

/// Listens for the signals that end a run.
#[derive(Debug, Clone)]
pub(crate) struct Interruption {
    first: CancellationToken,
    second: CancellationToken,
}

impl Interruption {
    /// From now on a signal no longer ends the process by itself.
    pub(crate) fn listen() -> Result<Self, Failure> {
        let this = Self { first: CancellationToken::new(), second: CancellationToken::new() };
        let listen = |kind| {
            signal(kind)
                .map_err(|error: io::Error| Failure::new("cannot listen for signals").because(error.to_string()))
        };
        // A limit on the size of files (`ulimit -f`) is an error that can be told, not the end of the process. That somebody
        // once listened is enough.
        listen(SignalKind::from_raw(rustix::process::Signal::XFSZ.as_raw())).map(drop)?;
        for kind in [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()] {
            let mut stream = listen(kind)?;
            let this = this.clone();
            tokio::spawn(async move {
                while stream.recv().await.is_some() {
                    if this.first.is_cancelled() { this.second.cancel() } else { this.first.cancel() }
                }
            });
        }
        Ok(this)
    }

    /// Cancelled by the first signal.
    pub(crate) const fn token(&self) -> &CancellationToken {
        &self.first
    }

    pub(crate) fn happened(&self) -> bool {
        self.first.is_cancelled()
    }

    /// Returns at the second signal, or when a clean stop takes too long.
    pub(crate) async fn impatience(&self) {
        self.first.cancelled().await;
        let clock = SystemClock::new();
        tokio::select! {
            () = self.second.cancelled() => {}
            () = clock.sleep(CLEAN_WITHIN) => {}
        }
    }
}
