//! Writes an ext4 file system from a tar archive: no root, no mount, no clock; the same archive gives the same bytes.
//!
//! The layout is the `mkext4` crate's; what it lacks, room for a disk that grows, [`growth`] adds.

mod growth;
mod tree;

use std::{
    fs::File,
    io::{self, Read, Seek},
    os::unix::fs::FileExt,
};

use mkext4::{FsBuilder, InodeCount, InodeHandle, Options, RegionSink};

pub use tree::{Kind, Node, Tree};

/// File systems come in multiples of this: sixteen block groups, which keep their bitmaps and inode tables together.
pub const STEP: u64 = 2 << 30;

const BLOCK: u64 = 4096;
const INODE_RATIO: u64 = 16384;
const JOURNAL_BLOCKS: u32 = 16384;

/// What a new file system is.
#[derive(Debug, Clone)]
pub struct NewFileSystem {
    /// Byte offset in the file that is written to.
    pub offset: u64,
    /// A multiple of [`STEP`].
    pub bytes: u64,
    pub uuid: [u8; 16],
    pub hash_seed: [u8; 16],
    /// Seconds since 1970, for all that is not from the archive.
    pub time: i64,
    pub label: String,
}

/// Why no file system could be written.
#[derive(Debug, thiserror::Error)]
pub enum Ext4Error {
    #[error("cannot read the archive of the file tree")]
    Archive(#[source] io::Error),
    #[error("cannot write the file system")]
    Write(#[source] io::Error),
    #[error("`{path}` cannot stand in the file system: {reason}")]
    Entry { path: String, reason: String },
    #[error("the file tree does not fit into {bytes} bytes")]
    Full { bytes: u64 },
    #[error("cannot lay out the file system: {0}")]
    Layout(String),
}

fn laid_out(error: mkext4::Error) -> Ext4Error {
    match error {
        mkext4::Error::Io(source) => Ext4Error::Write(source),
        other => Ext4Error::Layout(other.to_string()),
    }
}

/// Writes `tree`, whose file contents stand in `archive`, into `disk`, which must read as zeros there.
/// `progress` gets the bytes of files written so far.
pub fn write(
    new: &NewFileSystem,
    tree: &Tree,
    archive: &mut (impl Read + Seek),
    disk: &File,
    progress: &mut dyn FnMut(u64),
) -> Result<(), Ext4Error> {
    if new.bytes == 0 || !new.bytes.is_multiple_of(STEP) {
        return Err(Ext4Error::Layout(format!("{} bytes is not a multiple of {STEP}", new.bytes)));
    }
    let largest = growth::largest(new.bytes);
    let mut options = Options::new(largest, new.uuid, new.time);
    let word = |n: usize| u32::from_le_bytes([0, 1, 2, 3].map(|byte| new.hash_seed[4 * n + byte]));
    options.hash_seed = [0, 1, 2, 3].map(word);
    options.label = Some(new.label.clone());
    options.journal_blocks = Some(JOURNAL_BLOCKS);
    options.inodes = InodeCount::Exact(
        u32::try_from(largest / INODE_RATIO).map_err(|_| Ext4Error::Layout("too many inodes".into()))?,
    );
    let mut builder = FsBuilder::new(options).map_err(laid_out)?;
    let files = tree.declare(&mut builder, new.time)?;
    let layout = builder.seal().map_err(laid_out)?;
    let within = |file: &InodeHandle| {
        layout.extents(*file).iter().all(|(start, bytes)| start.checked_add(*bytes).is_some_and(|end| end <= new.bytes))
    };
    if !files.iter().all(|(file, _)| within(file)) {
        return Err(Ext4Error::Full { bytes: new.bytes });
    }
    let mut sink = Window { disk, offset: new.offset, bytes: new.bytes };
    let mut writer = layout.writer(&mut sink).map_err(laid_out)?;
    let mut done = 0;
    // An empty file has no place that could be filled.
    for (file, node) in files.iter().filter(|(_, node)| node.bytes > 0) {
        archive.seek(io::SeekFrom::Start(node.position)).map_err(Ext4Error::Archive)?;
        writer.fill(*file, &mut archive.by_ref().take(node.bytes)).map_err(laid_out)?;
        done += node.bytes;
        progress(done);
    }
    writer.finish().map_err(laid_out)?;
    growth::reserve(disk, new)
}

/// The part of the disk that the file system gets; what the layout puts behind it is only there for growing.
struct Window<'a> {
    disk: &'a File,
    offset: u64,
    bytes: u64,
}

impl RegionSink for Window<'_> {
    fn data(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        if offset >= self.bytes {
            return Ok(());
        }
        for (index, block) in bytes.chunks(usize::try_from(BLOCK).unwrap_or(4096)).enumerate() {
            let at = offset + index as u64 * BLOCK;
            // Blocks of zeros stay holes, so that the disk is as sparse as its content.
            if at < self.bytes && block.iter().any(|byte| *byte != 0) {
                self.disk.write_all_at(block, self.offset + at)?;
            }
        }
        Ok(())
    }

    fn zeros(&mut self, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }
}
