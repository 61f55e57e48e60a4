//! What a running step prints: redacted, cut into whole characters, sent on as events, its last lines kept.

use std::{
    collections::VecDeque,
    sync::{Mutex, PoisonError},
};

use kiln_core::event::{Event, Events, Stream};
use kiln_io::guest::Output;

use crate::redact::Patterns;

/// Lines kept for the error of a failed step.
const TAIL_LINES: usize = 20;
/// Bytes kept of each of them.
const TAIL_WIDTH: usize = 500;
/// Text of one event at most.
const EVENT: usize = 64 << 10;

/// The output of one step.
#[derive(Debug)]
pub(crate) struct StepOutput<'a> {
    number: usize,
    patterns: Patterns,
    events: &'a dyn Events,
    stdout: Mutex<Channel>,
    stderr: Mutex<Channel>,
}

#[derive(Debug, Default)]
struct Channel {
    /// Bytes that may be the beginning of a secret or of a character.
    held: Vec<u8>,
    lines: VecDeque<String>,
    /// The line that has not ended yet.
    open: String,
}

impl<'a> StepOutput<'a> {
    pub(crate) fn new(number: usize, patterns: Patterns, events: &'a dyn Events) -> Self {
        Self { number, patterns, events, stdout: Mutex::default(), stderr: Mutex::default() }
    }

    /// Sends what was held back. To be called once, after the last write.
    pub(crate) fn finish(&self) {
        for stream in [Stream::Stdout, Stream::Stderr] {
            self.push(stream, &[], true);
        }
    }

    /// A text of somebody else about this step, without its secrets.
    pub(crate) fn redacted(&self, text: &str) -> String {
        self.patterns.text(text)
    }

    /// The last lines of stderr, or of stdout where stderr is empty.
    pub(crate) fn last_lines(&self) -> Vec<String> {
        let stderr = self.tail(Stream::Stderr, TAIL_LINES);
        if stderr.is_empty() { self.tail(Stream::Stdout, TAIL_LINES) } else { stderr }
    }

    /// The last lines of both streams: a question that nobody answers stands on stdout.
    pub(crate) fn last_lines_of_both(&self) -> Vec<String> {
        [self.tail(Stream::Stdout, TAIL_LINES / 2), self.tail(Stream::Stderr, TAIL_LINES / 2)].concat()
    }

    fn tail(&self, stream: Stream, count: usize) -> Vec<String> {
        let channel = self.channel(stream).lock().unwrap_or_else(PoisonError::into_inner);
        let open = Some(&channel.open).filter(|line| !line.trim().is_empty());
        let skip = (channel.lines.len() + usize::from(open.is_some())).saturating_sub(count);
        channel.lines.iter().chain(open).skip(skip).cloned().collect()
    }

    const fn channel(&self, stream: Stream) -> &Mutex<Channel> {
        match stream {
            Stream::Stdout => &self.stdout,
            Stream::Stderr => &self.stderr,
        }
    }

    fn push(&self, stream: Stream, bytes: &[u8], end: bool) {
        let mut channel = self.channel(stream).lock().unwrap_or_else(PoisonError::into_inner);
        channel.held.extend_from_slice(bytes);
        let mut ready = if self.patterns.is_empty() {
            std::mem::take(&mut channel.held)
        } else {
            self.patterns.take(&mut channel.held, end)
        };
        if !end {
            let whole = ready.len() - unfinished(&ready);
            let rest = ready.split_off(whole);
            channel.held.splice(0..0, rest);
        }
        if ready.is_empty() {
            return;
        }
        let text = String::from_utf8_lossy(&ready);
        channel.keep(&text);
        drop(channel);
        let mut rest = text.as_ref();
        while !rest.is_empty() {
            let (piece, after) = rest.split_at(rest.floor_char_boundary(EVENT));
            self.events.emit(Event::Output { number: self.number, stream, text: piece.to_owned() });
            rest = after;
        }
    }
}

