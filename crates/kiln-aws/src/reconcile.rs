//! What a dead kiln left in an account: everything with the mark of an intent in its ledger that no catalog knows.

use std::{
    collections::BTreeSet,
    sync::{Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use kiln_io::{
    dirs::Dirs,
    ledger::{BuildReport, Ledger, Outstanding, Remote, Resource, last_activity},
    time::{Attempt, GaveUp, Policy, poll_until},
};

use crate::{
    Access, Account, OpenCatalog, Region, builder::is_temporary, error::AwsError, intent::PROVIDER,
    publish::is_recorded,
};

/// What was released of some builds.
#[derive(Debug, Default)]
pub struct Released {
    /// `ami-..`, `snap-..`, each with its region.
    pub gone: Vec<(String, String)>,
    /// What is recorded and stays.
    pub kept: Vec<(String, String)>,
    /// Why something could not be released; its ledger still has it.
    pub failed: Vec<AwsError>,
}

/// Releases what the builds of `reports` left in AWS, each in the region where it is. What fails in one place keeps nothing from
/// being released in another. The caller has chosen builds whose kiln is dead.
pub async fn reconcile(
    dirs: &Dirs,
    reports: &[BuildReport],
    access: impl Fn() -> Access,
    open: OpenCatalog<'_>,
) -> Released {
    let mut released = Released::default();
    for report in reports {
        // Asked for once: what is released is written down, too.
        let last = last_activity(dirs, &report.build);
        for entry in &report.found {
            let Resource::Remote(remote) = &entry.resource else { continue };
            if remote.provider != PROVIDER {
                continue;
            }
            match settle((dirs, &report.build, entry), remote, last, (access(), open), &mut released).await {
                Ok(()) => {}
                // Whatever comes next would say the same.
                Err(error @ (AwsError::Stopped | AwsError::NoCredentials { .. })) => {
                    released.failed.push(error);
                    return released;
                }
                Err(error) => released.failed.push(error),
            }
        }
    }
    released
}

/// Releases what one entry of a ledger stands for.
async fn settle(
    (dirs, build, entry): (&Dirs, &str, &Outstanding),
    remote: &Remote,
    last: Option<SystemTime>,
    (access, open): (Access, OpenCatalog<'_>),
    released: &mut Released,
) -> Result<(), AwsError> {
    let account = Account::open(access, &remote.region).await?;
    if account.number != remote.account {
        return Err(AwsError::OtherAccount { expected: remote.account.clone(), found: account.number });
    }
    let region = account.region(&remote.region);
    let age = last.and_then(|last| region.caller.clock.wall().duration_since(last).ok()).unwrap_or_default();
    let sweeping = Sweeping { region: &region, remote, age, expected: &[], open };
    sweeping.release(released).await?;
    Ok(Ledger::join(dirs, build)?.release(&entry.id)?)
}

/// What carries an intent is to be deleted.
pub(crate) struct Sweeping<'a> {
    pub(crate) region: &'a Region,
    pub(crate) remote: &'a Remote,
    /// How long ago something may have been made that nobody knows of.
    pub(crate) age: Duration,
    /// What is known to be there, though it may not be seen yet.
    pub(crate) expected: &'a [String],
    pub(crate) open: OpenCatalog<'a>,
}

/// What a sweep came upon.
#[derive(Debug, Default)]
pub(crate) struct Swept {
    gone: BTreeSet<String>,
    kept: BTreeSet<String>,
    /// Listed, and not there when it was to be deleted: gone by then, or not to be seen for a moment.
    unsure: BTreeSet<String>,
}

impl Swept {
    /// Notes what was listed, and whether its deletion was acknowledged.
    pub(crate) fn note(&mut self, id: String, gone: bool) {
        if gone {
            self.unsure.remove(&id);
            self.gone.insert(id);
        } else if !self.gone.contains(&id) {
            self.unsure.insert(id);
        }
    }

    fn add(&mut self, other: Self) {
        other.gone.into_iter().for_each(|id| self.note(id, true));
        other.unsure.into_iter().for_each(|id| self.note(id, false));
        self.kept.extend(other.kept);
    }
}

impl Sweeping<'_> {
    /// Deletes what can be seen, again and again until nothing more can come to light.
    pub(crate) async fn release(&self, released: &mut Released) -> Result<(), AwsError> {
        let caller = &self.region.caller;
        let visible = caller.patience.visible;
        let least = visible.saturating_sub(self.age);
        let policy = Policy { deadline: visible, ..caller.patience.progress };
        let began = caller.clock.monotonic();
        let all = Mutex::new(Swept::default());
        let attempt = || async {
            match self.sweep().await {
                Ok(swept) => {
                    let mut all = all.lock().unwrap_or_else(PoisonError::into_inner);
                    all.add(swept);
                    let late = caller.clock.monotonic().saturating_sub(began) >= least;
                    let known = self.expected.iter().all(|expected| all.gone.contains(expected));
                    if late && known && all.unsure.is_empty() { Attempt::Done(()) } else { Attempt::Again(None) }
                }
                // What uses it came to light only now, and the next sweep takes that first.
                Err(error) if error.is_in_use() => Attempt::Again(Some(error)),
                Err(error) => Attempt::Stop(Some(error)),
            }
        };
        let mut swept = poll_until(caller.clock.as_ref(), policy, &caller.cancel, attempt).await;
        if matches!(swept, Err(GaveUp::Deadline(Some(_)))) {
            // Waiting for it to be free took all of the time.
            let once = Policy { deadline: Duration::ZERO, ..policy };
            swept = poll_until(caller.clock.as_ref(), once, &caller.cancel, attempt).await;
        }
        let all = all.into_inner().unwrap_or_else(PoisonError::into_inner);
        let here = |id| (id, self.region.name.clone());
        released.gone.extend(all.gone.into_iter().chain(all.unsure).map(here));
        released.kept.extend(all.kept.into_iter().map(here));
        match swept {
            Err(GaveUp::Cancelled) => Err(AwsError::Stopped),
            Err(GaveUp::Stopped(Some(error)) | GaveUp::Deadline(Some(error))) => Err(error),
            _ => Ok(()),
        }
    }

    /// Deletes what can be seen now: AMIs first, then the snapshots under them. What is recorded stays.
    async fn sweep(&self) -> Result<Swept, AwsError> {
        let Self { region, remote, .. } = self;
        if is_temporary(remote) {
            return region.dismantle(&remote.intent).await;
        }
        let recorded = |id: &str| is_recorded(self.open, &remote.catalog, &remote.subject, id);
        let mut swept = Swept::default();
        for image in region.images_of(&remote.intent).await? {
            if recorded(&image.ami)? {
                swept.kept.insert(image.ami);
            } else {
                let gone = region.deregister(&image.ami).await?;
                swept.note(image.ami, gone);
            }
        }
        for snapshot in region.snapshots_of(&remote.intent).await? {
            let Some(id) = snapshot.snapshot_id else { continue };
            if recorded(&id)? {
                swept.kept.insert(id);
            } else {
                let gone = region.delete_snapshot(&id).await?;
                swept.note(id, gone);
            }
        }
        Ok(swept)
    }
}
