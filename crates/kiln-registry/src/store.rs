//! Storing a sealed image: its frames become segments, and only what is not there yet is written.

use std::{collections::HashSet, path::Path};

use kiln_core::{
    Digest,
    artifact::{Artifact, File},
};
use kiln_disk::{
    ordered::ordered,
    seal::{self, Chunk},
    segment::{self, SealedImage, Segment},
};
use kiln_io::guest::Progress;
use sha2::{Digest as _, Sha256};

use crate::{
    Record, Registry, RegistryError,
    content::{Content, Descriptor, MANIFEST_TYPE, StoredSegment, descriptor},
    lay_down::{self, Form},
    place,
    proof::stored::Attestation,
};

/// Everything of a version that lies in blobs.
#[derive(Debug)]
pub(crate) struct Stored {
    pub(crate) manifest: Descriptor,
    /// As recorded: the qcow2 and its kin are the ones that the stored frames make.
    pub(crate) files: Vec<File>,
    /// Bytes of the blobs that were not there before.
    pub(crate) new_bytes: u64,
    /// The disk, when it was sealed here.
    pub(crate) content: Option<Content>,
    /// What is said about it, when it was made elsewhere.
    pub(crate) attestations: Vec<Attestation>,
}

/// The blobs of one version on their way.
struct Batch<'a> {
    named: HashSet<Digest>,
    blobs: Box<dyn place::Batch + 'a>,
}

impl Batch<'_> {
    fn add(&mut self, digest: Digest, bytes: &[u8]) -> Result<(), RegistryError> {
        if self.named.insert(digest) { self.blobs.add(digest, bytes) } else { Ok(()) }
    }
}

impl Stored {
    /// Whether these are the very blobs of a version that was removed.
    pub(crate) fn restores(&self, record: &Record) -> bool {
        self.manifest == record.manifest
            && self.files == record.artifact.files
            && self.attestations == record.attestations
    }
}

impl Registry {
    /// Stores small blobs; how many bytes were new.
    pub(crate) fn store_blobs(&self, blobs: &[Vec<u8>]) -> Result<u64, RegistryError> {
        if blobs.is_empty() {
            return Ok(0);
        }
        let mut batch = self.batch();
        for blob in blobs {
            batch.add(Digest::of(blob), blob)?;
        }
        batch.blobs.commit()
    }

