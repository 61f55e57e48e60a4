//! A version that comes in parts: blobs first, in any order and from several senders, then what makes a version of them.
//!
//! Nothing is kept in mind between the calls. A blob that came and was collected before its version was entered is missing
//! again, is named, and is sent again.

use std::{io::Write as _, sync::Arc};

use kiln_core::{Digest, artifact::Artifact, plan::VersionSpec};
use kiln_disk::{ordered::ordered, segment};
use sha2::{Digest as _, Sha256};

use crate::{
    Descriptor, Publication, Published, Registry, RegistryError,
    content::{Content, LONGEST_MANIFEST},
    damage::Damage,
    durable::failed_to_store,
    lay_down::{self, Form},
    place::{Lease, Place, Spool, blob_key},
    proof::stored::Attestation,
    publish::{calendar_prefix, is_plain, same_disk},
    store::Stored,
};

/// Nobody says more about a version.
const MOST_STATEMENTS: usize = 16;

/// A version that somebody has stored blob by blob.
#[derive(Debug, Clone, PartialEq)]
pub struct Offer {
    pub manifest: Descriptor,
    pub artifact: Artifact,
    /// What is said about it where it was made.
    pub attestations: Vec<Attestation>,
}

/// A blob on its way. Dropped before it is finished, it leaves nothing.
#[derive(Debug)]
pub struct Incoming {
    place: Arc<dyn Place>,
    spool: Spool,
    hasher: Sha256,
    digest: Digest,
    size: u64,
    bytes: u64,
    _publishing: Lease,
}

