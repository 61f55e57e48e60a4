//! The one way a request is sent. The SDK's own retries are off, so that there is one policy.
//!
//! Every request may be sent twice: what makes something carries a client token, a name that is unique, or is looked up by its
//! intent first.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use aws_sdk_ec2::{
    config::http::HttpResponse,
    error::{ProvideErrorMetadata, SdkError},
};
use kiln_io::{
    ledger::Activity,
    time::{Attempt, Clock, GaveUp, Policy, poll_until},
};
use tokio_util::sync::CancellationToken;

use crate::{
    Note, Watch,
    error::{AwsError, is_in_use, is_missing},
    pace::Pace,
};

/// How long is waited for what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// One attempt of one request: 512 KiB over a slow line take a while, an answer that never comes takes for ever.
    pub attempt: Duration,
    /// The pauses after an answer that was no answer: throttled, unavailable, lost.
    pub retry: Policy,
    /// How long something that was just made may be unknown.
    pub visible: Duration,
    /// The pauses while AWS works on something; the deadline is how long it may do so without any progress.
    pub progress: Policy,
}

impl Default for Patience {
    fn default() -> Self {
        let policy = |first, max, deadline| Policy {
            first: Duration::from_millis(first),
            max: Duration::from_secs(max),
            deadline: Duration::from_secs(deadline),
        };
        Self {
            attempt: Duration::from_mins(2),
            retry: policy(200, 20, 600),
            visible: Duration::from_mins(2),
            progress: policy(1_000, 15, 3_600),
        }
    }
}

impl Patience {
    /// How long a check takes that AWS makes of its own after it said yes: minutes where `progress` means an hour.
    pub(crate) fn check(&self) -> Policy {
        Policy { deadline: self.progress.deadline / 6, ..self.progress }
    }
}

/// After so long without an answer it is told that there is none.
const SILENCE: Duration = Duration::from_secs(5);

/// The requests that make what somebody has to take away again.
const MAKE: [&str; 6] =
    ["StartSnapshot", "RegisterImage", "RunInstances", "ImportKeyPair", "CreateSecurityGroup", "CreateSnapshot"];

/// Sends requests to one region.
#[derive(Debug)]
pub(crate) struct Caller {
    pub(crate) region: String,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) cancel: CancellationToken,
    pub(crate) patience: Patience,
    pub(crate) pace: Pace,
    pub(crate) watch: Arc<dyn Watch>,
    /// Of the build on whose behalf the requests are: what one of them makes may not be seen for a while.
    pub(crate) activity: Option<Activity>,
    /// A request may have been carried out without anybody knowing what it made.
    pub(crate) doubtful: Arc<AtomicBool>,
}

/// Whether what a request names changed a moment ago, so that AWS may not know it yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Age {
    /// Not to know it yet is no answer.
    New,
    Old,
    /// What uses it was deleted a moment ago: to be in use still is no answer.
    Freed,
}

/// What an error means for the next step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trouble {
    Throttled,
    /// The request may or may not have been carried out.
    Lost,
    Missing,
    InUse,
    Expired,
    Final,
}

impl Caller {
    /// The same for what is done after somebody asked to stop.
    pub(crate) fn afterwards(&self) -> Self {
        Self {
            region: self.region.clone(),
            clock: self.clock.clone(),
            cancel: CancellationToken::new(),
            patience: self.patience,
            pace: Pace::up_to(self.patience.retry.max / 4),
            watch: self.watch.clone(),
            activity: self.activity.clone(),
            doubtful: self.doubtful.clone(),
        }
    }

