//! Runs one step of a plan: packs it, runs it in the guest or on the host, retries where that is safe, tells why it failed.

mod diagnose;
mod host;

use std::{collections::BTreeMap, path::Path, time::Duration};

use kiln_core::{
    Secret,
    artifact::StepRecord,
    event::{Event, Events, Outcome, Phase, Unit},
    manifest::RunsOn,
    plan::Step,
};
use kiln_io::{
    guest::{Command, Exit, Guest, GuestError, Progress},
    time::{Clock, Policy},
};
use tokio_util::sync::CancellationToken;

use crate::{
    Library, Provisioner,
    bundle::{self, Bundle, Inputs},
    error::{BundleError, Fault, StepError},
    output::StepOutput,
    redact::Patterns,
    script,
};

/// A step with more bytes than this is uploaded for itself, with progress; a smaller one travels with its script.
const LARGE: u64 = 1 << 20;
/// Pause before a retry: 2 s, then twice as long, up to a minute.
const RETRY: Policy = Policy { first: Duration::from_secs(2), max: Duration::from_mins(1), deadline: Duration::ZERO };
/// Limit of what kiln itself runs around a step.
const AROUND: Duration = Duration::from_mins(1);

/// Everything a step meets.
#[derive(Debug, Clone, Copy)]
pub struct StepRun<'a> {
    pub guest: &'a dyn Guest,
    pub step: &'a Step,
    /// How many steps the plan has.
    pub total: usize,
    pub library: &'a Library,
    /// Values of sensitive variables by name.
    pub secrets: &'a BTreeMap<String, Secret>,
    pub events: &'a dyn Events,
    pub clock: &'a dyn Clock,
    pub cancel: &'a CancellationToken,
    /// Directory on the build host for provisioners that run there; made if missing.
    pub work: &'a Path,
}

/// Runs a step to its end. Emits [`Event::StepStarted`], its output and [`Event::StepFinished`]; a step that the plan
/// skips is only told. Nothing of the step stays in the guest but what its provisioner did.
pub async fn run_step(run: StepRun<'_>) -> Result<StepRecord, StepError> {
    let StepRun { step, events, clock, .. } = run;
    events.emit(Event::StepStarted {
        number: step.number,
        name: step.name.clone(),
        provisioner: step.provisioner.clone(),
    });
    let start = clock.monotonic();
    let result = if step.skipped.is_some() { Ok(Outcome::Skipped) } else { attempts(&run).await.map(|()| Outcome::Ok) };
    let milliseconds = u64::try_from((clock.monotonic().saturating_sub(start)).as_millis()).unwrap_or(u64::MAX);
    let outcome = *result.as_ref().unwrap_or(&Outcome::Failed);
    events.emit(Event::StepFinished { number: step.number, name: step.name.clone(), outcome, milliseconds });
    let shown = if outcome == Outcome::Skipped { "skipped" } else { "ok" };
    result
        .map(|_| StepRecord {
            name: step.name.clone(),
            provisioner: step.provisioner.clone(),
            provisioner_digest: step.provisioner_digest,
            outcome: shown.to_owned(),
            milliseconds,
            cached: None,
        })
        .map_err(|fault| StepError {
            provisioner: step.provisioner.clone(),
            number: step.number,
            total: run.total,
            fault,
        })
}

async fn attempts(run: &StepRun<'_>) -> Result<(), Fault> {
    let provisioner = run.library.find(&run.step.provisioner).map_err(BundleError::from)?;
    let inputs = Inputs::read(run.step)?;
    let secrets = bundle::secrets(run.step, run.secrets)?;
    let attempt = Attempt { run, provisioner: &provisioner, inputs: &inputs, secrets: &secrets };
    let idempotent = provisioner.manifest.idempotent;
    // A lost connection says nothing about the step, so a step that may be repeated gets one more chance for free.
    let (mut left, mut lost) = (if idempotent { run.step.retries } else { 0 }, idempotent);
    let mut pause = RETRY.first;
    loop {
        if run.cancel.is_cancelled() {
            return Err(Fault::Cancelled);
        }
        let fault = match attempt.once().await {
            Ok(()) => return Ok(()),
            Err(fault) => fault,
        };
        match &fault {
            Fault::Guest(GuestError::Lost { .. }) if lost => lost = false,
            Fault::Exit { .. } | Fault::TimedOut { .. } | Fault::Guest(GuestError::Lost { .. }) if left > 0 => {
                left -= 1;
            }
            Fault::Guest(GuestError::Lost { after, .. }) if !idempotent => {
                return Err(Fault::Unknown { after: *after });
            }
            _ => return Err(fault),
        }
        run.events.emit(Event::Warning {
            message: format!("step {} will be tried again in {} s: {fault}", run.step.number, pause.as_secs()),
        });
        tokio::select! {
            () = run.cancel.cancelled() => return Err(Fault::Cancelled),
            () = run.clock.sleep(pause) => {}
        }
        pause = (pause * 2).min(RETRY.max);
    }
}

