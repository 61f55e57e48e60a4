//! What a dead kiln left in an account: everything with the mark of an intent in its ledger that no catalog knows.

use std::{fs, time::Duration};

use kiln_io::{
    dirs::Dirs,
    ledger::{self, BuildReport, Ledger, Outstanding, Remote, Resource},
    time::{Attempt, Policy, poll_until},
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
        for entry in &report.found {
            let Resource::Remote(remote) = &entry.resource else { continue };
            if remote.provider != PROVIDER {
                continue;
            }
            match settle(dirs, &report.build, entry, remote, (access(), open), &mut released).await {
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
    dirs: &Dirs,
    build: &str,
    entry: &Outstanding,
    remote: &Remote,
    (access, open): (Access, OpenCatalog<'_>),
    released: &mut Released,
) -> Result<(), AwsError> {
    let account = Account::open(access, &remote.region).await?;
    if account.number != remote.account {
        return Err(AwsError::OtherAccount { expected: remote.account.clone(), found: account.number });
    }
    let region = account.region(&remote.region);
    let since = age(dirs, build, &region);
    release(&region, remote, since, open, released).await?;
    Ok(Ledger::join(dirs, build)?.release(&entry.id)?)
}

/// How long ago something was last written down about the build: what was made then may not be seen yet.
fn age(dirs: &Dirs, build: &str, region: &Region) -> Duration {
    let written = fs::metadata(dirs.build(build).join(ledger::FILE)).and_then(|ledger| ledger.modified());
    let now = region.caller.clock.wall();
    written.ok().and_then(|written| now.duration_since(written).ok()).unwrap_or_default()
}

/// Deletes what carries the intent, until nothing more can come to light.
pub(crate) async fn release(
    region: &Region,
    remote: &Remote,
    age: Duration,
    open: OpenCatalog<'_>,
    released: &mut Released,
) -> Result<(), AwsError> {
    let caller = &region.caller;
    let policy = Policy { deadline: caller.patience.visible.saturating_sub(age), ..caller.patience.progress };
    let found = std::sync::Mutex::new(Vec::new());
    let attempt = || async {
        match sweep(region, remote, open).await {
            Ok(swept) => {
                let mut found = found.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                found.extend(swept);
                Attempt::<(), _>::Again(None)
            }
            Err(error) => Attempt::Stop(Some(error)),
        }
    };
    let swept = poll_until(caller.clock.as_ref(), policy, &caller.cancel, attempt).await;
    for (id, gone) in found.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner) {
        let list = if gone { &mut released.gone } else { &mut released.kept };
        let entry = (id, region.name.clone());
        if !list.contains(&entry) {
            list.push(entry);
        }
    }
    match swept {
        Err(kiln_io::time::GaveUp::Cancelled) => Err(AwsError::Stopped),
        Err(kiln_io::time::GaveUp::Stopped(Some(error))) => Err(error),
        _ => Ok(()),
    }
}

/// Deletes what can be seen now: AMIs first, then the snapshots under them. What is recorded stays.
async fn sweep(region: &Region, remote: &Remote, open: OpenCatalog<'_>) -> Result<Vec<(String, bool)>, AwsError> {
    if is_temporary(remote) {
        return Ok(region.dismantle(&remote.intent).await?.into_iter().map(|id| (id, true)).collect());
    }
    let recorded = |id: &str| is_recorded(open, &remote.catalog, &remote.subject, id);
    let mut found = Vec::new();
    for image in region.images_of(&remote.intent).await? {
        let kept = recorded(&image.ami)?;
        if !kept {
            region.deregister(&image.ami).await?;
        }
        found.push((image.ami, !kept));
    }
    for snapshot in region.snapshots_of(&remote.intent).await? {
        let Some(id) = snapshot.snapshot_id else { continue };
        let kept = recorded(&id)?;
        if !kept {
            region.delete_snapshot(&id).await?;
        }
        found.push((id, !kept));
    }
    Ok(found)
}
