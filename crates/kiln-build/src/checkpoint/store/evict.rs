//! Making room: the checkpoints used longest ago go first, never one that is in use or that another stands on.

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    time::{Duration, SystemTime},
};

use kiln_io::fs::{Lock, free_space, is_open_elsewhere};

use super::{DAMAGED, Store};
use crate::checkpoint::{Checkpoint, DISK, RECORD};

/// Checkpoints are only ever worth time; more than this is better spent on something else.
const MOST: u64 = 20 << 30;
/// A checkpoint that a killed kiln did not complete, and that no ledger knows, is swept after this.
const ABANDONED: Duration = Duration::from_hours(1);
/// A damaged one is kept this long for a look.
const KEPT_ASIDE: Duration = Duration::from_hours(7 * 24);

/// How much checkpoints may take in all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget(pub u64);

/// What was removed to keep a budget.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pruned {
    pub removed: usize,
    pub bytes: u64,
    /// Those that would have gone but are in use.
    pub in_use: usize,
}

impl Store {
    /// Removes the least recently used until the budget holds. What is in use stays, and what others stand on.
    pub fn prune(&self, budget: Budget, now: SystemTime) -> Pruned {
        self.evict(now, |total, _| total > budget.0)
    }

    /// Removes what was not used for `age`.
    pub fn prune_older(&self, age: Duration, now: SystemTime) -> Pruned {
        self.evict(now, |_, used| now.duration_since(used).unwrap_or_default() >= age)
    }

    /// Removes the least recently used as long as `too_much` says so of what there is and when that was used.
    fn evict(&self, now: SystemTime, too_much: impl Fn(u64, SystemTime) -> bool) -> Pruned {
        self.sweep(now);
        let mut pruned = Pruned::default();
        let mut all = self.list();
        let mut busy = BTreeSet::new();
        loop {
            let total: u64 = all.iter().map(Checkpoint::bytes).sum();
            let stood_on: BTreeSet<&String> = all
                .iter()
                .flat_map(|checkpoint| checkpoint.record.layers.iter().filter(|id| **id != checkpoint.id))
                .collect();
            let free = |checkpoint: &&Checkpoint| !stood_on.contains(&checkpoint.id) && !busy.contains(&checkpoint.id);
            let oldest = all.iter().filter(free).map(|checkpoint| (last_used(checkpoint), checkpoint));
            let Some((used, oldest)) = oldest.min_by_key(|(used, _)| *used) else { break };
            if !too_much(total, used) {
                break;
            }
            let oldest = oldest.clone();
            if remove(&oldest.directory) {
                pruned.removed += 1;
                pruned.bytes += oldest.bytes();
                all.retain(|checkpoint| checkpoint.id != oldest.id);
            } else {
                pruned.in_use += 1;
                busy.insert(oldest.id);
            }
        }
        pruned
    }

    /// Removes what a killed kiln left incomplete, and what was set aside long ago.
    fn sweep(&self, now: SystemTime) {
        for entry in fs::read_dir(&self.directory).into_iter().flatten().flatten() {
            let (name, path) = (entry.file_name().to_string_lossy().into_owned(), entry.path());
            let changed = entry.metadata().and_then(|metadata| metadata.modified());
            let Ok(age) = changed.map(|changed| now.duration_since(changed).unwrap_or_default()) else { continue };
            let limit = if path.join(DAMAGED).exists() { KEPT_ASIDE } else { ABANDONED };
            if name.starts_with("c-") && !path.join(RECORD).exists() && age > limit {
                remove(&path);
            }
        }
    }

    /// The budget: `wanted`, else 20 GiB or half of what is free, whichever is less.
    pub fn budget(&self, wanted: Option<u64>) -> Budget {
        let taken: u64 = self.list().iter().map(Checkpoint::bytes).sum();
        let free = free_space(&self.directory).unwrap_or(0);
        Budget(wanted.unwrap_or_else(|| MOST.min(free.saturating_add(taken) / 2)))
    }
}

/// When a checkpoint was last taken or used.
pub fn last_used(checkpoint: &Checkpoint) -> SystemTime {
    let modified = checkpoint.directory.join(RECORD).metadata().and_then(|metadata| metadata.modified());
    modified.unwrap_or(SystemTime::UNIX_EPOCH)
}

/// Removes a directory that nobody uses; says whether it is gone.
pub(super) fn remove(directory: &Path) -> bool {
    let Ok(_alone) = Lock::take(directory, &format!("kiln with pid {}, which removes it", std::process::id())) else {
        return false;
    };
    // The machine of a build that was kept has no kiln any more.
    if is_open_elsewhere(&directory.join(DISK)) {
        return false;
    }
    let _ = fs::remove_file(directory.join(RECORD));
    fs::remove_dir_all(directory).is_ok()
}
