//! A stored blob, open for reading at any offset. Its bytes are still to be judged.

use std::{
    fs::File,
    io::{self, Read},
    os::unix::fs::FileExt as _,
    sync::Arc,
};

use super::Mark;
use crate::objects::{Objects, Tag};

/// Bytes of a bucket's blob that one request of a reader brings.
const REQUEST: u64 = 8 << 20;

/// A blob, open for reading.
#[derive(Debug)]
pub struct StoredBlob {
    size: u64,
    mark: Mark,
    bytes: Bytes,
}

#[derive(Debug)]
enum Bytes {
    File(File),
    Object { objects: Arc<dyn Objects>, key: String, tag: Tag },
}

impl StoredBlob {
    pub(crate) const fn file(file: File, size: u64, mark: Mark) -> Self {
        Self { size, mark, bytes: Bytes::File(file) }
    }

    pub(crate) fn object(objects: Arc<dyn Objects>, key: String, size: u64, tag: Tag) -> Self {
        Self { size, mark: Mark(Some(tag.0.clone())), bytes: Bytes::Object { objects, key, tag } }
    }

    pub const fn size(&self) -> u64 {
        self.size
    }

    pub(crate) const fn mark(&self) -> &Mark {
        &self.mark
    }

    /// Fills `buffer` from `offset` on.
    pub fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        match &self.bytes {
            Bytes::File(file) => file.read_exact_at(buffer, offset),
            Bytes::Object { objects, key, tag } => {
                let end = offset.saturating_add(buffer.len() as u64);
                if end > self.size {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                if buffer.is_empty() {
                    return Ok(());
                }
                let part = objects.read_part(key, offset..end, tag)?;
                if part.len() != buffer.len() {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                buffer.copy_from_slice(&part);
                Ok(())
            }
        }
    }

    /// The blob from its beginning to its end.
    pub fn reader(&self) -> impl Read + '_ {
        Reader { blob: self, at: 0, ahead: Vec::new(), taken: 0 }
    }
}

struct Reader<'a> {
    blob: &'a StoredBlob,
    at: u64,
    ahead: Vec<u8>,
    taken: usize,
}

impl Read for Reader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.taken == self.ahead.len() {
            let count = usize::try_from((self.blob.size - self.at).min(REQUEST)).unwrap_or(0);
            self.ahead.resize(count, 0);
            self.taken = 0;
            self.blob.read_exact_at(&mut self.ahead, self.at)?;
            self.at += count as u64;
        }
        let count = buffer.len().min(self.ahead.len() - self.taken);
        buffer[..count].copy_from_slice(&self.ahead[self.taken..self.taken + count]);
        self.taken += count;
        Ok(count)
    }
}
