//! Every path of an ext4 file system with its inode.

use std::collections::{BTreeMap, HashMap};

use super::{
    PlacementError,
    inode::{Inode, Inodes, Kind},
};
use crate::{
    ReadAt,
    hygiene::{
        little_endian::{u16_at, u32_at},
        superblock::Superblock,
    },
};

const ROOT: u32 = 2;
const MAX_DEPTH: usize = 64;
const MAX_ENTRIES: usize = 4 << 20;
/// A directory of a million entries is about this large.
const MAX_DIRECTORY: u64 = 256 << 20;

/// The tree of one file system.
#[derive(Debug)]
pub(super) struct Listing {
    /// By path, without the root's slash: `etc/passwd`; the root is the empty path.
    pub(super) paths: BTreeMap<Vec<u8>, u32>,
    pub(super) inodes: HashMap<u32, Inode>,
    /// The paths of every inode, in byte order.
    pub(super) names: HashMap<u32, Vec<Vec<u8>>>,
}

impl Listing {
    pub(super) fn read(volume: &dyn ReadAt, superblock: &Superblock) -> Result<Self, PlacementError> {
        let inodes = Inodes { volume, superblock };
        let mut listing = Self { paths: BTreeMap::new(), inodes: HashMap::new(), names: HashMap::new() };
        listing.add(&inodes, Vec::new(), ROOT)?;
        let mut waiting = vec![(Vec::new(), ROOT, 0)];
        while let Some((directory, number, depth)) = waiting.pop() {
            for (name, child) in entries(&inodes, &listing.inodes[&number], number)? {
                let path = if directory.is_empty() { name } else { [&directory[..], b"/", &name].concat() };
                let kind = listing.add(&inodes, path.clone(), child)?;
                if kind == Kind::Directory {
                    if depth == MAX_DEPTH {
                        return Err(PlacementError::Unsupported("directories more than 64 deep"));
                    }
                    waiting.push((path, child, depth + 1));
                }
            }
        }
        for (path, number) in &listing.paths {
            listing.names.entry(*number).or_default().push(path.clone());
        }
        Ok(listing)
    }

    fn add(&mut self, inodes: &Inodes<'_>, path: Vec<u8>, number: u32) -> Result<Kind, PlacementError> {
        if self.paths.len() >= MAX_ENTRIES {
            return Err(PlacementError::Unsupported("more than four million files"));
        }
        let kind = match self.inodes.get(&number) {
            // A directory with two names would be walked for ever.
            Some(inode) if inode.kind == Kind::Directory => {
                return Err(PlacementError::Damaged { inode: number, what: "it is a directory with two names" });
            }
            Some(inode) => inode.kind,
            None => {
                let inode = inodes.read(number)?;
                let kind = inode.kind;
                self.inodes.insert(number, inode);
                kind
            }
        };
        self.paths.insert(path, number);
        Ok(kind)
    }

    pub(super) fn at(&self, path: &[u8]) -> Option<(u32, &Inode)> {
        let number = *self.paths.get(path)?;
        Some((number, self.inodes.get(&number)?))
    }
}

/// Names and inodes of a directory's entries. The blocks of its index look like deleted entries here.
fn entries(inodes: &Inodes<'_>, directory: &Inode, number: u32) -> Result<Vec<(Vec<u8>, u32)>, PlacementError> {
    if directory.size > MAX_DIRECTORY {
        return Err(PlacementError::Damaged { inode: number, what: "it is an absurdly large directory" });
    }
    let mut found = Vec::new();
    let mut cut = false;
    let block_size = usize::try_from(inodes.superblock.block_size()).unwrap_or(usize::MAX);
    inodes.content(directory, |piece| {
        for block in piece.chunks(block_size) {
            let mut at = 0;
            while at + 8 <= block.len() {
                let (child, length) = (u32_at(block, at), usize::from(u16_at(block, at + 4)));
                let name = block.get(at + 8..at + 8 + usize::from(block[at + 6]));
                let (8.., Some(name)) = (length, name) else {
                    cut = true;
                    return Ok(false);
                };
                if child != 0 && !matches!(name, b"" | b"." | b"..") {
                    found.push((name.to_vec(), child));
                }
                at += length;
            }
        }
        Ok(true)
    })?;
    if cut {
        return Err(PlacementError::Damaged { inode: number, what: "an entry of the directory is cut off" });
    }
    Ok(found)
}
