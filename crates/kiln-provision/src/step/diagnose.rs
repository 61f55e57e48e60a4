//! After a failed step: whether the guest's disk is full or its clock wrong, which the step's own words rarely say.

use std::{sync::Mutex, time::UNIX_EPOCH};

use kiln_core::{event::Stream, size::ByteSize};
use kiln_io::guest::{Command, Output};

use super::{AROUND, StepRun};
use crate::script::DIAGNOSE;

/// Clocks may differ by this much before it is worth a word: certificates and package lists are valid for days.
const SKEW: u64 = 86400;

/// What was seen, for the error.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) detail: Option<String>,
    pub(super) hint: Option<String>,
}

/// Asks the guest. A guest that does not answer adds nothing: the failure itself is already known.
pub(super) async fn look(run: &StepRun<'_>, last: &[String]) -> Seen {
    let answer = Answer::default();
    let _ = run.guest.run(&Command::new(DIAGNOSE, AROUND), &answer).await;
    let host = run.clock.wall().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
    let text = String::from_utf8_lossy(&answer.0.into_inner().unwrap_or_default()).into_owned();
    read(&text, host, last)
}

#[derive(Default)]
struct Answer(Mutex<Vec<u8>>);

impl Output for Answer {
    fn write(&self, stream: Stream, bytes: &[u8]) {
        if stream == Stream::Stdout
            && let Ok(mut text) = self.0.lock()
        {
            text.extend_from_slice(bytes);
        }
    }
}

fn read(text: &str, host: u64, last: &[String]) -> Seen {
    let mut seen = Seen::default();
    let mut details = Vec::new();
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            ["clock", seconds] => {
                let guest: u64 = seconds.parse().unwrap_or(host);
                if guest.abs_diff(host) > SKEW {
                    let days = guest.abs_diff(host) / 86400;
                    let side = if guest < host { "behind" } else { "ahead of" };
                    details.push(format!("the guest's clock is {days} days {side} the build host's"));
                    seen.hint = Some("certificates and package lists look expired or not yet valid to it".to_owned());
                }
            }
            ["full", mount, blocks, free] => {
                let size = |text: &str| ByteSize(text.parse::<u64>().unwrap_or(0) << 10).approximate();
                details.push(format!("the guest's `{mount}` is full: {} free of {}", size(free), size(blocks)));
                seen.hint = Some("give the guest a larger `disk` in `[builder.qemu]`".to_owned());
            }
            ["inodes", mount] => details.push(format!("the guest's `{mount}` has no inodes left")),
            _ => {}
        }
    }
    if seen.hint.is_none() && last.iter().any(|line| line.contains("No space left on device")) {
        seen.hint = Some("the guest ran out of space; give it a larger `disk` in `[builder.qemu]`".to_owned());
    }
    seen.detail = (!details.is_empty()).then(|| format!("\n    {}", details.join("\n    ")));
    seen
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_named_with_its_size_and_the_way_out() {
        let seen = read("clock 1000\nfull / 1000000 12\n", 1000, &[]);
        assert_eq!(seen.detail.unwrap(), "\n    the guest's `/` is full: 12.0 KiB free of 976.5 MiB");
        assert!(seen.hint.unwrap().contains("larger `disk`"));
    }

    #[test]
    fn space_that_was_freed_again_is_known_by_its_message() {
        let last = ["tar: write error: No space left on device".to_owned()];
        assert!(read("clock 1000\n", 1000, &last).hint.unwrap().contains("larger `disk`"));
    }

    #[test]
    fn a_clock_far_off_is_told() {
        let seen = read("clock 0\n", 1_800_000_000, &[]);
        assert!(seen.detail.unwrap().contains("20833 days behind"));
        assert_eq!(read("clock 1800003600\n", 1_800_000_000, &[]), Seen::default());
    }
}
