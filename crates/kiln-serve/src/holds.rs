//! Versions that are being downloaded: retention leaves them alone until their clients have gone.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use kiln_core::{ImageName, Version};
use kiln_registry::{Lease, Record, Reference, RegistryError, Selector};

use crate::{problem::Problem, state::App};

/// A client that fetches a version piece by piece comes back within this.
const COMES_BACK: Duration = Duration::from_mins(10);

#[derive(Debug)]
struct Held {
    lease: Arc<Lease>,
    /// On the clock of the server.
    until: Duration,
}

/// What is held for whom.
#[derive(Debug, Default)]
pub(crate) struct Holds(Mutex<BTreeMap<(ImageName, Version), Held>>);

impl App {
    /// Holds a version for a client that has begun with it; longer than [`COMES_BACK`] as long as what is returned lives.
    pub(crate) async fn hold(self: &Arc<Self>, record: &Record) -> Result<Option<Arc<Lease>>, Problem> {
        let name = (record.artifact.image.clone(), record.artifact.version.clone());
        if let Some(lease) = self.still_held(&name) {
            return Ok(Some(lease));
        }
        let record = record.clone();
        let lease = match self.hold_on_disk(record).await? {
            Some(lease) => Arc::new(lease),
            None => return Ok(None),
        };
        let until = self.clock.monotonic() + COMES_BACK;
        let mut holds = self.holds.0.lock().unwrap_or_else(PoisonError::into_inner);
        if holds.insert(name.clone(), Held { lease: Arc::clone(&lease), until }).is_none() {
            tokio::spawn(let_go(Arc::clone(self), name));
        }
        Ok(Some(lease))
    }

    /// The same for a client that comes back for more of it.
    pub(crate) async fn hold_named(self: &Arc<Self>, image: &ImageName, version: &Version) -> Result<(), Problem> {
        if self.still_held(&(image.clone(), version.clone())).is_some() {
            return Ok(());
        }
        let selector = Selector { image: image.clone(), reference: Reference::Named(version.clone()) };
        let record = self.on_disk(move |app| app.registry.record(&selector)).await?;
        self.hold(&record).await.map(drop)
    }

    async fn hold_on_disk(self: &Arc<Self>, record: Record) -> Result<Option<Lease>, Problem> {
        self.on_disk(move |app| match app.registry.hold(&record) {
            // Where no lock can be taken, a download is as it was without.
            Err(RegistryError::Io { .. }) => Ok(None),
            held => held,
        })
        .await
    }

    fn still_held(&self, name: &(ImageName, Version)) -> Option<Arc<Lease>> {
        let mut holds = self.holds.0.lock().unwrap_or_else(PoisonError::into_inner);
        let held = holds.get_mut(name)?;
        held.until = self.clock.monotonic() + COMES_BACK;
        Some(Arc::clone(&held.lease))
    }
}

/// Lets a version go when nobody has asked for it for a while.
async fn let_go(app: Arc<App>, name: (ImageName, Version)) {
    loop {
        let left = {
            let mut holds = app.holds.0.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(held) = holds.get(&name) else { return };
            let left = held.until.saturating_sub(app.clock.monotonic());
            if left.is_zero() {
                holds.remove(&name);
                return;
            }
            left
        };
        app.clock.sleep(left).await;
    }
}