impl Registry {
    /// Those of `blobs` that are not here with their size.
    pub fn missing<'a>(&self, blobs: impl IntoIterator<Item = &'a (Digest, u64)>) -> Vec<Digest> {
        let blobs: Vec<_> = blobs.into_iter().collect();
        let mut missing = Vec::new();
        let blob = |number: u64| blobs[usize::try_from(number).unwrap_or(usize::MAX)];
        let here = |number| self.place.size(&blob(number).0).is_ok_and(|size| size == Some(blob(number).1));
        let note = |number, here: bool| {
            missing.extend((!here).then(|| blob(number).0));
            Ok::<_, std::convert::Infallible>(())
        };
        let Ok(()) = ordered(blobs.len() as u64, here, note);
        missing
    }

    /// Opens a blob of exactly `size` bytes for writing.
    pub fn receive(&self, digest: Digest, size: u64) -> Result<Incoming, RegistryError> {
        let publishing = self.place.share()?;
        self.place.prepare(None)?;
        let (place, spool) = (Arc::clone(&self.place), self.place.spool(&digest, size)?);
        Ok(Incoming { place, spool, hasher: Sha256::new(), digest, size, bytes: 0, _publishing: publishing })
    }

    /// The whole blob at once.
    pub fn receive_bytes(&self, digest: Digest, bytes: &[u8]) -> Result<(), RegistryError> {
        let mut incoming = self.receive(digest, bytes.len() as u64)?;
        incoming.write(bytes)?;
        incoming.finish()
    }

    /// What the manifest `bytes` names, when it is the manifest of a version: its blobs with their sizes, the config first.
    pub fn blobs_of(&self, manifest: &[u8]) -> Result<Vec<(Digest, u64)>, RegistryError> {
        let blobs = Content::blobs_of(manifest)
            .map_err(|problem| RegistryError::Content { blob: self.blob(&Digest::of(manifest)), problem })?;
        Ok(blobs.into_iter().map(|blob| (blob.digest, blob.size)).collect())
    }

    /// The blobs of statements with their sizes. Of one whose manifest is not here, only the manifest.
    pub fn statement_blobs(&self, attestations: &[Attestation]) -> Result<Vec<(Digest, u64)>, RegistryError> {
        let mut blobs = Vec::new();
        for Attestation { manifest, .. } in attestations {
            blobs.push((manifest.digest, manifest.size));
        }
        if attestations.len() > MOST_STATEMENTS || !self.missing(&blobs).is_empty() {
            let problem = format!("it has {} statements; {MOST_STATEMENTS} is the limit", attestations.len());
            let blob = self.root().to_owned();
            let many = attestations.len() > MOST_STATEMENTS;
            return if many { Err(RegistryError::Content { blob, problem }) } else { Ok(blobs) };
        }
        for attestation in attestations {
            let named = self.try_attestation(attestation).map_err(|damage| self.set_aside(damage))?;
            let named = named
                .map_err(|problem| RegistryError::Content { blob: self.blob(&attestation.manifest.digest), problem })?;
            blobs.extend(named.iter().map(|blob| (blob.digest, blob.size)));
        }
        Ok(blobs)
    }

    /// The content that a manifest and its config say, compared with each other.
    pub fn read_content(&self, manifest: &[u8], config: &[u8]) -> Result<Content, RegistryError> {
        Content::parse(manifest, config)
            .map_err(|problem| RegistryError::Content { blob: self.blob(&Digest::of(manifest)), problem })
    }

    /// Enters the version that `offer` is. Every blob is read and compared: a chunk that is not the one the config names, or
    /// a qcow2 that is not the recorded one, is refused. Returns the missing blobs as an error.
    pub fn enter_offer(&self, offer: &Offer, publication: &Publication) -> Result<Published, RegistryError> {
        let Offer { manifest, artifact, attestations } = offer;
        if let Some(file) = artifact.files.iter().find(|file| !is_plain(&file.name)) {
            return Err(RegistryError::FileName { name: file.name.clone() });
        }
        let date = calendar_prefix(&publication.date)?;
        if let VersionSpec::Fixed(version) = &publication.version
            && let Some(record) = self.read_record(&artifact.image, version)?
        {
            same_disk(&record, artifact)?;
        }
        let publishing = self.place.share()?;
        self.place.prepare(Some(&artifact.image))?;
        let content = self.offered(offer)?;
        let parent = self.parent(&artifact.base)?;
        if let Some(parent) = &parent {
            self.refuse_revoked(parent, publication.now)?;
        }
        let newest = self.read_head(&artifact.image).ok().and_then(|head| head.versions.first().cloned());
        let previous = newest.and_then(|listed| self.listed_record(&artifact.image, &listed).ok());
        let previous = previous.and_then(|record| self.try_content(&record).ok()?.ok());
        self.expand_all(&content, previous.as_ref())?;
        for file in &artifact.files {
            if let Some(form) = Form::of(&file.format) {
                let laid = self.lay_down(&content, form, &mut lay_down::Nowhere, &|_| true)?;
                if laid != (file.bytes, file.sha256) {
                    let path = self.blob(&manifest.digest);
                    return Err(RegistryError::Altered { path, expected: file.sha256, found: laid.1 });
                }
            }
        }
        let stored = Stored {
            manifest: manifest.clone(),
            files: artifact.files.clone(),
            new_bytes: 0,
            content: None,
            attestations: attestations.clone(),
        };
        // Who sent a blob that was found here may not have made its name last yet.
        self.place.settle("blobs/sha256")?;
        self.enter(artifact, stored, parent.as_ref(), publication, &date, &publishing)
    }

    /// The blobs that `offer` names, with their sizes, its manifest first; that one must be here.
    pub fn offer_blobs(&self, offer: &Offer) -> Result<Vec<(Digest, u64)>, RegistryError> {
        let Offer { manifest, artifact, attestations } = offer;
        let mut blobs = vec![(manifest.digest, manifest.size)];
        blobs.extend(self.blobs_of(&self.offered_manifest(offer)?)?);
        let files = artifact.files.iter().filter(|file| Form::of(&file.format).is_none());
        blobs.extend(files.map(|file| (file.sha256, file.bytes)));
        blobs.extend(self.statement_blobs(attestations)?);
        Ok(blobs)
    }

    fn offered_manifest(&self, offer: &Offer) -> Result<Vec<u8>, RegistryError> {
        let Offer { manifest, artifact, .. } = offer;
        if manifest.media_type != crate::content::MANIFEST_TYPE || manifest.size > LONGEST_MANIFEST {
            let problem = "it is not the manifest of a version".to_owned();
            return Err(RegistryError::Content { blob: self.blob(&manifest.digest), problem });
        }
        let missing = self.missing([&(manifest.digest, manifest.size)]);
        if !missing.is_empty() {
            return Err(RegistryError::Incomplete { image: artifact.image.clone(), missing });
        }
        self.blob_bytes(manifest).map_err(|damage| self.set_aside(damage))
    }

    /// The content of `offer`, when all its blobs are here and it is the disk that the artifact says.
    fn offered(&self, offer: &Offer) -> Result<Content, RegistryError> {
        let Offer { manifest, artifact, .. } = offer;
        let refused = |problem: String| RegistryError::Content { blob: self.blob(&manifest.digest), problem };
        let bytes = self.offered_manifest(offer)?;
        let config = Content::config_of(&bytes).map_err(refused)?;
        let missing = self.missing(&self.offer_blobs(offer)?);
        if !missing.is_empty() {
            return Err(RegistryError::Incomplete { image: artifact.image.clone(), missing });
        }
        let config = self.blob_bytes(&config).map_err(|damage| self.set_aside(damage))?;
        let content = self.read_content(&bytes, &config)?;
        let disk = &artifact.disk;
        if (content.disk, content.size) != (disk.digest, disk.size) {
            return Err(refused("it is another disk than the one in the record".to_owned()));
        }
        if !artifact.files.iter().any(|file| file.format == "qcow2") {
            return Err(RegistryError::NoQcow2 { image: artifact.image.clone() });
        }
        Ok(content)
    }

    /// Expands every frame and compares it with the digest of its chunk, but those of segments that a version has already.
    fn expand_all(&self, content: &Content, previous: Option<&Content>) -> Result<(), RegistryError> {
        let known = |number: u64| {
            let number = usize::try_from(number).unwrap_or(usize::MAX);
            previous.and_then(|previous| previous.segments.get(number)) == content.segments.get(number)
        };
        let expand = |number: u64| {
            let segment = &content.segments[usize::try_from(number).unwrap_or(usize::MAX)];
            if segment.is_zero() || known(number) {
                return Ok(());
            }
            let blob = self.blob_bytes(&segment.blob)?;
            let expanded = segment::expand(&segment.chunks, &blob);
            expanded.map(drop).map_err(|chunk| Damage::chunk(&segment.blob, chunk))
        };
        ordered(content.segments.len() as u64, expand, |_, expanded| expanded.map_err(|damage| self.set_aside(damage)))
    }
}