    fn batch(&self) -> Batch<'_> {
        Batch { named: HashSet::new(), blobs: self.place.batch() }
    }

    /// Stores the disk of `artifact`, whose sealed qcow2 lies in `files`, and its other files. Where `previous` has the same
    /// segment or chunk, its stored frames are taken.
    pub(crate) fn store(
        &self,
        artifact: &Artifact,
        files: &Path,
        previous: Option<&Content>,
        progress: &dyn Progress,
    ) -> Result<Stored, RegistryError> {
        let Some(qcow2) = artifact.files.iter().find(|file| file.format == "qcow2") else {
            return Err(RegistryError::NoQcow2 { image: artifact.image.clone() });
        };
        let source = files.join(&qcow2.name);
        let sealed = SealedImage::open(&source)?;
        let mut batch = self.batch();
        let (content, offered, reframed) = self.store_segments(&sealed, previous, &mut batch, progress)?;
        altered(&source, qcow2.sha256, offered)?;
        altered(&source, artifact.disk.digest, content.digest())?;
        let unwritable = |source| RegistryError::Unreadable { path: self.root().to_owned(), source };
        let config = content.config().map_err(unwritable)?;
        let manifest = content.manifest(&config).map_err(unwritable)?;
        batch.add(Digest::of(&config), &config)?;
        batch.add(Digest::of(&manifest), &manifest)?;
        let mut new_bytes = batch.blobs.commit()?;
        let mut recorded = Vec::with_capacity(artifact.files.len());
        for file in &artifact.files {
            recorded.push(match Form::of(&file.format) {
                Some(Form::Qcow2) if !reframed => file.clone(),
                Some(form) => {
                    let mut sink = lay_down::Nowhere;
                    let (bytes, sha256) = self.lay_down(&content, form, &mut sink, &|_| true)?;
                    if !reframed || form == Form::Raw {
                        altered(&files.join(&file.name), file.sha256, sha256)?;
                    }
                    File { bytes, sha256, ..file.clone() }
                }
                None => {
                    new_bytes += self.place.bring(&files.join(&file.name), &file.sha256, file.bytes)?;
                    file.clone()
                }
            });
        }
        Ok(Stored {
            manifest: descriptor(MANIFEST_TYPE, &manifest),
            files: recorded,
            new_bytes,
            content: Some(content),
            attestations: Vec::new(),
        })
    }

    /// The content, the digest of the qcow2 that was offered, and whether frames of `previous` differ from the offered ones.
    fn store_segments(
        &self,
        sealed: &SealedImage,
        previous: Option<&Content>,
        batch: &mut Batch<'_>,
        progress: &dyn Progress,
    ) -> Result<(Content, Digest, bool), RegistryError> {
        let metadata = sealed.metadata();
        let mut hasher = Sha256::new();
        hasher.update(&metadata.header);
        let mut at = metadata.header.len() as u64;
        let mut segments = Vec::new();
        let mut reframed = false;
        let mut shared = false;
        let before = |number| previous.and_then(|content| content.segments.get(usize::try_from(number).ok()?));
        let read = |number| -> Result<_, kiln_disk::Error> {
            let blob = sealed.blob(number)?;
            let digest = Digest::of(&blob);
            let chunks = match before(number) {
                // The very bytes that were expanded when the version before was published.
                Some(before) if before.blob.digest == digest => before.chunks.clone(),
                _ => sealed.chunks(number, &blob)?,
            };
            Ok((digest, Segment { chunks, blob }))
        };
        ordered(segment::count(sealed.size()), read, |number, read| -> Result<(), RegistryError> {
            let (digest, segment) = read?;
            for (chunk, frame) in segment.chunks.iter().zip(segment::frames(&segment.chunks, &segment.blob)) {
                let frame = frame.filter(|_| chunk.frame != 0).unwrap_or_default();
                hasher.update(frame);
                at += frame.len() as u64;
            }
            let (segment, digest, other) = match before(number) {
                Some(before) if before.blob.digest != digest => self.with_old_frames(segment, digest, before, previous),
                _ => (segment, digest, false),
            };
            reframed |= other;
            shared |= before(number).is_some_and(|before| share_frames(&before.chunks, &segment.chunks));
            batch.add(digest, &segment.blob)?;
            segments.push(StoredSegment::new(digest, segment.chunks));
            progress.at(at);
            Ok(())
        })?;
        hasher.update(vec![0; usize::try_from(metadata.tail_offset - at).unwrap_or(0)]);
        hasher.update(&metadata.tail);
        let offered = Digest::from_bytes(hasher.finalize().into());
        let mut content =
            Content { size: sealed.size(), disk: Digest::of(b""), compressors: vec![seal::compressor()], segments };
        content.disk = content.digest();
        if let Some(previous) = previous.filter(|_| shared) {
            content.compressors.extend(previous.compressors.iter().cloned());
            content.compressors.sort();
            content.compressors.dedup();
        }
        Ok((content, offered, reframed))
    }

    /// `segment` with the frames that the version before has for the same chunks, when another compressor made those.
    /// Then a machine that has the version before can put the new segment together from them.
    fn with_old_frames(
        &self,
        segment: Segment,
        digest: Digest,
        before: &StoredSegment,
        previous: Option<&Content>,
    ) -> (Segment, Digest, bool) {
        let ours = [seal::compressor()];
        // The names are ours to give; lengths that differ tell as much.
        let same_compressor = previous.is_none_or(|previous| previous.compressors == ours)
            && before.chunks.iter().zip(&segment.chunks).all(|(a, b)| a.digest != b.digest || a.frame == b.frame);
        if same_compressor || before.chunks.len() != segment.chunks.len() {
            return (segment, digest, false);
        }
        // A bad blob is no reason not to publish: the new frames are as good.
        let Ok(blob) = self.blob_bytes(&before.blob) else { return (segment, digest, false) };
        let mut mixed = Segment { chunks: Vec::new(), blob: Vec::new() };
        let old = before.chunks.iter().zip(segment::frames(&before.chunks, &blob));
        let new = segment.chunks.iter().zip(segment::frames(&segment.chunks, &segment.blob));
        for ((old, old_frame), (new, new_frame)) in old.zip(new) {
            let (chunk, frame) = if old.digest == new.digest { (old, old_frame) } else { (new, new_frame) };
            mixed.chunks.push(*chunk);
            mixed.blob.extend(frame.unwrap_or_default());
        }
        let digest = Digest::of(&mixed.blob);
        let other = mixed != segment;
        (mixed, digest, other)
    }
}

/// Whether a chunk has the same frame in both, as far as its length tells.
fn share_frames(one: &[Chunk], other: &[Chunk]) -> bool {
    one.iter().zip(other).any(|(one, other)| one.frame != 0 && one == other)
}

fn altered(path: &Path, expected: Digest, found: Digest) -> Result<(), RegistryError> {
    if expected == found { Ok(()) } else { Err(RegistryError::Altered { path: path.to_owned(), expected, found }) }
}
