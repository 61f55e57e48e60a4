//! What dead builds left in the accounts of providers.

#[cfg(feature = "aws")]
use std::path::Path;

#[cfg(feature = "aws")]
use kiln_core::ImageName;
use kiln_io::{
    dirs::Dirs,
    ledger::{self, BuildReport, Choice, Condition, Resource},
};

use crate::failure::Failure;

/// Releases it, where a kiln that knows the provider can.
pub(super) async fn release(dirs: &Dirs, choice: &Choice) -> Result<(), Failure> {
    let mut reports = ledger::survey(dirs).map_err(|error| Failure::of(&error))?;
    reports.retain(|report| {
        let wanted = choice.build.as_ref().is_none_or(|build| *build == report.build);
        let over = report.condition == Condition::Interrupted || (choice.kept && report.condition == Condition::Kept);
        wanted && over && report.found.iter().any(|entry| matches!(entry.resource, Resource::Remote(_)))
    });
    if reports.is_empty() { Ok(()) } else { reconcile(dirs, &reports).await }
}

#[cfg(feature = "aws")]
async fn reconcile(dirs: &Dirs, reports: &[BuildReport]) -> Result<(), Failure> {
    use crate::{output, surroundings, verbs::publish};

    let cancel = tokio_util::sync::CancellationToken::new();
    let open =
        |catalog: &Path, image: &ImageName| surroundings::read(catalog, image).map_err(|error| error.on_one_line());
    let released = kiln_aws::reconcile(dirs, reports, || publish::ami::access(&cancel), &open).await;
    for (id, region) in released.gone {
        output::talk(&format!("released {id} in {region}"));
    }
    for (id, region) in released.kept {
        output::talk(&format!("{id} in {region} is published and stays"));
    }
    let mut failures: Vec<Failure> = released.failed.into_iter().map(Failure::from).collect();
    let last = failures.pop();
    failures.iter().for_each(output::complain);
    last.map_or(Ok(()), Err)
}

/// Nothing of it is forgotten: the ledgers keep it, and it is named again below.
#[cfg(not(feature = "aws"))]
#[expect(clippy::unused_async, reason = "with the feature `aws` it waits")]
async fn reconcile(_: &Dirs, _: &[BuildReport]) -> Result<(), Failure> {
    crate::output::talk("this kiln was built without the cargo feature `aws` and cannot release what is there");
    Ok(())
}
