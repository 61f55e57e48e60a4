//! Events made visible: on a terminal, as plain lines, as JSON, and in the files of the build.

mod closing;
mod journal;
mod json;
mod plain;
mod prefixed;
mod row;
mod terminal;

use std::{
    fmt,
    sync::{Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use kiln_core::{
    ByteSize,
    event::{Event, Events, Phase, Unit},
};
use kiln_io::time::{Clock as _, SystemClock};

pub(crate) use self::{
    journal::{EVENTS, Journal, LOG},
    json::Json,
    plain::Plain,
    prefixed::Prefixed,
    row::Row,
    terminal::Terminal,
};

/// When an event happened.
#[derive(Debug, Clone, Copy)]
pub(crate) struct At {
    /// Since the build began, on the monotonic clock.
    pub(crate) elapsed: Duration,
    pub(crate) wall: SystemTime,
}

/// Shows events one way.
pub(crate) trait Renderer: Send + fmt::Debug {
    fn event(&mut self, at: At, event: &Event);

    /// A line of talk besides the events.
    fn say(&mut self, _line: &str) {}

    /// Leaves the terminal to others: what was live is removed, what was said stays.
    fn rest(&mut self) {}
}

/// Hands every event to every renderer, in one order.
#[derive(Debug)]
pub(crate) struct Broadcast {
    clock: SystemClock,
    renderers: Mutex<Vec<Box<dyn Renderer>>>,
}

impl Broadcast {
    pub(crate) fn new(renderers: Vec<Box<dyn Renderer>>) -> Self {
        Self { clock: SystemClock::new(), renderers: Mutex::new(renderers) }
    }

    pub(crate) fn say(&self, line: &str) {
        self.each(|renderer| renderer.say(line));
    }

    pub(crate) fn rest(&self) {
        self.each(|renderer| renderer.rest());
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.clock.monotonic()
    }

    fn each(&self, mut act: impl FnMut(&mut dyn Renderer)) {
        // A renderer that panicked is still good for the next event.
        let mut renderers = self.renderers.lock().unwrap_or_else(PoisonError::into_inner);
        renderers.iter_mut().for_each(|renderer| act(renderer.as_mut()));
    }
}

impl Events for Broadcast {
    fn emit(&self, event: Event) {
        let at = At { elapsed: self.clock.monotonic(), wall: self.clock.wall() };
        self.each(|renderer| renderer.event(at, &event));
    }
}

/// The word for a phase.
pub(crate) const fn phase_name(phase: Phase) -> &'static str {
    match phase {
        Phase::Calibrate => "calibrate",
        Phase::Download => "download",
        Phase::Base => "base",
        Phase::Boot => "boot",
        Phase::Resume => "resume",
        Phase::Provision => "provision",
        Phase::Upload => "upload",
        Phase::Check => "check",
        Phase::Clean => "clean",
        Phase::Shutdown => "shut down",
        Phase::Seal => "seal",
        Phase::Hygiene => "hygiene",
        Phase::Placement => "placement",
        Phase::BootTest => "boot test",
        Phase::Audit => "audit",
        Phase::Export => "export",
        Phase::Publish => "publish",
    }
}

/// `0.4 s`, `12.3 s`, `4 min 05 s`, `1 h 02 min`
pub(crate) fn duration(milliseconds: u64) -> String {
    let tenths = (milliseconds + 50) / 100;
    let seconds = (milliseconds + 500) / 1000;
    match seconds {
        0..100 => format!("{}.{} s", tenths / 10, tenths % 10),
        100..3600 => format!("{} min {:02} s", seconds / 60, seconds % 60),
        _ => format!("{} h {:02} min", seconds / 3600, seconds / 60 % 60),
    }
}

/// `45 % (120.0 MiB of 266.6 MiB)`, `12 of 40`, or without a total `120.0 MiB`.
fn amount(done: u64, total: u64, unit: Unit) -> String {
    let show = |number: u64| match unit {
        Unit::Bytes => ByteSize(number).approximate(),
        Unit::Items => number.to_string(),
    };
    match total {
        0 => show(done),
        _ => format!("{} % ({} of {})", u128::from(done) * 100 / u128::from(total), show(done), show(total)),
    }
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_round_and_change_their_unit() {
        for (milliseconds, text) in [
            (0, "0.0 s"),
            (49, "0.0 s"),
            (50, "0.1 s"),
            (12_345, "12.3 s"),
            (99_449, "99.4 s"),
            (100_000, "1 min 40 s"),
            (245_400, "4 min 05 s"),
            (3_720_000, "1 h 02 min"),
        ] {
            assert_eq!(duration(milliseconds), text);
        }
    }

    #[test]
    fn amounts_without_a_total_show_no_share() {
        assert_eq!(amount(5, 0, Unit::Items), "5");
        assert_eq!(amount(1 << 20, 4 << 20, Unit::Bytes), "25 % (1.0 MiB of 4.0 MiB)");
        assert_eq!(amount(u64::MAX, u64::MAX, Unit::Items), format!("100 % ({0} of {0})", u64::MAX));
    }
}