impl Incoming {
    /// Bytes that came.
    pub const fn received(&self) -> u64 {
        self.bytes
    }

    pub fn write(&mut self, bytes: &[u8]) -> Result<(), RegistryError> {
        self.bytes += bytes.len() as u64;
        if self.bytes > self.size {
            return Err(self.altered());
        }
        self.hasher.update(bytes);
        let written = self.spool.file.write_all(bytes);
        written.map_err(failed_to_store("write", &self.place.path(&blob_key(&self.digest)), self.size))
    }

    /// Makes the blob last, when its bytes are what its name says.
    pub fn finish(mut self) -> Result<(), RegistryError> {
        let found = Digest::from_bytes(std::mem::take(&mut self.hasher).finalize().into());
        if (found, self.bytes) != (self.digest, self.size) {
            return Err(self.refused(found));
        }
        self.place.finish(self.spool, &self.digest, self.size)
    }

    fn altered(&self) -> RegistryError {
        self.refused(self.found())
    }

    /// The digest of what came so far.
    pub(crate) fn found(&self) -> Digest {
        Digest::from_bytes(self.hasher.clone().finalize().into())
    }

    fn refused(&self, found: Digest) -> RegistryError {
        RegistryError::Altered { path: self.place.path(&blob_key(&self.digest)), expected: self.digest, found }
    }
}
