//! Running a command, timing it, and printing rows side by side.

use std::{
    process::Command,
    time::{Duration, Instant},
};

pub(crate) struct Timed {
    pub(crate) elapsed: Duration,
    pub(crate) output: String,
}

/// Runs `command` to its end; its output is shown when it fails.
pub(crate) fn timed(command: &mut Command) -> Timed {
    let start = Instant::now();
    let output = command.output().unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"));
    let elapsed = start.elapsed();
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success(), "{command:?} failed with {}:\n{text}", output.status);
    Timed { elapsed, output: text }
}

/// Prints one line of a comparison: ours, the peer's, and ours as a share of the peer's.
pub(crate) fn row(what: &str, ours: Duration, peer: &str, theirs: Duration) {
    println!(
        "{what:<44} kiln {:>8.2} s   {peer:<28} {:>8.2} s   ratio {:>6.3}",
        ours.as_secs_f64(),
        theirs.as_secs_f64(),
        ours.as_secs_f64() / theirs.as_secs_f64().max(1e-9)
    );
}
