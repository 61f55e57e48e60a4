//! Room to grow: the resize inode, with which Linux enlarges a mounted file system.
//!
//! The file system is laid out as large as it may ever become and only its front is kept. The blocks of group
//! descriptors that the front does not need are handed to the resize inode (number 7), as `mke2fs` does it: each is an
//! indirect block that lists its own copies in the groups with a backup of the superblock, and one double-indirect block lists
//! them all. Formats: Linux `Documentation/filesystems/ext4`, `lib/ext2fs/res_gdt.c` of e2fsprogs.

use std::{fs::File, os::unix::fs::FileExt};

use super::{BLOCK, Ext4Error, NewFileSystem};

const BLOCKS_PER_GROUP: u64 = 32768;
const DESCRIPTOR: usize = 32;
const GROUPS_PER_DESCRIPTOR_BLOCK: u64 = BLOCK / DESCRIPTOR as u64;
const INODE: u64 = 256;
const RESIZE_INODE: u64 = 7;
const FEATURE_RESIZE_INODE: u32 = 0x10;
/// `mke2fs` leaves room to grow a thousandfold; a TiB at least is ours.
const LEAST: u64 = 1 << 40;

/// The size to lay out for, so that a file system of `bytes` can grow to it.
pub(super) fn largest(bytes: u64) -> u64 {
    bytes.saturating_mul(4).max(LEAST).next_multiple_of(GROUPS_PER_DESCRIPTOR_BLOCK * BLOCKS_PER_GROUP * BLOCK)
}

/// [`BLOCK`] as the length of an array.
const SIZE: usize = 4096;

type Block = [u8; SIZE];

/// Little-endian numbers in a block.
trait Fields {
    fn half(&self, at: usize) -> u16;
    fn word(&self, at: usize) -> u32;
    fn set_half(&mut self, at: usize, value: u16);
    fn set_word(&mut self, at: usize, value: u32);
}

impl Fields for [u8] {
    fn half(&self, at: usize) -> u16 {
        u16::from_le_bytes([self[at], self[at + 1]])
    }

    fn word(&self, at: usize) -> u32 {
        u32::from_le_bytes([self[at], self[at + 1], self[at + 2], self[at + 3]])
    }

    fn set_half(&mut self, at: usize, value: u16) {
        self[at..at + 2].copy_from_slice(&value.to_le_bytes());
    }

    fn set_word(&mut self, at: usize, value: u32) {
        self[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }
}

/// The file system in the disk, by its own block numbers.
struct Blocks<'a> {
    disk: &'a File,
    offset: u64,
    seed: u32,
}

impl Blocks<'_> {
    fn read(&self, number: u64) -> Result<Block, Ext4Error> {
        let mut block = [0; SIZE];
        self.disk.read_exact_at(&mut block, self.offset + number * BLOCK).map_err(Ext4Error::Write)?;
        Ok(block)
    }

    fn write(&self, number: u64, block: &Block) -> Result<(), Ext4Error> {
        self.disk.write_all_at(block, self.offset + number * BLOCK).map_err(Ext4Error::Write)
    }
}

/// Cuts the file system down to its size and gives it the resize inode.
pub(super) fn reserve(disk: &File, new: &NewFileSystem) -> Result<(), Ext4Error> {
    let blocks = Blocks { disk, offset: new.offset, seed: raw(!0, &new.uuid) };
    let total = new.bytes / BLOCK;
    let groups = total / BLOCKS_PER_GROUP;
    let all = largest(new.bytes) / BLOCK / BLOCKS_PER_GROUP;
    let kept = groups.div_ceil(GROUPS_PER_DESCRIPTOR_BLOCK);
    let reserved = all.div_ceil(GROUPS_PER_DESCRIPTOR_BLOCK) - kept;
    let backups: Vec<u64> = (1..groups).filter(|group| has_backup(*group)).collect();

    let mut descriptors = Vec::new();
    for number in 0..kept {
        descriptors.extend_from_slice(&blocks.read(1 + number)?);
    }
    descriptors[usize_of(groups) * DESCRIPTOR..].fill(0);

    let list = allocate(&blocks, &mut descriptors, groups, new)?;
    let mut indirect = [0; SIZE];
    for index in 0..reserved {
        let block = 1 + kept + index;
        indirect.set_word(4 * (usize_of(kept + index) % 1024), word_of(block));
        let mut copies = [0; SIZE];
        for (slot, group) in backups.iter().enumerate() {
            copies.set_word(4 * slot, word_of(block + group * BLOCKS_PER_GROUP));
            blocks.write(block + group * BLOCKS_PER_GROUP, &[0; SIZE])?;
        }
        blocks.write(block, &copies)?;
    }
    blocks.write(list, &indirect)?;
    write_inode(&blocks, &descriptors, list, 1 + reserved * (1 + backups.len() as u64), new)?;

    for group in std::iter::once(0).chain(backups) {
        let start = group * BLOCKS_PER_GROUP;
        for (number, part) in descriptors.chunks_exact(usize_of(BLOCK)).enumerate() {
            let part = part.try_into().map_err(|_| Ext4Error::Layout("a descriptor block is cut short".into()))?;
            blocks.write(start + 1 + number as u64, part)?;
        }
        write_superblock(&blocks, group, &descriptors, Counts { total, groups, reserved })?;
    }
    Ok(())
}

