//! The state of an ext4 file system, from its superblock and block bitmaps (kernel documentation, "ext4 Data
//! Structures and Algorithms"). Everything is bounded before it is used: the file system may be hostile.

use std::{io, ops::Range};

use super::little_endian::{u16_at, u32_at};
use crate::{CHUNK, ReadAt};

const MAGIC: u16 = 0xef53;
const STATE_CLEAN: u16 = 1;
const STATE_ERRORS: u16 = 2;
const INCOMPAT_RECOVER: u32 = 4;
const INCOMPAT_META_BG: u32 = 0x10;
const INCOMPAT_64BIT: u32 = 0x80;
const READ_ONLY_BIGALLOC: u32 = 0x200;
const GROUP_BLOCKS_UNINITIALISED: u16 = 2;
/// A file system of 128 TiB in 4 KiB blocks has this many groups.
const MAX_GROUPS: u64 = 1 << 20;

/// What an ext4 superblock says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Superblock {
    block_size: u64,
    blocks: u64,
    first_block: u64,
    blocks_per_group: u64,
    inodes_per_group: u64,
    inode_size: u64,
    descriptor_size: u64,
    reserved_descriptor_blocks: u64,
    state: u16,
    incompatible: u32,
    last_orphan: u32,
    bigalloc: bool,
}

