//! Where a baked image goes: into the registry, into a directory, or both.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use async_trait::async_trait;
use kiln_build::bake::{Previous, PublishedDisk};
use kiln_core::{
    ByteSize, Version,
    artifact::Artifact,
    event::{Event, Events as _, Phase, Unit},
    plan::{Base, Plan, Qcow2Source},
};
use kiln_disk::seal::StoredFrames;
use kiln_io::{fs::Unnamed, guest::Progress};
use kiln_registry::{Publication, Published, Record, Reference, Registry, Selector};

use tokio_util::sync::CancellationToken;

use super::{Session, server::FromServer};
use crate::{
    calendar::Moment,
    failure::Failure,
    render::Broadcast,
    surroundings::{self, Place},
};

/// The record beside the files of an image that was put into a directory.
const RECORD: &str = "artifact.json";

/// Where an image went.
pub(super) struct Placed {
    /// What there is to say about it.
    pub(super) said: Vec<String>,
    /// As it is in the registry.
    pub(super) published: Option<Artifact>,
}

impl Session {
    /// Publishes and copies as asked; what there is to say afterwards.
    pub(super) async fn place(
        &self,
        plan: &Plan,
        artifact: &Artifact,
        directory: &Path,
        events: &Arc<Broadcast>,
    ) -> Result<Placed, Failure> {
        let mut said = Vec::new();
        let mut artifact = artifact.clone();
        let mut in_registry = false;
        if let Some(registry) = self.registry.as_ref().filter(|_| plan.publish.registry) {
            let published = self.publish(registry, plan, &artifact, directory, events).await?;
            artifact = published.artifact.clone();
            in_registry = true;
            said.extend(told(registry, &published)?);
        }
        if let Some(output) = &self.arguments.output {
            let to = copy(&artifact, directory, output)?;
            said.push(format!("files are in {}", to.display()));
        }
        if said.is_empty() {
            said.push("not published and not kept: `--output DIRECTORY` keeps the files".to_owned());
        }
        Ok(Placed { said, published: in_registry.then_some(artifact) })
    }

    async fn publish(
        &self,
        registry: &Place,
        plan: &Plan,
        artifact: &Artifact,
        directory: &Path,
        events: &Arc<Broadcast>,
    ) -> Result<Published, Failure> {
        let began = events.elapsed();
        let detail = registry.name();
        events.emit(Event::PhaseStarted { phase: Phase::Publish, detail: detail.clone() });
        let now = surroundings::now();
        let publication = Publication {
            version: plan.version.clone(),
            date: Moment::of(now).date(),
            now: now.duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs()),
            by: surroundings::who(),
            allow_revoked: self.arguments.allow_revoked,
        };
        let total = artifact.files.iter().map(|file| file.bytes).sum();
        let sealed = Sealed {
            artifact: artifact.clone(),
            directory: directory.to_owned(),
            publication,
            progress: Arc::new(Publishing { events: events.clone(), total }),
        };
        let published = match registry {
            Place::Here(registry) => sealed.publish(registry).await?,
            Place::There(remote) => self.publish_there(remote, sealed).await?,
        };
        let took = events.elapsed().saturating_sub(began);
        events.emit(Event::PhaseFinished {
            phase: Phase::Publish,
            milliseconds: u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
            detail,
        });
        events.emit(Event::Published {
            image: published.artifact.image.clone(),
            version: published.artifact.version.clone(),
            disk: published.artifact.disk.digest,
            registry: registry.name(),
            already: published.already,
        });
        Ok(published)
    }
}

/// A sealed image, and how it is to be published.
#[derive(Clone)]
pub(super) struct Sealed {
    pub(super) artifact: Artifact,
    /// Where its files are.
    pub(super) directory: PathBuf,
    pub(super) publication: Publication,
    progress: Arc<Publishing>,
}

impl Sealed {
    pub(super) async fn publish(&self, registry: &Registry) -> Result<Published, Failure> {
        let (sealed, registry) = (self.clone(), registry.clone());
        let Self { artifact, directory, publication, progress } = sealed;
        let work = move || registry.publish(&artifact, &directory, &publication, &*progress);
        Ok(tokio::task::spawn_blocking(work).await.map_err(|_| Failure::new("publishing was ended"))??)
    }
}

/// What there is to say about a published version.
fn told(place: &Place, published: &Published) -> Result<Vec<String>, Failure> {
    let (artifact, new) = (&published.artifact, ByteSize(published.new_bytes).approximate());
    let name = format!("{} {}", artifact.image, artifact.version);
    let (is, signer, from) = match place {
        Place::Here(registry) => {
            let signer = registry.signer().map(|key| key.public().id());
            (format!("{name} is in {}, {new} of it new", place.name()), signer, String::new())
        }
        Place::There(remote) => {
            let signer = surroundings::keys()?.signer()?.map(|key| key.public().id());
            let from = format!(" --registry {}", remote.url());
            (format!("{name} is on {}, {new} were sent", place.name()), signer, from)
        }
    };
    let signed = signer.map_or_else(
        || "not signed: there is no key; `kiln key init` makes one".to_owned(),
        |key| format!("signed with the key {}", key.short()),
    );
    let export = format!("  kiln export {}@{}{from} --to {0}.qcow2", artifact.image, artifact.version);
    Ok(vec![is, signed, export])
}

