//! How fast requests are sent: all who talk to one region slow down together when it throttles one of them.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

/// The pause that the first throttled request causes.
const FIRST: Duration = Duration::from_millis(50);
/// Below this nobody pauses any more.
const SHORTEST: Duration = Duration::from_millis(5);

/// The pause before each request.
#[derive(Debug)]
pub(crate) struct Pace {
    mean: Mutex<Duration>,
    longest: Duration,
    /// It was told that nothing answers.
    silent: AtomicBool,
}

impl Pace {
    /// Never pauses for more than about `longest`.
    pub(crate) fn up_to(longest: Duration) -> Self {
        Self { mean: Mutex::default(), longest, silent: AtomicBool::new(false) }
    }

    /// The pause before the next request, at random up to twice the mean so that those who were stopped together do not
    /// come back together.
    pub(crate) fn pause(&self) -> Duration {
        let mean = *self.mean.lock().unwrap_or_else(PoisonError::into_inner);
        if mean.is_zero() { mean } else { mean.mul_f64(2.0 * fraction()) }
    }

    /// A request was throttled. Says whether it is the first after a time without.
    pub(crate) fn throttled(&self) -> bool {
        let mut mean = self.mean.lock().unwrap_or_else(PoisonError::into_inner);
        let first = mean.is_zero();
        *mean = (*mean * 2).max(FIRST).min(self.longest);
        first
    }

    /// A request has had no answer for long. Says whether it is the first since one went through.
    pub(crate) fn unanswered(&self) -> bool {
        !self.silent.swap(true, Ordering::Relaxed)
    }

    /// A request went through.
    pub(crate) fn answered(&self) {
        self.silent.store(false, Ordering::Relaxed);
        let mut mean = self.mean.lock().unwrap_or_else(PoisonError::into_inner);
        let shorter = mean.mul_f64(0.9);
        *mean = if shorter < SHORTEST { Duration::ZERO } else { shorter };
    }
}

/// At random between 0 and 1.
fn fraction() -> f64 {
    f64::from(u32::from_le_bytes(kiln_io::random::bytes())) / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_while_it_is_throttled_and_vanish_after() {
        let longest = Duration::from_secs(5);
        let pace = Pace::up_to(longest);
        assert_eq!(pace.pause(), Duration::ZERO);
        assert!(pace.unanswered() && !pace.unanswered());
        pace.answered();
        assert!(pace.unanswered());
        assert!(pace.throttled());
        assert!(!pace.throttled());
        for _ in 0..20 {
            pace.throttled();
        }
        assert!(pace.pause() <= 2 * longest);
        for _ in 0..200 {
            pace.answered();
        }
        assert_eq!(pace.pause(), Duration::ZERO);
    }
}
