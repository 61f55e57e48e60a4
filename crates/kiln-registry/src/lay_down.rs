//! Laying down: the qcow2, the raw disk and the raw.zst of a version from its stored frames, always the same bytes.

use std::{
    fs::File,
    io::{self, Write as _},
    os::unix::fs::FileExt as _,
};

use kiln_core::Digest;
use kiln_disk::{
    CHUNK, SEGMENT,
    ordered::ordered,
    qcow2::canonical,
    segment::{self, ZERO_FRAME},
};
use sha2::{Digest as _, Sha256};

use crate::{
    Registry, RegistryError,
    content::{Content, StoredSegment},
    damage::Damage,
};

/// A file that is made of the segments.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Form {
    Qcow2,
    Raw,
    RawZst,
}

impl Form {
    pub(crate) fn of(format: &str) -> Option<Self> {
        match format {
            "qcow2" => Some(Self::Qcow2),
            "raw" => Some(Self::Raw),
            "raw.zst" => Some(Self::RawZst),
            _ => None,
        }
    }
}

/// Takes the bytes of a file in order.
pub(crate) trait Sink {
    fn put(&mut self, bytes: &[u8]) -> io::Result<()>;
}

/// For the digest alone.
pub(crate) struct Nowhere;

impl Sink for Nowhere {
    fn put(&mut self, _bytes: &[u8]) -> io::Result<()> {
        Ok(())
    }
}

/// Bytes one behind the other.
pub(crate) struct Plain<'a>(pub(crate) &'a File);

impl Sink for Plain<'_> {
    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all(bytes)
    }
}

/// A raw disk whose all-zero chunks are holes.
pub(crate) struct Sparse<'a> {
    pub(crate) file: &'a File,
    pub(crate) at: u64,
}

impl Sink for Sparse<'_> {
    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        for chunk in bytes.chunks(CHUNK) {
            if chunk.iter().any(|byte| *byte != 0) {
                self.file.write_all_at(chunk, self.at)?;
            }
            self.at += chunk.len() as u64;
        }
        Ok(())
    }
}

/// A sink and the digest of what went through it.
struct Hashing<'a> {
    sink: &'a mut dyn Sink,
    hasher: Sha256,
    bytes: u64,
}

impl Hashing<'_> {
    fn put(&mut self, bytes: &[u8]) -> Result<(), RegistryError> {
        self.hasher.update(bytes);
        self.bytes += bytes.len() as u64;
        self.sink.put(bytes).map_err(RegistryError::Sink)
    }
}

impl Registry {
    /// Puts the file of `form` into `sink`; its length and digest. Every segment is verified before its bytes are used.
    /// `watch` gets the guest bytes done and says whether to go on.
    pub(crate) fn lay_down(
        &self,
        content: &Content,
        form: Form,
        sink: &mut dyn Sink,
        watch: &dyn Fn(u64) -> bool,
    ) -> Result<(u64, Digest), RegistryError> {
        let mut out = Hashing { sink, hasher: Sha256::new(), bytes: 0 };
        let lengths: Vec<u32> = content.chunks().map(|chunk| chunk.frame).collect();
        let metadata = (form == Form::Qcow2).then(|| canonical::metadata(content.size, lengths.into_iter()));
        if let Some(metadata) = &metadata {
            out.put(&metadata.header)?;
        }
        let segments = &content.segments;
        let make = |number: u64| self.piece(&segments[usize::try_from(number).unwrap_or(usize::MAX)], form);
        ordered(segments.len() as u64, make, |number, piece| {
            let end = ((number + 1) * SEGMENT as u64).min(content.size);
            let mut piece = piece.map_err(|damage| self.set_aside(damage))?;
            if end == content.size {
                cut(&mut piece, form, segments.last(), content.size)?;
            }
            out.put(&piece)?;
            if watch(end) { Ok(()) } else { Err(RegistryError::Stopped { path: self.root().to_owned() }) }
        })?;
        if let Some(metadata) = &metadata {
            let padding = metadata.tail_offset.saturating_sub(out.bytes);
            out.put(&vec![0; usize::try_from(padding).unwrap_or(0)])?;
            out.put(&metadata.tail)?;
        }
        Ok((out.bytes, Digest::from_bytes(out.hasher.finalize().into())))
    }

    /// What `segment` gives to the file.
    pub(crate) fn piece(&self, segment: &StoredSegment, form: Form) -> Result<Vec<u8>, Damage> {
        let chunks = &segment.chunks;
        if segment.is_zero() {
            // Needs no blob to be known.
            return Ok(match form {
                Form::Qcow2 => Vec::new(),
                Form::Raw => vec![0; chunks.len() * CHUNK],
                Form::RawZst => ZERO_FRAME.repeat(chunks.len()),
            });
        }
        let blob = self.blob_bytes(&segment.blob)?;
        match form {
            Form::RawZst => Ok(blob),
            Form::Raw => segment::expand(chunks, &blob).map_err(|chunk| Damage::chunk(&segment.blob, chunk)),
            Form::Qcow2 => {
                if chunks.iter().all(|chunk| chunk.frame != 0) {
                    return Ok(blob);
                }
                let frames = chunks.iter().zip(segment::frames(chunks, &blob));
                let stored = frames.filter(|(chunk, _)| chunk.frame != 0).filter_map(|(_, frame)| frame);
                let mut piece = Vec::with_capacity(blob.len());
                stored.for_each(|frame| piece.extend_from_slice(frame));
                Ok(piece)
            }
        }
    }
}

/// The last piece ends where the disk ends, also in the middle of a chunk.
pub(crate) fn cut(
    piece: &mut Vec<u8>,
    form: Form,
    last: Option<&StoredSegment>,
    size: u64,
) -> Result<(), RegistryError> {
    let inside = usize::try_from(size % CHUNK as u64).unwrap_or(0);
    let Some(last) = last.filter(|_| inside != 0 && form != Form::Qcow2) else { return Ok(()) };
    if form == Form::Raw {
        piece.truncate((last.chunks.len() - 1) * CHUNK + inside);
        return Ok(());
    }
    let whole: usize = last.chunks.iter().rev().skip(1).map(segment::stored_length).sum();
    let frame = piece.split_off(whole);
    piece.extend(segment::shortened(&frame, inside)?);
    Ok(())
}
