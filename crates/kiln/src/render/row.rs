//! One build among several on a terminal: a line that moves, and what is worth keeping above it.

use std::{collections::VecDeque, time::Duration};

use console::truncate_str;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use kiln_core::event::{Event, Outcome, Phase, Stream};

use super::{At, Renderer, amount, duration, phase_name};
use crate::{
    colour::Palette,
    escape::{Lines, visible},
};

/// Lines of a failed step's output that are shown.
const TAIL: usize = 8;
const TICK: Duration = Duration::from_millis(120);
const LINE: &str = "{spinner} {prefix}  {wide_msg} {elapsed:>5}";

/// The row of one build.
#[derive(Debug)]
pub(crate) struct Row {
    bars: MultiProgress,
    bar: Option<ProgressBar>,
    label: String,
    palette: Palette,
    steps: usize,
    /// What it does now.
    doing: String,
    published: String,
    recent: VecDeque<String>,
    stdout: Lines,
    stderr: Lines,
}

impl Row {
    /// `width`: that of the longest label.
    pub(crate) fn new(bars: MultiProgress, label: &str, width: usize) -> Self {
        Self {
            bars,
            bar: None,
            label: format!("{label:<width$}"),
            palette: Palette::of_stderr(),
            steps: 0,
            doing: String::new(),
            published: String::new(),
            recent: VecDeque::new(),
            stdout: Lines::default(),
            stderr: Lines::default(),
        }
    }

    /// A line that stays, cut to the width of the terminal.
    fn print(&self, mark: &str, text: &str) {
        let line = format!("{mark} {}  {}", self.label, visible(text).replace('\n', " "));
        let _ = self.bars.println(truncate_str(&line, super::terminal::width(), "…"));
    }

    fn doing(&mut self, what: String) {
        let bar = self.bar.get_or_insert_with(|| {
            let bar = self.bars.add(ProgressBar::new_spinner());
            bar.set_style(ProgressStyle::with_template(LINE).unwrap_or_else(|_| ProgressStyle::default_spinner()));
            bar.set_prefix(self.label.clone());
            bar.enable_steady_tick(TICK);
            bar
        });
        bar.set_message(visible(&what).replace('\n', " "));
        self.doing = what;
    }

    fn output(&mut self, stream: Stream, text: &str) {
        let collector = if stream == Stream::Stdout { &mut self.stdout } else { &mut self.stderr };
        let recent = &mut self.recent;
        collector.push(text, |line| recent.push_back(line.to_owned()));
        while self.recent.len() > TAIL {
            self.recent.pop_front();
        }
    }

    fn step_failed(&mut self, number: usize, name: &str, took: u64) {
        self.print(&self.palette.bad("✗"), &format!("{number}/{} {name} failed after {}", self.steps, duration(took)));
        for line in std::mem::take(&mut self.recent).into_iter().chain(self.stderr.unfinished()) {
            self.print(" ", &format!("│ {line}"));
        }
    }

    fn end(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
            self.bars.remove(&bar);
        }
    }
}

impl Renderer for Row {
    fn event(&mut self, _: At, event: &Event) {
        match event {
            Event::BuildStarted { steps, .. } => self.steps = *steps,
            // Steps tell of themselves.
            Event::PhaseStarted { phase: Phase::Provision, .. } => {}
            Event::PhaseStarted { phase, detail } if detail.is_empty() => self.doing(phase_name(*phase).to_owned()),
            Event::PhaseStarted { phase, detail } => self.doing(format!("{}: {detail}", phase_name(*phase))),
            Event::Progress { phase, done, total, unit } => {
                let (name, amount) = (phase_name(*phase), amount(*done, *total, *unit));
                self.doing(format!("{name}: {amount}"));
            }
            Event::StepStarted { number, name, .. } => {
                self.recent.clear();
                self.doing(format!("step {number}/{} {name}", self.steps));
            }
            Event::Output { stream, text, .. } => self.output(*stream, text),
            Event::StepFinished { number, name, outcome: Outcome::Failed, milliseconds } => {
                self.step_failed(*number, name, *milliseconds);
            }
            Event::CheckFinished { name, passed: false, evidence, .. } => {
                self.print(&self.palette.bad("✗"), &format!("check {name} failed: {evidence}"));
            }
            Event::HygieneFinding { id, level, path, detail, waived: None } => {
                self.print(&self.palette.warn("!"), &format!("{id} {level} {path}: {detail}"));
            }
            Event::Warning { message } => self.print(&self.palette.warn("!"), &format!("warning: {message}")),
            Event::Published { version, already, .. } => {
                let how = if *already { "was already published" } else { "published" };
                self.published = format!("{version} {how}");
            }
            Event::BuildSkipped { version, reason, .. } => {
                self.print(&self.palette.good("="), &format!("{version} is up to date: {reason}"));
            }
            Event::BuildLeftOut { reason, .. } => {
                self.print(&self.palette.warn("-"), &format!("not built: {reason}"));
            }
            Event::BuildFailed { message, .. } => {
                self.end();
                self.print(&self.palette.bad("✗"), message);
            }
            Event::BuildFinished { milliseconds, .. } => {
                self.end();
                let what = if self.published.is_empty() { "done" } else { &self.published };
                self.print(&self.palette.good("✓"), &format!("{what} in {}", duration(*milliseconds)));
            }
            _ => {}
        }
    }

    fn say(&mut self, line: &str) {
        self.print(" ", line);
    }

    fn rest(&mut self) {
        self.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_template_of_the_line_is_one() {
        assert!(ProgressStyle::with_template(LINE).is_ok());
    }
}
