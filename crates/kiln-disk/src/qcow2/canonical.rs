//! The canonical qcow2: the one file that a list of frames and a virtual size make.
//!
//! ```text
//! cluster 0        header, version 3, compression type zstd, no extensions, rest zero
//! from 65536       the frames of all chunks that are not all zeros, in order, each right behind the last
//! padded to 64 KiB
//! then             L2 tables of those 512 MiB ranges that hold a frame; L1 table; refcount blocks; refcount table
//! ```
//! Each frame is one zstd frame of one 64 KiB chunk. A frame of an incompressible chunk is a little longer than its
//! chunk; the format allows up to 128 KiB. All-zero chunks have no cluster. Nothing depends on time or on how the
//! source disk was laid out, and the file follows from the frame lengths alone: no recompression is ever needed.

use crate::CHUNK;

const CLUSTER: u64 = CHUNK as u64;
const CLUSTER_BITS: u32 = 16;
const L2_ENTRIES: usize = CHUNK / 8;
const REFCOUNT_ENTRIES: u64 = CLUSTER / 2;
/// Set on a cluster whose refcount is exactly one.
const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;
/// Where the count of further sectors begins in a compressed entry: 62 minus (16 minus 8).
const SECTORS_SHIFT: u32 = 54;
/// QEMU's smallest addressable unit.
pub const SECTOR: u64 = 512;

/// Where the first frame starts in the file.
pub const FRAMES_OFFSET: u64 = CLUSTER;

/// Everything of the file that is not a frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Metadata {
    /// The first 64 KiB of the file.
    pub header: Vec<u8>,
    /// The tables.
    pub tail: Vec<u8>,
    /// Where the tables start; between the last frame and here are zeros.
    pub tail_offset: u64,
}

impl Metadata {
    /// Length of the whole file in bytes.
    pub fn file_size(&self) -> u64 {
        self.tail_offset + self.tail.len() as u64
    }
}

/// The metadata for a disk of `size` bytes whose chunks have frames of `frame_lengths` bytes, 0 for an all-zero chunk.
///
/// # Panics
/// If there are not exactly as many lengths as the size has chunks, the size is not a multiple of 512, or a frame is
/// longer than the format can say (128 KiB minus a sector).
pub fn metadata(size: u64, frame_lengths: impl ExactSizeIterator<Item = u32>) -> Metadata {
    assert_eq!(size % SECTOR, 0, "a virtual size is whole sectors");
    assert_eq!(frame_lengths.len() as u64, size.div_ceil(CLUSTER), "one frame length for each chunk");
    let mut tables: Vec<Option<Vec<u64>>> = Vec::new();
    let mut refcounts: Vec<u16> = vec![1];
    let mut offset = FRAMES_OFFSET;
    for (chunk, length) in frame_lengths.enumerate() {
        if chunk % L2_ENTRIES == 0 {
            tables.push(None);
        }
        if length == 0 {
            continue;
        }
        let last = offset + u64::from(length) - 1;
        let further_sectors = last / SECTOR - offset / SECTOR;
        assert!(further_sectors < 256, "a frame of {length} bytes does not fit a compressed cluster");
        let table = tables.last_mut().map(|table| table.get_or_insert_with(|| vec![0; L2_ENTRIES]));
        if let Some(table) = table {
            table[chunk % L2_ENTRIES] = COMPRESSED | further_sectors << SECTORS_SHIFT | offset;
        }
        for cluster in offset / CLUSTER..=last / CLUSTER {
            let cluster = index(cluster);
            refcounts.resize(refcounts.len().max(cluster + 1), 0);
            refcounts[cluster] += 1;
        }
        offset = last + 1;
    }
    lay_out(size, offset, &tables, refcounts)
}

/// Places the tables behind the frames and counts them.
fn lay_out(size: u64, frames_end: u64, tables: &[Option<Vec<u64>>], mut refcounts: Vec<u16>) -> Metadata {
    let tail_offset = frames_end.next_multiple_of(CLUSTER);
    let l2_clusters = tables.iter().flatten().count() as u64;
    let l1_clusters = (tables.len() as u64 * 8).div_ceil(CLUSTER);
    let before = tail_offset / CLUSTER + l2_clusters + l1_clusters;
    let (mut blocks, mut block_tables) = (1, 1);
    // The refcounts count themselves: grow until they cover the whole file. Ends, as each round only grows.
    loop {
        let needed = (before + blocks + block_tables).div_ceil(REFCOUNT_ENTRIES);
        let needed_tables = (needed * 8).div_ceil(CLUSTER);
        if (needed, needed_tables) == (blocks, block_tables) {
            break;
        }
        (blocks, block_tables) = (needed.max(blocks), needed_tables.max(block_tables));
    }
    refcounts.resize(index(before + blocks + block_tables), 1);

    let l1_offset = tail_offset + l2_clusters * CLUSTER;
    let blocks_offset = l1_offset + l1_clusters * CLUSTER;
    let block_table_offset = blocks_offset + blocks * CLUSTER;
    let mut tail = Vec::with_capacity(index((l2_clusters + l1_clusters + blocks + block_tables) * CLUSTER));
    for table in tables.iter().flatten() {
        tail.extend(table.iter().flat_map(|entry| entry.to_be_bytes()));
    }
    let mut next = tail_offset;
    for table in tables {
        let entry = if table.is_some() { next | COPIED } else { 0 };
        tail.extend(entry.to_be_bytes());
        next += if table.is_some() { CLUSTER } else { 0 };
    }
    tail.resize(index(blocks_offset - tail_offset), 0);
    tail.extend(refcounts.iter().flat_map(|count| count.to_be_bytes()));
    tail.resize(index(block_table_offset - tail_offset), 0);
    tail.extend((0..blocks).flat_map(|block| (blocks_offset + block * CLUSTER).to_be_bytes()));
    tail.resize(index(block_table_offset + block_tables * CLUSTER - tail_offset), 0);

    let header = header(size, tables.len() as u64, l1_offset, block_table_offset, block_tables);
    Metadata { header, tail, tail_offset }
}

fn header(size: u64, l1_entries: u64, l1_offset: u64, refcount_offset: u64, refcount_clusters: u64) -> Vec<u8> {
    let mut header = Vec::with_capacity(CHUNK);
    let mut u32s = |values: &[u64]| {
        // Every value here is a count bounded by the size of a file that exists.
        for value in values {
            header.extend(u32::try_from(*value).unwrap_or(u32::MAX).to_be_bytes());
        }
    };
    u32s(&[0x5146_49fb, 3]);
    u32s(&[0, 0, 0]); // no backing file
    u32s(&[u64::from(CLUSTER_BITS), size >> 32, size & 0xffff_ffff]);
    u32s(&[0, l1_entries]); // no encryption
    u32s(&[l1_offset >> 32, l1_offset & 0xffff_ffff]);
    u32s(&[refcount_offset >> 32, refcount_offset & 0xffff_ffff, refcount_clusters]);
    u32s(&[0, 0, 0]); // no snapshots
    u32s(&[0, 1 << 3, 0, 0, 0, 0]); // incompatible: compression type; compatible and autoclear: none
    u32s(&[4, 112]); // 16-bit refcounts; header length
    header.extend([1, 0, 0, 0, 0, 0, 0, 0]); // zstd
    header.resize(CHUNK, 0);
    header
}

/// Positions inside files we hold in memory.
fn index(value: u64) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}
