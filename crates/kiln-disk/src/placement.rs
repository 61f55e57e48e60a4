//! The same place as last time: a new disk's file tree, brought into the file system of an earlier disk.
//!
//! A bake from scratch lays the same files out elsewhere, so that two disks with the same tree share little. Here the
//! earlier disk is edited until its tree is the new one: what did not change keeps its blocks, and its inodes. The edits
//! are a script for `debugfs`; whoever runs it proves the result with [`Plan::prove`] before using it.
//!
//! Of disks with one ext4 file system each, of the same shape; everything outside of it is taken from the new disk.

mod edits;
mod inode;
mod listing;
mod script;

use std::{fs::File, io, ops::Range, os::unix::fs::FileExt as _, path::Path, sync::Arc, thread};

use self::{
    edits::{Edit, Pair},
    inode::{Inode, Inodes, Kind},
    listing::Listing,
    script::Script,
};
use crate::{
    CHUNK, ReadAt, Window,
    hygiene::{
        partitions::{self, Partition},
        superblock::{Superblock, SuperblockError},
    },
    ordered::ordered,
};

/// The name of the script for `debugfs`.
pub const SCRIPT: &str = "script";

/// Why the new tree cannot be brought to the old places. Nothing is wrong with the new disk.
#[derive(Debug, thiserror::Error)]
pub enum PlacementError {
    #[error("the disks have different sizes or partitions")]
    Partitions,
    #[error("a disk has not exactly one ext4 file system")]
    FileSystems,
    #[error("the file systems differ in {0}")]
    Shape(&'static str),
    #[error("it has {0}")]
    Unsupported(&'static str),
    #[error("the name `{0}` cannot be written")]
    Name(String),
    #[error("inode {inode} is damaged: {what}")]
    Damaged { inode: u32, what: &'static str },
    #[error("`/{path}` came out differently: {what}")]
    Differs { path: String, what: &'static str },
    #[error(transparent)]
    Superblock(#[from] SuperblockError),
    #[error("cannot read or write a disk")]
    Io(#[from] io::Error),
}

/// The file system of a disk.
#[derive(Debug)]
struct Volume {
    bytes: Window,
    range: Range<u64>,
    superblock: Superblock,
}

/// What turns the old disk into one with the new tree.
#[derive(Debug)]
pub struct Plan {
    new: Volume,
    listing: Listing,
    script: Script,
    /// Whether a file, directory or link is added, removed or changed in more than its times.
    pub changed: bool,
    /// Files that keep their place, and files that are written.
    pub kept: usize,
    pub written: usize,
}

impl Plan {
    /// Compares the trees of two disks.
    pub fn new(old: &Arc<dyn ReadAt>, new: &Arc<dyn ReadAt>) -> Result<Self, PlacementError> {
        let (old, new) = (Volume::of(old)?, Volume::of(new)?);
        if old.range != new.range {
            return Err(PlacementError::Partitions);
        }
        same_shape(&old.bytes, &new.bytes)?;
        let (before, listing) = listings(&old, &new)?;
        let block = old.superblock.block_size();
        let edits = edits::edits(&before, &listing, block, |pairs| same_contents(&old, &new, pairs))?;
        let now = listing.inodes.values().map(|inode| inode.modified.0).max().unwrap_or(0);
        let script = Script::of(&edits, now)?;
        let timeless = |edit: &Edit| matches!(edit, Edit::Set { field, .. } if field.contains("time"));
        let written = script.contents.len() + script.rewritten.len();
        let files = listing.inodes.values().filter(|inode| inode.kind == Kind::File).count();
        Ok(Self { changed: !edits.iter().all(timeless), kept: files - written, written, new, listing, script })
    }

    /// Where the file system begins on the disk.
    pub fn offset(&self) -> u64 {
        self.new.range.start
    }

    /// Writes [`SCRIPT`] and what it reads into `directory`.
    pub fn write(&self, directory: &Path) -> Result<(), PlacementError> {
        std::fs::write(directory.join(SCRIPT), &self.script.text)?;
        for (number, value) in self.script.values.iter().enumerate() {
            std::fs::write(directory.join(script::value_name(number)), value)?;
        }
        for (number, inode) in self.script.contents.iter().enumerate() {
            let file = File::create_new(directory.join(script::content_name(number)))?;
            let inode = &self.listing.inodes[inode];
            file.set_len(inode.size)?;
            let mut at = 0;
            self.new.inodes().content(inode, |piece| {
                // What is a hole in the guest is one here.
                if piece.iter().any(|byte| *byte != 0) {
                    file.write_all_at(piece, at)?;
                }
                at += piece.len() as u64;
                Ok(true)
            })?;
        }
        Ok(())
    }

    /// Writes content that changed into the blocks of `placed` that the file has already.
    pub fn rewrite(&self, placed: &File) -> Result<(), PlacementError> {
        let block = usize::try_from(self.new.superblock.block_size()).unwrap_or(usize::MAX);
        for (extents, inode) in &self.script.rewritten {
            let inode = &self.listing.inodes[inode];
            for extent in extents {
                let mut bytes = vec![0; block];
                for at in extent.file.clone().step_by(block) {
                    // Zeros behind the end of the file.
                    self.new.inodes().window(inode, at, &mut bytes)?;
                    let beyond = usize::try_from(inode.size.saturating_sub(at)).unwrap_or(usize::MAX).min(block);
                    bytes[beyond..].fill(0);
                    placed.write_all_at(&bytes, self.new.range.start + extent.at + (at - extent.file.start))?;
                }
            }
        }
        Ok(())
    }

    /// Copies everything outside the file system from the new disk into `placed`: partition table, boot loader, EFI system
    /// partition. Whether anything differed.
    pub fn copy_the_rest(&self, new: &dyn ReadAt, placed: &File) -> Result<bool, PlacementError> {
        let mut differed = false;
        let (mut one, mut other) = (vec![0; CHUNK], vec![0; CHUNK]);
        for range in [0..self.new.range.start, self.new.range.end..new.size()] {
            let mut at = range.start;
            while at < range.end {
                let length = usize::try_from(range.end - at).unwrap_or(CHUNK).min(CHUNK);
                let (one, other) = (&mut one[..length], &mut other[..length]);
                new.read_at(at, one)?;
                placed.read_exact_at(other, at)?;
                if one != other {
                    placed.write_all_at(one, at)?;
                    differed = true;
                }
                at += length as u64;
            }
        }
        Ok(differed)
    }

    /// Proves that `placed` has the new tree, byte for byte.
    pub fn prove(&self, placed: &Arc<dyn ReadAt>) -> Result<(), PlacementError> {
        let placed = Volume::of(placed)?;
        let same = |pairs: &[Pair<'_>]| same_contents(&placed, &self.new, pairs);
        match edits::difference(&placed.listing()?, &self.listing, same)? {
            None => Ok(()),
            Some((path, what)) => {
                Err(PlacementError::Differs { path: String::from_utf8_lossy(&path).into_owned(), what })
            }
        }
    }
}

impl Volume {
    fn of(disk: &Arc<dyn ReadAt>) -> Result<Self, PlacementError> {
        let table = partitions::read(disk.as_ref())?;
        if !table.faults.is_empty() {
            return Err(PlacementError::Partitions);
        }
        let mut found = Vec::new();
        for Partition { range, .. } in table.partitions {
            let window = Window::new(Arc::clone(disk), range.start, range.end - range.start);
            let bytes = window.ok_or(PlacementError::Partitions)?;
            match Superblock::read(&bytes) {
                Ok(superblock) => found.push(Self { bytes, range, superblock }),
                Err(SuperblockError::NotExt4) => {}
                Err(error) => return Err(error.into()),
            }
        }
        match <[Self; 1]>::try_from(found) {
            Ok([volume]) => Ok(volume),
            Err(_) => Err(PlacementError::FileSystems),
        }
    }

    fn inodes(&self) -> Inodes<'_> {
        Inodes { volume: &self.bytes, superblock: &self.superblock }
    }

    fn listing(&self) -> Result<Listing, PlacementError> {
        Listing::read(&self.bytes, &self.superblock)
    }
}

/// Two file systems that mkfs made alike: an edit of one can become the other.
fn same_shape(old: &dyn ReadAt, new: &dyn ReadAt) -> Result<(), PlacementError> {
    const FIELDS: [(Range<usize>, &str); 8] = [
        (0x04..0x0c, "their sizes"),
        (0x14..0x2c, "their block groups"),
        (0x58..0x5a, "the size of their inodes"),
        (0x5c..0x68, "their features"),
        (0x68..0x88, "their identities"),
        (0xce..0xd0, "what they reserve for growing"),
        (0xec..0x104, "their hash seeds or mount options"),
        (0x00..0x04, "their inode counts"),
    ];
    let mut superblocks = [[0; 1024]; 2];
    for (volume, bytes) in [old, new].into_iter().zip(&mut superblocks) {
        volume.read_at(1024, bytes)?;
    }
    let [old, new] = superblocks;
    match FIELDS.into_iter().find(|(field, _)| old[field.clone()] != new[field.clone()]) {
        Some((_, what)) => Err(PlacementError::Shape(what)),
        None => Ok(()),
    }
}

/// Both listings, read at the same time.
fn listings(one: &Volume, other: &Volume) -> Result<(Listing, Listing), PlacementError> {
    thread::scope(|scope| {
        let first = scope.spawn(|| one.listing());
        let second = other.listing()?;
        let first = first.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        Ok((first, second))
    })
}

/// Compares files on all processors.
fn same_contents(one: &Volume, other: &Volume, pairs: &[Pair<'_>]) -> io::Result<Vec<bool>> {
    let mut found = Vec::with_capacity(pairs.len());
    let compare = |number: u64| {
        let (a, b) = pairs[usize::try_from(number).unwrap_or(usize::MAX)];
        same_content(one, a, other, b)
    };
    ordered(pairs.len() as u64, compare, |_, same| {
        found.push(same?);
        Ok::<_, io::Error>(())
    })?;
    Ok(found)
}

fn same_content(one: &Volume, a: &Inode, other: &Volume, b: &Inode) -> io::Result<bool> {
    let mut same = a.size == b.size;
    let mut at = 0;
    let (left, right) = (one.inodes(), other.inodes());
    let mut buffer = Vec::new();
    left.content(a, |piece| {
        buffer.resize(piece.len(), 0);
        right.window(b, at, &mut buffer)?;
        at += piece.len() as u64;
        same &= piece == buffer.as_slice();
        Ok(same)
    })?;
    Ok(same)
}
