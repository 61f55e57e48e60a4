//! `--on-error ask`: a person decides what becomes of the machine.

use std::{
    io::{self, BufRead as _, Write as _},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use async_trait::async_trait;
use kiln_build::bake::{Ask, BakeError};
use kiln_io::{guest::Access, process::run_attached};
use tokio_util::sync::CancellationToken;

use crate::{failure::Failure, output, render::Broadcast, verbs::ssh};

/// Somebody at the terminal.
#[derive(Debug)]
pub(super) struct Person {
    pub(super) events: Arc<Broadcast>,
    /// The build's directory.
    pub(super) directory: PathBuf,
    /// Somebody who presses Ctrl-C does not want to answer.
    pub(super) cancel: CancellationToken,
    /// Set when the failure was shown.
    pub(super) told: Arc<AtomicBool>,
}

/// Asks until the answer is one of the three.
fn decide(directory: &Path) -> bool {
    loop {
        let _ = write!(io::stderr(), "the machine still runs: [c]lean, [k]eep, or look [i]nside? ");
        let mut answer = String::new();
        match io::stdin().lock().read_line(&mut answer) {
            // The terminal is gone: nobody will come back for the machine.
            Ok(0) | Err(_) => return false,
            Ok(_) => {}
        }
        match answer.trim() {
            "c" | "clean" => return false,
            "k" | "keep" => return true,
            "i" | "inside" => look_inside(directory),
            _ => {}
        }
    }
}

fn look_inside(directory: &Path) {
    let shell = ssh::read(&directory.join(Access::FILE))
        .and_then(|access| run_attached(&ssh::client(&access, &[])).map_err(Failure::from));
    if let Err(failure) = shell {
        output::complain(&failure);
    }
}

#[async_trait]
impl Ask for Person {
    async fn keep(&self, error: &BakeError) -> bool {
        self.events.rest();
        output::complain(&Failure { hint: None, ..super::from_bake(error) });
        self.told.store(true, Ordering::Relaxed);
        let directory = self.directory.clone();
        let answer = tokio::task::spawn_blocking(move || decide(&directory));
        tokio::select! {
            answer = answer => answer.unwrap_or(false),
            () = self.cancel.cancelled() => false,
        }
    }
}
