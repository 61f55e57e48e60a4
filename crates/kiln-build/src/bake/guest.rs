//! What happens in the running guest: room, steps, checks, cleaning.

use std::{
    path::Path,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use kiln_core::{
    event::{CheckedOn, Phase, Stream},
    plan::Plan,
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
const GROWING: Duration = Duration::from_secs(300);
/// Trimming an emulated disk of some ten GiB takes about a minute.
const CLEANING: Duration = Duration::from_secs(600);

/// Runs everything of the plan that happens in the guest, cleaning last.
pub(super) async fn work(
    plan: &Plan,
    context: &BakeContext,
    clock: &dyn Clock,
    journal: &mut Journal<'_>,
    guest: &dyn Guest,
    keys: &LoginKeys,
    work: &Path,
) -> Result<(), BakeError> {
    grow(guest).await?;
    let events = context.events.as_ref();

    let mut records = Vec::new();
    let steps = async {
        for step in &plan.steps {
            let total = plan.steps.len();
            let (secrets, cancel) = (&plan.secrets, &context.cancel);
            let run = StepRun { guest, step, total, library: &context.library, secrets, events, clock, cancel, work };
            records.push(run_step(run).await.map_err(BakeError::step)?);
        }
        Ok::<_, BakeError>(())
    };
    journal.phase(Phase::Provision, &steps_in_words(plan), steps, |()| String::new()).await?;
    journal.steps = records;

    let run = CheckRun { guest, on: CheckedOn::Guest, events, clock, cancel: &context.cancel };
    let checks = async { run_checks(run, &plan.checks).await.map_err(BakeError::check) };
    let passed =
        journal.phase(Phase::Check, "in the guest", checks, |passed| format!("{} passed", passed.len())).await?;
    journal.checks.extend(passed);

    let cleaning = Cleaning { login_key: Some(keys.login.public.line()), host_name: None, timeout: CLEANING };
    let cleaning = async { clean::clean(guest, &cleaning, &Quiet).await.map_err(BakeError::clean) };
    journal.phase(Phase::Clean, "identities, keys, logs, free space", cleaning, |_| String::new()).await?;
    Ok(())
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
