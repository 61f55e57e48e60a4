//! One inode of an ext4 file system with everything a copy of it needs (kernel documentation, "ext4 Data Structures and
//! Algorithms"). The file system may be hostile: every number is held against its bounds before it is used.

use std::{collections::BTreeMap, io, ops::Range};

use super::PlacementError;
use crate::{
    ReadAt,
    hygiene::{
        little_endian::{u16_at, u32_at},
        superblock::Superblock,
    },
};

const EXTENTS: u32 = 0x8_0000;
/// Encrypted, with a value in another inode, with verity, with data in the inode itself, or case-folded.
const UNREADABLE: u32 = 0x800 | 0x20_0000 | 0x10_0000 | 0x1000_0000 | 0x4000_0000;
/// What `chattr` sets, as far as it outlives a copy.
const ATTRIBUTES: u32 = 0x10 | 0x20 | 0x40 | 0x80 | 0x4000 | 0x1_0000;

const EXTENT_MAGIC: u16 = 0xf30a;
const EXTENT_DEPTH: u16 = 5;
/// A file of 1 TiB in the smallest extents a sane file system has.
const MAX_EXTENTS: usize = 1 << 20;
/// An extent of more blocks than this is one that was never written; its length is what goes beyond.
const UNWRITTEN: u16 = 0x8000;

const XATTR_MAGIC: u32 = 0xea02_0000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Directory,
    File,
    Link,
    Character,
    Block,
    Fifo,
    Socket,
}

/// Seconds and the extra bits (nanoseconds, epoch) as they stand in the inode.
pub(super) type Time = (u32, u32);

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Inode {
    pub(super) kind: Kind,
    /// Type and permission bits.
    pub(super) mode: u16,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) size: u64,
    pub(super) links: u16,
    pub(super) attributes: u32,
    pub(super) accessed: Time,
    pub(super) changed: Time,
    pub(super) modified: Time,
    pub(super) created: Time,
    pub(super) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    pub(super) body: Body,
}

/// Where the content is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Body {
    Extents(Vec<Extent>),
    /// A short link.
    Target(Vec<u8>),
    Device {
        major: u32,
        minor: u32,
    },
    Nothing,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Extent {
    /// Bytes of the file.
    pub(super) file: Range<u64>,
    /// Offset in the volume.
    pub(super) at: u64,
}

/// Reads inodes of one file system.
#[derive(Debug)]
pub(super) struct Inodes<'a> {
    pub(super) volume: &'a dyn ReadAt,
    pub(super) superblock: &'a Superblock,
}

