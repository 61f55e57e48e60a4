//! Segments: 4 MiB of guest disk as they are stored, taken out of a sealed qcow2 without compressing anything again.
//!
//! A segment is the plain concatenation of one zstd frame for each of its 64 KiB chunks. The frame of an all-zero chunk is
//! always the same 11 bytes. So every stock `zstd -d` makes the raw disk of the segments in order; where the size of a
//! disk is not whole chunks, its end is filled up with zeros.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use kiln_core::Digest;
use zstd::bulk::Decompressor;

use crate::{
    CHUNK, Error, FileBytes, ReadAt, Result, SEGMENT,
    qcow2::{
        canonical::{self, FRAMES_OFFSET, Metadata},
        header::{Compression, Limits},
        image::{self, Cluster, Image},
    },
    seal::{Chunk, zero_chunk},
};

/// The frame of an all-zero chunk: content size 65536 in one segment, one block of a repeated zero byte.
pub const ZERO_FRAME: [u8; 11] = [0x28, 0xb5, 0x2f, 0xfd, 0x60, 0x00, 0xff, 0x03, 0x00, 0x08, 0x00];

/// The longest frame that a compressed cluster of a qcow2 can hold wherever it begins.
pub const LONGEST_FRAME: u32 = (128 << 10) - 512;

/// Chunks in a whole segment.
pub const CHUNKS: usize = SEGMENT / CHUNK;

/// One segment: what is in it, and its stored bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    pub chunks: Vec<Chunk>,
    pub blob: Vec<u8>,
}

/// How many segments a disk of `size` bytes has.
pub const fn count(size: u64) -> u64 {
    size.div_ceil(SEGMENT as u64)
}

/// How many chunks segment `number` of a disk of `size` bytes has.
pub fn chunks_of(size: u64, number: u64) -> usize {
    let rest = size.saturating_sub(number.saturating_mul(SEGMENT as u64));
    usize::try_from(rest.div_ceil(CHUNK as u64)).unwrap_or(usize::MAX).min(CHUNKS)
}

/// Bytes of the frame of `chunk` in a segment.
pub const fn stored_length(chunk: &Chunk) -> usize {
    if chunk.frame == 0 { ZERO_FRAME.len() } else { chunk.frame as usize }
}

/// The frames in the blob of a segment with these chunks; `None` when the blob is shorter.
pub fn frames<'a>(chunks: &'a [Chunk], blob: &'a [u8]) -> impl Iterator<Item = Option<&'a [u8]>> {
    let mut at = 0;
    chunks.iter().map(move |chunk| {
        let start = at;
        at += stored_length(chunk);
        blob.get(start..at)
    })
}

/// Expands frame after frame of a segment and compares each chunk with its digest. The number of the first chunk that
/// differs is the error.
pub fn expand(chunks: &[Chunk], blob: &[u8]) -> Result<Vec<u8>, usize> {
    let mut bytes = vec![0; chunks.len() * CHUNK];
    let mut expander = Expander::new().map_err(|_| 0_usize)?;
    let places = bytes.chunks_exact_mut(CHUNK);
    for (number, ((chunk, frame), place)) in chunks.iter().zip(frames(chunks, blob)).zip(places).enumerate() {
        if chunk.frame == 0 {
            continue;
        }
        let sound = frame.is_some_and(|frame| expander.expand(frame, place).is_ok());
        if !sound || Digest::of(place) != chunk.digest {
            return Err(number);
        }
    }
    Ok(bytes)
}

