//! Sealing: a guest disk read once becomes chunk digests, frames and a canonical qcow2.
//!
//! The **disk digest** names the guest's bytes whatever file holds them. It is the SHA-256 of
//!
//! ```text
//! "kiln disk 1\n"  "chunk 65536\n"  "size <virtual size in bytes, decimal>\n"
//! then the 32 raw bytes of the SHA-256 of every chunk, in order
//! ```
//!
//! The disk counts as filled up with zeros to whole chunks; its size is a multiple of 512. Every chunk that is not
//! all zeros becomes one zstd frame of its own (content size in the header, no checksum).

use std::{
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use kiln_core::Digest;
use sha2::{Digest as _, Sha256};

use crate::{
    CHUNK, Error, GuestDisk, ReadAt, Result, ZEROS,
    qcow2::canonical::{self, FRAMES_OFFSET},
};

mod pipeline;

/// Measured on a Debian 12 root file system (531 MiB of files) in 64 KiB chunks, whole sealing: level 1 gives 206.5 MB
/// for 1.37 s of processor time, level 2 gives 202.4 MB for 1.45 s, level 3 gives 200.0 MB for 1.68 s.
pub const LEVEL: i32 = 2;

/// What makes the frames, for the record: another compressor makes other frames of the same chunks.
pub fn compressor() -> String {
    format!("zstd {} level {LEVEL}", zstd::zstd_safe::version_string())
}

/// How to seal.
pub struct Options<'a> {
    /// Threads that read, hash and compress; `None` for two per processor, so that one reads while the other computes.
    pub threads: Option<usize>,
    /// zstd level. Part of the file's bytes: leave it at [`LEVEL`] for anything published.
    pub level: i32,
    /// Told guest bytes done and guest bytes in all, in rising order, from the calling thread.
    pub progress: &'a (dyn Fn(u64, u64) + Sync),
    /// Asked between segments; true stops with [`Error::Cancelled`].
    pub cancelled: &'a (dyn Fn() -> bool + Sync),
    /// Sees every byte that is not in a hole while it passes.
    pub tap: Option<&'a dyn Tap>,
    /// Chunks that it has at the same place are hashed, not compressed.
    pub before: Option<&'a dyn StoredFrames>,
}

impl Default for Options<'_> {
    fn default() -> Self {
        Self { threads: None, level: LEVEL, progress: &|_, _| {}, cancelled: &|| false, tap: None, before: None }
    }
}

impl std::fmt::Debug for Options<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Options").field("threads", &self.threads).field("level", &self.level).finish_non_exhaustive()
    }
}

/// Watches the bytes of a disk while they are sealed, from several threads and in any order.
pub trait Tap: Sync {
    /// How many bytes before its own each call must see again, so that nothing hides across a border.
    fn overlap(&self) -> usize;

    /// Guest bytes from `offset`, of which the first up to [`Tap::overlap`] were seen before.
    fn see(&self, offset: u64, bytes: &[u8]);
}

/// The frames of a disk that was sealed before. What it says of its chunks is believed.
pub trait StoredFrames: Send + Sync {
    /// The chunks of segment `number`; none behind the end of the disk.
    fn chunks(&self, number: u64) -> &[Chunk];

    /// The stored bytes of segment `number`, verified; `None` when they cannot be read now.
    fn blob(&self, number: u64) -> Option<Vec<u8>>;
}

/// One chunk of a sealed disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chunk {
    pub digest: Digest,
    /// Bytes of its frame, 0 if the chunk is all zeros and stored nowhere.
    pub frame: u32,
}

/// What sealing made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sealed {
    pub disk_digest: Digest,
    /// Virtual size in bytes.
    pub size: u64,
    /// Every chunk of the disk, in order.
    pub chunks: Vec<Chunk>,
    /// Of the qcow2 file.
    pub qcow2: Digest,
    /// Length of the qcow2 file.
    pub bytes: u64,
}

impl Sealed {
    /// How many chunks are not all zeros.
    pub fn stored_chunks(&self) -> u64 {
        self.chunks.iter().filter(|chunk| chunk.frame != 0).count() as u64
    }

    /// The frames in the qcow2 file: chunk number, offset in the file, length.
    pub fn frames(&self) -> impl Iterator<Item = (usize, u64, u32)> {
        let mut offset = FRAMES_OFFSET;
        self.chunks.iter().enumerate().filter(|(_, chunk)| chunk.frame != 0).map(move |(number, chunk)| {
            let here = offset;
            offset += u64::from(chunk.frame);
            (number, here, chunk.frame)
        })
    }
}

