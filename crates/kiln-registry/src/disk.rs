//! A stored disk as bytes: its file system is read without laying it down. Each chunk is verified before it is used.

use std::{
    collections::{HashMap, VecDeque},
    io,
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

    fn chunk(&self, segment: &StoredSegment, number: usize) -> io::Result<Arc<Vec<u8>>> {
        let chunk = segment.chunks[number];
        if let Some(kept) = self.chunks.find(&chunk.digest) {
            return Ok(kept);
        }
        let Some(bytes) = self.expand(segment, number, chunk) else {
            // Read whole, it can be said what is wrong, and a bad blob is set aside.
            let damage = match self.registry.blob_bytes(&segment.blob) {
                Err(damage) => damage,
                Ok(_) => Damage::chunk(&segment.blob, number),
            };
            return Err(io::Error::other(self.registry.set_aside(damage)));
        };
        Ok(self.chunks.keep(chunk.digest, bytes))
    }

    /// `None` unless it is exactly the chunk that the version names.
    fn expand(&self, segment: &StoredSegment, number: usize, chunk: Chunk) -> Option<Vec<u8>> {
        let before: usize = segment.chunks[..number].iter().map(stored_length).sum();
        let mut frame = vec![0; stored_length(&chunk)];
        let blob = self.registry.open_blob(&segment.blob.digest).ok()?;
        blob.read_exact_at(&mut frame, before as u64).ok()?;
        segment::expand(&[chunk], &frame).ok()
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
            let (piece, others) = rest.split_at_mut(rest.len().min(CHUNK - inside));
            if segment.chunks[number].frame == 0 {
                piece.fill(0);
            } else {
                piece.copy_from_slice(&self.chunk(segment, number)?[inside..inside + piece.len()]);
            }
            at += piece.len() as u64;
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