    /// Sends what `send` makes until there is an answer.
    pub(crate) async fn call<T, E, F>(
        &self,
        operation: &'static str,
        age: Age,
        mut send: impl FnMut() -> F,
    ) -> Result<T, AwsError>
    where
        E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
        F: Future<Output = Result<T, SdkError<E, HttpResponse>>>,
    {
        let began = self.clock.monotonic();
        let lost = &AtomicBool::new(false);
        let attempt = || {
            // The futures of the SDK are large, and everything that calls would be.
            let request = Box::pin(send());
            async move {
                let pause = self.pace.pause();
                if !pause.is_zero() {
                    self.clock.sleep(pause).await;
                }
                if let Some(activity) = &self.activity {
                    activity.note(self.clock.wall());
                }
                let error = match request.await {
                    Ok(answer) => {
                        self.pace.answered();
                        return Attempt::Done(answer);
                    }
                    Err(error) => error,
                };
                let trouble = trouble(&error);
                let error = self.describe(operation, trouble, &error);
                match trouble {
                    Trouble::Throttled => {
                        if self.pace.throttled() {
                            self.watch.note(&self.region, Note::Throttled);
                        }
                        Attempt::Again(error)
                    }
                    Trouble::Lost => {
                        lost.store(true, Ordering::Relaxed);
                        let long = self.clock.monotonic().saturating_sub(began) >= SILENCE;
                        if long && self.pace.unanswered() {
                            self.watch.note(&self.region, Note::NoAnswer { problem: &error });
                        }
                        Attempt::Again(error)
                    }
                    Trouble::Missing if age == Age::New && !self.is_late(began) => Attempt::Again(error),
                    Trouble::InUse if age == Age::Freed && !self.is_late(began) => Attempt::Again(error),
                    _ => Attempt::Stop(error),
                }
            }
        };
        let settled = settle(poll_until(self.clock.as_ref(), self.patience.retry, &self.cancel, attempt).await);
        let stopped = matches!(settled, Err(AwsError::Stopped));
        if MAKE.contains(&operation) && (stopped || settled.is_err() && lost.load(Ordering::Relaxed)) {
            self.doubtful.store(true, Ordering::Relaxed);
        }
        settled
    }

    /// Whether what changed when a call began must be known by now.
    fn is_late(&self, began: Duration) -> bool {
        self.clock.monotonic().saturating_sub(began) >= self.patience.visible
    }

    /// Asks `look` until it is done. It fails when what `look` says of the progress stays the same for too long.
    pub(crate) async fn wait<T, F>(&self, what: &str, look: impl FnMut() -> F) -> Result<T, AwsError>
    where
        F: Future<Output = Result<Look<T>, AwsError>>,
    {
        self.wait_for(what, self.patience.progress, look).await
    }

    /// The same, asked and given up as `policy` says.
    pub(crate) async fn wait_for<T, F>(
        &self,
        what: &str,
        policy: Policy,
        mut look: impl FnMut() -> F,
    ) -> Result<T, AwsError>
    where
        F: Future<Output = Result<Look<T>, AwsError>>,
    {
        let mut last: Option<String> = None;
        loop {
            let before = last.clone();
            let attempt = || {
                let (before, looked) = (before.clone(), Box::pin(look()));
                async move {
                    match looked.await {
                        Ok(Look::Done(value)) => Attempt::Done(Look::Done(value)),
                        Ok(Look::Under(progress)) if before.as_ref() != Some(&progress) => {
                            Attempt::Done(Look::Under(progress))
                        }
                        Ok(Look::Under(progress)) => Attempt::Again(AwsError::Stalled {
                            what: what.to_owned(),
                            region: self.region.clone(),
                            state: progress,
                        }),
                        Err(error) => Attempt::Stop(error),
                    }
                }
            };
            let waited = poll_until(self.clock.as_ref(), policy, &self.cancel, attempt).await;
            match settle(waited)? {
                Look::Done(value) => return Ok(value),
                Look::Under(progress) => {
                    self.watch.note(&self.region, Note::Waiting { what, progress: &progress });
                    last = Some(progress);
                }
            }
        }
    }

    /// What an answer must have and this one has not.
    pub(crate) fn incomplete(&self, operation: &'static str, field: &'static str) -> AwsError {
        AwsError::Incomplete { operation, region: self.region.clone(), field }
    }