/// A file system that is not, or not safely, readable.
#[derive(Debug, thiserror::Error)]
pub enum SuperblockError {
    #[error("the superblock cannot be read")]
    Unreadable(#[from] io::Error),
    #[error("not an ext4 file system")]
    NotExt4,
    #[error("the superblock is damaged or hostile: {0}")]
    Damaged(&'static str),
}

impl Superblock {
    /// Reads the superblock of the ext4 file system that fills `volume`.
    pub fn read(volume: &dyn ReadAt) -> Result<Self, SuperblockError> {
        let mut bytes = [0; 1024];
        if volume.size() < 2048 {
            return Err(SuperblockError::NotExt4);
        }
        volume.read_at(1024, &mut bytes)?;
        if u16_at(&bytes, 0x38) != MAGIC {
            return Err(SuperblockError::NotExt4);
        }
        let incompatible = u32_at(&bytes, 0x60);
        let wide = incompatible & INCOMPAT_64BIT != 0;
        let high = if wide { u64::from(u32_at(&bytes, 0x150)) << 32 } else { 0 };
        let log_block_size = u32_at(&bytes, 0x18);
        if log_block_size > 6 {
            return Err(SuperblockError::Damaged("blocks of more than 64 KiB"));
        }
        let superblock = Self {
            block_size: 1024 << log_block_size,
            blocks: high | u64::from(u32_at(&bytes, 0x4)),
            first_block: u64::from(u32_at(&bytes, 0x14)),
            blocks_per_group: u64::from(u32_at(&bytes, 0x20)),
            inodes_per_group: u64::from(u32_at(&bytes, 0x28)),
            inode_size: u64::from(u16_at(&bytes, 0x58)),
            descriptor_size: if wide { u64::from(u16_at(&bytes, 0xfe)) } else { 32 },
            reserved_descriptor_blocks: u64::from(u16_at(&bytes, 0xce)),
            state: u16_at(&bytes, 0x3a),
            incompatible,
            last_orphan: u32_at(&bytes, 0xe8),
            bigalloc: u32_at(&bytes, 0x64) & READ_ONLY_BIGALLOC != 0,
        };
        superblock.approve(volume.size())?;
        Ok(superblock)
    }

    fn approve(&self, volume: u64) -> Result<(), SuperblockError> {
        let damaged = |what| Err(SuperblockError::Damaged(what));
        if self.blocks.checked_mul(self.block_size).is_none_or(|bytes| bytes > volume) {
            return damaged("it is larger than its partition");
        }
        if self.blocks <= self.first_block || self.first_block > 1 {
            return damaged("it has no blocks");
        }
        if self.blocks_per_group == 0 || self.blocks_per_group > self.block_size * 8 || self.groups() > MAX_GROUPS {
            return damaged("an absurd number of block groups");
        }
        if !matches!(self.descriptor_size, 32..=1024) || !self.descriptor_size.is_power_of_two() {
            return damaged("an absurd size of group descriptors");
        }
        Ok(())
    }

    pub(crate) fn block_size(&self) -> u64 {
        self.block_size
    }

    pub(crate) fn inode_size(&self) -> u16 {
        u16::try_from(self.inode_size).unwrap_or(u16::MAX)
    }

    /// Where an inode lies in the volume; `None` for a number that no inode has, or a layout whose tables this does not find.
    pub(crate) fn inode_offset(&self, volume: &dyn ReadAt, number: u32) -> io::Result<Option<u64>> {
        let Some(index) = u64::from(number).checked_sub(1) else { return Ok(None) };
        let known = self.incompatible & INCOMPAT_META_BG == 0 && (128..=4096).contains(&self.inode_size);
        let group = index.checked_div(self.inodes_per_group).filter(|group| known && *group < self.groups());
        let Some(group) = group else { return Ok(None) };
        let descriptor = self.descriptor(volume, group)?;
        let table = descriptor.at(0x8, 0x28).saturating_mul(self.block_size);
        Ok(Some(table.saturating_add(index % self.inodes_per_group * self.inode_size)))
    }

    fn descriptor(&self, volume: &dyn ReadAt, group: u64) -> io::Result<Descriptor> {
        let mut descriptor = Descriptor { bytes: [0; 64], wide: self.descriptor_size >= 64 };
        let known = if descriptor.wide { 64 } else { 32 };
        let first = (self.first_block + 1) * self.block_size;
        volume.read_at(first + group * self.descriptor_size, &mut descriptor.bytes[..known])?;
        Ok(descriptor)
    }

    fn groups(&self) -> u64 {
        (self.blocks - self.first_block).div_ceil(self.blocks_per_group)
    }

    /// Why this file system was not left in order; empty if it was unmounted cleanly.
    pub fn unclean(&self) -> Vec<&'static str> {
        let mut faults = Vec::new();
        if self.state & STATE_CLEAN == 0 {
            faults.push("it was not unmounted");
        }
        if self.state & STATE_ERRORS != 0 {
            faults.push("the kernel found errors in it");
        }
        if self.incompatible & INCOMPAT_RECOVER != 0 {
            faults.push("its journal was not replayed");
        }
        if self.last_orphan != 0 {
            faults.push("files were deleted while open and never freed");
        }
        faults
    }

    /// Bytes in wholly free 64 KiB clusters of the disk that are not zeros: free space that was not trimmed.
    /// `start` is where the volume begins on the disk. Free pieces smaller than a cluster cannot be discarded.
    /// `None` for a layout (`meta_bg`, `bigalloc`) whose bitmaps this does not find.
    pub fn untrimmed(&self, volume: &dyn ReadAt, start: u64) -> io::Result<Option<u64>> {
        let mut untrimmed = 0;
        let mut buffer = vec![0; CHUNK];
        let known = self.free_runs(volume, |run| {
            untrimmed += stored_in(volume, start, run, &mut buffer)?;
            Ok(())
        })?;
        Ok(known.then_some(untrimmed))
    }

    /// Tells every run of bytes that no file and no table uses, in rising order; false for a layout (`meta_bg`,
    /// `bigalloc`) whose bitmaps this does not find.
    pub fn free_runs(
        &self,
        volume: &dyn ReadAt,
        mut tell: impl FnMut(Range<u64>) -> io::Result<()>,
    ) -> io::Result<bool> {
        if self.incompatible & INCOMPAT_META_BG != 0 || self.bigalloc {
            return Ok(false);
        }
        let mut runs = Runs { run: 0..0, tell: &mut tell };
        let mut bitmap = vec![0; usize::try_from(self.block_size).unwrap_or(0)];
        for group in 0..self.groups() {
            let descriptor = self.descriptor(volume, group)?;
            let (bitmap_at, inode_bitmap, tables) =
                (descriptor.at(0, 0x20), descriptor.at(0x4, 0x24), descriptor.at(0x8, 0x28));
            let first = self.first_block + group * self.blocks_per_group;
            let count = self.blocks_per_group.min(self.blocks - first);
            if descriptor.flags() & GROUP_BLOCKS_UNINITIALISED != 0 {
                self.uninitialised(first, count, tables, [bitmap_at, inode_bitmap], &mut runs)?;
                continue;
            }
            volume.read_at(bitmap_at.saturating_mul(self.block_size), &mut bitmap)?;
            for block in 0..count {
                let at = usize::try_from(block).unwrap_or(0);
                if bitmap[at / 8] >> (at % 8) & 1 == 0 {
                    runs.free((first + block) * self.block_size, self.block_size)?;
                }
            }
        }
        runs.finish()?;
        Ok(true)
    }

    /// A group whose bitmap was never written: free but for what mkfs always puts there.
    fn uninitialised(
        &self,
        first: u64,
        count: u64,
        tables: u64,
        bitmaps: [u64; 2],
        runs: &mut Runs<'_>,
    ) -> io::Result<()> {
        let descriptor_blocks = (self.groups() * self.descriptor_size).div_ceil(self.block_size);
        // Superblock copies stand in some groups only; taking every group to have one overlooks a few blocks.
        let start = 1 + descriptor_blocks + self.reserved_descriptor_blocks;
        let table_blocks = (self.inodes_per_group * self.inode_size).div_ceil(self.block_size);
        for block in first + start.min(count)..first + count {
            let used = bitmaps.contains(&block) || (tables..tables.saturating_add(table_blocks)).contains(&block);
            if !used {
                runs.free(block * self.block_size, self.block_size)?;
            }
        }
        Ok(())
    }
}

/// A block group's descriptor.
struct Descriptor {
    bytes: [u8; 64],
    wide: bool,
}

impl Descriptor {
    /// A block number in two halves.
    fn at(&self, low: usize, high: usize) -> u64 {
        let high = if self.wide { u64::from(u32_at(&self.bytes, high)) << 32 } else { 0 };
        high | u64::from(u32_at(&self.bytes, low))
    }