/// Takes the last free block that the last group with one has.
fn allocate(blocks: &Blocks<'_>, descriptors: &mut [u8], groups: u64, new: &NewFileSystem) -> Result<u64, Ext4Error> {
    for group in (0..groups).rev() {
        let descriptor = &mut descriptors[usize_of(group) * DESCRIPTOR..][..DESCRIPTOR];
        let free = descriptor.half(0x0c);
        if free == 0 {
            continue;
        }
        let at = u64::from(descriptor.word(0));
        let mut bitmap = blocks.read(at)?;
        let found = (0..usize_of(BLOCKS_PER_GROUP)).rev().find(|bit| bitmap[bit / 8] & (1 << (bit % 8)) == 0);
        let Some(bit) = found else { continue };
        bitmap[bit / 8] |= 1 << (bit % 8);
        blocks.write(at, &bitmap)?;
        descriptor.set_half(0x0c, free - 1);
        descriptor.set_half(0x18, low(raw(blocks.seed, &bitmap)));
        let sum = raw(raw(raw(blocks.seed, &word_of(group).to_le_bytes()), &descriptor[..0x1e]), &[0; 2]);
        descriptor.set_half(0x1e, low(sum));
        return Ok(group * BLOCKS_PER_GROUP + bit as u64);
    }
    Err(Ext4Error::Full { bytes: new.bytes })
}

fn write_inode(
    blocks: &Blocks<'_>,
    descriptors: &[u8],
    list: u64,
    used: u64,
    new: &NewFileSystem,
) -> Result<(), Ext4Error> {
    let table = u64::from(descriptors.word(8));
    let mut block = blocks.read(table)?;
    let at = usize_of((RESIZE_INODE - 1) * INODE);
    let inode = &mut block[at..at + usize_of(INODE)];
    inode.fill(0);
    let time = u32::try_from(new.time).unwrap_or(u32::MAX);
    let size = (12 + 1024 + 1024 * 1024) * BLOCK;
    inode.set_half(0, 0o100_600);
    inode.set_word(4, low_word(size));
    for field in [0x08, 0x0c, 0x10, 0x90] {
        inode.set_word(field, time);
    }
    inode.set_half(0x1a, 1);
    inode.set_word(0x1c, word_of(used * BLOCK / 512));
    inode.set_word(0x28 + 4 * 13, word_of(list));
    inode.set_word(0x6c, word_of(size >> 32));
    inode.set_half(0x80, 32);
    let sum = raw(raw(raw(blocks.seed, &word_of(RESIZE_INODE).to_le_bytes()), &[0; 4]), inode);
    inode.set_half(0x7c, low(sum));
    inode.set_half(0x82, low(sum >> 16));
    blocks.write(table, &block)
}

#[derive(Clone, Copy)]
struct Counts {
    total: u64,
    groups: u64,
    reserved: u64,
}

fn write_superblock(blocks: &Blocks<'_>, group: u64, descriptors: &[u8], counts: Counts) -> Result<(), Ext4Error> {
    let mut block = blocks.read(group * BLOCKS_PER_GROUP)?;
    let own = if group == 0 { &mut block[1024..2048] } else { &mut block[..1024] };
    let each = descriptors[..usize_of(counts.groups) * DESCRIPTOR].chunks_exact(DESCRIPTOR);
    let free = |field: usize| each.clone().map(|descriptor| u64::from(descriptor.half(field))).sum::<u64>();
    own.set_word(0x00, own.word(0x28) * word_of(counts.groups));
    own.set_word(0x04, word_of(counts.total));
    own.set_word(0x08, word_of(counts.total / 20));
    own.set_word(0x0c, word_of(free(0x0c)));
    own.set_word(0x10, word_of(free(0x0e)));
    own.set_word(0x5c, own.word(0x5c) | FEATURE_RESIZE_INODE);
    own.set_half(0xce, low(word_of(counts.reserved)));
    // Overhead is a hint that Linux and e2fsck compute themselves where it is zero.
    own.set_word(0x248, 0);
    let sum = raw(!0, &own[..0x3fc]);
    own.set_word(0x3fc, sum);
    blocks.write(group * BLOCKS_PER_GROUP, &block)
}

/// The feature `sparse_super`: group 1 and the powers of 3, 5 and 7.
fn has_backup(group: u64) -> bool {
    let power = |base: u64| {
        std::iter::successors(Some(base), |last| last.checked_mul(base)).take_while(|p| *p <= group).any(|p| p == group)
    };
    group == 1 || power(3) || power(5) || power(7)
}

/// CRC-32C as ext4 keeps it: neither the seed nor the result inverted.
fn raw(seed: u32, bytes: &[u8]) -> u32 {
    !crc32c::crc32c_append(!seed, bytes)
}

fn usize_of(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

/// Block and group numbers fit 32 bits: without the feature `64bit` there are no larger ones.
fn word_of(number: u64) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

fn low_word(number: u64) -> u32 {
    word_of(number & 0xffff_ffff)
}

fn low(number: u32) -> u16 {
    u16::try_from(number & 0xffff).unwrap_or_default()
}
