//! Lines without colour or movement, for logs and pipes: seconds since the start, then what happened.

use std::{fmt, io::Write, time::Duration};

use kiln_core::event::{AuditDifference, CheckedOn, Event, Outcome, Phase, Stream};

use super::{At, Renderer, amount, closing::Timeline, duration, milliseconds, phase_name};
use crate::escape::{Lines, visible};

/// A phase that goes on says so this often.
const EVERY: Duration = Duration::from_secs(10);

/// Differences of an audit that are shown; the events have all.
const LISTED: usize = 20;

/// Writes plain lines to `out`.
pub(crate) struct Plain<W> {
    out: W,
    timeline: Timeline,
    steps: usize,
    stdout: Lines,
    stderr: Lines,
    /// When progress was last shown, and of what.
    shown: Option<(Phase, Duration)>,
    /// Whether a failure is told elsewhere.
    live: bool,
}

impl<W: Write + Send> Plain<W> {
    pub(crate) fn new(out: W) -> Self {
        Self {
            out,
            timeline: Timeline::default(),
            steps: 0,
            stdout: Lines::default(),
            stderr: Lines::default(),
            shown: None,
            live: false,
        }
    }

    /// For a build that runs now, whose failure is printed at its end with everything there is to say about it.
    pub(crate) fn live(out: W) -> Self {
        Self { live: true, ..Self::new(out) }
    }

    /// How many steps there are, where the first event is not shown.
    pub(crate) const fn expect(&mut self, steps: usize) {
        self.steps = steps;
    }

    fn line(&mut self, at: At, text: &str) {
        let elapsed = milliseconds(at.elapsed) / 100;
        // One event is one line, whatever its text holds.
        let text = text.replace('\n', " ");
        let _ = writeln!(self.out, "{:>6}.{}  {text}", elapsed / 10, elapsed % 10);
    }

    fn output(&mut self, at: At, number: usize, stream: Stream, text: &str) {
        let mut lines = Vec::new();
        let collector = if stream == Stream::Stdout { &mut self.stdout } else { &mut self.stderr };
        collector.push(text, |line| lines.push(line.to_owned()));
        for line in lines {
            self.line(at, &format!("{number}| {line}"));
        }
    }

    fn finish_output(&mut self, at: At, number: usize) {
        let mut lines = Vec::new();
        self.stdout.finish(|line| lines.push(line.to_owned()));
        self.stderr.finish(|line| lines.push(line.to_owned()));
        for line in lines {
            self.line(at, &format!("{number}| {line}"));
        }
    }

    /// Progress is only worth a line when some time went by.
    fn progress(&mut self, at: At, phase: Phase, text: &str) {
        let due = match self.shown {
            Some((last, when)) if last == phase => at.elapsed.saturating_sub(when) >= EVERY,
            _ => {
                self.shown = Some((phase, at.elapsed));
                false
            }
        };
        if due {
            self.shown = Some((phase, at.elapsed));
            self.line(at, &format!("{}: {text}", phase_name(phase)));
        }
    }
}

impl<W: Write + Send> Renderer for Plain<W> {
    fn event(&mut self, at: At, event: &Event) {
        self.timeline.event(event);
        match event {
            Event::BuildStarted { steps, .. } => self.steps = *steps,
            Event::Output { number, stream, text } => return self.output(at, *number, *stream, text),
            Event::StepFinished { number, .. } => self.finish_output(at, *number),
            Event::BuildFailed { .. } if self.live => return,
            Event::Progress { phase, done, total, unit } => {
                return self.progress(at, *phase, &amount(*done, *total, *unit));
            }
            _ => {}
        }
        if let Some(text) = words(event, self.steps) {
            self.line(at, &text);
        }
        if let Event::BuildFinished { milliseconds, .. } = event {
            for line in self.timeline.lines(*milliseconds) {
                let _ = writeln!(self.out, "{line}");
            }
        }
        let _ = self.out.flush();
    }

