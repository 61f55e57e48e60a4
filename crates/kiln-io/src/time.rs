//! The clock, and the only loop that waits.

use std::{
    fmt,
    future::Future,
    sync::Mutex,
    time::{Duration, Instant, SystemTime},
};

use async_trait::async_trait;
use tokio_util::sync::CancellationToken;

/// Reads the time and lets time pass.
#[async_trait]
pub trait Clock: Send + Sync + fmt::Debug {
    /// Time since some fixed point; never goes back.
    fn monotonic(&self) -> Duration;

    fn wall(&self) -> SystemTime;

    async fn sleep(&self, duration: Duration);
}

/// The machine's clock.
#[derive(Debug, Clone)]
pub struct SystemClock {
    start: Instant,
}

impl SystemClock {
    pub fn new() -> Self {
        Self { start: Instant::now() }
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        Self::new()
    }
}

#[async_trait]
impl Clock for SystemClock {
    fn monotonic(&self) -> Duration {
        self.start.elapsed()
    }

    #[expect(clippy::disallowed_methods, reason = "this is the door the lint leads to")]
    fn wall(&self) -> SystemTime {
        SystemTime::now()
    }

    #[expect(clippy::disallowed_methods, reason = "this is the door the lint leads to")]
    async fn sleep(&self, duration: Duration) {
        tokio::time::sleep(duration).await;
    }
}

/// A clock for tests: time passes only when somebody sleeps, and then at once.
#[derive(Debug)]
pub struct TestClock {
    start: SystemTime,
    passed: Mutex<Duration>,
}

impl TestClock {
    pub fn at(start: SystemTime) -> Self {
        Self { start, passed: Mutex::new(Duration::ZERO) }
    }

    pub fn advance(&self, duration: Duration) {
        *self.passed.lock().unwrap_or_else(std::sync::PoisonError::into_inner) += duration;
    }
}

#[async_trait]
impl Clock for TestClock {
    fn monotonic(&self) -> Duration {
        *self.passed.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn wall(&self) -> SystemTime {
        self.start + self.monotonic()
    }

    async fn sleep(&self, duration: Duration) {
        self.advance(duration);
        tokio::task::yield_now().await;
    }
}

/// How long to wait between attempts, and how long in all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// The first pause. Each later one is twice as long, up to `max`.
    pub first: Duration,
    pub max: Duration,
    /// After this no further attempt begins. An attempt bounds itself.
    pub deadline: Duration,
}

/// What an attempt found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Attempt<T, E> {
    Done(T),
    /// Not yet, for this reason; worth another attempt.
    Again(E),
    /// No use in waiting.
    Stop(E),
}

/// Why waiting ended without success.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GaveUp<E> {
    Cancelled,
    /// The deadline passed; with the last reason for [`Attempt::Again`].
    Deadline(E),
    Stopped(E),
}

/// Calls `probe` until it says true, up to `patience`; whether it did. For callers that do not run on tokio.
#[expect(clippy::disallowed_methods, reason = "the one place where a thread waits")]
pub fn done_within<E>(patience: Duration, mut probe: impl FnMut() -> Result<bool, E>) -> Result<bool, E> {
    const PAUSE: Duration = Duration::from_millis(20);
    let start = Instant::now();
    loop {
        if probe()? {
            return Ok(true);
        }
        if start.elapsed() >= patience {
            return Ok(false);
        }
        std::thread::sleep(PAUSE);
    }
}

/// Calls `probe` until it is done, stops, the deadline passes or `cancel` fires. At least one attempt is made,
/// and one is made at the deadline itself.
pub async fn poll_until<T, E, F>(
    clock: &dyn Clock,
    policy: Policy,
    cancel: &CancellationToken,
    mut probe: impl FnMut() -> F,
) -> Result<T, GaveUp<E>>
where
    F: Future<Output = Attempt<T, E>>,
{
    let start = clock.monotonic();
    let mut pause = policy.first;
    loop {
        let attempt = tokio::select! {
            biased;
            () = cancel.cancelled() => return Err(GaveUp::Cancelled),
            attempt = probe() => attempt,
        };
        let reason = match attempt {
            Attempt::Done(value) => return Ok(value),
            Attempt::Stop(reason) => return Err(GaveUp::Stopped(reason)),
            Attempt::Again(reason) => reason,
        };
        let left = policy.deadline.saturating_sub(clock.monotonic().saturating_sub(start));
        if left.is_zero() {
            return Err(GaveUp::Deadline(reason));
        }
        tokio::select! {
            biased;
            () = cancel.cancelled() => return Err(GaveUp::Cancelled),
            () = clock.sleep(pause.min(left)) => {}
        }
        pause = (pause * 2).min(policy.max);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: Policy =
        Policy { first: Duration::from_secs(1), max: Duration::from_secs(4), deadline: Duration::from_secs(10) };

    fn clock() -> TestClock {
        TestClock::at(SystemTime::UNIX_EPOCH)
    }

    #[tokio::test]
    async fn pauses_grow_up_to_the_limit_and_the_last_attempt_is_at_the_deadline() {
        let (clock, mut seen) = (clock(), Vec::new());
        let result = poll_until(&clock, POLICY, &CancellationToken::new(), || {
            seen.push(clock.monotonic().as_secs());
            async { Attempt::<(), _>::Again("not yet") }
        })
        .await;
        assert_eq!(result, Err(GaveUp::Deadline("not yet")));
        assert_eq!(seen, [0, 1, 3, 7, 10]);
    }

    #[tokio::test]
    async fn an_attempt_can_end_the_waiting_either_way() {
        let cancel = CancellationToken::new();
        let done = poll_until(&clock(), POLICY, &cancel, || async { Attempt::<_, ()>::Done(7) }).await;
        assert_eq!(done, Ok(7));
        let stop = poll_until(&clock(), POLICY, &cancel, || async { Attempt::<(), _>::Stop("refused") }).await;
        assert_eq!(stop, Err(GaveUp::Stopped("refused")));
    }

    #[tokio::test]
    async fn cancelling_interrupts_an_attempt_that_hangs() {
        let cancel = CancellationToken::new();
        cancel.cancel();
        let result = poll_until(&clock(), POLICY, &cancel, std::future::pending::<Attempt<(), ()>>).await;
        assert_eq!(result, Err(GaveUp::Cancelled));
    }
}
