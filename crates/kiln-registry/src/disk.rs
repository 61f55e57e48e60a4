//! A stored disk as bytes: its file system is read without laying it down. Each chunk is verified before it is used.

use std::{
    collections::{HashMap, VecDeque},
    io,
    ops::Range,
    sync::{Arc, Mutex, PoisonError},
};

use kiln_core::Digest;
use kiln_disk::{
    CHUNK, ReadAt, SEGMENT,
    inventory::Inventory,
    seal::Chunk,
    segment::{self, stored_length},
    tree::Files,
};

use crate::{Content, Record, Registry, RegistryError, content::StoredSegment, damage::Damage};

/// Expanded chunks that are kept: 16 MiB.
const KEPT: usize = 256;

/// Chunks by their digest, so that two disks share those that they have in common.
#[derive(Debug, Default)]
pub(crate) struct Chunks(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    chunks: HashMap<Digest, Arc<Vec<u8>>>,
    order: VecDeque<Digest>,
}

/// The disk of a version, for reading. Memory is bounded whatever its size.
#[derive(Debug)]
pub struct StoredDisk {
    registry: Registry,
    content: Content,
    chunks: Arc<Chunks>,
}

impl Registry {
    /// The disk of a version as bytes.
    pub fn disk(&self, record: &Record) -> Result<StoredDisk, RegistryError> {
        self.disk_with(record, &Arc::default())
    }

    /// What is on a disk that has no record yet; `None` when its file system cannot be read.
    pub(crate) fn inventory_of(&self, content: Content) -> Option<Inventory> {
        let disk: Arc<dyn ReadAt> = Arc::new(StoredDisk { registry: self.clone(), content, chunks: Arc::default() });
        Files::with_root(&disk, Inventory::read).ok()
    }

    /// The same, with expanded chunks shared with other disks.
    pub(crate) fn disk_with(&self, record: &Record, chunks: &Arc<Chunks>) -> Result<StoredDisk, RegistryError> {
        Ok(StoredDisk { registry: self.clone(), content: self.content(record)?, chunks: chunks.clone() })
    }
}

impl StoredDisk {
    /// What it consists of.
    pub const fn content(&self) -> &Content {
        &self.content
    }

    fn place(&self, offset: u64) -> Option<(&StoredSegment, usize)> {
        let segment = self.content.segments.get(usize::try_from(offset / SEGMENT as u64).ok()?)?;
        let chunk = usize::try_from(offset % SEGMENT as u64).ok()? / CHUNK;
        (chunk < segment.chunks.len()).then_some((segment, chunk))
    }

    /// Chunks of one segment, expanded. What is not kept is read at once: frames lie beside each other, and where the blob is far away,
    /// each request is what costs.
    fn expanded(&self, segment: &StoredSegment, numbers: Range<usize>) -> io::Result<Vec<Arc<Vec<u8>>>> {
        let mut expanded: Vec<_> =
            segment.chunks[numbers.clone()].iter().map(|chunk| self.chunks.find(&chunk.digest)).collect();
        if let Some(first) = expanded.iter().position(Option::is_none) {
            let wanted = numbers.start + first..numbers.end;
            let fresh = self.fetch(segment, wanted.clone()).map_err(|bad| self.damage(segment, bad))?;
            for (number, bytes) in wanted.zip(fresh.chunks_exact(CHUNK)) {
                let bytes = self.chunks.keep(segment.chunks[number].digest, bytes.to_vec());
                expanded[number - numbers.start] = Some(bytes);
            }
        }
        Ok(expanded.into_iter().flatten().collect())
    }

    /// Exactly the chunks that the version names, or the number of one that is not.
    fn fetch(&self, segment: &StoredSegment, numbers: Range<usize>) -> Result<Vec<u8>, usize> {
        let length = |chunks: &[Chunk]| chunks.iter().map(stored_length).sum::<usize>();
        let chunks = &segment.chunks[numbers.clone()];
        let mut frames = vec![0; length(chunks)];
        let before = length(&segment.chunks[..numbers.start]) as u64;
        let blob = self.registry.open_blob(&segment.blob.digest).map_err(|_| numbers.start)?;
        blob.read_exact_at(&mut frames, before).map_err(|_| numbers.start)?;
        segment::expand(chunks, &frames).map_err(|bad| numbers.start + bad)
    }

    /// Read whole, it can be said what is wrong, and a bad blob is set aside.
    fn damage(&self, segment: &StoredSegment, bad: usize) -> io::Error {
        let damage = match self.registry.blob_bytes(&segment.blob) {
            Err(damage) => damage,
            Ok(_) => Damage::chunk(&segment.blob, bad),
        };
        io::Error::other(self.registry.set_aside(damage))
    }
}

impl ReadAt for StoredDisk {
    fn size(&self) -> u64 {
        self.content.size
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        if offset.checked_add(buffer.len() as u64).is_none_or(|end| end > self.content.size) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let (mut at, mut rest) = (offset, buffer);
        while !rest.is_empty() {
            let (segment, number) = self.place(at).ok_or(io::ErrorKind::UnexpectedEof)?;
            let inside = usize::try_from(at % CHUNK as u64).unwrap_or(0);
            let zeros = segment.chunks[number].frame == 0;
            // As far as it goes on like this.
            let last = (inside + rest.len()).div_ceil(CHUNK).min(segment.chunks.len() - number);
            let alike =
                segment.chunks[number..].iter().take(last).take_while(|chunk| (chunk.frame == 0) == zeros).count();
            let length = rest.len().min(alike * CHUNK - inside);
            let (piece, others) = rest.split_at_mut(length);
            if zeros {
                piece.fill(0);
            } else {
                let (mut inside, mut piece) = (inside, &mut *piece);
                for chunk in self.expanded(segment, number..number + alike)? {
                    let (part, left) = piece.split_at_mut(piece.len().min(CHUNK - inside));
                    part.copy_from_slice(&chunk[inside..inside + part.len()]);
                    (inside, piece) = (0, left);
                }
            }
            at += length as u64;
            rest = others;
        }
        Ok(())
    }

    fn hole(&self, offset: u64) -> io::Result<u64> {
        let Some((segment, number)) = self.place(offset) else { return Ok(0) };
        let zeros = segment.chunks[number..].iter().take_while(|chunk| chunk.frame == 0).count() as u64;
        let rest = (zeros * CHUNK as u64).saturating_sub(offset % CHUNK as u64);
        Ok(rest.min(self.content.size.saturating_sub(offset)))
    }
}

impl Chunks {
    fn find(&self, digest: &Digest) -> Option<Arc<Vec<u8>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).chunks.get(digest).cloned()
    }

    fn keep(&self, digest: Digest, bytes: Vec<u8>) -> Arc<Vec<u8>> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = Arc::new(bytes);
        if kept.chunks.insert(digest, bytes.clone()).is_none() {
            kept.order.push_back(digest);
        }
        if kept.order.len() > KEPT
            && let Some(oldest) = kept.order.pop_front()
        {
            kept.chunks.remove(&oldest);
        }
        bytes
    }
}
