//! The files of a version without laying them down: any byte of the qcow2, the raw disk or the raw.zst by its offset.

use std::{
    collections::{HashSet, VecDeque},
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use kiln_core::{Digest, ImageName, Version};
use kiln_disk::{
    CHUNK, SEGMENT,
    qcow2::canonical::{self, Metadata},
    segment,
};

use crate::{
    Attestation, Record, Registry, RegistryError,
    content::{Content, Descriptor, StoredSegment},
    head::Listed,
    lay_down::{self, Form},
};

/// A file of a version, as it would be laid down.
#[derive(Debug)]
pub struct View {
    registry: Registry,
    content: Arc<Content>,
    form: Form,
    /// Where the piece of each segment begins in the file, and behind the last one its end.
    starts: Vec<u64>,
    metadata: Option<Metadata>,
    size: u64,
}

/// Pieces of files that were read and verified, up to a number of bytes; the one used longest ago goes first.
pub struct Pieces {
    limit: usize,
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    bytes: usize,
    /// The last used at the end.
    pieces: VecDeque<Entry>,
}

struct Entry {
    name: Name,
    slot: Slot,
    /// 0 until it is made.
    bytes: usize,
}

/// Locked by whoever makes the piece: others who want it wait, and do not make it too.
type Slot = Arc<Mutex<Option<Arc<Vec<u8>>>>>;

/// A segment's blob, the form, and how many bytes of the last segment belong to the disk.
type Name = (Digest, Form, u64);

impl Pieces {
    pub const fn new(limit: usize) -> Self {
        Self { limit, held: Mutex::new(Held { bytes: 0, pieces: VecDeque::new() }) }
    }

    /// The piece `name`, which `make` makes when it is not held.
    fn get<E>(&self, name: &Name, make: impl FnOnce() -> Result<Vec<u8>, E>) -> Result<Arc<Vec<u8>>, E> {
        let slot = self.slot(name);
        let mut piece = slot.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(piece) = &*piece {
            return Ok(Arc::clone(piece));
        }
        let made = make().map(Arc::new).inspect_err(|_| self.forget(name))?;
        *piece = Some(Arc::clone(&made));
        drop(piece);
        self.count(name, made.len());
        Ok(made)
    }

    fn slot(&self, name: &Name) -> Slot {
        let mut held = self.held();
        let found = held.pieces.iter().rposition(|entry| entry.name == *name);
        let known = found.and_then(|place| held.pieces.remove(place));
        let entry = known.unwrap_or_else(|| Entry { name: *name, slot: Slot::default(), bytes: 0 });
        let slot = Arc::clone(&entry.slot);
        held.pieces.push_back(entry);
        slot
    }

    /// Takes the bytes of a piece that was made into account, and lets go of what is too much.
    fn count(&self, name: &Name, bytes: usize) {
        let mut held = self.held();
        let Some(entry) = held.pieces.iter_mut().rfind(|entry| entry.name == *name && entry.bytes == 0) else { return };
        entry.bytes = bytes;
        held.bytes += bytes;
        while held.bytes > self.limit {
            let Some(gone) = held.pieces.pop_front() else { break };
            held.bytes -= gone.bytes;
        }
    }

    fn forget(&self, name: &Name) {
        self.held().pieces.retain(|entry| entry.name != *name || entry.bytes > 0);
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Pieces {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pieces").field("limit", &self.limit).finish_non_exhaustive()
    }
}

impl Registry {
    /// The file of `record` in `format`: `qcow2`, `raw` or `raw.zst`. Any other is a stored blob.
    pub fn view(&self, record: &Record, format: &str) -> Result<View, RegistryError> {
        let form = Form::of(format).ok_or_else(|| RegistryError::UnknownFormat {
            image: record.artifact.image.clone(),
            version: record.artifact.version.clone(),
            format: format.to_owned(),
            stored: record.artifact.files.iter().map(|file| file.format.clone()).collect(),
        })?;
        View::new(self.clone(), self.content(record)?, form)
    }

    /// The bytes of a blob, verified. `None` when there is none of this name, or one longer than `limit`.
    pub fn small_blob(&self, digest: &Digest, limit: u64) -> Result<Option<Vec<u8>>, RegistryError> {
        let Some(size) = self.place.size(digest).ok().flatten().filter(|size| *size <= limit) else { return Ok(None) };
        let blob = Descriptor { media_type: String::new(), digest: *digest, size };
        self.blob_bytes(&blob).map(Some).map_err(|damage| self.set_aside(damage))
    }

    /// What is said about the versions of `image` whose manifest is `subject`, of the newest thousand.
    pub fn attestations_of(&self, image: &ImageName, subject: &Digest) -> Result<Vec<Attestation>, RegistryError> {
        let versions = self.versions(image)?;
        let records = versions.iter().take(1000).filter_map(|listed| self.listed_record(image, listed).ok());
        let about = records.filter(|record| record.manifest.digest == *subject);
        Ok(about.flat_map(|record| record.attestations).collect())
    }

    /// A version of `image` that names this blob and can be read. `near` is looked at first, then the newest: who fetches a version
    /// asks for all of its blobs.
    pub fn naming(
        &self,
        image: &ImageName,
        digest: &Digest,
        near: Option<&Version>,
    ) -> Result<Option<Version>, RegistryError> {
        let head = self.head(image)?;
        let near = near.and_then(|near| head.lists(near));
        let named = near.into_iter().chain(&head.versions).find(|listed| self.is_named(image, listed, digest));
        Ok(named.map(|listed| listed.version.clone()))
    }

    /// Takes out of `blobs` what the newest versions of `image` name, at most `most` of them. How many were looked at; what cannot be
    /// read names nothing.
    pub fn strike_named(&self, image: &ImageName, blobs: &mut HashSet<Digest>, most: usize) -> usize {
        let Ok(head) = self.read_head(image) else { return 0 };
        let looked = head.versions.iter().take(most).take_while(|listed| {
            if blobs.is_empty() {
                return false;
            }
            if let Ok(record) = self.listed_record(image, listed) {
                for named in
                    self.named_by_record(&record).iter().chain(self.named_by_manifest(&record).iter().flatten())
                {
                    blobs.remove(named);
                }
            }
            true
        });
        looked.count()
    }

    /// In stages: what stands in a record is known however its manifest fares.
    fn is_named(&self, image: &ImageName, listed: &Listed, digest: &Digest) -> bool {
        let Ok(record) = self.listed_record(image, listed) else { return false };
        self.named_by_record(&record).contains(digest)
            || self.named_by_manifest(&record).is_some_and(|named| named.contains(digest))
    }

    fn named_by_record(&self, record: &Record) -> Vec<Digest> {
        let mut named = vec![record.manifest.digest];
        named.extend(record.artifact.files.iter().map(|file| file.sha256));
        named.extend(self.statement_blobs(&record.attestations).into_iter().flatten().map(|(blob, _)| blob));
        named
    }

    fn named_by_manifest(&self, record: &Record) -> Option<Vec<Digest>> {
        let manifest = self.blob_bytes(&record.manifest).ok()?;
        Some(Content::blobs_of(&manifest).ok()?.into_iter().map(|blob| blob.digest).collect())
    }
}

impl View {
    fn new(registry: Registry, content: Content, form: Form) -> Result<Self, RegistryError> {
        let lengths = content.chunks().map(|chunk| chunk.frame).collect::<Vec<_>>();
        let metadata = (form == Form::Qcow2).then(|| canonical::metadata(content.size, lengths.into_iter()));
        let mut at = metadata.as_ref().map_or(0, |metadata| metadata.header.len() as u64);
        let mut starts = Vec::with_capacity(content.segments.len() + 1);
        for segment in &content.segments {
            starts.push(at);
            at += match form {
                Form::Qcow2 => segment.chunks.iter().map(|chunk| u64::from(chunk.frame)).sum::<u64>(),
                Form::Raw => (segment.chunks.len() * CHUNK) as u64,
                Form::RawZst => segment.chunks.iter().map(segment::stored_length).sum::<usize>() as u64,
            };
        }
        starts.push(at);
        let mut view = Self { registry, content: Arc::new(content), form, starts, metadata, size: at };
        if let Some(metadata) = &view.metadata {
            view.size = metadata.file_size();
        } else if form == Form::Raw {
            view.size = view.content.size;
        } else if !view.content.size.is_multiple_of(CHUNK as u64) {
            // The last frame is made anew, shorter; only making it tells how long it is.
            let last = view.content.segments.len() - 1;
            view.size = view.starts[last] + view.make(last)?.len() as u64;
        }
        if let Some(end) = view.starts.last_mut().filter(|_| form != Form::Qcow2) {
            *end = view.size;
        }
        Ok(view)
    }

    /// Length of the file in bytes.
    pub const fn size(&self) -> u64 {
        self.size
    }

    pub fn content(&self) -> &Content {
        &self.content
    }

    /// The bytes from `offset` on as far as they lie together, at most `limit`; verified. Nothing at the end of the file.
    pub fn read(&self, offset: u64, limit: usize, pieces: &Pieces) -> Result<Vec<u8>, RegistryError> {
        let rest = usize::try_from(self.size.saturating_sub(offset)).unwrap_or(usize::MAX);
        let limit = limit.min(rest);
        if let Some(metadata) = &self.metadata {
            let frames = (metadata.header.len() as u64, self.starts.last().copied().unwrap_or(0));
            if offset < frames.0 {
                return Ok(part(&metadata.header, offset, limit));
            }
            if offset >= metadata.tail_offset {
                return Ok(part(&metadata.tail, offset - metadata.tail_offset, limit));
            }
            if offset >= frames.1 {
                let zeros = usize::try_from(metadata.tail_offset - offset).unwrap_or(0);
                return Ok(vec![0; zeros.min(limit)]);
            }
        }
        if limit == 0 {
            return Ok(Vec::new());
        }
        let number = self.number_at(offset);
        if self.is_nothing_but_zeros(number) {
            let zeros = usize::try_from(self.starts[number + 1] - offset).unwrap_or(0);
            return Ok(vec![0; zeros.min(limit)]);
        }
        Ok(part(&self.piece(number, pieces)?, offset - self.starts[number], limit))
    }

    /// Where the piece after the one at `offset` begins, if there is one.
    pub fn next_piece(&self, offset: u64) -> Option<u64> {
        let next = self.starts.partition_point(|start| *start <= offset);
        self.starts.get(next).copied().filter(|next| self.starts.last() != Some(next))
    }

    /// Makes the piece at `offset` for who reads it soon. What is wrong with it the reader hears.
    pub fn prepare(&self, offset: u64, pieces: &Pieces) {
        let number = self.number_at(offset);
        if !self.is_nothing_but_zeros(number) {
            let _ = self.piece(number, pieces);
        }
    }

    /// The segment whose piece has the byte at `offset`: the last that begins there or before, since those without bytes of their own
    /// share a beginning.
    fn number_at(&self, offset: u64) -> usize {
        let number = self.starts.partition_point(|start| *start <= offset).saturating_sub(1);
        number.min(self.content.segments.len().saturating_sub(1))
    }

    /// Zeros of a raw disk need not be made.
    fn is_nothing_but_zeros(&self, number: usize) -> bool {
        self.form == Form::Raw && self.content.segments[number].is_zero()
    }

    fn piece(&self, number: usize, pieces: &Pieces) -> Result<Arc<Vec<u8>>, RegistryError> {
        let last = number + 1 == self.content.segments.len();
        let inside = if last { self.content.size - number as u64 * SEGMENT as u64 } else { SEGMENT as u64 };
        pieces.get(&(self.content.segments[number].blob.digest, self.form, inside), || self.make(number))
    }

    fn make(&self, number: usize) -> Result<Vec<u8>, RegistryError> {
        let segment: &StoredSegment = &self.content.segments[number];
        let mut piece = self.registry.piece(segment, self.form).map_err(|damage| self.registry.set_aside(damage))?;
        if number + 1 == self.content.segments.len() {
            lay_down::cut(&mut piece, self.form, Some(segment), self.content.size)?;
        }
        Ok(piece)
    }
}

fn part(bytes: &[u8], offset: u64, limit: usize) -> Vec<u8> {
    let start = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
    bytes[start..start.saturating_add(limit).min(bytes.len())].to_vec()
}
