//! What a bake remembers while it runs: how long each phase took, what each step and check did.

use std::{collections::BTreeMap, future::Future, time::Duration};

use kiln_core::{
    artifact::{CheckRecord, FindingRecord, StepRecord},
    event::{Event, Events, Phase},
};
use kiln_io::time::Clock;

/// The memory of one bake.
#[derive(Debug)]
pub(crate) struct Journal<'a> {
    clock: &'a dyn Clock,
    events: &'a dyn Events,
    pub(crate) times: BTreeMap<String, u64>,
    pub(crate) steps: Vec<StepRecord>,
    pub(crate) checks: Vec<CheckRecord>,
    pub(crate) findings: Vec<FindingRecord>,
}

impl<'a> Journal<'a> {
    pub(crate) fn new(clock: &'a dyn Clock, events: &'a dyn Events) -> Self {
        Self { clock, events, times: BTreeMap::new(), steps: Vec::new(), checks: Vec::new(), findings: Vec::new() }
    }

    /// Runs one phase: told when it begins and, if it succeeds, when it ended and with what (`detail` of its value).
    pub(crate) async fn phase<T, E>(
        &mut self,
        phase: Phase,
        what: &str,
        work: impl Future<Output = Result<T, E>>,
        detail: impl FnOnce(&T) -> String,
    ) -> Result<T, E> {
        self.events.emit(Event::PhaseStarted { phase, detail: what.to_owned() });
        let start = self.clock.monotonic();
        let value = work.await?;
        let milliseconds = self.record(phase, start);
        self.events.emit(Event::PhaseFinished { phase, milliseconds, detail: detail(&value) });
        Ok(value)
    }

    /// Adds the time since `start` to a phase; phases may come more than once.
    fn record(&mut self, phase: Phase, start: Duration) -> u64 {
        let took = u64::try_from((self.clock.monotonic().saturating_sub(start)).as_millis()).unwrap_or(u64::MAX);
        *self.times.entry(name(phase)).or_default() += took;
        took
    }
}

/// The phase's name as events and records write it.
fn name(phase: Phase) -> String {
    serde_json::to_value(phase).ok().and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
}