impl Inodes<'_> {
    pub(super) fn read(&self, number: u32) -> Result<Inode, PlacementError> {
        let damaged = |what| PlacementError::Damaged { inode: number, what };
        let size = usize::from(self.superblock.inode_size());
        let mut bytes = vec![0; size];
        let at =
            self.superblock.inode_offset(self.volume, number)?.ok_or_else(|| damaged("it is outside the table"))?;
        self.volume.read_at(at, &mut bytes)?;
        let mode = u16_at(&bytes, 0);
        let kind = match mode >> 12 {
            0x1 => Kind::Fifo,
            0x2 => Kind::Character,
            0x4 => Kind::Directory,
            0x6 => Kind::Block,
            0x8 => Kind::File,
            0xa => Kind::Link,
            0xc => Kind::Socket,
            _ => return Err(damaged("its type is unknown")),
        };
        let flags = u32_at(&bytes, 0x20);
        if flags & UNREADABLE != 0 {
            return Err(PlacementError::Unsupported("files that are encrypted, verified or stored in their inodes"));
        }
        let pair = |low, high| u32::from(u16_at(&bytes, low)) | u32::from(u16_at(&bytes, high)) << 16;
        // Fields past the inode's own length belong to what follows it.
        let extra = |at: usize| if at + 4 <= 128 + usize::from(u16_at(&bytes, 0x80)) { u32_at(&bytes, at) } else { 0 };
        let length = u64::from(u32_at(&bytes, 4)) | u64::from(u32_at(&bytes, 0x6c)) << 32;
        let map = bytes.get(0x28..0x64).unwrap_or_default();
        let body = match kind {
            Kind::Link if length < 60 && flags & EXTENTS == 0 => {
                Body::Target(map[..usize::try_from(length).unwrap_or(0)].to_vec())
            }
            Kind::File | Kind::Directory | Kind::Link if flags & EXTENTS != 0 => {
                let mut extents = Vec::new();
                self.extents(map, EXTENT_DEPTH, &mut extents).map_err(|error| match error {
                    PlacementError::Damaged { what, .. } => damaged(what),
                    other => other,
                })?;
                Body::Extents(extents)
            }
            Kind::File if length == 0 => Body::Nothing,
            Kind::File | Kind::Directory | Kind::Link => {
                return Err(PlacementError::Unsupported("files without extents"));
            }
            Kind::Character | Kind::Block => device(u32_at(map, 0), u32_at(map, 4)),
            Kind::Fifo | Kind::Socket => Body::Nothing,
        };
        let mut xattrs = BTreeMap::new();
        self.xattrs(&bytes, &mut xattrs).map_err(damaged)?;
        Ok(Inode {
            kind,
            mode,
            uid: pair(2, 0x78),
            gid: pair(0x18, 0x7a),
            size: length,
            links: u16_at(&bytes, 0x1a),
            attributes: flags & ATTRIBUTES,
            accessed: (u32_at(&bytes, 8), extra(0x8c)),
            changed: (u32_at(&bytes, 0xc), extra(0x84)),
            modified: (u32_at(&bytes, 0x10), extra(0x88)),
            created: (extra(0x90), extra(0x94)),
            xattrs,
            body,
        })
    }

    fn extents(&self, node: &[u8], depth: u16, found: &mut Vec<Extent>) -> Result<(), PlacementError> {
        let damaged = |what| Err(PlacementError::Damaged { inode: 0, what });
        let (entries, below) = (usize::from(u16_at(node, 2)), u16_at(node, 6));
        if u16_at(node, 0) != EXTENT_MAGIC || below > depth || 12 + entries * 12 > node.len() {
            return damaged("its extents are not a tree");
        }
        let block = self.superblock.block_size();
        for entry in node[12..].chunks_exact(12).take(entries) {
            let first = u64::from(u32_at(entry, 0)) * block;
            if below > 0 {
                let child = u64::from(u32_at(entry, 4)) | u64::from(u16_at(entry, 8)) << 32;
                let mut bytes = vec![0; usize::try_from(block).unwrap_or(0)];
                self.volume.read_at(child.saturating_mul(block), &mut bytes)?;
                self.extents(&bytes, below - 1, found)?;
                continue;
            }
            let count = u16_at(entry, 4);
            // What was reserved and never written reads as zeros, like a hole.
            if count > UNWRITTEN {
                continue;
            }
            let start = u64::from(u32_at(entry, 8)) | u64::from(u16_at(entry, 6)) << 32;
            let file = first..first + u64::from(count) * block;
            if found.last().is_some_and(|last| last.file.end > file.start) || found.len() >= MAX_EXTENTS {
                return damaged("its extents are out of order");
            }
            found.push(Extent { file, at: start.saturating_mul(block) });
        }
        Ok(())
    }

    fn xattrs(&self, inode: &[u8], found: &mut BTreeMap<Vec<u8>, Vec<u8>>) -> Result<(), &'static str> {
        let own = inode.get(128 + usize::from(u16_at(inode, 0x80))..).unwrap_or_default();
        if inode.len() > 128 && u32_at(own, 0) == XATTR_MAGIC {
            entries(&own[4..], &own[4..], found)?;
        }
        let block = u64::from(u32_at(inode, 0x68)) | u64::from(u16_at(inode, 0x76)) << 32;
        if block != 0 {
            let size = self.superblock.block_size();
            let mut bytes = vec![0; usize::try_from(size).unwrap_or(0)];
            self.volume
                .read_at(block.saturating_mul(size), &mut bytes)
                .map_err(|_| "its attributes are outside the disk")?;
            if u32_at(&bytes, 0) != XATTR_MAGIC {
                return Err("its attributes have no header");
            }
            entries(&bytes[32..], &bytes, found)?;
        }
        Ok(())
    }

    /// The content in pieces, holes as zeros, until `piece` has seen enough.
    pub(super) fn content(&self, inode: &Inode, mut piece: impl FnMut(&[u8]) -> io::Result<bool>) -> io::Result<()> {
        const PIECE: u64 = 1 << 20;
        let mut buffer = vec![0; usize::try_from(PIECE.min(inode.size)).unwrap_or(0)];
        let mut at = 0;
        while at < inode.size {
            let length = usize::try_from(PIECE.min(inode.size - at)).unwrap_or(0);
            self.window(inode, at, &mut buffer[..length])?;
            if !piece(&buffer[..length])? {
                return Ok(());
            }
            at += length as u64;
        }
        Ok(())
    }

    /// The bytes of the content from `at` on; holes, and what is past the end, as zeros.
    pub(super) fn window(&self, inode: &Inode, at: u64, buffer: &mut [u8]) -> io::Result<()> {
        buffer.fill(0);
        let Body::Extents(extents) = &inode.body else { return Ok(()) };
        let end = at + buffer.len() as u64;
        let first = extents.partition_point(|extent| extent.file.end <= at);
        for extent in extents[first..].iter().take_while(|extent| extent.file.start < end) {
            let (from, to) = (extent.file.start.max(at), extent.file.end.min(end));
            let inside = usize::try_from(from - at).unwrap_or(0)..usize::try_from(to - at).unwrap_or(0);
            self.volume.read_at(extent.at.saturating_add(from - extent.file.start), &mut buffer[inside])?;
        }
        Ok(())
    }
}

/// The kernel's two encodings of a device number; the old one is tried first.
fn device(old: u32, new: u32) -> Body {
    if old != 0 {
        return Body::Device { major: old >> 8 & 0xff, minor: old & 0xff };
    }
    Body::Device { major: new >> 8 & 0xfff, minor: new & 0xff | new >> 12 & 0xfff00 }
}

fn entries(mut list: &[u8], values: &[u8], found: &mut BTreeMap<Vec<u8>, Vec<u8>>) -> Result<(), &'static str> {
    while u32_at(list, 0) != 0 {
        let name_length = usize::from(list[0]);
        let (at, size) = (usize::from(u16_at(list, 2)), u32_at(list, 8) as usize);
        let name = list.get(16..16 + name_length).ok_or("the name of an attribute is cut off")?;
        if u32_at(list, 4) != 0 {
            return Err("an attribute has its value elsewhere");
        }
        let value = at.checked_add(size).and_then(|end| values.get(at..end)).ok_or("an attribute is cut off")?;
        let prefix: &[u8] = match list[1] {
            0 => b"",
            1 => b"user.",
            2 => b"system.posix_acl_access",
            3 => b"system.posix_acl_default",
            4 => b"trusted.",
            6 => b"security.",
            7 => b"system.",
            _ => return Err("an attribute has an unknown name"),
        };
        found.insert([prefix, name].concat(), value.to_vec());
        list = list.get((16 + name_length).next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(())
}