impl Output for StepOutput<'_> {
    fn write(&self, stream: Stream, bytes: &[u8]) {
        self.push(stream, bytes, false);
    }
}

impl Channel {
    fn keep(&mut self, text: &str) {
        for piece in text.split_inclusive('\n') {
            let room = TAIL_WIDTH.saturating_sub(self.open.len());
            let line = piece.trim_end_matches(['\n', '\r']);
            self.open.push_str(&line[..line.floor_char_boundary(room)]);
            if piece.ends_with('\n') {
                let line = std::mem::take(&mut self.open);
                if !line.trim().is_empty() {
                    self.lines.push_back(line);
                }
                if self.lines.len() > TAIL_LINES {
                    self.lines.pop_front();
                }
            }
        }
    }
}

/// How many bytes at the end are the beginning of a character whose rest has not come yet.
fn unfinished(bytes: &[u8]) -> usize {
    let from = bytes.len().saturating_sub(3);
    let Some(start) = (from..bytes.len()).rev().find(|index| bytes[*index] & 0xc0 != 0x80) else { return 0 };
    let length = match bytes[start] {
        byte if byte & 0xe0 == 0xc0 => 2,
        byte if byte & 0xf0 == 0xe0 => 3,
        byte if byte & 0xf8 == 0xf0 => 4,
        _ => 1,
    };
    if start + length > bytes.len() { bytes.len() - start } else { 0 }
}

#[cfg(test)]
mod tests {
    use kiln_core::Secret;

    use super::*;

    #[derive(Debug, Default)]
    struct Log(Mutex<String>);

    impl Events for Log {
        fn emit(&self, event: Event) {
            if let Event::Output { text, .. } = event {
                assert!(text.len() <= EVENT);
                self.0.lock().unwrap().push_str(&text);
            }
        }
    }

    #[test]
    fn a_character_cut_in_two_arrives_whole() {
        let log = Log::default();
        let output = StepOutput::new(1, Patterns::default(), &log);
        for byte in "naïve → 🦀 ok\n".bytes() {
            output.write(Stream::Stdout, &[byte]);
        }
        output.write(Stream::Stdout, &[0xff, b'x', 0xe2]);
        output.finish();
        assert_eq!(*log.0.lock().unwrap(), "naïve → 🦀 ok\n\u{fffd}x\u{fffd}");
    }

    #[test]
    fn a_secret_shows_neither_in_events_nor_in_the_last_lines() {
        let log = Log::default();
        let output = StepOutput::new(1, Patterns::of(&[Secret::new("canary-1234".to_owned())]), &log);
        output.write(Stream::Stderr, b"password: cana");
        output.write(Stream::Stderr, b"ry-1234\nY2FuYXJ5LTEyMzQ=");
        output.finish();
        assert_eq!(*log.0.lock().unwrap(), "password: ***\n***Q=");
        assert_eq!(output.last_lines(), ["password: ***", "***Q="]);
    }

    #[test]
    fn keeps_the_last_lines_of_stderr_before_those_of_stdout() {
        let log = Log::default();
        let output = StepOutput::new(1, Patterns::default(), &log);
        for line in 0..50 {
            output.write(Stream::Stdout, format!("{line}\n").as_bytes());
        }
        output.write(Stream::Stdout, b"prompt? ");
        let last = output.last_lines();
        assert_eq!((last.len(), last[0].as_str(), last[19].as_str()), (20, "31", "prompt? "));
        output.write(Stream::Stderr, "x".repeat(9000).as_bytes());
        assert_eq!(output.last_lines(), ["x".repeat(TAIL_WIDTH)]);
    }

    #[test]
    fn large_output_is_cut_into_events() {
        let log = Log::default();
        let output = StepOutput::new(1, Patterns::default(), &log);
        output.write(Stream::Stdout, "é".repeat(100_000).as_bytes());
        output.finish();
        assert_eq!(log.0.lock().unwrap().len(), 200_000);
    }
}
