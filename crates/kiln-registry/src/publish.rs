//! Publishing: data, then the record, then the head, each on the disk before the next is begun.

use std::{
    fs::{self, File},
    io,
    path::Path,
    time::Duration,
};

use kiln_core::{ImageName, Version, artifact::Artifact, plan::VersionSpec};
use kiln_io::{
    fs::{holder, lock_within},
    guest::Progress,
};

use crate::{
    MARKER, OCI_LAYOUT, Registry, RegistryError,
    durable::{self, Temporary, failed},
    head::{FORMAT, Head, Record},
    lineage::Parent,
    proof::stored::Made,
    store::Stored,
};

/// How long one waits for the lock of an image.
const PATIENCE: Duration = Duration::from_mins(1);

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
            && let Some(record) = Record::read(&self.record_path(&artifact.image, version))?
        {
            same_disk(&record, artifact)?;
        }
        durable::directory(&self.temporary())?;
        let _publishing = self.sweep_and_share()?;
        self.prepare(&artifact.image)?;
        let parent = self.parent(&artifact.base)?;
        if let Some(parent) = parent.as_ref().filter(|_| !publication.allow_revoked) {
            self.refuse_revoked(parent, publication.now)?;
        }
        // Whether it can be read only decides how much is shared.
        let newest = Head::read(&self.image(&artifact.image)).ok().and_then(|head| head.versions.into_iter().next());
        let previous = newest.and_then(|listed| self.listed_record(&artifact.image, &listed).ok());
        let previous = previous.and_then(|record| self.try_content(&record).ok()?.ok());
        let stored = self.store(artifact, files, previous.as_ref(), progress)?;

        self.enter(artifact, stored, parent, publication, &date)
    }

    /// Gives what is stored its version: the record, then the head. The caller keeps collection away.
    pub(crate) fn enter(
        &self,
        artifact: &Artifact,
        stored: Stored,
        parent: Option<Parent>,
        publication: &Publication,
        date: &str,
    ) -> Result<Published, RegistryError> {
        let observed = stored.content.is_some();
        let inventory = stored.content.and_then(|content| self.inventory_of(content));
        let _locked = lock(&self.image(&artifact.image).join("lock"))?;
        let head = self.recover(&artifact.image, publication.now)?;
        let version = match &publication.version {
            VersionSpec::Fixed(version) => version.clone(),
            VersionSpec::Auto => match head.versions.iter().find(|listed| listed.build == artifact.build) {
                Some(listed) if listed.disk == artifact.disk.digest => listed.version.clone(),
                _ => self.next_calendar_version(&artifact.image, date)?,
            },
        };
        if head.state.channels.keys().any(|channel| channel.as_str() == version.as_str()) {
            return Err(RegistryError::NameTaken { image: artifact.image.clone(), name: version.to_string() });
        }
        if head.state.retired.contains_key(&version) {
            return Err(RegistryError::Retired { image: artifact.image.clone(), version });
        }
        let path = self.record_path(&artifact.image, &version);
        if let Some(record) = Record::read(&path)? {
            same_disk(&record, artifact)?;
            return Ok(Published { artifact: record.artifact, already: true, new_bytes: stored.new_bytes });
        }
        let artifact = Artifact { version, files: stored.files, ..artifact.clone() };
        let manifest = stored.manifest;
        let Made { blobs, attestations } = if observed {
            self.attest(&artifact, &manifest, inventory.as_ref())?
        } else {
            // Nothing of it was seen here: what was said about it where it was made comes along, if it is about this version.
            self.refuse_other_statements(&artifact, &manifest, &stored.attestations)?;
            Made { blobs: Vec::new(), attestations: stored.attestations }
        };
        let new_bytes = stored.new_bytes + self.store_blobs(&blobs)?;
        let record = Record { format: FORMAT, published: publication.now, manifest, parent, attestations, artifact };
        if !self.write_json(&record)?.create(&path)? {
            // Somebody wrote into the registry without taking its lock.
            let other = Record::read(&path)?.unwrap_or_else(|| record.clone());
            same_disk(&other, &record.artifact)?;
        }
        self.list(&record.artifact.image, &head, std::slice::from_ref(&record), &publication.by, publication.now)?;
        Ok(Published { artifact: record.artifact, already: false, new_bytes })
    }

    /// The directories, and before them `registry.json`, which makes this a registry.
    pub(crate) fn prepare(&self, image: &ImageName) -> Result<(), RegistryError> {
        self.prepare_root()?;
        durable::directory(&self.root().join("blobs/sha256"))?;
        durable::directory(&self.image(image).join("v"))?;
        durable::directory(&self.image(image).join("log"))
    }

    pub(crate) fn prepare_root(&self) -> Result<(), RegistryError> {
        let marker = self.root().join("registry.json");
        if !marker.exists() {
            durable::write(&self.temporary(), MARKER.as_bytes())?.create(&marker)?;
        }
        let layout = self.root().join("oci-layout");
        if !layout.exists() {
            durable::write(&self.temporary(), OCI_LAYOUT.as_bytes())?.create(&layout)?;
        }
        Ok(())
    }

    /// Removes what killed publishers left in `tmp`, if nobody publishes now. The returned lock says that we do.
    pub(crate) fn sweep_and_share(&self) -> Result<File, RegistryError> {
        let path = self.temporary().join("lock");
        let file = open_lock(&path)?;
        if file.try_lock().is_ok() {
            self.sweep()?;
            file.unlock().map_err(failed("unlock", &path))?;
        }
        file.lock_shared().map_err(failed("lock", &path))?;
        Ok(file)
    }

    /// Removes the files that killed publishers were writing. The caller has the lock of `tmp` alone.
    pub(crate) fn sweep(&self) -> Result<(), RegistryError> {
        let directory = self.temporary();
        for entry in fs::read_dir(&directory).map_err(failed("read", &directory))? {
            let entry = entry.map_err(failed("read", &directory))?;
            if entry.file_name() != "lock" {
                fs::remove_file(entry.path()).map_err(failed("remove", &entry.path()))?;
            }
        }
        Ok(())
    }

    /// Keeps collection away until it is dropped, also when this process is killed. `None` when nobody ever published.
    pub fn lease(&self) -> Result<Option<File>, RegistryError> {
        let path = self.temporary().join("lock");
        match File::open(&path) {
            Ok(file) => {
                file.lock_shared().map_err(failed("lock", &path))?;
                Ok(Some(file))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed("open", &path)(error)),
        }
    }

    fn next_calendar_version(&self, image: &ImageName, date: &str) -> Result<Version, RegistryError> {
        // `recover` has put every record into the head.
        let head = Head::read(&self.image(image))?;
        let versions = head.versions.iter().map(|listed| &listed.version);
        let taken = versions
            .chain(head.state.retired.keys())
            .filter_map(|version| version.as_str().strip_prefix(date)?.parse::<u32>().ok())
            .max();
        let version = format!("{date}{}", taken.map_or(1, |number| number.saturating_add(1)));
        version.parse().map_err(|_| RegistryError::Date { date: date.to_owned() })
    }

    pub(crate) fn write_json(&self, value: &impl serde::Serialize) -> Result<Temporary, RegistryError> {
        let path = self.temporary();
        let mut bytes = serde_json::to_vec_pretty(value)
            .map_err(|source| RegistryError::Unreadable { path: path.clone(), source })?;
        bytes.push(b'\n');
        durable::write(&path, &bytes)
    }
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

/// Takes the lock `path`. It is held for moments; one that is held for longer belongs to somebody who stands still.
pub(crate) fn lock(path: &Path) -> Result<File, RegistryError> {
    lock_for(path, PATIENCE)
}

fn lock_for(path: &Path, patience: Duration) -> Result<File, RegistryError> {
    let file = open_lock(path)?;
    if lock_within(&file, patience).map_err(failed("lock", path))? {
        return Ok(file);
    }
    let holder = holder(&file).unwrap_or_else(|| "another process".to_owned());
    Err(RegistryError::Locked { path: path.to_owned(), holder })
}

fn open_lock(path: &Path) -> Result<File, RegistryError> {
    File::options().create(true).truncate(false).read(true).write(true).open(path).map_err(failed("open", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_that_somebody_keeps_is_refused_with_the_holder_by_name() {
        let path = std::env::temp_dir().join(format!("kiln-registry-lock-{}", std::process::id()));
        let held = lock(&path).unwrap();
        let error = lock_for(&path, Duration::ZERO).unwrap_err();
        assert!(error.to_string().contains(&format!("(pid {})", std::process::id())), "{error}");
        drop(held);
        drop(lock(&path).unwrap());
        fs::remove_file(&path).unwrap();
    }
}
