//! A build drawn on a terminal: what is done stays, what runs moves below it.

use std::{collections::VecDeque, time::Duration};

use console::{Term, measure_text_width, truncate_str};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use kiln_core::{
    ByteSize,
    event::{CheckedOn, Event, Outcome, Phase, Stream, Unit},
};

use super::{
    At, Renderer,
    closing::Timeline,
    duration, phase_name,
    plain::{audited, share},
};
use crate::{
    colour::Palette,
    escape::{Lines, visible},
};

/// Lines of the running step's output that are shown.
const TAIL: usize = 5;
/// Width of the column of names.
const NAME: usize = 22;
const TICK: Duration = Duration::from_millis(120);

/// The line of a phase or step that runs.
const MOVING: &str = "{spinner} {prefix}{wide_msg} {elapsed:>5}";
/// A line of its output.
const TAIL_LINE: &str = "  {wide_msg}";

/// The line of a phase or step that counts something.
const fn count_line(unit: Unit, total: u64) -> &'static str {
    match (unit, total) {
        (Unit::Bytes, 0) => "{spinner} {prefix}{binary_bytes}  {binary_bytes_per_sec}  {wide_msg} {elapsed:>5}",
        (Unit::Bytes, _) => {
            "{spinner} {prefix}{wide_bar} {percent:>3} %  {binary_bytes}/{binary_total_bytes}  {binary_bytes_per_sec}  eta {eta}"
        }
        (Unit::Items, 0) => "{spinner} {prefix}{pos}  {wide_msg} {elapsed:>5}",
        (Unit::Items, _) => "{spinner} {prefix}{wide_bar} {pos}/{len}  eta {eta}",
    }
}

/// Draws on stderr.
#[derive(Debug)]
pub(crate) struct Terminal {
    bars: MultiProgress,
    palette: Palette,
    active: Option<Active>,
    tail: Vec<ProgressBar>,
    recent: VecDeque<String>,
    stdout: Lines,
    stderr: Lines,
    timeline: Timeline,
    steps: usize,
}

/// The line that moves.
#[derive(Debug)]
struct Active {
    bar: ProgressBar,
    name: String,
    about: String,
    /// What the bar counts, once something was counted.
    counting: Option<(Unit, bool)>,
}

impl Terminal {
    pub(crate) fn new() -> Self {
        Self {
            bars: MultiProgress::with_draw_target(ProgressDrawTarget::stderr_with_hz(10)),
            palette: Palette::of_stderr(),
            active: None,
            tail: Vec::new(),
            recent: VecDeque::new(),
            stdout: Lines::default(),
            stderr: Lines::default(),
            timeline: Timeline::default(),
            steps: 0,
        }
    }

    /// A line that stays, cut to the width of the terminal.
    fn print(&self, line: &str) {
        let _ = self.bars.println(truncate_str(line, width(), "…"));
    }

    /// `✓ boot                  ssh answers                     12.3 s`
    fn print_finished(&self, mark: &str, name: &str, about: &str, took: Option<u64>) {
        let took = took.map(duration).unwrap_or_default();
        // A long name takes room from what stands beside it.
        let name = truncate_str(name, width() / 2, "…");
        let name = if measure_text_width(&name) < NAME { pad(&name) } else { format!("{name}  ") };
        let room = width().saturating_sub(measure_text_width(&name) + took.chars().count() + 4);
        let about = visible(about).replace('\n', " ");
        let about = truncate_str(&about, room, "…");
        let gap = " ".repeat(room.saturating_sub(measure_text_width(&about)));
        self.print(&format!("{mark} {name}{}{gap} {}", self.palette.faint(&about), took));
    }

    fn start(&mut self, name: &str, about: &str) {
        self.stop();
        let bar = self.bars.add(ProgressBar::new_spinner());
        bar.set_style(style(MOVING));
        bar.set_prefix(pad(name));
        let about = visible(about).replace('\n', " ");
        bar.set_message(about.clone());
        bar.enable_steady_tick(TICK);
        self.active = Some(Active { bar, name: name.to_owned(), about, counting: None });
    }

    fn stop(&mut self) {
        for bar in self.tail.drain(..) {
            bar.finish_and_clear();
            self.bars.remove(&bar);
        }
        self.recent.clear();
        self.stdout = Lines::default();
        self.stderr = Lines::default();
        if let Some(active) = self.active.take() {
            active.bar.finish_and_clear();
            self.bars.remove(&active.bar);
        }
    }

    fn progress(&mut self, phase: Phase, done: u64, total: u64, unit: Unit) {
        if self.active.is_none() {
            self.start(phase_name(phase), "");
        }
        let Some(active) = &mut self.active else { return };
        let counting = Some((unit, total > 0));
        if active.counting != counting {
            active.counting = counting;
            active.bar.set_style(style(count_line(unit, total)));
        }
        if total > 0 {
            active.bar.set_length(total);
        }
        active.bar.set_position(done);
    }

