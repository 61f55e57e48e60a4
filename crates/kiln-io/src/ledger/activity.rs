//! When a build last acted: the time of its ledger's file.
//!
//! Whoever cleans up after a kill has to know how long ago that was, since what was made just then may not be seen yet.

use std::{
    fs::{self, File},
    path::PathBuf,
    time::SystemTime,
};

use super::{FILE, Ledger};
use crate::dirs::Dirs;

/// Notes when a build acts. Cheap: no record is written, nothing is synced.
#[derive(Debug, Clone)]
pub struct Activity {
    ledger: PathBuf,
}

impl Ledger {
    pub fn activity(&self) -> Activity {
        Activity { ledger: self.path.clone() }
    }
}

impl Activity {
    /// The build acts `now`. A time that cannot be noted costs patience later, and nothing else.
    pub fn note(&self, now: SystemTime) {
        let file = File::options().append(true).open(&self.ledger);
        let _ = file.map(|file| file.set_modified(now));
    }
}

/// When the build last acted, or wrote into its ledger that it would.
pub fn last_activity(dirs: &Dirs, build: &str) -> Option<SystemTime> {
    fs::metadata(dirs.build(build).join(FILE)).and_then(|ledger| ledger.modified()).ok()
}
