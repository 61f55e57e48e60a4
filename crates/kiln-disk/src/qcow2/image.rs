//! Reading qcow2 images that stand alone and are compressed with zstd: kiln's own and those of `qemu-img`.
//!
//! Random access for many threads, with bounded caches. Tables and frames are treated as hostile: every offset is
//! checked against the file, every frame expands to at most one cluster.

use std::{
    collections::{HashMap, VecDeque},
    io,
    sync::{Arc, Mutex, PoisonError},
};

use zstd::stream::raw::{Decoder, Operation};

use super::header::{self, Compression, Header, Limits, Refusal};
use crate::ReadAt;

const L2_CACHE_BYTES: u64 = 32 << 20;
const CLUSTER_CACHE_BYTES: u64 = 16 << 20;
const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;
const ZERO: u64 = 1;
const COMPRESSED: u64 = 1 << 62;

/// A qcow2 image, open for reading.
#[derive(Debug)]
pub struct Image {
    file: Arc<dyn ReadAt>,
    header: Header,
    l1: Vec<u64>,
    tables: Mutex<Cache<Vec<u64>>>,
    clusters: Mutex<Cache<Vec<u8>>>,
}

/// What a cluster is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cluster {
    Unallocated,
    Zero,
    /// At this offset of the file, also for the bytes behind it up to the end of the run.
    Plain {
        offset: u64,
    },
    /// A zstd frame at `offset`, within the next `bytes`.
    Compressed {
        offset: u64,
        bytes: u64,
    },
}

impl Image {
    /// Approves the header and reads the L1 table (at most 32 MiB).
    pub fn open(file: Arc<dyn ReadAt>, limits: Limits) -> Result<Self, Refusal> {
        let header = header::inspect(file.as_ref(), limits)?;
        let mut bytes = vec![0; header.l1_entries as usize * 8];
        file.read_at(header.l1_offset, &mut bytes).map_err(Refusal::Unreadable)?;
        let cluster = 1 << header.cluster_bits;
        Ok(Self {
            file,
            l1: big_endian(&bytes),
            tables: Mutex::new(Cache::new(L2_CACHE_BYTES / cluster)),
            clusters: Mutex::new(Cache::new(CLUSTER_CACHE_BYTES / cluster)),
            header,
        })
    }

    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The cluster that holds guest byte `offset`, and how many bytes from there on belong to it.
    pub fn cluster(&self, offset: u64) -> io::Result<(Cluster, u64)> {
        let bits = self.header.cluster_bits;
        let inside = offset & ((1 << bits) - 1);
        let run = (1 << bits) - inside;
        let number = offset >> bits;
        let entries = 1_u64 << (bits - 3);
        let Some(l1_entry) = usize::try_from(number / entries).ok().and_then(|at| self.l1.get(at)) else {
            return Err(io::ErrorKind::UnexpectedEof.into());
        };
        let table_offset = l1_entry & OFFSET_MASK;
        if table_offset == 0 {
            // The rest of what this entry covers.
            return Ok((Cluster::Unallocated, (entries - number % entries) * (1 << bits) - inside));
        }
        let table = self.table(table_offset)?;
        let entry = usize::try_from(number % entries).ok().and_then(|at| table.get(at)).copied().unwrap_or(0);
        let cluster = if entry & COMPRESSED != 0 {
            let shift = 62 - (bits - 8);
            let offset = entry & ((1 << shift) - 1);
            let sectors = ((entry & (COMPRESSED - 1)) >> shift) + 1;
            Cluster::Compressed { offset, bytes: sectors * 512 - (offset & 511) }
        } else if entry & ZERO != 0 && self.header.version >= 3 {
            Cluster::Zero
        } else if entry & OFFSET_MASK == 0 {
            Cluster::Unallocated
        } else {
            Cluster::Plain { offset: (entry & OFFSET_MASK) + inside }
        };
        Ok((cluster, run))
    }

    fn table(&self, offset: u64) -> io::Result<Arc<Vec<u64>>> {
        if let Some(table) = lock(&self.tables).find(offset) {
            return Ok(table);
        }
        let mut bytes = vec![0; 1 << self.header.cluster_bits];
        self.file.read_at(offset, &mut bytes)?;
        Ok(lock(&self.tables).keep(offset, big_endian(&bytes)))
    }

