//! Comparisons of two versions: each reads both disks, so one is made at a time, and the last few are kept.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use kiln_core::Digest;
use kiln_registry::{Difference, Record};
use tokio::sync::Semaphore;

use crate::{problem::Problem, state::App};

/// Comparisons that are kept.
const KEPT: usize = 8;
/// Files that are kept of each; two bakes from scratch may differ in all they have.
const FILES: usize = 500;
/// For those before to be made.
const PATIENCE: Duration = Duration::from_secs(30);

/// What differs, with the files counted and only the first of them kept.
#[derive(Debug)]
pub(crate) struct Compared {
    pub(crate) difference: Difference,
    pub(crate) added: usize,
    pub(crate) removed: usize,
    pub(crate) changed: usize,
}

/// The manifests of the two versions.
type Name = (Digest, Digest);

#[derive(Debug)]
pub(crate) struct Comparisons {
    kept: Mutex<VecDeque<(Name, Arc<Compared>)>>,
    turn: Semaphore,
}

impl Default for Comparisons {
    fn default() -> Self {
        Self { kept: Mutex::default(), turn: Semaphore::new(1) }
    }
}

impl Comparisons {
    /// What differs between two versions of the registry of `app`.
    pub(crate) async fn of(app: &Arc<App>, from: &Record, to: &Record) -> Result<Arc<Compared>, Problem> {
        let this = &app.comparisons;
        let name = (from.manifest.digest, to.manifest.digest);
        if let Some(found) = this.find(&name) {
            return Ok(found);
        }
        let turn = tokio::time::timeout(PATIENCE, this.turn.acquire()).await;
        let _turn = turn.map_err(|_| Problem::busy())?.map_err(|_| Problem::busy())?;
        if let Some(found) = this.find(&name) {
            return Ok(found);
        }
        let (from, to) = (from.clone(), to.clone());
        let compared = app.on_disk(move |app| app.registry.compare(&from, &to, &|_, _| true)).await?;
        let compared = Arc::new(Compared::new(compared));
        let mut kept = this.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.truncate(KEPT - 1);
        kept.push_front((name, Arc::clone(&compared)));
        Ok(compared)
    }

    fn find(&self, name: &Name) -> Option<Arc<Compared>> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.iter().find(|(held, _)| held == name).map(|(_, compared)| Arc::clone(compared))
    }
}

impl Compared {
    fn new(mut difference: Difference) -> Self {
        let count = |came: bool, went: bool| {
            difference.files.iter().filter(|file| (file.from.is_none(), file.to.is_none()) == (came, went)).count()
        };
        let (added, removed, changed) = (count(true, false), count(false, true), count(false, false));
        difference.files.truncate(FILES);
        difference.files.shrink_to_fit();
        Self { difference, added, removed, changed }
    }
}
