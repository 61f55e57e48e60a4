//! Publishing: data, then the record, then the head, each on the disk before the next is begun.

use std::path::Path;

use kiln_core::{ImageName, Version, artifact::Artifact, plan::VersionSpec};
use kiln_io::guest::Progress;

use crate::{
    Registry, RegistryError,
    head::{FORMAT, Head, Record},
    lineage::Parent,
    place::Lease,
    proof::stored::Made,
    record_key,
    store::Stored,
};

/// What the caller decides about a publish.
#[derive(Debug, Clone)]
pub struct Publication {
    /// `Auto` chooses the next `YYYY.MM.DD.N` of `date`; `Fixed` takes this version, whatever the artifact says.
    pub version: VersionSpec,
    /// `YYYY-MM-DD`.
    pub date: String,
    /// Seconds since 1970, UTC.
    pub now: u64,
    /// Who publishes: `ada@builder`.
    pub by: String,
    /// Publish also what was baked on a revoked version, and is revoked with it.
    pub allow_revoked: bool,
}

/// The outcome of a publish.
#[derive(Debug, Clone, PartialEq)]
pub struct Published {
    /// As recorded: with the version it was published under.
    pub artifact: Artifact,
    /// The same disk was there under this version before.
    pub already: bool,
    /// Bytes of the blobs that were not there before.
    pub new_bytes: u64,
}

impl Registry {
    /// Publishes `artifact`, whose files lie in `files`. When this returns, the version is on the disk and stays;
    /// whenever it is interrupted, the version is absent, or complete after the next publish of the same image.
    ///
    /// The same disk under the same version again changes nothing; another disk under the same version is refused. With
    /// `Auto`, the build that was published before (same build id, same disk) gets its version again.
    pub fn publish(
        &self,
        artifact: &Artifact,
        files: &Path,
        publication: &Publication,
        progress: &dyn Progress,
    ) -> Result<Published, RegistryError> {
        if let Some(file) = artifact.files.iter().find(|file| !is_plain(&file.name)) {
            return Err(RegistryError::FileName { name: file.name.clone() });
        }
        let date = calendar_prefix(&publication.date)?;
        // Refused before gigabytes are read, when it is already clear.
        if let VersionSpec::Fixed(version) = &publication.version
            && let Some(record) = self.read_record(&artifact.image, version)?
        {
            same_disk(&record, artifact)?;
        }
        let publishing = self.place.share()?;
        self.place.prepare(Some(&artifact.image))?;
        let parent = self.parent(&artifact.base)?;
        if let Some(parent) = parent.as_ref().filter(|_| !publication.allow_revoked) {
            self.refuse_revoked(parent, publication.now)?;
        }
        // Whether it can be read only decides how much is shared.
        let newest = self.read_head(&artifact.image).ok().and_then(|head| head.versions.first().cloned());
        let previous = newest.and_then(|listed| self.listed_record(&artifact.image, &listed).ok());
        let previous = previous.and_then(|record| self.try_content(&record).ok()?.ok());
        let stored = self.store(artifact, files, previous.as_ref(), progress)?;

        self.enter(artifact, stored, parent.as_ref(), publication, &date, &publishing)
    }

    /// The version that `Auto` would choose now. Somebody may be quicker.
    pub fn next_version(&self, image: &ImageName, date: &str) -> Result<Version, RegistryError> {
        next_calendar_version(&*self.read_head(image)?, &calendar_prefix(date)?)
    }