/// A version of the registry, and how its raw disk is had.
#[derive(Debug)]
pub(super) struct FromRegistry {
    pub(super) registry: Registry,
    pub(super) record: Record,
    pub(super) cancel: CancellationToken,
}

#[async_trait]
impl PublishedDisk for FromRegistry {
    async fn lay_down(&self, to: &Path) -> Result<(), String> {
        let (registry, record) = (self.registry.clone(), self.record.clone());
        let (cancel, to) = (self.cancel.clone(), to.to_owned());
        let work = move || registry.lay_out(&record, &to, &|_| !cancel.is_cancelled());
        match tokio::task::spawn_blocking(work).await {
            Ok(written) => written.map_err(|error| error.to_string()),
            Err(ended) => Err(ended.to_string()),
        }
    }

    fn frames(&self) -> Option<Box<dyn StoredFrames>> {
        let frames = self.registry.frames(&self.record).ok().flatten()?;
        Some(Box::new(frames))
    }
}

impl Session {
    /// The newest version of the image that may be used, on whose disk the next one is placed.
    pub(super) fn previous(&self, plan: &Plan, cancel: &CancellationToken) -> Option<Previous> {
        let place = self.registry.as_ref().filter(|_| plan.publish.registry)?;
        let newest = Selector { image: plan.image.clone(), reference: Reference::Newest };
        let registry = place.reading(&plan.image).ok()?;
        let record = registry.usable(&newest, surroundings::seconds(), false).ok()?;
        let (artifact, cancel) = (record.artifact.clone(), cancel.clone());
        let disk: Arc<dyn PublishedDisk> = match place {
            Place::Here(_) => Arc::new(FromRegistry { registry, record, cancel }),
            Place::There(remote) => Arc::new(FromServer::new(remote.clone(), record, cancel)),
        };
        Some(Previous { artifact, disk })
    }

    /// Says that a published version stands for what was baked.
    pub(super) fn stands(
        &self,
        plan: &Plan,
        version: &Version,
        events: &Arc<Broadcast>,
    ) -> Result<Option<Placed>, Failure> {
        let Some(place) = &self.registry else { return Ok(None) };
        let selector = Selector { image: plan.image.clone(), reference: Reference::Named(version.clone()) };
        let artifact = place.reading(&plan.image)?.artifact(&selector)?;
        events.emit(Event::Published {
            image: artifact.image.clone(),
            version: artifact.version.clone(),
            disk: artifact.disk.digest,
            registry: place.name(),
            already: true,
        });
        Ok(Some(Placed { said: Vec::new(), published: Some(artifact) }))
    }
}

struct Publishing {
    events: Arc<Broadcast>,
    total: u64,
}

impl Progress for Publishing {
    fn at(&self, done: u64) {
        self.events.emit(Event::Progress { phase: Phase::Publish, done, total: self.total, unit: Unit::Bytes });
    }
}

/// Refuses a base that is a revoked version of the registry, before anything slow begins.
pub(super) fn check_base(place: &Place, plan: &Plan) -> Result<(), Failure> {
    let Base::Qcow2(base) = &plan.base else { return Ok(()) };
    let registry = place.reading(&plan.image)?;
    let (Qcow2Source::File { digest, .. } | Qcow2Source::Url { digest, .. }) = &base.source;
    if let Some(version) = registry.with_qcow2(digest)? {
        registry.refuse_revoked(&version, surroundings::seconds())?;
    }
    Ok(())
}

/// Refuses a place that cannot hold a directory, before anything slow begins.
pub(super) fn check(output: &Path) -> Result<(), Failure> {
    if output.exists() && !output.is_dir() {
        return Err(Failure::usage(format!("`{}` is not a directory", output.display())));
    }
    fs::create_dir_all(output).map_err(|error| kiln_io::fs::failed("make", output, 0)(error).into())
}

/// `<output>/<image>-<version>/`, complete or absent; an earlier one of the same name is replaced. The files get their names
/// when all of them are written: a build that is killed on the way leaves none.
fn copy(artifact: &Artifact, from: &Path, output: &Path) -> Result<PathBuf, Failure> {
    let to = output.join(format!("{}-{}", artifact.image, artifact.version));
    let failed = |error| Failure::from(kiln_io::fs::failed("put the files at", &to, 0)(error));
    let mut written = Vec::new();
    for file in &artifact.files {
        let (unnamed, target) = (Unnamed::beside(&to).map_err(failed)?, to.join(&file.name));
        // A copy, not a second name: whoever works with it here must not be able to change what is published.
        let copied =
            fs::File::open(from.join(&file.name)).and_then(|mut file| io::copy(&mut file, &mut unnamed.file()));
        copied.map_err(kiln_io::fs::failed("write", &target, file.bytes))?;
        written.push((unnamed, &file.name));
    }
    let record = serde_json::to_vec_pretty(artifact).map_err(|error| Failure::of(&error))?;
    let part = output.join(format!(".{}.part", &kiln_io::random::nonce()[..8]));
    let placed = (|| {
        fs::create_dir(&part)?;
        written.into_iter().try_for_each(|(file, name)| file.place(&part.join(name)))?;
        fs::write(part.join(RECORD), record)?;
        if to.exists() {
            fs::remove_dir_all(&to)?;
        }
        fs::rename(&part, &to)
    })();
    placed.map_err(|error| {
        let _ = fs::remove_dir_all(&part);
        failed(error)
    })?;
    Ok(to)
}
