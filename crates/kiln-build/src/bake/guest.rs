//! What happens in the running guest: room, steps, checks, cleaning.

use std::{
    path::Path,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use kiln_core::{
    artifact::{CheckRecord, StepRecord},
    event::{CheckedOn, Phase, Stream},
    plan::{Check, Plan},
};
use kiln_io::{
    guest::{Command, Guest, Output, Quiet},
    time::Clock,
};
use kiln_provision::{StepRun, run_step};

use super::{BakeContext, BakeError, journal::Journal};
use crate::{
    base,
    check::{CheckRun, run_checks},
    clean::{self, Cleaning},
    qemu::LoginKeys,
};

/// Rewriting a partition table and growing an ext4 takes seconds.
const GROWING: Duration = Duration::from_mins(5);
/// Trimming an emulated disk of some ten GiB takes about a minute.
const CLEANING: Duration = Duration::from_mins(10);

/// What happens in a guest needs all of this.
#[derive(Debug)]
pub(super) struct Work<'a> {
    pub(super) plan: &'a Plan,
    pub(super) checks: &'a [Check],
    pub(super) context: &'a BakeContext,
    pub(super) clock: &'a dyn Clock,
    pub(super) guest: &'a dyn Guest,
    pub(super) keys: &'a LoginKeys,
    /// The build's own, for provisioners that run on this machine.
    pub(super) directory: &'a Path,
}

impl Work<'_> {
    /// Runs everything of the plan that happens in the guest, cleaning last.
    pub(super) async fn run(&self, journal: &mut Journal<'_>) -> Result<(), BakeError> {
        grow(self.guest).await?;

        let mut records = Vec::new();
        let steps = self.steps(&mut records);
        let done = journal.phase(Phase::Provision, &steps_in_words(self.plan), steps, |()| String::new()).await;
        journal.steps = records;
        done?;

        let passed = |passed: &Vec<CheckRecord>| format!("{} passed", passed.len());
        let records = journal.phase(Phase::Check, "in the guest", self.check(), passed).await?;
        journal.checks.extend(records);

        journal.phase(Phase::Clean, "identities, keys, logs, free space", self.clean(), |()| String::new()).await
    }

    async fn steps(&self, records: &mut Vec<StepRecord>) -> Result<(), BakeError> {
        for step in &self.plan.steps {
            let run = StepRun {
                guest: self.guest,
                step,
                total: self.plan.steps.len(),
                library: &self.context.library,
                secrets: &self.plan.secrets,
                events: self.context.events.as_ref(),
                clock: self.clock,
                cancel: &self.context.cancel,
                work: self.directory,
            };
            records.push(run_step(run).await.map_err(BakeError::step)?);
        }
        Ok(())
    }

    async fn check(&self) -> Result<Vec<CheckRecord>, BakeError> {
        let run = CheckRun {
            guest: self.guest,
            on: CheckedOn::Guest,
            events: self.context.events.as_ref(),
            clock: self.clock,
            cancel: &self.context.cancel,
        };
        run_checks(run, self.checks).await.map_err(BakeError::check)
    }

    async fn clean(&self) -> Result<(), BakeError> {
        let cleaning = Cleaning { login_key: Some(self.keys.login.public.line()), host_name: None, timeout: CLEANING };
        clean::clean(self.guest, &cleaning, &Quiet).await.map_err(BakeError::clean)
    }
}

/// Gives the root file system the whole disk.
async fn grow(guest: &dyn Guest) -> Result<(), BakeError> {
    let said = Said::default();
    let exit = guest.run(&Command::new(base::grow_script(), GROWING), &said).await.map_err(BakeError::grow)?;
    if exit.success() { Ok(()) } else { Err(BakeError::GrowFailed { exit, output: said.text() }) }
}

/// Keeps what a short script of ours says, for an error.
#[derive(Default)]
struct Said(Mutex<Vec<u8>>);

impl Said {
    fn text(&self) -> String {
        let bytes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&bytes).trim().to_owned()
    }
}

impl Output for Said {
    fn write(&self, _: Stream, bytes: &[u8]) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
    }
}

fn steps_in_words(plan: &Plan) -> String {
    match plan.steps.len() {
        1 => "1 step".to_owned(),
        steps => format!("{steps} steps"),
    }
}