    fn describe<E>(&self, operation: &'static str, trouble: Trouble, error: &SdkError<E, HttpResponse>) -> AwsError
    where
        E: ProvideErrorMetadata + std::error::Error + 'static,
    {
        let region = self.region.clone();
        match (trouble, error.code()) {
            (Trouble::Expired, _) => AwsError::Expired { operation, region },
            (_, Some(code)) => {
                let message = error.message().unwrap_or("no reason is given").to_owned();
                AwsError::Refused { operation, region, code: code.to_owned(), message }
            }
            (_, None) => AwsError::Unreachable { operation, region, reason: innermost(error) },
        }
    }
}

/// What a look at something under way found.
#[derive(Debug)]
pub(crate) enum Look<T> {
    Done(T),
    /// Still under way; the text changes when there is progress.
    Under(String),
}

fn settle<T>(outcome: Result<T, GaveUp<AwsError>>) -> Result<T, AwsError> {
    outcome.map_err(|gave_up| match gave_up {
        GaveUp::Cancelled => AwsError::Stopped,
        GaveUp::Deadline(error) | GaveUp::Stopped(error) => error,
    })
}

fn trouble<E: ProvideErrorMetadata>(error: &SdkError<E, HttpResponse>) -> Trouble {
    match error {
        SdkError::DispatchFailure(failure) if failure.is_user() => Trouble::Final,
        SdkError::TimeoutError(_) | SdkError::ResponseError(_) | SdkError::DispatchFailure(_) => Trouble::Lost,
        SdkError::ServiceError(service) => of_code(error.code().unwrap_or_default(), service.raw().status().as_u16()),
        _ => Trouble::Final,
    }
}

fn of_code(code: &str, status: u16) -> Trouble {
    match code {
        "ExpiredToken" | "ExpiredTokenException" | "RequestExpired" => Trouble::Expired,
        "RequestLimitExceeded"
        | "Throttling"
        | "ThrottlingException"
        | "ThrottledException"
        | "RequestThrottled"
        | "RequestThrottledException"
        | "ConcurrentLimitExceededException"
        | "PendingSnapshotLimitExceeded"
        | "SnapshotCreationPerVolumeRateExceeded"
        | "TooManyRequestsException" => Trouble::Throttled,
        code if is_in_use(code) => Trouble::InUse,
        // EC2 says so with status 500, but asking again at once is no use.
        "InsufficientInstanceCapacity"
        | "InsufficientCapacity"
        | "InsufficientVolumeCapacity"
        | "InsufficientAddressCapacity" => Trouble::Final,
        code if is_missing(code) => Trouble::Missing,
        _ if status == 429 => Trouble::Throttled,
        _ if status >= 500 => Trouble::Lost,
        _ => Trouble::Final,
    }
}

/// The first cause of an error, which says most.
pub(crate) fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_what_is_worth_another_attempt() {
        let cases = [
            ("RequestLimitExceeded", 503, Trouble::Throttled),
            ("RequestThrottledException", 400, Trouble::Throttled),
            ("", 429, Trouble::Throttled),
            ("InternalError", 500, Trouble::Lost),
            ("ServiceUnavailable", 503, Trouble::Lost),
            ("InvalidSnapshot.NotFound", 400, Trouble::Missing),
            ("ResourceNotFoundException", 404, Trouble::Missing),
            ("ExpiredToken", 400, Trouble::Expired),
            ("RequestExpired", 400, Trouble::Expired),
            ("ValidationException", 400, Trouble::Final),
            ("UnauthorizedOperation", 403, Trouble::Final),
            ("SnapshotLimitExceeded", 400, Trouble::Final),
            ("PendingSnapshotLimitExceeded", 400, Trouble::Throttled),
            ("InvalidSnapshot.InUse", 400, Trouble::InUse),
            ("DependencyViolation", 400, Trouble::InUse),
            ("InsufficientInstanceCapacity", 500, Trouble::Final),
            ("InsufficientVolumeCapacity", 503, Trouble::Final),
        ];
        for (code, status, expected) in cases {
            assert_eq!(of_code(code, status), expected, "{code}");
        }
    }
}