    fn output(&mut self, stream: Stream, text: &str) {
        let collector = if stream == Stream::Stdout { &mut self.stdout } else { &mut self.stderr };
        let recent = &mut self.recent;
        collector.push(text, |line| {
            if !line.trim().is_empty() {
                recent.push_back(line.to_owned());
            }
        });
        let unfinished = collector.unfinished().filter(|line| !line.trim().is_empty());
        while self.recent.len() > TAIL {
            self.recent.pop_front();
        }
        let shown: Vec<_> = self.recent.iter().cloned().chain(unfinished).collect();
        let shown = &shown[shown.len().saturating_sub(TAIL)..];
        while self.tail.len() < shown.len() {
            let bar = self.bars.add(ProgressBar::new_spinner());
            bar.set_style(style(TAIL_LINE));
            self.tail.push(bar);
        }
        for (bar, line) in self.tail.iter().zip(shown) {
            bar.set_message(self.palette.faint(&format!("│ {line}")));
        }
    }

    fn finish_step(&mut self, number: usize, name: &str, outcome: Outcome, took: u64) {
        let about = self.active.as_ref().map(|active| active.about.clone()).unwrap_or_default();
        let label = format!("{number}/{} {}", self.steps, visible(name));
        // What the step said last stays on the screen when it failed.
        let tail: Vec<_> = self.recent.iter().cloned().chain(self.stderr.unfinished()).collect();
        self.stop();
        match outcome {
            Outcome::Ok => self.print_finished(&self.palette.good("✓"), &label, &about, Some(took)),
            Outcome::Skipped => self.print_finished(&self.palette.faint("-"), &label, "skipped", None),
            Outcome::Failed => {
                self.print_finished(&self.palette.bad("✗"), &label, "failed", Some(took));
                for line in tail {
                    self.print(&format!("  {}", self.palette.faint(&format!("│ {line}"))));
                }
            }
        }
    }

