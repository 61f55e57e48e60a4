//! The least pace at which a peer has to send: nobody holds a connection for ever with a byte now and then.

use std::time::Duration;

use tokio::time::Instant;

/// A peer that sends less than this in one patience, while there is more to come, has gone or means no good.
pub(crate) const LEAST: usize = 16 << 10;
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// How long a peer may still take for what it owes.
#[derive(Debug)]
pub(crate) struct Pace {
    patience: Duration,
    /// Only the time in which we wait counts.
    left: Duration,
    came: usize,
}

impl Pace {
    pub(crate) const fn new(patience: Duration) -> Self {
        Self { patience, left: patience, came: 0 }
    }

    /// Waits for what comes next, of which `bytes` says how much it is; `None` for a peer that is too slow.
    pub(crate) async fn next<T>(
        &mut self,
        next: impl Future<Output = T>,
        bytes: impl FnOnce(&T) -> usize,
    ) -> Option<T> {
        let begun = Instant::now();
        let next = tokio::time::timeout(self.left, next).await.ok()?;
        self.left = self.left.saturating_sub(begun.elapsed());
        self.came += bytes(&next);
        if self.came >= LEAST {
            *self = Self::new(self.patience);
        }
        Some(next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Chunks of `size` bytes, each after `pause`; how many of `most` came before the peer was found too slow.
    #[expect(clippy::disallowed_methods, reason = "a peer that drips")]
    async fn received(size: usize, pause: Option<Duration>, most: usize) -> usize {
        let mut pace = Pace::new(Duration::from_millis(200));
        for count in 0..most {
            let chunk = async {
                if let Some(pause) = pause {
                    tokio::time::sleep(pause).await;
                }
                size
            };
            if pace.next(chunk, |size| *size).await.is_none() {
                return count;
            }
        }
        most
    }

    #[tokio::test]
    async fn who_drips_is_cut_and_whoever_sends_enough_is_not() {
        // Each comes in time, all of them together do not.
        assert!(received(1, Some(Duration::from_millis(20)), 1000).await <= 10);
        assert_eq!(received(LEAST, Some(Duration::from_mins(1)), 1).await, 0);
        assert_eq!(received(LEAST / 8, None, 1000).await, 1000);
    }
}
