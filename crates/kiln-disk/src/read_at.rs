//! Reading bytes at an offset: the one trait that files, guest disks, qcow2 images and partitions share.

use std::{fs::File, io, os::unix::fs::FileExt, sync::Arc};

/// A fixed-size run of bytes that many threads may read at once.
pub trait ReadAt: Send + Sync + std::fmt::Debug {
    /// Size in bytes.
    fn size(&self) -> u64;

    /// Fills `buffer` from `offset`. Reading past the end is an error of kind [`io::ErrorKind::UnexpectedEof`].
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;

    /// How many bytes from `offset` on are known to be zero without reading them. 0 promises nothing.
    fn hole(&self, _offset: u64) -> io::Result<u64> {
        Ok(0)
    }
}

/// A file whose size was taken when it was opened.
#[derive(Debug)]
pub struct FileBytes {
    file: File,
    size: u64,
}

impl FileBytes {
    pub fn new(file: File) -> io::Result<Self> {
        let size = file.metadata()?.len();
        Ok(Self { file, size })
    }

    pub fn file(&self) -> &File {
        &self.file
    }
}

impl ReadAt for FileBytes {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(buffer, offset)
    }
}

impl ReadAt for Vec<u8> {
    fn size(&self) -> u64 {
        self.len() as u64
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let bytes = usize::try_from(offset)
            .ok()
            .and_then(|start| self.get(start..start.checked_add(buffer.len())?))
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        buffer.copy_from_slice(bytes);
        Ok(())
    }
}

/// A part of something larger: a partition.
#[derive(Debug, Clone)]
pub struct Window {
    inner: Arc<dyn ReadAt>,
    start: u64,
    size: u64,
}

impl Window {
    /// `None` if the window does not lie inside `inner`.
    pub fn new(inner: Arc<dyn ReadAt>, start: u64, size: u64) -> Option<Self> {
        (start.checked_add(size)? <= inner.size()).then_some(Self { inner, start, size })
    }
}

impl ReadAt for Window {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let end = offset.checked_add(buffer.len() as u64).ok_or(io::ErrorKind::UnexpectedEof)?;
        if end > self.size {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.inner.read_at(self.start + offset, buffer)
    }

    fn hole(&self, offset: u64) -> io::Result<u64> {
        let rest = self.size.saturating_sub(offset);
        Ok(self.inner.hole(self.start.saturating_add(offset))?.min(rest))
    }
}