    fn flags(&self) -> u16 {
        u16_at(&self.bytes, 0x12)
    }
}

/// Joins free blocks to runs.
struct Runs<'a> {
    run: Range<u64>,
    tell: &'a mut dyn FnMut(Range<u64>) -> io::Result<()>,
}

impl Runs<'_> {
    fn free(&mut self, offset: u64, length: u64) -> io::Result<()> {
        if self.run.end != offset {
            self.finish()?;
            self.run = offset..offset;
        }
        self.run.end += length;
        Ok(())
    }

    fn finish(&mut self) -> io::Result<()> {
        let run = std::mem::take(&mut self.run);
        if run.is_empty() { Ok(()) } else { (self.tell)(run) }
    }
}

/// Bytes of the whole clusters in a free run that are not zeros.
fn stored_in(volume: &dyn ReadAt, start: u64, run: Range<u64>, buffer: &mut [u8]) -> io::Result<u64> {
    let cluster = CHUNK as u64;
    let mut stored = 0;
    let mut at = (run.start + start).next_multiple_of(cluster) - start;
    while at + cluster <= run.end {
        let hole = volume.hole(at)? / cluster * cluster;
        if hole > 0 {
            at += hole;
            continue;
        }
        volume.read_at(at, buffer)?;
        if buffer.iter().any(|byte| *byte != 0) {
            stored += cluster;
        }
        at += cluster;
    }
    Ok(stored)
}