    #[expect(clippy::too_many_lines, reason = "one arm an event")]
    fn draw(&mut self, event: &Event) {
        match event {
            Event::BuildStarted { build, image, recipe, steps, .. } => {
                self.steps = *steps;
                let plural = if *steps == 1 { "" } else { "s" };
                let about = format!("build {build}, {steps} step{plural}, recipe {}", recipe.short());
                self.print(&format!(
                    "{} {}",
                    self.palette.strong(&format!("baking {image}")),
                    self.palette.faint(&about)
                ));
            }
            // Steps tell of themselves.
            // The resume was a phase; what is in it is told step by step.
            Event::PhaseStarted { phase: Phase::Provision, .. }
            | Event::PhaseFinished { phase: Phase::Provision, .. }
            | Event::CheckpointUsed { .. } => {}
            Event::PhaseStarted { phase, detail } => self.start(phase_name(*phase), detail),
            Event::PhaseFinished { phase, milliseconds, detail } => {
                let name = phase_name(*phase);
                if self.active.as_ref().is_some_and(|active| active.name == name) {
                    self.stop();
                }
                self.print_finished(&self.palette.good("✓"), name, detail, Some(*milliseconds));
            }
            Event::Progress { phase, done, total, unit } => self.progress(*phase, *done, *total, *unit),
            Event::StepStarted { number, name, provisioner } => {
                let about = if name == provisioner { String::new() } else { provisioner.clone() };
                self.start(&format!("{number}/{} {}", self.steps, visible(name)), &about);
            }
            Event::Output { stream, text, .. } => self.output(*stream, text),
            Event::StepFinished { number, name, outcome, milliseconds } => {
                self.finish_step(*number, name, *outcome, *milliseconds);
            }
            Event::StepCached { number, name, milliseconds, .. } => {
                let label = format!("{number}/{} {}", self.steps, visible(name));
                let about = format!("from the checkpoint; took {} when it ran", duration(*milliseconds));
                self.print_finished(&self.palette.good("="), &label, &about, None);
            }
            Event::CheckpointMissed { number, name, reason } => {
                let about = format!("{} has to run: {}", super::plain::after(*number, name), visible(reason));
                self.print(&format!("  {}", self.palette.faint(&about)));
            }
            Event::CheckpointTaken { bytes, pause, .. } => {
                let about =
                    format!("checkpoint: {}, stood still for {}", ByteSize(*bytes).approximate(), duration(*pause));
                self.print(&format!("  {}", self.palette.faint(&about)));
            }
            Event::CheckFinished { name, on, passed, evidence, milliseconds, .. } => {
                let on = if *on == CheckedOn::Guest { "on the guest" } else { "on the sealed image" };
                let label = format!("  {}", visible(name));
                if *passed {
                    self.print_finished(&self.palette.good("✓"), &label, on, Some(*milliseconds));
                } else {
                    let about = format!("failed {on}: {evidence}");
                    self.print_finished(&self.palette.bad("✗"), &label, &about, Some(*milliseconds));
                }
            }
            Event::HygieneFinding { id, level, path, detail, waived } => {
                let (mark, note) = match waived {
                    Some(reason) => (self.palette.faint("-"), format!(" (waived: {reason})")),
                    None if level == "error" => (self.palette.bad("✗"), String::new()),
                    None => (self.palette.warn("!"), String::new()),
                };
                self.print_finished(&mark, &format!("  {id} {level}"), &format!("{path}: {detail}{note}"), None);
            }
            Event::AuditFinished { paths, same, differing } => {
                let about = format!("{} of {paths} paths are the same without checkpoints", share(*same, *paths));
                self.print_finished(&self.palette.good("✓"), "  audit", &about, None);
                for one in differing.iter().filter(|one| one.reason.is_empty()) {
                    self.print(&format!("  {} {}", self.palette.warn("!"), visible(&audited(one))));
                }
            }
            Event::Warning { message } => {
                // Cut off, a warning would lose its end, which says what it means.
                for (number, line) in wrapped(&visible(message), width() - 12).iter().enumerate() {
                    let lead = if number == 0 { self.palette.warn("! warning:") } else { " ".repeat(10) };
                    self.print(&format!("{lead} {line}"));
                }
            }
            Event::Sealed { disk, bytes, .. } => {
                let about = format!("disk {}, {}", disk.short(), ByteSize(*bytes).approximate());
                self.print_finished(&self.palette.good("✓"), "sealed", &about, None);
            }
            Event::Published { image, version, disk, already, .. } => {
                let what = if *already { "was already published" } else { "published" };
                self.print_finished(
                    &self.palette.good("✓"),
                    what,
                    &format!("{image} {version}, disk {}", disk.short()),
                    None,
                );
            }
            Event::BuildSkipped { image, version, reason, .. } => {
                for line in wrapped(&format!("{image} {version} is up to date: {reason}"), width()) {
                    self.print(&line);
                }
            }
            Event::BuildLeftOut { image, reason } => {
                self.print(&format!("{} {image} is not built: {}", self.palette.warn("!"), visible(reason)));
            }
            // The failure itself is printed when everything is released.
            Event::BuildFailed { .. } => self.stop(),
            Event::BuildFinished { milliseconds, .. } => {
                self.stop();
                self.print("");
                for line in self.timeline.lines(*milliseconds) {
                    self.print(&line);
                }
            }
        }
    }
}

impl Renderer for Terminal {
    fn event(&mut self, _: At, event: &Event) {
        self.timeline.event(event);
        self.draw(event);
    }

    fn say(&mut self, line: &str) {
        self.print(&visible(line));
    }

    fn rest(&mut self) {
        self.stop();
        let _ = self.bars.clear();
    }
}

fn style(template: &str) -> ProgressStyle {
    // The templates above are constants, and a test reads each of them.
    ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("━╸ ")
        .tick_strings(&["⠋", "⠙", "⠹", "⠸", "⠼", "⠴", "⠦", "⠧", "⠇", "⠏", " "])
}

fn pad(name: &str) -> String {
    let name = truncate_str(name, NAME - 1, "…");
    format!("{name}{}", " ".repeat(NAME - measure_text_width(&name)))
}

/// The text in lines of at most `width` columns, broken between words.
fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let last = lines.len() - 1;
        if lines[last].is_empty() {
            lines[last].push_str(word);
        } else if measure_text_width(&lines[last]) + 1 + measure_text_width(word) <= width {
            lines[last].push(' ');
            lines[last].push_str(word);
        } else {
            lines.push(word.to_owned());
        }
    }
    lines
}

pub(super) fn width() -> usize {
    usize::from(Term::stderr().size().1).clamp(40, 160)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_warnings_are_broken_between_words() {
        assert_eq!(wrapped("a warning of some length", 10), ["a warning", "of some", "length"]);
        assert_eq!(wrapped("", 10), [""]);
        assert_eq!(wrapped("endlesslylongword x", 5), ["endlesslylongword", "x"]);
    }

    #[test]
    fn every_template_of_a_line_is_one() {
        for (unit, total) in [(Unit::Bytes, 0), (Unit::Bytes, 1), (Unit::Items, 0), (Unit::Items, 1)] {
            assert!(ProgressStyle::with_template(count_line(unit, total)).is_ok());
        }
        assert!(ProgressStyle::with_template(MOVING).is_ok() && ProgressStyle::with_template(TAIL_LINE).is_ok());
    }
}