    fn say(&mut self, line: &str) {
        let _ = writeln!(self.out, "{}", visible(line));
    }
}

impl<W> fmt::Debug for Plain<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Plain")
    }
}

/// `99.97 %`, never rounded up to all.
pub(crate) fn share(same: usize, paths: usize) -> String {
    let hundredths = (same as u128 * 10_000).checked_div(paths as u128).unwrap_or(10_000);
    format!("{}.{:02} %", hundredths / 100, hundredths % 100)
}

/// `/var/log/wtmp content (a log)`
pub(crate) fn audited(one: &AuditDifference) -> String {
    let reason = if one.reason.is_empty() { String::new() } else { format!(" ({})", one.reason) };
    format!("{} {}{reason}", one.path, one.how)
}

/// What an event says in words; nothing for output and progress.
pub(crate) fn words(event: &Event, steps: usize) -> Option<String> {
    let detail = |detail: &str, before: &str| {
        if detail.is_empty() { String::new() } else { format!("{before}{}", visible(detail)) }
    };
    Some(match event {
        Event::BuildStarted { build, image, recipe, steps, log } => {
            let plural = if *steps == 1 { "" } else { "s" };
            format!("build {build} of {image}: {steps} step{plural}, recipe {}, log {log}", recipe.short())
        }
        Event::PhaseStarted { phase, detail: about } => {
            format!("{}: started{}", phase_name(*phase), detail(about, ": "))
        }
        Event::PhaseFinished { phase, milliseconds, detail: about } => {
            format!("{}: done in {}{}", phase_name(*phase), duration(*milliseconds), detail(about, ": "))
        }
        Event::StepStarted { number, name, provisioner } => {
            let with = if name == provisioner { String::new() } else { format!(" ({provisioner})") };
            format!("step {number}/{steps} {}: started{with}", visible(name))
        }
        Event::StepFinished { number, name, outcome, milliseconds } => {
            let name = visible(name);
            match outcome {
                Outcome::Ok => format!("step {number}/{steps} {name}: ok in {}", duration(*milliseconds)),
                Outcome::Skipped => format!("step {number}/{steps} {name}: skipped"),
                Outcome::Failed => format!("step {number}/{steps} {name}: FAILED after {}", duration(*milliseconds)),
            }
        }
        Event::StepCached { number, name, milliseconds, .. } => {
            format!(
                "step {number}/{steps} {}: from the checkpoint, took {} when it ran",
                visible(name),
                duration(*milliseconds)
            )
        }
        Event::CheckpointUsed { number, name, bytes, saved, .. } => format!(
            "came back from the checkpoint after {}: {}, saves {}",
            after(*number, name),
            kiln_core::ByteSize(*bytes).approximate(),
            duration(*saved)
        ),
        Event::CheckpointMissed { number, name, reason } => {
            format!("{} has to run: {}", after(*number, name), visible(reason))
        }
        Event::CheckpointTaken { number, name, pause, bytes } => format!(
            "checkpoint after {}: {}, the machine stood still for {}",
            after(*number, name),
            kiln_core::ByteSize(*bytes).approximate(),
            duration(*pause)
        ),
        Event::CheckFinished { name, on, passed, evidence, milliseconds, .. } => {
            let on = match on {
                CheckedOn::Guest => "guest",
                CheckedOn::Artifact => "sealed image",
            };
            let name = visible(name);
            if *passed {
                format!("check {name}: passed on the {on} in {}", duration(*milliseconds))
            } else {
                format!("check {name}: FAILED on the {on}{}", detail(evidence, ": "))
            }
        }
        Event::HygieneFinding { id, level, path, detail: found, waived } => {
            let waived = waived.as_ref().map(|reason| format!(" (waived: {})", visible(reason))).unwrap_or_default();
            format!("hygiene {id} {level}: {}: {}{waived}", visible(path), visible(found))
        }
        Event::AuditFinished { paths, same, differing } => {
            let unexplained = differing.iter().filter(|one| one.reason.is_empty()).count();
            let named: Vec<_> = differing.iter().take(LISTED).map(audited).collect();
            let more = differing.len().saturating_sub(LISTED);
            let more = if more > 0 { format!("; {more} more") } else { String::new() };
            format!(
                "audit: {same} of {paths} paths ({}) are the same without checkpoints, {unexplained} differ for no known reason: {}{more}",
                share(*same, *paths),
                visible(&named.join("; "))
            )
        }
        Event::Warning { message } => format!("warning: {}", visible(message)),
        Event::Sealed { disk, qcow2, bytes } => {
            format!("sealed: disk {}, {} ({})", disk.short(), visible(qcow2), kiln_core::ByteSize(*bytes).approximate())
        }
        Event::Published { image, version, disk, registry, already } => {
            let how = if *already { "was already published" } else { "published" };
            format!("{image} {version} {how}: disk {}, registry {}", disk.short(), visible(registry))
        }
        Event::BuildSkipped { image, version, reason, .. } => format!("{image} {version} is up to date: {reason}"),
        Event::BuildLeftOut { image, reason } => format!("{image} is not built: {}", visible(reason)),
        Event::BuildFailed { message, causes, .. } => {
            let chain: Vec<_> = std::iter::once(message).chain(causes).map(|text| visible(text)).collect();
            format!("build failed: {}", chain.join(": "))
        }
        Event::BuildFinished { build, milliseconds } => {
            format!("build {build} finished in {}", duration(*milliseconds))
        }
        Event::Output { .. } | Event::Progress { .. } => return None,
    })
}