/// Expands frames one after the other; making one is what costs.
struct Expander(Decompressor<'static>);

impl Expander {
    fn new() -> io::Result<Self> {
        Decompressor::new().map(Self)
    }

    /// Expands `frame`, and nothing behind it, to exactly the length of `chunk`.
    fn expand(&mut self, frame: &[u8], chunk: &mut [u8]) -> io::Result<()> {
        let length = self.0.decompress_to_buffer(frame, &mut *chunk)?;
        if length == chunk.len() {
            Ok(())
        } else {
            Err(io::Error::new(io::ErrorKind::InvalidData, "a frame does not expand to one chunk"))
        }
    }
}

/// A frame of the first `length` bytes of the chunk in `frame`.
pub fn shortened(frame: &[u8], length: usize) -> Result<Vec<u8>> {
    let failed = |source| Error::Compress { offset: 0, source };
    let chunk = image::expand(frame, CHUNK).map_err(failed)?;
    zstd::bulk::compress(&chunk[..length.min(CHUNK)], crate::seal::LEVEL).map_err(failed)
}

/// A sealed qcow2, open for taking its frames out.
#[derive(Debug)]
pub struct SealedImage {
    path: PathBuf,
    file: Arc<FileBytes>,
    size: u64,
    /// Where each chunk's frame begins in the file, and its length; (0, 0) for an all-zero chunk.
    frames: Vec<(u64, u32)>,
}

impl SealedImage {
    /// Opens a canonical qcow2. Any other is refused: it could not be laid down again from its frames.
    pub fn open(path: &Path) -> Result<Self> {
        let failed = |source| Error::Open { path: path.to_owned(), source };
        if !fs::symlink_metadata(path).map_err(failed)?.is_file() {
            return Err(failed(io::Error::other("it is not a regular file")));
        }
        let file = File::open(path).map_err(failed)?;
        let file = Arc::new(FileBytes::new(file).map_err(failed)?);
        let image = Image::open(file.clone(), Limits::default())
            .map_err(|source| Error::Refused { path: path.to_owned(), source })?;
        let header = image.header();
        let whole_sectors = image.size().is_multiple_of(canonical::SECTOR);
        if header.compression != Compression::Zstd || 1_usize << header.cluster_bits != CHUNK || !whole_sectors {
            return Err(Error::NotSealed { path: path.to_owned() });
        }
        let size = image.size();
        let frames = find_frames(&image, &file, size).map_err(failed)?;
        let sealed = Self { path: path.to_owned(), file, size, frames };
        if sealed.is_canonical().map_err(failed)? { Ok(sealed) } else { Err(Error::NotSealed { path: sealed.path }) }
    }

    /// Virtual size in bytes.
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// What of the file is not frames.
    pub fn metadata(&self) -> Metadata {
        canonical::metadata(self.size, self.frames.iter().map(|(_, length)| *length))
    }

    /// The frames of segment `number`: where each begins in the file, and its length.
    fn frames_of(&self, number: u64) -> &[(u64, u32)] {
        let first = usize::try_from(number).unwrap_or(usize::MAX).saturating_mul(CHUNKS);
        let frames = self.frames.get(first..).unwrap_or_default();
        &frames[..frames.len().min(CHUNKS)]
    }

    /// The bytes of segment `number` as they are stored; nothing is expanded.
    pub fn blob(&self, number: u64) -> Result<Vec<u8>> {
        let frames = self.frames_of(number);
        let length = |frame: &(u64, u32)| if frame.1 == 0 { ZERO_FRAME.len() } else { frame.1 as usize };
        let mut blob = vec![0; frames.iter().map(length).sum()];
        let mut rest = &mut blob[..];
        for (place, frame) in frames.iter().enumerate() {
            let (bytes, behind) = rest.split_at_mut(length(frame));
            if frame.1 == 0 {
                bytes.copy_from_slice(&ZERO_FRAME);
            } else {
                let read = self.file.read_at(frame.0, bytes);
                read.map_err(|source| Error::Read { offset: guest_offset(number, place), source })?;
            }
            rest = behind;
        }
        Ok(blob)
    }

    /// Expands the `blob` of segment `number` to learn the digests of its chunks.
    pub fn chunks(&self, number: u64, blob: &[u8]) -> Result<Vec<Chunk>> {
        let mut expander = Expander::new().map_err(|source| Error::Read { offset: guest_offset(number, 0), source })?;
        let mut chunk = vec![0; CHUNK];
        let mut at = 0;
        let learn = |(place, (_, length)): (usize, &(u64, u32))| {
            if *length == 0 {
                at += ZERO_FRAME.len();
                return Ok(Chunk { digest: zero_chunk(), frame: 0 });
            }
            let frame = blob.get(at..at + *length as usize).unwrap_or_default();
            at += *length as usize;
            let expanded = expander.expand(frame, &mut chunk);
            expanded.map_err(|source| Error::Read { offset: guest_offset(number, place), source })?;
            Ok(Chunk { digest: Digest::of(&chunk), frame: *length })
        };
        self.frames_of(number).iter().enumerate().map(learn).collect()
    }

    /// Whether the whole file is what its frames lead to.
    fn is_canonical(&self) -> io::Result<bool> {
        if self.frames.iter().any(|(_, length)| *length > LONGEST_FRAME) {
            return Ok(false);
        }
        let mut next = FRAMES_OFFSET;
        for (offset, length) in self.frames.iter().filter(|(_, length)| *length != 0) {
            if *offset != next {
                return Ok(false);
            }
            next += u64::from(*length);
        }
        let metadata = self.metadata();
        if self.file.size() != metadata.file_size() {
            return Ok(false);
        }
        let mut header = vec![0; metadata.header.len()];
        self.file.read_at(0, &mut header)?;
        let mut tail = vec![0; metadata.tail.len()];
        self.file.read_at(metadata.tail_offset, &mut tail)?;
        let mut padding = vec![0; usize::try_from(metadata.tail_offset - next).unwrap_or(0)];
        self.file.read_at(next, &mut padding)?;
        Ok(header == metadata.header && tail == metadata.tail && padding.iter().all(|byte| *byte == 0))
    }
}

/// Where the chunk at `place` of segment `number` begins on the disk.
const fn guest_offset(number: u64, place: usize) -> u64 {
    number * SEGMENT as u64 + (place * CHUNK) as u64
}

/// The tables say how long a frame is only in whole sectors: the next frame, or the frame itself, says it exactly.
fn find_frames(image: &Image, file: &FileBytes, size: u64) -> io::Result<Vec<(u64, u32)>> {
    let mut frames = Vec::new();
    let mut last: Option<(usize, u64, u64)> = None;
    let mut at = 0;
    while at < size {
        let (cluster, run) = image.cluster(at)?;
        let chunks = run.min(size - at).div_ceil(CHUNK as u64);
        let Cluster::Compressed { offset, bytes } = cluster else {
            if !matches!(cluster, Cluster::Unallocated) {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "it has clusters that are not compressed"));
            }
            frames.resize(frames.len() + usize::try_from(chunks).unwrap_or(0), (0, 0));
            at += chunks * CHUNK as u64;
            continue;
        };
        if let Some((number, begin, _)) = last {
            frames[number] = (begin, u32::try_from(offset.saturating_sub(begin)).unwrap_or(u32::MAX));
        }
        last = Some((frames.len(), offset, bytes));
        frames.push((offset, 0));
        at += CHUNK as u64;
    }
    if let Some((number, offset, bytes)) = last {
        let stored = bytes.min(file.size().saturating_sub(offset));
        let mut frame = vec![0; usize::try_from(stored).unwrap_or(0)];
        file.read_at(offset, &mut frame)?;
        let length = zstd::zstd_safe::find_frame_compressed_size(&frame)
            .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "its last frame is not zstd"))?;
        frames[number].1 = u32::try_from(length).unwrap_or(u32::MAX);
    }
    Ok(frames)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_zero_frame_is_one_chunk_of_zeros() {
        assert_eq!(zstd::bulk::decompress(&ZERO_FRAME, CHUNK).ok(), Some(vec![0; CHUNK]));
        assert_eq!(image::expand(&ZERO_FRAME, CHUNK).ok(), Some(vec![0; CHUNK]));
    }
}