    /// Gives what is stored its version: the record, then the head. `publishing` keeps collection away.
    pub(crate) fn enter(
        &self,
        artifact: &Artifact,
        mut stored: Stored,
        parent: Option<&Parent>,
        publication: &Publication,
        date: &str,
        publishing: &Lease,
    ) -> Result<Published, RegistryError> {
        let observed = stored.content.is_some();
        let inventory = stored.content.take().and_then(|content| self.inventory_of(content));
        let mut new_bytes = stored.new_bytes;
        // The record once it is there, and whether it is ours.
        let mut written: Option<(Record, bool)> = None;
        self.settled(&artifact.image, || {
            let head = match &written {
                None => self.recover(&artifact.image, publication.now)?,
                Some(_) => self.finished(&artifact.image)?,
            };
            let (record, ours) = if let Some(written) = written.clone() {
                written
            } else {
                let version = version_for(artifact, publication, &head, date)?;
                let removed = head.state.retired.contains_key(&version);
                if let Some(record) = self.read_record(&artifact.image, &version)? {
                    let listed = head.versions.iter().any(|listed| listed.version == version);
                    if !listed && !removed && self.gives_way(publication) {
                        return Err(RegistryError::Raced { image: artifact.image.clone(), rev: head.rev });
                    }
                    same_disk(&record, artifact)?;
                    if removed {
                        if observed || !stored.restores(&record) {
                            return Err(RegistryError::Retired { image: artifact.image.clone(), version });
                        }
                        publishing.check()?;
                        self.relist(&artifact.image, &head, &record, &publication.by, publication.now)?;
                    }
                    return Ok(Published { artifact: record.artifact, already: true, new_bytes });
                }
                if removed {
                    return Err(RegistryError::Retired { image: artifact.image.clone(), version });
                }
                let artifact = Artifact { version, files: stored.files.clone(), ..artifact.clone() };
                let manifest = stored.manifest.clone();
                let Made { blobs, attestations } = if observed {
                    self.attest(&artifact, &manifest, inventory.as_ref())?
                } else {
                    // Nothing of it was seen here: what was said about it where it was made comes along, if it is about
                    // this version.
                    self.refuse_other_statements(&artifact, &manifest, &stored.attestations)?;
                    Made { blobs: Vec::new(), attestations: stored.attestations.clone() }
                };
                new_bytes += self.store_blobs(&blobs)?;
                let (published, parent) = (publication.now, parent.cloned());
                let record = Record { format: FORMAT, published, manifest, parent, attestations, artifact };
                publishing.check()?;
                let ours = self.create_record(&record, publication)?;
                (record, ours)
            };
            written = Some((record.clone(), ours));
            self.list(&artifact.image, &head, std::slice::from_ref(&record), &publication.by, publication.now)?;
            Ok(Published { artifact: record.artifact, already: !ours, new_bytes })
        })
    }

    /// Whether a version that somebody else took meanwhile is left to him, and the next one taken: a number that was counted means
    /// nothing to anybody yet, and where there is no lock another may count the same.
    fn gives_way(&self, publication: &Publication) -> bool {
        publication.version == VersionSpec::Auto && self.place.attempts() > 1
    }

    /// Writes the record of a version that has none; false when somebody else wrote one of the same disk.
    fn create_record(&self, record: &Record, publication: &Publication) -> Result<bool, RegistryError> {
        let Artifact { image, version, .. } = &record.artifact;
        if self.place.create(&record_key(image, version), &self.json(record)?)? {
            return Ok(true);
        }
        // Somebody was quicker where there is no lock, or wrote without taking it.
        if self.gives_way(publication) {
            return Err(RegistryError::Raced { image: image.clone(), rev: 0 });
        }
        if let Some(other) = self.read_record(image, version)? {
            same_disk(&other, &record.artifact)?;
        }
        Ok(false)
    }
}

/// The version under which `artifact` is published.
fn version_for(
    artifact: &Artifact,
    publication: &Publication,
    head: &Head,
    date: &str,
) -> Result<Version, RegistryError> {
    let version = match &publication.version {
        VersionSpec::Fixed(version) => version.clone(),
        VersionSpec::Auto => match head.versions.iter().find(|listed| listed.build == artifact.build) {
            Some(listed) if listed.disk == artifact.disk.digest => listed.version.clone(),
            _ => next_calendar_version(head, date)?,
        },
    };
    if head.state.channels.keys().any(|channel| channel.as_str() == version.as_str()) {
        return Err(RegistryError::NameTaken { image: artifact.image.clone(), name: version.to_string() });
    }
    Ok(version)
}

/// The next version of the day. Every record is in `head`.
fn next_calendar_version(head: &Head, date: &str) -> Result<Version, RegistryError> {
    let versions = head.versions.iter().map(|listed| &listed.version);
    let taken = versions
        .chain(head.state.retired.keys())
        .filter_map(|version| version.as_str().strip_prefix(date)?.parse::<u32>().ok())
        .max();
    let version = format!("{date}{}", taken.map_or(1, |number| number.saturating_add(1)));
    version.parse().map_err(|_| RegistryError::Date { date: date.to_owned() })
}

pub(crate) fn same_disk(record: &Record, artifact: &Artifact) -> Result<(), RegistryError> {
    let published = record.artifact.disk.digest;
    if published == artifact.disk.digest {
        return Ok(());
    }
    Err(RegistryError::Conflict {
        image: record.artifact.image.clone(),
        version: record.artifact.version.clone(),
        published,
        offered: artifact.disk.digest,
    })
}

/// `2026-11-21` to `2026.11.21.`
pub(crate) fn calendar_prefix(date: &str) -> Result<String, RegistryError> {
    let parts: Vec<_> = date.split('-').collect();
    let digits = |part: &str, count| part.len() == count && part.bytes().all(|byte| byte.is_ascii_digit());
    match parts[..] {
        [year, month, day] if digits(year, 4) && digits(month, 2) && digits(day, 2) => {
            Ok(format!("{year}.{month}.{day}."))
        }
        _ => Err(RegistryError::Date { date: date.to_owned() }),
    }
}

pub(crate) fn is_plain(name: &str) -> bool {
    !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\0'])
}
