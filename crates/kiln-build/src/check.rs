//! Runs a plan's checks on a guest: after provisioning, and again on the sealed artifact.

mod ask;
mod http;
mod probe;
mod verdict;

use std::time::Duration;

use kiln_core::{
    artifact::CheckRecord,
    event::{CheckedOn, Event, Events},
    plan::{Check, CheckKind},
};
use kiln_io::{
    guest::{Guest, GuestError},
    time::{Clock, GaveUp, Policy, poll_until},
};
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use self::verdict::Verdict;

/// Pauses between rounds. A round costs the guest a few processes, which are dear in an emulated one.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Checks did not hold, or could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    #[error("{} of {total} checks failed on the {on}:{}", failed.len(), list(failed))]
    Failed { on: &'static str, total: usize, failed: Vec<FailedCheck> },
    #[error("cancelled")]
    Cancelled,
    #[error("the checks could not be run")]
    Guest(#[from] GuestError),
}

/// A check that did not hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FailedCheck {
    pub name: String,
    /// What was expected, what was seen, and for a service its last log lines.
    pub evidence: String,
}

fn list(failed: &[FailedCheck]) -> String {
    let one = |check: &FailedCheck| format!("\n  {}: {}", check.name, check.evidence.replace('\n', "\n    "));
    failed.iter().map(one).collect::<Vec<_>>().concat()
}

/// Where and with what the checks run.
#[derive(Debug, Clone, Copy)]
pub struct CheckRun<'a> {
    pub guest: &'a dyn Guest,
    pub on: CheckedOn,
    pub events: &'a dyn Events,
    pub clock: &'a dyn Clock,
    pub cancel: &'a CancellationToken,
}

/// Runs the checks meant for `run.on`, all of them also when some fail, and emits [`Event::CheckFinished`] for each.
/// A check may fail for as long as its `within` says before that counts. One round of all checks costs one round trip for
/// services, files, packages and users together, and one for each command, port and URL.
pub async fn run_checks(run: CheckRun<'_>, checks: &[Check]) -> Result<Vec<CheckRecord>, CheckError> {
    let wanted: Vec<&Check> = checks
        .iter()
        .filter(|check| match run.on {
            CheckedOn::Guest => check.on_guest,
            CheckedOn::Artifact => check.on_artifact,
        })
        .collect();
    if wanted.is_empty() {
        return Ok(Vec::new());
    }
    let longest = wanted.iter().map(|check| check.within).max().unwrap_or_default();
    let policy = Policy { first: FIRST_PAUSE, max: LONGEST_PAUSE, deadline: longest };
    let rounds = Mutex::new(Rounds { run, start: run.clock.monotonic(), open: wanted.clone(), done: Vec::new() });
    let ended = poll_until(run.clock, policy, run.cancel, || async { rounds.lock().await.next().await }).await;
    let mut rounds = rounds.into_inner();
    match ended {
        Err(GaveUp::Cancelled | GaveUp::Stopped(Some(GuestError::Cancelled))) => return Err(CheckError::Cancelled),
        Err(GaveUp::Stopped(Some(error))) => return Err(error.into()),
        // The last round closed every check, so nothing is left when the longest `within` has passed.
        Ok(()) | Err(GaveUp::Deadline(_) | GaveUp::Stopped(None)) => {}
    }
    rounds.done.sort_by_key(|done| done.number);
    let failed: Vec<FailedCheck> = rounds
        .done
        .iter()
        .filter(|done| !done.record.passed)
        .map(|done| FailedCheck { name: done.record.name.clone(), evidence: done.evidence.clone() })
        .collect();
    if failed.is_empty() {
        Ok(rounds.done.into_iter().map(|done| done.record).collect())
    } else {
        Err(CheckError::Failed { on: place(run.on), total: wanted.len(), failed })
    }
}

struct Rounds<'a> {
    run: CheckRun<'a>,
    start: Duration,
    open: Vec<&'a Check>,
    done: Vec<Done>,
}

struct Done {
    number: usize,
    record: CheckRecord,
    evidence: String,
}

impl Rounds<'_> {
    /// Asks for every check that is still open.
    async fn next(&mut self) -> kiln_io::time::Attempt<(), Option<GuestError>> {
        use kiln_io::time::Attempt;
        let asked = self.run.clock.monotonic();
        let verdicts = match ask::all(self.run.guest, &self.open).await {
            Ok(verdicts) => verdicts,
            Err(error) => return Attempt::Stop(Some(error)),
        };
        let waited = asked.saturating_sub(self.start);
        let mut open = Vec::new();
        for (check, verdict) in std::mem::take(&mut self.open).into_iter().zip(verdicts) {
            match verdict {
                Verdict::Holds => self.close(check, true, String::new()),
                Verdict::Fails(seen) if waited >= check.within => {
                    let evidence = self.evidence(check, seen).await;
                    self.close(check, false, evidence);
                }
                Verdict::Fails(_) => open.push(check),
            }
        }
        self.open = open;
        if self.open.is_empty() { Attempt::Done(()) } else { Attempt::Again(None) }
    }

    async fn evidence(&self, check: &Check, seen: String) -> String {
        let within = if check.within.is_zero() { String::new() } else { format!(" for {:?}", check.within) };
        let mut evidence = format!("{seen}{within}");
        if let CheckKind::Service { name, running: true, .. } = &check.kind {
            let log = ask::service_log(self.run.guest, name).await;
            if !log.is_empty() {
                evidence.push('\n');
                evidence.push_str(&log);
            }
        }
        evidence
    }

    fn close(&mut self, check: &Check, passed: bool, evidence: String) {
        let took = self.run.clock.monotonic().saturating_sub(self.start);
        let milliseconds = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        self.run.events.emit(Event::CheckFinished {
            number: check.number,
            name: check.name.clone(),
            on: self.run.on,
            passed,
            evidence: evidence.clone(),
            milliseconds,
        });
        let record = CheckRecord { name: check.name.clone(), on: place(self.run.on).to_owned(), passed, milliseconds };
        self.done.push(Done { number: check.number, record, evidence });
    }
}

const fn place(on: CheckedOn) -> &'static str {
    match on {
        CheckedOn::Guest => "guest",
        CheckedOn::Artifact => "artifact",
    }
}
