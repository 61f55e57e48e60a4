//! Baking here and publishing on a server: only what it lacks is sent.

use std::{path::Path, sync::OnceLock};

use async_trait::async_trait;
use kiln_build::bake::PublishedDisk;
use kiln_core::plan::{Plan, VersionSpec};
use kiln_disk::seal::StoredFrames;
use kiln_registry::{Publication, Published, Record, Reference, Registry, Selector};
use kiln_serve::{
    ServeError,
    client::{Allowed, Pushed, Remote},
};
use tokio_util::sync::CancellationToken;

use super::{
    Session,
    place::{FromRegistry, Sealed},
};
use crate::{
    failure::Failure,
    surroundings::{self, Place},
};

/// Where a version is put together before it is sent, beside the files of the artifact. It goes away with the build.
const STAGED: &str = "staged";
/// So many publishers may be quicker in taking the next version of the day.
const OVERTAKEN: usize = 20;

impl Session {
    /// Refuses, before anything slow begins, to bake what the server would not take.
    pub(super) async fn may_publish(&self, plan: &Plan) -> Result<(), Failure> {
        match self.registry.as_ref().filter(|_| plan.publish.registry) {
            Some(Place::There(remote)) => Ok(remote.may_publish(&plan.image).await?),
            _ => Ok(()),
        }
    }

    /// The version is made and signed here, where it was baked: a server signs nothing that it has not seen.
    pub(super) async fn publish_there(&self, remote: &Remote, mut sealed: Sealed) -> Result<Published, Failure> {
        let remote = remote.until(self.interruption.token().clone());
        let staging = surroundings::open(&sealed.directory.join(STAGED))?;
        let (wanted, mut overtaken) = (sealed.publication.version.clone(), 0);
        loop {
            if wanted == VersionSpec::Auto {
                let (image, date) = (&sealed.artifact.image, &sealed.publication.date);
                sealed.publication.version = VersionSpec::Fixed(remote.registry(image)?.next_version(image, date)?);
            }
            let artifact = sealed.publish(&staging).await?.artifact;
            let reference = Reference::Named(artifact.version.clone());
            let record = staging.record(&Selector { image: artifact.image.clone(), reference })?;
            match push(&remote, &record, &staging, &sealed.publication.by).await? {
                Ok(pushed) => {
                    let (artifact, already, new_bytes) = (pushed.artifact, pushed.already, pushed.sent);
                    return Ok(Published { artifact, already, new_bytes });
                }
                Err(ServeError::Refused { kind, .. })
                    if kind == "version-exists" && wanted == VersionSpec::Auto && overtaken < OVERTAKEN =>
                {
                    overtaken += 1;
                }
                Err(error @ ServeError::Request { .. }) => {
                    return Err(kept(&remote, error, staging, record, sealed.publication).await);
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// Pushes on a thread of its own: it has a runtime there, and the bakes that run beside it keep theirs.
async fn push(
    remote: &Remote,
    record: &Record,
    from: &Registry,
    by: &str,
) -> Result<Result<Pushed, ServeError>, Failure> {
    let (remote, record, from, by) = (remote.clone(), record.clone(), from.clone(), by.to_owned());
    let pushing = tokio::task::spawn_blocking(move || surroundings::answer(remote.push(&record, &from, &by)));
    pushing.await.map_err(|_| Failure::new("publishing was ended"))?
}

/// The server went away behind the bake: the version is kept here, so that nothing is baked again for it.
async fn kept(
    remote: &Remote,
    error: ServeError,
    staging: Registry,
    record: Record,
    publication: Publication,
) -> Failure {
    let name = format!("{}@{}", record.artifact.image, record.artifact.version);
    let failure = Failure::from(error);
    let Ok(own) = surroundings::own_registry() else { return failure };
    let copying = move || own.copy(&staging, &record, &publication, false, &|_| true);
    match tokio::task::spawn_blocking(copying).await {
        Ok(Ok(_)) => failure.hint(format!(
            "the version is in the registry of this user: `kiln push {name} --registry {}` sends it",
            remote.url()
        )),
        _ => failure,
    }
}

/// A version of a server. Its disk comes by way of the user's own registry, where most of it may be from the last time.
#[derive(Debug)]
pub(super) struct FromServer {
    remote: Remote,
    record: Record,
    cancel: CancellationToken,
    /// What was pulled of it.
    pulled: OnceLock<FromRegistry>,
}

impl FromServer {
    pub(super) fn new(remote: Remote, record: Record, cancel: CancellationToken) -> Self {
        Self { remote, record, cancel, pulled: OnceLock::new() }
    }
}

#[async_trait]
impl PublishedDisk for FromServer {
    async fn lay_down(&self, to: &Path) -> Result<(), String> {
        let own = surroundings::own_registry().map_err(|failure| failure.on_one_line())?;
        let artifact = &self.record.artifact;
        let reference = Reference::Named(artifact.version.clone());
        let named = Selector { image: artifact.image.clone(), reference };
        let by = format!("{} from {}", surroundings::who(), self.remote.url());
        // It is only built upon, not believed: the new disk is proven by itself.
        let allowed = Allowed { unproven: true, ..Allowed::default() };
        let remote = self.remote.until(self.cancel.clone());
        let into = own.clone();
        let pulling = move || surroundings::wait(remote.pull(&named, allowed, &into, &by));
        let pulled = tokio::task::spawn_blocking(pulling).await.map_err(|ended| ended.to_string())?;
        let pulled = pulled.map_err(|failure| failure.on_one_line())?;
        let here = FromRegistry { registry: own, record: pulled.record, cancel: self.cancel.clone() };
        self.pulled.get_or_init(|| here).lay_down(to).await
    }

    fn frames(&self) -> Option<Box<dyn StoredFrames>> {
        self.pulled.get()?.frames()
    }
}