    /// The expanded bytes of the frame at `offset`.
    fn expanded(&self, offset: u64, bytes: u64) -> io::Result<Arc<Vec<u8>>> {
        if let Some(cluster) = lock(&self.clusters).find(offset) {
            return Ok(cluster);
        }
        if self.header.compression != Compression::Zstd {
            return Err(io::Error::new(io::ErrorKind::Unsupported, "a cluster compressed with zlib"));
        }
        // The count is of whole sectors and may reach behind the end of the file.
        let stored = bytes.min(self.file.size().saturating_sub(offset));
        let mut frame = vec![0; usize::try_from(stored).unwrap_or(0)];
        self.file.read_at(offset, &mut frame)?;
        let cluster = expand(&frame, 1 << self.header.cluster_bits)?;
        Ok(lock(&self.clusters).keep(offset, cluster))
    }
}

impl ReadAt for Image {
    fn size(&self) -> u64 {
        self.header.size
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        if offset.checked_add(buffer.len() as u64).is_none_or(|end| end > self.header.size) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let (mut at, mut rest) = (offset, buffer);
        while !rest.is_empty() {
            let (cluster, run) = self.cluster(at)?;
            let (piece, others) = rest.split_at_mut(usize::try_from(run).unwrap_or(usize::MAX).min(rest.len()));
            match cluster {
                Cluster::Unallocated | Cluster::Zero => piece.fill(0),
                Cluster::Plain { offset } => self.file.read_at(offset, piece)?,
                Cluster::Compressed { offset, bytes } => {
                    let cluster = self.expanded(offset, bytes)?;
                    let inside = usize::try_from(at & ((1 << self.header.cluster_bits) - 1)).unwrap_or(0);
                    piece.copy_from_slice(&cluster[inside..inside + piece.len()]);
                }
            }
            at += piece.len() as u64;
            rest = others;
        }
        Ok(())
    }

    fn hole(&self, offset: u64) -> io::Result<u64> {
        let rest = self.header.size.saturating_sub(offset);
        if rest == 0 {
            return Ok(0);
        }
        match self.cluster(offset)? {
            (Cluster::Unallocated | Cluster::Zero, run) => Ok(run.min(rest)),
            _ => Ok(0),
        }
    }
}

/// Expands the first frame of `frame` to exactly `size` bytes; what follows the frame is ignored.
pub fn expand(frame: &[u8], size: usize) -> io::Result<Vec<u8>> {
    let mut decoder = Decoder::new()?;
    let mut cluster = vec![0; size];
    let (mut read, mut written) = (0, 0);
    loop {
        let status = decoder.run_on_buffers(&frame[read..], &mut cluster[written..])?;
        read += status.bytes_read;
        written += status.bytes_written;
        if status.remaining == 0 && written == size {
            return Ok(cluster);
        }
        if status.bytes_read == 0 && status.bytes_written == 0 {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a frame does not expand to one cluster"));
        }
    }
}

fn big_endian(bytes: &[u8]) -> Vec<u64> {
    bytes.chunks_exact(8).map(|entry| entry.iter().fold(0, |value, byte| value << 8 | u64::from(*byte))).collect()
}

/// Recently used values by offset, the oldest dropped first.
#[derive(Debug)]
struct Cache<T> {
    values: HashMap<u64, Arc<T>>,
    order: VecDeque<u64>,
    capacity: usize,
}

impl<T> Cache<T> {
    fn new(capacity: u64) -> Self {
        let capacity = usize::try_from(capacity).unwrap_or(1).max(4);
        Self { values: HashMap::new(), order: VecDeque::new(), capacity }
    }

    fn find(&self, offset: u64) -> Option<Arc<T>> {
        self.values.get(&offset).cloned()
    }

    fn keep(&mut self, offset: u64, value: T) -> Arc<T> {
        let value = Arc::new(value);
        if self.values.insert(offset, value.clone()).is_none() {
            self.order.push_back(offset);
        }
        if self.order.len() > self.capacity
            && let Some(oldest) = self.order.pop_front()
        {
            self.values.remove(&oldest);
        }
        value
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
