//! `kiln publish`: a version to where machines start from it.

#[cfg(feature = "aws")]
pub(crate) mod ami;
#[cfg(feature = "aws")]
pub(crate) mod job;
#[cfg(feature = "aws")]
mod resume;

use crate::{
    arguments::{PublishVerb, Resume},
    failure::Outcome,
};

#[cfg(feature = "aws")]
pub(crate) async fn run(verb: PublishVerb) -> Outcome {
    match verb {
        PublishVerb::Ami(arguments) => ami::run(arguments).await,
    }
}

#[cfg(feature = "aws")]
pub(crate) async fn resume(arguments: Resume) -> Outcome {
    resume::run(arguments).await
}

#[cfg(not(feature = "aws"))]
#[expect(clippy::unused_async, reason = "with the feature `aws` it waits")]
pub(crate) async fn resume(_: Resume) -> Outcome {
    Err(without_aws())
}

#[cfg(not(feature = "aws"))]
#[expect(clippy::unused_async, reason = "with the feature `aws` it waits")]
pub(crate) async fn run(_: PublishVerb) -> Outcome {
    Err(without_aws())
}

/// What a kiln says that was built without the AWS SDK.
#[cfg(not(feature = "aws"))]
pub(crate) fn without_aws() -> crate::failure::Failure {
    crate::failure::Failure::new("this kiln was built without the cargo feature `aws`")
        .hint("`cargo build --release --features aws`; it takes some minutes more")
}
