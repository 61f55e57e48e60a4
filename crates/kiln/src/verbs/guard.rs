//! `kiln __guard`: the process that outlives kiln by a moment.

use std::path::Path;

use crate::failure::{Exit, Outcome};

#[expect(clippy::unnecessary_wraps, reason = "every verb has this shape")]
pub(crate) fn run(spec: &Path) -> Outcome {
    // The guard tells kiln how it went over its own pipe and in its log; the exit code is for people with a debugger.
    let ended = kiln_io::guard::run(spec);
    Ok(if ended == std::process::ExitCode::SUCCESS { Exit::Done } else { Exit::Failed })
}
