//! Where the time went: the table at the end of a build.

use kiln_core::event::{Event, Outcome, Phase};

use super::{duration, phase_name};
use crate::escape::visible;

/// Rows below this share of the whole say nothing and are summed up.
const SMALLEST_PER_MILLE: u64 = 5;
/// Characters of the longest bar.
const BAR: u64 = 24;

/// Collects how long phases and steps took.
#[derive(Debug, Default)]
pub(crate) struct Timeline {
    rows: Vec<Row>,
    /// Steps of the provisioning that has not finished yet.
    steps: Vec<Row>,
    /// Steps that a checkpoint had in it, and what they took when they ran.
    cached: Vec<(String, u64)>,
    /// What a checkpoint saved: its boot and its steps.
    saved: u64,
}

#[derive(Debug, Clone)]
struct Row {
    label: String,
    milliseconds: u64,
    step: bool,
}

impl Timeline {
    pub(crate) fn event(&mut self, event: &Event) {
        match event {
            Event::BuildStarted { .. } => *self = Self::default(),
            Event::StepFinished { number, name, outcome, milliseconds } if *outcome != Outcome::Skipped => {
                self.steps.push(Row {
                    label: format!("{number} {}", visible(name)),
                    milliseconds: *milliseconds,
                    step: true,
                });
            }
            Event::StepCached { number, name, milliseconds, .. } => {
                self.cached.push((format!("{number} {}", visible(name)), *milliseconds));
            }
            Event::CheckpointUsed { saved, .. } => self.saved = *saved,
            Event::PhaseFinished { phase, milliseconds, .. } => {
                self.rows.push(Row { label: phase_name(*phase).to_owned(), milliseconds: *milliseconds, step: false });
                if *phase == Phase::Provision {
                    self.rows.append(&mut self.steps);
                }
            }
            _ => {}
        }
    }

    /// The table, one line an entry; empty when nothing was measured.
    pub(crate) fn lines(&self, total: u64) -> Vec<String> {
        let rows: Vec<_> = self.rows.iter().chain(&self.steps).collect();
        if rows.is_empty() || total == 0 {
            return Vec::new();
        }
        let notable = |row: &&&Row| row.milliseconds * 1000 >= total * SMALLEST_PER_MILLE;
        let phases: u64 = rows.iter().filter(|row| !row.step).map(|row| row.milliseconds).sum();
        let shown: Vec<_> = rows.iter().filter(notable).collect();
        let small: u64 = rows.iter().filter(|row| !row.step && !notable(row)).map(|row| row.milliseconds).sum();
        let longest = shown.iter().map(|row| row.milliseconds).max().unwrap_or(1).max(1);
        let width =
            shown.iter().map(|row| row.label.chars().count() + 2 * usize::from(row.step)).max().unwrap_or(0).max(12);
        let line = |label: &str, milliseconds: u64, bar: bool| {
            let filled = if bar { (milliseconds * BAR).div_ceil(longest).min(BAR) } else { 0 };
            let bar = "█".repeat(usize::try_from(filled).unwrap_or(0));
            let share = milliseconds * 100 / total;
            format!("  {label:<width$}  {:>12}  {share:>3} %  {bar}", duration(milliseconds)).trim_end().to_owned()
        };
        let mut lines = vec!["where the time went".to_owned()];
        for row in &shown {
            let label = if row.step { format!("  {}", row.label) } else { row.label.clone() };
            lines.push(line(&label, row.milliseconds, true));
        }
        let rest = small + total.saturating_sub(phases);
        if rest * 1000 >= total * SMALLEST_PER_MILLE {
            lines.push(line("the rest", rest, true));
        }
        lines.push(line("in all", total, false));
        if self.saved > 0 {
            let steps = self.cached.iter().map(|(label, took)| format!("{label} ({})", duration(*took)));
            let steps: Vec<_> = std::iter::once("the boot".to_owned()).chain(steps).collect();
            let steps = steps.join(", ");
            lines.push(format!("a checkpoint saved {}: {steps}", duration(self.saved)));
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finished(phase: Phase, milliseconds: u64) -> Event {
        Event::PhaseFinished { phase, milliseconds, detail: String::new() }
    }

    #[test]
    fn steps_stand_below_their_phase_and_trifles_are_summed_up() {
        let mut timeline = Timeline::default();
        timeline.event(&finished(Phase::Boot, 20_000));
        timeline.event(&Event::StepFinished {
            number: 1,
            name: "packages".to_owned(),
            outcome: Outcome::Ok,
            milliseconds: 40_000,
        });
        timeline.event(&finished(Phase::Provision, 41_000));
        timeline.event(&finished(Phase::Shutdown, 100));
        let lines = timeline.lines(62_000);
        assert_eq!(
            lines,
            [
                "where the time went",
                "  boot                20.0 s   32 %  ████████████",
                "  provision           41.0 s   66 %  ████████████████████████",
                "    1 packages        40.0 s   64 %  ████████████████████████",
                "  the rest             1.0 s    1 %  █",
                "  in all              62.0 s  100 %",
            ]
        );
    }

    #[test]
    fn what_a_checkpoint_saved_is_said_at_the_end() {
        let mut timeline = Timeline::default();
        let name = "packages".to_owned();
        timeline.event(&Event::CheckpointUsed { number: 1, name: name.clone(), made: 1, bytes: 1, saved: 57_000 });
        timeline.event(&Event::StepCached { number: 1, name, ran: 1, milliseconds: 41_000 });
        timeline.event(&finished(Phase::Resume, 4_000));
        let lines = timeline.lines(4_000);
        assert_eq!(lines.last().unwrap(), "a checkpoint saved 57.0 s: the boot, 1 packages (41.0 s)");
    }

    #[test]
    fn a_build_that_measured_nothing_has_no_table() {
        assert!(Timeline::default().lines(0).is_empty());
    }
}