/// One try of a step.
struct Attempt<'a> {
    run: &'a StepRun<'a>,
    provisioner: &'a Provisioner,
    inputs: &'a Inputs,
    secrets: &'a BTreeMap<String, Secret>,
}

impl Attempt<'_> {
    async fn once(&self) -> Result<(), Fault> {
        let step = self.run.step;
        let output = StepOutput::new(step.number, Patterns::of(self.secrets.values()), self.run.events);
        let result = match self.provisioner.manifest.runs_on {
            RunsOn::Host => host::run(self, &output).await,
            RunsOn::Guest => self.in_guest(&output).await,
        };
        output.finish();
        match result? {
            Exit::Code(0) => Ok(()),
            exit => Err(self.failed(&exit, &output).await),
        }
    }

    fn pack(&self, directory: &str) -> Result<Bundle, Fault> {
        Ok(bundle::pack(self.run.step, self.provisioner, self.inputs, directory)?)
    }

    async fn in_guest(&self, output: &StepOutput<'_>) -> Result<Exit, Fault> {
        let guest = self.run.guest;
        let bundle = self.pack(&bundle::guest_directory(self.run.step, self.provisioner, self.inputs))?;
        let reboots = self.provisioner.manifest.reboots;
        let before = if reboots { Some(guest.boot_id().await?) } else { None };
        let supports = &self.provisioner.manifest.supports;
        let large = bundle.bytes() > LARGE;
        let script = if large { script::uploaded_step(&bundle, supports) } else { script::step(&bundle, supports) };
        if large {
            self.upload(&bundle).await?;
        }
        let command = Command {
            env: bundle.env.clone(),
            secrets: self.secrets.clone(),
            bundle: (!large).then(|| bundle.files()),
            reboots,
            ..Command::new(script, self.run.step.timeout)
        };
        let result = guest.run(&command, output).await;
        match (before, result) {
            (Some(before), Ok(Exit::Code(0)) | Err(GuestError::Lost { .. } | GuestError::Rebooted { .. })) => {
                let limit = self.run.step.timeout;
                let back = guest.reconnect_after_reboot(&before, limit).await;
                back.map(|()| Exit::Code(0)).map_err(|source| match source {
                    GuestError::Cancelled => Fault::Cancelled,
                    source => Fault::Stayed { limit, source },
                })
            }
            (_, Ok(exit)) => Ok(exit),
            (_, Err(error)) => {
                if large {
                    // The script that would have removed its directory is dead.
                    self.clean_up(&bundle, &error).await;
                }
                Err(match error {
                    GuestError::TimedOut { limit, tree } => {
                        output.finish();
                        Fault::TimedOut { limit, tree: output.redacted(&tree), last: output.last_lines_of_both() }
                    }
                    GuestError::Cancelled => Fault::Cancelled,
                    error => Fault::Guest(error),
                })
            }
        }
    }

    async fn upload(&self, bundle: &Bundle) -> Result<(), Fault> {
        let total = bundle.bytes();
        let progress = Uploading { events: self.run.events, total };
        self.quietly(&script::prepare(bundle)).await?;
        let sent = self.run.guest.upload(&bundle.directory, &bundle.entries, &progress).await;
        if let Err(error) = &sent {
            self.clean_up(bundle, error).await;
        }
        Ok(sent?)
    }

    async fn clean_up(&self, bundle: &Bundle, after: &GuestError) {
        let reachable = matches!(
            after,
            GuestError::TimedOut { .. }
                | GuestError::Cancelled
                | GuestError::Corrupted { .. }
                | GuestError::Local { .. }
                | GuestError::Remote { .. }
        );
        if reachable {
            // A failure here would only hide the one that is being reported; `/run` does not survive the bake anyway.
            let _ = self.quietly(&script::remove(bundle)).await;
        }
    }

    async fn quietly(&self, script: &str) -> Result<Exit, GuestError> {
        self.run.guest.run(&Command::new(script, AROUND), &kiln_io::guest::Quiet).await
    }

    async fn failed(&self, exit: &Exit, output: &StepOutput<'_>) -> Fault {
        let status = match exit {
            Exit::Code(code) => format!("exited with status {code}"),
            Exit::Signal(signal) => format!("was killed by signal {signal}"),
        };
        let last = output.last_lines();
        let seen = diagnose::look(self.run, &last).await;
        let run = format!("{}/{}", self.run.step.provisioner, self.provisioner.manifest.run);
        Fault::Exit { run, status, last, detail: seen.detail, hint: seen.hint }
    }
}

struct Uploading<'a> {
    events: &'a dyn Events,
    total: u64,
}

impl Progress for Uploading<'_> {
    fn at(&self, done: u64) {
        self.events.emit(Event::Progress { phase: Phase::Upload, done, total: self.total, unit: Unit::Bytes });
    }
}
