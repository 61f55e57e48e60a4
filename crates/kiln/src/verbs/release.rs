//! `kiln release`: running machines are replaced by those of a version.

#[cfg(feature = "aws")]
mod aws;
#[cfg(feature = "aws")]
mod check;
#[cfg(feature = "aws")]
mod retire;

use crate::{arguments::ReleaseVerb, failure::Outcome};

#[cfg(feature = "aws")]
pub(crate) async fn run(verb: ReleaseVerb) -> Outcome {
    match verb {
        ReleaseVerb::Point(arguments) => aws::point(arguments).await,
        ReleaseVerb::Start(arguments) => aws::start(arguments).await,
        ReleaseVerb::Status(arguments) => aws::status(arguments).await,
        ReleaseVerb::Rollback(arguments) => aws::roll_back(arguments).await,
        ReleaseVerb::Retire(arguments) => retire::run(arguments).await,
        ReleaseVerb::Check(arguments) => check::run(arguments).await,
    }
}

#[cfg(not(feature = "aws"))]
#[expect(clippy::unused_async, reason = "with the feature `aws` it waits")]
pub(crate) async fn run(_: ReleaseVerb) -> Outcome {
    Err(super::publish::without_aws())
}
