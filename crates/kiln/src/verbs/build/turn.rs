//! One bake of a plan at a time on this machine: a second kiln that is asked for the same waits, and takes the first one's result.

use std::time::Duration;

use kiln_core::Digest;
use kiln_io::{
    error::FsError,
    fs::{Lock, create_private_dir},
    time::{GaveUp, Policy, SystemClock},
};

use super::{Session, graph::Node};

/// Somebody who is asked what to do about a failed step may be at lunch. After a day the plan is baked twice.
const PATIENCE: Policy =
    Policy { first: Duration::from_millis(100), max: Duration::from_secs(1), deadline: Duration::from_hours(24) };

/// What stands between two bakes of one plan.
#[derive(Debug)]
pub(super) struct Turn {
    /// Others wait as long as it is held; `None` where no lock can be had, which keeps nobody from baking.
    _lock: Option<Lock>,
    /// Somebody else had it, who may have left a result.
    pub(super) waited: bool,
}

impl Session {
    /// Waits until no other kiln bakes the plan of `node`, and says so. `None` when the run was interrupted meanwhile.
    pub(super) async fn turn(&self, node: &Node) -> Option<Turn> {
        let plan = &node.plan;
        let name = Digest::of(format!("{} {}", plan.recipe, plan.image).as_bytes());
        let directory = self.dirs.cache.join("turns").join(name.hex());
        if create_private_dir(&directory).is_err() {
            return Some(Turn { _lock: None, waited: false });
        }
        let holder = format!("kiln with pid {}", std::process::id());
        let mut waited = false;
        let busy = |error: &FsError| {
            waited = true;
            if let FsError::Locked { holder, .. } = error {
                self.stage.talk(&plan.image, &format!("{holder} bakes the same: waiting for what comes out of it"));
            }
        };
        let cancel = self.interruption.token();
        match Lock::wait(&directory, &holder, &SystemClock::new(), PATIENCE, cancel, busy).await {
            Ok(lock) => Some(Turn { _lock: Some(lock), waited }),
            Err(GaveUp::Cancelled) => None,
            Err(GaveUp::Deadline(_) | GaveUp::Stopped(_)) => Some(Turn { _lock: None, waited }),
        }
    }
}
