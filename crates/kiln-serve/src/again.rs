//! Requests that are sent again while what is wrong with them may pass.

use std::time::Duration;

use kiln_io::time::{Attempt, Clock, GaveUp, Policy, poll_until};
use tokio_util::sync::CancellationToken;

const PATIENCE: Policy =
    Policy { first: Duration::from_millis(250), max: Duration::from_secs(4), deadline: Duration::from_secs(30) };

/// Does `attempt` again, after a growing pause, while `passes` says of its error that it may pass.
pub(crate) async fn again<T, E, F: Future<Output = Result<T, E>>>(
    clock: &dyn Clock,
    cancel: &CancellationToken,
    passes: impl Fn(&E) -> bool,
    mut attempt: impl FnMut() -> F,
) -> Result<T, GaveUp<E>> {
    let probe = || {
        let (attempt, passes) = (attempt(), &passes);
        async move {
            match attempt.await {
                Ok(value) => Attempt::Done(value),
                Err(error) if passes(&error) => Attempt::Again(error),
                Err(error) => Attempt::Stop(error),
            }
        }
    };
    poll_until(clock, PATIENCE, cancel, probe).await
}