/// The digest that names a disk of `size` bytes with these chunks.
pub fn disk_digest(size: u64, chunks: impl IntoIterator<Item = Digest>) -> Digest {
    let mut hasher = Sha256::new();
    hasher.update(format!("kiln disk 1\nchunk {CHUNK}\nsize {size}\n"));
    for chunk in chunks {
        hasher.update(chunk.as_bytes());
    }
    Digest::from_bytes(hasher.finalize().into())
}

/// The digest of an all-zero chunk.
pub fn zero_chunk() -> Digest {
    Digest::of(&ZEROS)
}

/// Reads `disk` once and writes the canonical qcow2 to `path`, which must not exist; it appears there when complete.
/// The file is not flushed to stable storage: whoever publishes it does that.
pub fn seal(disk: &GuestDisk, path: &Path, options: &Options<'_>) -> Result<Sealed> {
    if fs::symlink_metadata(path).is_ok() {
        return Err(Error::Exists { path: path.to_owned() });
    }
    let partial = partial_name(path);
    let sealed = write_qcow2(disk, &partial, options).and_then(|sealed| {
        let failed = |source| Error::Write { path: path.to_owned(), source };
        fs::rename(&partial, path).map_err(failed)?;
        Ok(sealed)
    });
    if sealed.is_err() {
        // The first error matters; the remains carry a name that says what they are.
        let _ = fs::remove_file(&partial);
    }
    sealed
}

fn partial_name(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".partial");
    name.into()
}

fn write_qcow2(disk: &GuestDisk, path: &Path, options: &Options<'_>) -> Result<Sealed> {
    let failed = |source| Error::Write { path: path.to_owned(), source };
    let mut file = File::options().read(true).write(true).create(true).truncate(true).open(path).map_err(failed)?;
    file.seek(SeekFrom::Start(FRAMES_OFFSET)).map_err(failed)?;
    let mut chunks = Vec::with_capacity(usize::try_from(disk.size().div_ceil(CHUNK as u64)).unwrap_or(0));
    pipeline::run(disk, options, |segment| {
        file.write_all(&segment.frames).map_err(failed)?;
        chunks.extend(segment.chunks);
        Ok(())
    })?;
    let metadata = canonical::metadata(disk.size(), chunks.iter().map(|chunk| chunk.frame));
    let mut tables = || -> io::Result<()> {
        file.seek(SeekFrom::Start(metadata.tail_offset))?;
        file.write_all(&metadata.tail)?;
        file.rewind()?;
        file.write_all(&metadata.header)?;
        file.rewind()
    };
    tables().map_err(failed)?;
    let qcow2 = digest_of(&mut file).map_err(failed)?;
    Ok(Sealed {
        disk_digest: disk_digest(disk.size(), chunks.iter().map(|chunk| chunk.digest)),
        size: disk.size(),
        chunks,
        qcow2,
        bytes: metadata.file_size(),
    })
}

/// SHA-256 of everything `reader` still gives.
pub fn digest_of(reader: &mut impl Read) -> io::Result<Digest> {
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match reader.read(&mut buffer) {
            Ok(0) => return Ok(Digest::from_bytes(hasher.finalize().into())),
            Ok(length) => hasher.update(&buffer[..length]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// A sealed disk whose every chunk is compared with its digest as it is read.
#[derive(Debug)]
pub struct Verified<R> {
    inner: R,
    digests: Vec<Digest>,
}

impl<R: ReadAt> Verified<R> {
    /// `inner` is the disk, `chunks` what sealing said about it.
    pub fn new(inner: R, chunks: &[Chunk]) -> Self {
        Self { inner, digests: chunks.iter().map(|chunk| chunk.digest).collect() }
    }
}

impl<R: ReadAt> ReadAt for Verified<R> {
    fn size(&self) -> u64 {
        self.inner.size()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let (mut at, mut rest) = (offset, buffer);
        let mut chunk = vec![0; CHUNK];
        while !rest.is_empty() {
            let start = at - at % CHUNK as u64;
            let stored = usize::try_from(self.size().saturating_sub(start)).unwrap_or(usize::MAX).min(CHUNK);
            let inside = usize::try_from(at - start).unwrap_or(0);
            if stored <= inside {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            chunk[stored..].fill(0);
            self.inner.read_at(start, &mut chunk[..stored])?;
            let number = start / CHUNK as u64;
            let expected = usize::try_from(number).ok().and_then(|number| self.digests.get(number));
            if expected != Some(&Digest::of(&chunk)) {
                return Err(io::Error::new(io::ErrorKind::InvalidData, Error::Altered { chunk: number }));
            }
            let length = rest.len().min(stored - inside);
            let (piece, others) = rest.split_at_mut(length);
            piece.copy_from_slice(&chunk[inside..inside + length]);
            at += length as u64;
            rest = others;
        }
        Ok(())
    }
}
