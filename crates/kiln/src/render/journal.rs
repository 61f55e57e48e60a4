//! The files of a build: `events.jsonl`, every event, and `log`, the output as it came.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use kiln_core::event::Event;
use kiln_io::error::FsError;
use tokio_util::sync::CancellationToken;

use super::{At, Renderer, json, plain::words};

/// The names of the files in the build's directory.
pub(crate) const EVENTS: &str = "events.jsonl";
pub(crate) const LOG: &str = "log";

/// Output of one step beyond this is not kept; the step goes on.
const KEPT: u64 = 64 << 20;

/// Writes both files. When that fails (a full disk), it stops the build: a build that cannot be accounted for is not
/// published.
#[derive(Debug)]
pub(crate) struct Journal {
    events: File,
    log: File,
    directory: PathBuf,
    steps: usize,
    /// Output kept of the running step.
    kept: u64,
    cancel: CancellationToken,
    failed: std::sync::Arc<std::sync::OnceLock<FsError>>,
}

impl Journal {
    /// Begins the files in `directory`. Cancels `cancel` and fills `failed` when they cannot be written any more.
    pub(crate) fn begin(
        directory: &Path,
        cancel: CancellationToken,
        failed: std::sync::Arc<std::sync::OnceLock<FsError>>,
    ) -> Result<Self, FsError> {
        kiln_io::fs::create_private_dir(directory)?;
        let open = |name: &str| {
            let path = directory.join(name);
            let opened = OpenOptions::new().create(true).append(true).mode(0o600).open(&path);
            opened.map_err(kiln_io::fs::failed("open", &path, 0))
        };
        let (events, log) = (open(EVENTS)?, open(LOG)?);
        Ok(Self { events, log, directory: directory.to_owned(), steps: 0, kept: 0, cancel, failed })
    }

    fn write(&mut self, at: At, event: &Event) -> io::Result<()> {
        match event {
            Event::BuildStarted { steps, .. } => self.steps = *steps,
            Event::StepStarted { .. } => self.kept = 0,
            // Every percent of a download is worth nothing afterwards.
            Event::Progress { .. } => return Ok(()),
            Event::Output { text, .. } => {
                let before = self.kept;
                self.kept += text.len() as u64;
                if self.kept > KEPT {
                    if before <= KEPT {
                        writeln!(self.log, "\n[kiln: more than {} MiB of output; the rest is not kept]", KEPT >> 20)?;
                    }
                    return Ok(());
                }
                self.log.write_all(text.as_bytes())?;
            }
            _ => {}
        }
        if let Some(words) = words(event, self.steps) {
            writeln!(self.log, "[kiln] {words}")?;
        }
        self.events.write_all(json::line(at, event).as_bytes())
    }
}

impl Renderer for Journal {
    fn event(&mut self, at: At, event: &Event) {
        if let Err(error) = self.write(at, event)
            && self.failed.set(kiln_io::fs::failed("write the log in", &self.directory, 1 << 20)(error)).is_ok()
        {
            self.cancel.cancel();
        }
    }
}
