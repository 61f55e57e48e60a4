//! Where a baked image goes: into the registry, into a directory, or both.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use async_trait::async_trait;
use kiln_build::bake::{Previous, PublishedDisk};
use kiln_core::{
    ByteSize, ImageName, Version,
    artifact::Artifact,
    event::{Event, Events as _, Phase, Unit},
    plan::{Base, Plan, Qcow2Source, VersionSpec},
};
use kiln_disk::seal::StoredFrames;
use kiln_io::{
    fs::{Unnamed, write_atomic},
    guest::Progress,
};
use kiln_registry::{Publication, Published, Record, Reference, Registry, Selector};

use rustix::{
    fs::{CWD, RenameFlags, renameat_with},
    io::Errno,
};
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
        // Nothing is published that could not be put where it was asked for, as far as its name is known by now.
        if let (Some(output), VersionSpec::Fixed(_)) = (&self.arguments.output, &plan.version) {
            refuse_another(&directory_of(&artifact, output), &artifact.image, &artifact.version)?;
        }
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
    let to = directory_of(artifact, output);
    refuse_another(&to, &artifact.image, &artifact.version)?;
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
        fs::create_dir(&part).map_err(failed)?;
        written.into_iter().try_for_each(|(file, name)| file.place(&part.join(name))).map_err(failed)?;
        write_atomic(&part.join(RECORD), &record, 0o644)?;
        // Copying took a while.
        refuse_another(&to, &artifact.image, &artifact.version)?;
        replace(&part, &to).map_err(failed)
    })();
    let earlier = placed.inspect_err(|_| {
        let _ = fs::remove_dir_all(&part);
    })?;
    fs::File::open(output).and_then(|output| output.sync_all()).map_err(kiln_io::fs::failed("sync", output, 0))?;
    if let Some(earlier) = earlier {
        fs::remove_dir_all(&earlier).map_err(kiln_io::fs::failed("remove the earlier files, now at", &earlier, 0))?;
    }
    Ok(to)
}

fn directory_of(artifact: &Artifact, output: &Path) -> PathBuf {
    output.join(format!("{}-{}", artifact.image, artifact.version))
}

/// Refuses what is at `to` unless it is an earlier copy of this version: it would be removed.
fn refuse_another(to: &Path, image: &ImageName, version: &Version) -> Result<(), Failure> {
    if to.symlink_metadata().is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
        return Ok(());
    }
    let record = fs::read(to.join(RECORD)).ok();
    let record = record.and_then(|json| serde_json::from_slice::<serde_json::Value>(&json).ok()).unwrap_or_default();
    if record["image"] == image.as_str() && record["version"] == version.as_str() {
        return Ok(());
    }
    let message = format!("cannot put the files at `{}`: something else is there", to.display());
    let cause = format!("it has no `{RECORD}` of {image} {version}, so it is not kiln's to replace");
    Err(Failure::new(message).because(cause).hint("move it away, or name another directory with `--output`"))
}

/// Gives `part` the name `to`; where what had it before is now. At no moment is one of them without a name.
fn replace(part: &Path, to: &Path) -> io::Result<Option<PathBuf>> {
    match renameat_with(CWD, part, CWD, to, RenameFlags::EXCHANGE) {
        Ok(()) => Ok(Some(part.to_owned())),
        Err(Errno::NOENT) => fs::rename(part, to).map(|()| None),
        // NFS and some others know no exchange.
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => replace_in_two(part, to),
        Err(error) => Err(error.into()),
    }
}

/// The same in two renames. Whoever ends kiln between them finds the earlier one beside the new one.
fn replace_in_two(part: &Path, to: &Path) -> io::Result<Option<PathBuf>> {
    let earlier = part.with_extension("earlier");
    match fs::rename(to, &earlier) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return fs::rename(part, to).map(|()| None),
        Err(error) => return Err(error),
    }
    fs::rename(part, to).inspect_err(|_| {
        let _ = fs::rename(&earlier, to);
    })?;
    Ok(Some(earlier))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch() -> PathBuf {
        let directory = std::env::temp_dir().join(format!("kiln-place-{}", &kiln_io::random::nonce()[..8]));
        fs::create_dir(&directory).unwrap();
        directory
    }

    fn directory(path: PathBuf, text: &str) -> PathBuf {
        fs::create_dir(&path).unwrap();
        fs::write(path.join(RECORD), text).unwrap();
        path
    }

    #[test]
    fn an_earlier_copy_is_replaced_and_kept_until_the_new_one_has_its_name() {
        for replace in [replace, replace_in_two] {
            let scratch = scratch();
            let to = scratch.join("web-1");
            assert_eq!(replace(&directory(scratch.join(".a.part"), "first"), &to).unwrap(), None);
            let earlier = replace(&directory(scratch.join(".b.part"), "second"), &to).unwrap().unwrap();
            assert_eq!(fs::read_to_string(to.join(RECORD)).unwrap(), "second");
            assert_eq!(fs::read_to_string(earlier.join(RECORD)).unwrap(), "first");
            assert!(replace(&scratch.join("none"), &to).is_err());
            assert_eq!(fs::read_to_string(to.join(RECORD)).unwrap(), "second");
            fs::remove_dir_all(scratch).unwrap();
        }
    }

    #[test]
    fn refuses_a_directory_that_kiln_did_not_put_there() {
        let (scratch, image, version) = (scratch(), "web".parse().unwrap(), "1".parse().unwrap());
        let refused = |to: &Path| refuse_another(to, &image, &version);
        refused(&scratch.join("none")).unwrap();
        refused(&directory(scratch.join("ours"), r#"{"image":"web","version":"1"}"#)).unwrap();
        for (name, record) in [("mine", "x"), ("other", r#"{"image":"web","version":"2"}"#)] {
            let failure = refused(&directory(scratch.join(name), record)).unwrap_err();
            assert!(failure.message.contains(name) && failure.hint.is_some(), "{failure:?}");
        }
        refused(&scratch).unwrap_err();
        fs::remove_dir_all(scratch).unwrap();
    }
}