/// `step 3 packages`, `the boot`.
pub(crate) fn after(number: usize, name: &str) -> String {
    if number == 0 { "the boot".to_owned() } else { format!("step {number} {}", visible(name)) }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    fn shown(events: &[(u64, Event)]) -> String {
        let mut plain = Plain::new(Vec::new());
        for (seconds, event) in events {
            plain.event(At { elapsed: Duration::from_secs(*seconds), wall: SystemTime::UNIX_EPOCH }, event);
        }
        String::from_utf8(plain.out).unwrap()
    }

    fn output(stream: Stream, text: &str) -> Event {
        Event::Output { number: 2, stream, text: text.to_owned() }
    }

    #[test]
    fn output_comes_in_whole_lines_without_control_characters() {
        let finished = Event::StepFinished { number: 2, name: "x".to_owned(), outcome: Outcome::Ok, milliseconds: 10 };
        let text = shown(&[
            (1, output(Stream::Stdout, "one\ntw")),
            (1, output(Stream::Stderr, "\u{1b}[31mred\u{1b}[0m\n")),
            (2, output(Stream::Stdout, "o\r\nlast")),
            (3, finished),
        ]);
        assert_eq!(
            text,
            "     1.0  2| one\n     1.0  2| red\n     2.0  2| two\n     3.0  2| last\n     3.0  step 2/0 x: ok in 0.0 s\n"
        );
    }

    #[test]
    fn a_long_phase_says_now_and_then_how_far_it_is() {
        let progress =
            |done| Event::Progress { phase: Phase::Seal, done, total: 100, unit: kiln_core::event::Unit::Items };
        let text =
            shown(&[(0, progress(1)), (5, progress(20)), (10, progress(40)), (15, progress(60)), (20, progress(80))]);
        assert_eq!(text, "    10.0  seal: 40 % (40 of 100)\n    20.0  seal: 80 % (80 of 100)\n");
    }

    #[test]
    fn one_event_is_one_line_whatever_its_text_holds() {
        let text = shown(&[(0, Event::Warning { message: "a\nb\u{1b}]0;x\u{7}c".to_owned() })]);
        assert_eq!(text.lines().count(), 1);
        assert!(!text.trim_end().contains(char::is_control), "{text:?}");
    }
}
