//! What happens in the running guest: room, steps, checks, cleaning.

use std::{
    path::Path,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use kiln_core::{
    artifact::{CheckRecord, StepRecord},
    event::{CheckedOn, Event, Phase, Stream},
    plan::{Check, Plan, Step},
};
use kiln_io::{
    guest::{Command, Guest, Output, Quiet},
    time::Clock,
};
use kiln_provision::{StepRun, run_step};

use super::{BakeContext, BakeError, caching::Caching, journal::Journal};
use crate::{
    base,
    check::{CheckRun, run_checks},
    clean::{self, Cleaning},
    qemu::{LoginKeys, Running, VmHost},
};

/// Rewriting a partition table and growing an ext4 takes seconds.
const GROWING: Duration = Duration::from_mins(5);
/// Trimming an emulated disk of some ten GiB takes about a minute.
const CLEANING: Duration = Duration::from_mins(10);

/// How far the work in a guest came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reached {
    /// Ready to be shut down and sealed.
    End,
    /// The step that was asked for; the machine waits for a person.
    Step,
}

/// What happens in a guest needs all of this.
#[derive(Debug)]
pub(super) struct Work<'a> {
    pub(super) plan: &'a Plan,
    pub(super) checks: &'a [Check],
    pub(super) context: &'a BakeContext,
    pub(super) clock: &'a dyn Clock,
    /// The build's own, for provisioners that run on this machine.
    pub(super) directory: &'a Path,
}

impl Work<'_> {
    /// Runs everything of the plan that happens in the guest, cleaning last; or the steps up to the one that is asked for.
    pub(super) async fn run(
        &self,
        vm: &Running<'_>,
        host: VmHost<'_>,
        caching: &mut Caching<'_>,
        journal: &mut Journal<'_>,
    ) -> Result<Reached, BakeError> {
        let mut records = Vec::new();
        let steps = self.steps(vm, host, caching, &mut records);
        let done = journal.phase(Phase::Provision, &steps_in_words(self.plan), steps, |()| String::new()).await;
        journal.steps = records;
        caching.settle(host).await;
        done?;
        self.finish(vm.guest(), vm.keys(), journal).await
    }

    /// The same in a guest that no checkpoint is taken of.
    pub(super) async fn run_in(
        &self,
        guest: &dyn Guest,
        keys: &LoginKeys,
        journal: &mut Journal<'_>,
    ) -> Result<Reached, BakeError> {
        let mut records = Vec::new();
        let steps = async {
            for step in self.wanted() {
                records.push(self.step(guest, step).await?);
            }
            Ok::<_, BakeError>(())
        };
        let done = journal.phase(Phase::Provision, &steps_in_words(self.plan), steps, |()| String::new()).await;
        journal.steps = records;
        done?;
        self.finish(guest, keys, journal).await
    }

    /// Checks and cleaning, unless the bake ends after a step.
    async fn finish(
        &self,
        guest: &dyn Guest,
        keys: &LoginKeys,
        journal: &mut Journal<'_>,
    ) -> Result<Reached, BakeError> {
        if self.context.checkpoints.until.is_some() {
            return Ok(Reached::Step);
        }
        let passed = |passed: &Vec<CheckRecord>| format!("{} passed", passed.len());
        let records = journal.phase(Phase::Check, "in the guest", self.check(guest), passed).await?;
        journal.checks.extend(records);

        let cleaning = self.clean(guest, keys);
        journal.phase(Phase::Clean, "identities, keys, logs, free space", cleaning, |()| String::new()).await?;
        Ok(Reached::End)
    }

    async fn steps(
        &self,
        vm: &Running<'_>,
        host: VmHost<'_>,
        caching: &mut Caching<'_>,
        records: &mut Vec<StepRecord>,
    ) -> Result<(), BakeError> {
        if caching.booted {
            caching.after(0, vm, host).await?;
        }
        for step in self.wanted() {
            if let Some((record, at)) = caching.cached(step.number) {
                self.context.events.emit(Event::StepCached {
                    number: step.number,
                    name: step.name.clone(),
                    ran: at,
                    milliseconds: record.milliseconds,
                });
                records.push(StepRecord { name: step.name.clone(), cached: Some(at), ..record });
                continue;
            }
            let start = self.clock.monotonic();
            let record = self.step(vm.guest(), step).await?;
            if step.skipped.is_none() {
                let took = self.clock.monotonic().saturating_sub(start);
                caching.ran(step.number, Some(record.clone()), took);
                caching.after(step.number, vm, host).await?;
            }
            records.push(record);
        }
        Ok(())
    }

    /// The steps up to the one that is asked for.
    fn wanted(&self) -> impl Iterator<Item = &Step> {
        let wanted = self.context.checkpoints.until.unwrap_or(usize::MAX);
        self.plan.steps.iter().take_while(move |step| step.number <= wanted)
    }

    async fn step(&self, guest: &dyn Guest, step: &Step) -> Result<StepRecord, BakeError> {
        let run = StepRun {
            guest,
            step,
            total: self.plan.steps.len(),
            library: &self.context.library,
            secrets: &self.plan.secrets,
            events: self.context.events.as_ref(),
            clock: self.clock,
            cancel: &self.context.cancel,
            work: self.directory,
        };
        run_step(run).await.map_err(BakeError::step)
    }

    async fn check(&self, guest: &dyn Guest) -> Result<Vec<CheckRecord>, BakeError> {
        let run = CheckRun {
            guest,
            on: CheckedOn::Guest,
            events: self.context.events.as_ref(),
            clock: self.clock,
            cancel: &self.context.cancel,
        };
        run_checks(run, self.checks).await.map_err(BakeError::check)
    }

    async fn clean(&self, guest: &dyn Guest, keys: &LoginKeys) -> Result<(), BakeError> {
        let cleaning = Cleaning { login_key: Some(keys.login.public.line()), host_name: None, timeout: CLEANING };
        clean::clean(guest, &cleaning, &Quiet).await.map_err(BakeError::clean)
    }
}

/// Gives the root file system the whole disk.
pub(super) async fn grow(guest: &dyn Guest) -> Result<(), BakeError> {
    let said = Said::default();
    let exit = guest.run(&Command::new(base::grow_script(), GROWING), &said).await.map_err(BakeError::grow)?;
    if exit.success() { Ok(()) } else { Err(BakeError::GrowFailed { exit, output: said.text() }) }
}

/// Keeps what a short script of ours says, for an error.
#[derive(Default)]
pub(super) struct Said(Mutex<Vec<u8>>);

impl Said {
    pub(super) fn text(&self) -> String {
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
