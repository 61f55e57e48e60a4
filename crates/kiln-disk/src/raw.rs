//! Writing a sealed disk as a sparse raw file or as `raw.zst`.

use std::{
    fs::File,
    io::{self, Write},
    os::unix::fs::FileExt,
    path::Path,
};

use kiln_core::{Digest, artifact};
use sha2::{Digest as _, Sha256};

use crate::{CHUNK, Error, ReadAt, Result, SEGMENT, seal::Sealed, segment::ZERO_FRAME};

/// How far a writer is and whether it should stop.
pub struct Watch<'a> {
    /// Guest bytes done, guest bytes in all.
    pub progress: &'a dyn Fn(u64, u64),
    pub cancelled: &'a dyn Fn() -> bool,
}

impl std::fmt::Debug for Watch<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watch").finish_non_exhaustive()
    }
}

/// Writes `disk` to `path` as a raw file whose all-zero 64 KiB chunks are holes. The file must not exist.
pub fn write_raw(disk: &dyn ReadAt, path: &Path, watch: &Watch<'_>) -> Result<artifact::File> {
    let failed = |source| Error::Write { path: path.to_owned(), source };
    let file = create(path)?;
    file.set_len(disk.size()).map_err(failed)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; SEGMENT];
    let mut at = 0;
    while at < disk.size() {
        if (watch.cancelled)() {
            return Err(Error::Cancelled);
        }
        let length = usize::try_from(disk.size() - at).unwrap_or(usize::MAX).min(SEGMENT);
        disk.read_at(at, &mut buffer[..length]).map_err(|source| Error::Read { offset: at, source })?;
        hasher.update(&buffer[..length]);
        for (number, chunk) in buffer[..length].chunks(CHUNK).enumerate() {
            if chunk.iter().any(|byte| *byte != 0) {
                file.write_all_at(chunk, at + (number * CHUNK) as u64).map_err(failed)?;
            }
        }
        at += length as u64;
        (watch.progress)(at, disk.size());
    }
    Ok(record(path, "raw", disk.size(), Digest::from_bytes(hasher.finalize().into())))
}

/// Writes the frames of the sealed qcow2 `image` to `path`, one behind the other: `zstd -d` makes the raw disk of it.
/// Nothing is compressed again but a last chunk that the disk does not fill. The file must not exist.
pub fn write_raw_zst(image: &dyn ReadAt, sealed: &Sealed, path: &Path, watch: &Watch<'_>) -> Result<artifact::File> {
    let failed = |source| Error::Write { path: path.to_owned(), source };
    let compress = |bytes: &[u8], offset| {
        zstd::bulk::compress(bytes, crate::seal::LEVEL).map_err(|source| Error::Compress { offset, source })
    };
    let mut out = Hashing { inner: io::BufWriter::new(create(path)?), hasher: Sha256::new(), bytes: 0 };
    let mut frames = sealed.frames().peekable();
    for number in 0..sealed.chunks.len() {
        if (watch.cancelled)() {
            return Err(Error::Cancelled);
        }
        let offset = (number * CHUNK) as u64;
        let length = usize::try_from(sealed.size - offset).unwrap_or(usize::MAX).min(CHUNK);
        let mut frame = match frames.next_if(|(chunk, ..)| *chunk == number) {
            None => ZERO_FRAME.to_vec(),
            Some((_, at, length)) => {
                let mut frame = vec![0; length as usize];
                image.read_at(at, &mut frame).map_err(|source| Error::Read { offset: at, source })?;
                frame
            }
        };
        if length < CHUNK {
            let chunk = crate::qcow2::image::expand(&frame, CHUNK).map_err(|source| Error::Read { offset, source })?;
            frame = compress(&chunk[..length], offset)?;
        }
        out.write_all(&frame).map_err(failed)?;
        (watch.progress)(offset + length as u64, sealed.size);
    }
    out.flush().map_err(failed)?;
    Ok(record(path, "raw.zst", out.bytes, Digest::from_bytes(out.hasher.finalize().into())))
}

fn create(path: &Path) -> Result<File> {
    File::options().write(true).create_new(true).open(path).map_err(|source| match source.kind() {
        io::ErrorKind::AlreadyExists => Error::Exists { path: path.to_owned() },
        _ => Error::Write { path: path.to_owned(), source },
    })
}

fn record(path: &Path, format: &str, bytes: u64, sha256: Digest) -> artifact::File {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    artifact::File { name, format: format.to_owned(), bytes, sha256 }
}

struct Hashing<W> {
    inner: W,
    hasher: Sha256,
    bytes: u64,
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
