//! What happens in the running guest: room, steps, checks, cleaning.

use std::{path::Path, time::Duration};

use kiln_core::{
    event::{CheckedOn, Phase},
    plan::Plan,
};
use kiln_io::{
    guest::{Guest, Quiet},
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
    base::grow(guest).await.map_err(BakeError::Grow)?;
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
    let passed = journal.phase(Phase::Check, "in the guest", checks, |passed| format!("{} passed", passed.len())).await?;
    journal.checks.extend(passed);

    let cleaning = Cleaning { login_key: Some(keys.login.public.line()), host_name: None, timeout: CLEANING };
    let cleaning = async { clean::clean(guest, &cleaning, &Quiet).await.map_err(BakeError::clean) };
    journal.phase(Phase::Clean, "identities, keys, logs, free space", cleaning, |_| String::new()).await?;
    Ok(())
}

fn steps_in_words(plan: &Plan) -> String {
    match plan.steps.len() {
        1 => "1 step".to_owned(),
        steps => format!("{steps} steps"),
    }
}
