//! The threads behind sealing: segments go out to workers, frames come back in order, memory stays bounded.

use std::{
    cell::OnceCell,
    collections::BTreeMap,
    io,
    sync::{
        Mutex, PoisonError,
        mpsc::{Receiver, Sender, channel},
    },
    thread,
};

use kiln_core::Digest;
use zstd::{
    bulk::Compressor,
    zstd_safe::{CParameter, compress_bound},
};

use super::{Chunk, Options, StoredFrames, zero_chunk};
use crate::{CHUNK, Error, GuestDisk, ReadAt, Result, SEGMENT, ZEROS, segment::stored_length};

/// Segments on their way at once, for each worker. Two keep a worker busy while the writer waits for its neighbour.
const IN_FLIGHT: usize = 2;

/// 64 chunks that went through.
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) chunks: Vec<Chunk>,
    /// The frames, one behind the other.
    pub(super) frames: Vec<u8>,
}

type Done = (u64, Result<Segment>);

/// Sends every segment of `disk` through the workers and hands the results to `write` in order.
pub(super) fn run(disk: &GuestDisk, options: &Options<'_>, mut write: impl FnMut(Segment) -> Result<()>) -> Result<()> {
    let workers = options.threads.unwrap_or_else(|| 2 * thread::available_parallelism().map_or(2, usize::from)).max(1);
    let (send_work, work) = channel::<u64>();
    let (send_done, done) = channel::<Done>();
    let work = &Mutex::new(work);
    thread::scope(|scope| {
        for _ in 0..workers {
            let send_done = send_done.clone();
            scope.spawn(move || labour(disk, options, work, &send_done));
        }
        drop(send_done);
        // Moved in, so that it is dropped (and the workers end) on every way out of the scope.
        let send_work = send_work;
        let collected = collect(disk, options, &send_work, &done, workers * IN_FLIGHT, &mut write);
        drop(send_work);
        collected
    })
}

/// The calling thread's part: hands out segments, puts the results in order.
fn collect(
    disk: &GuestDisk,
    options: &Options<'_>,
    send_work: &Sender<u64>,
    done: &Receiver<Done>,
    window: usize,
    write: &mut impl FnMut(Segment) -> Result<()>,
) -> Result<()> {
    let segments = disk.size().div_ceil(SEGMENT as u64);
    let zero = zero_chunk();
    let mut waiting: BTreeMap<u64, Segment> = BTreeMap::new();
    let (mut next_out, mut next_in, mut in_flight) = (0, 0, 0);
    while next_in < segments {
        if (options.cancelled)() {
            return Err(Error::Cancelled);
        }
        // Bounded by distance, not by count: a slow segment must not let the others pile up behind it.
        while next_out < segments && next_out < next_in + window as u64 {
            let offset = next_out * SEGMENT as u64;
            if disk.is_hole(offset, SEGMENT as u64).map_err(|source| Error::Read { offset, source })? {
                waiting.insert(next_out, empty_segment(disk.size(), offset, zero));
            } else {
                send_work.send(next_out).map_err(|_| Error::Panicked)?;
                in_flight += 1;
            }
            next_out += 1;
        }
        if !waiting.contains_key(&next_in) {
            debug_assert!(in_flight > 0);
            let (number, segment) = done.recv().map_err(|_| Error::Panicked)?;
            in_flight -= 1;
            waiting.insert(number, segment?);
        }
        while let Some(segment) = waiting.remove(&next_in) {
            // Also when all that is left came at once.
            if (options.cancelled)() {
                return Err(Error::Cancelled);
            }
            write(segment)?;
            next_in += 1;
            (options.progress)((next_in * SEGMENT as u64).min(disk.size()), disk.size());
        }
    }
    Ok(())
}

fn chunks_from(size: u64, offset: u64) -> usize {
    usize::try_from((size - offset).div_ceil(CHUNK as u64)).unwrap_or(usize::MAX).min(SEGMENT / CHUNK)
}

fn empty_segment(size: u64, offset: u64, zero: Digest) -> Segment {
    Segment { chunks: vec![Chunk { digest: zero, frame: 0 }; chunks_from(size, offset)], frames: Vec::new() }
}

/// A worker: takes segment numbers until there are no more.
fn labour(disk: &GuestDisk, options: &Options<'_>, work: &Mutex<Receiver<u64>>, send_done: &Sender<Done>) {
    let overlap = options.tap.map_or(0, super::Tap::overlap);
    let mut buffer = vec![0; overlap + SEGMENT];
    let mut compressor = compressor(options.level);
    let zero = zero_chunk();
    loop {
        let next = work.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(number) = next else { return };
        let offset = number * SEGMENT as u64;
        let segment = match &mut compressor {
            // A panic must come back as a result: nobody would wait for this segment otherwise.
            Ok(compressor) => std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                segment(disk, options, offset, overlap, &mut buffer, compressor, zero)
            }))
            .unwrap_or(Err(Error::Panicked)),
            Err(error) => Err(Error::Compress { offset, source: io::Error::new(error.kind(), error.to_string()) }),
        };
        if send_done.send((number, segment)).is_err() {
            return;
        }
    }
}

fn compressor(level: i32) -> io::Result<Compressor<'static>> {
    let mut compressor = Compressor::new(level)?;
    compressor.set_parameter(CParameter::ContentSizeFlag(true))?;
    compressor.set_parameter(CParameter::ChecksumFlag(false))?;
    Ok(compressor)
}

fn segment(
    disk: &GuestDisk,
    options: &Options<'_>,
    offset: u64,
    overlap: usize,
    buffer: &mut [u8],
    compressor: &mut Compressor<'static>,
    zero: Digest,
) -> Result<Segment> {
    let count = chunks_from(disk.size(), offset);
    let stored = usize::try_from(disk.size() - offset).unwrap_or(usize::MAX).min(SEGMENT);
    // The bytes before the segment, for the tap; fewer at the start of the disk.
    let before = usize::try_from(offset).unwrap_or(usize::MAX).min(overlap);
    let buffer = &mut buffer[overlap - before..];
    disk.read_at(offset - before as u64, &mut buffer[..before + stored])
        .map_err(|source| Error::Read { offset, source })?;
    if let Some(tap) = options.tap {
        tap.see(offset - before as u64, &buffer[..before + stored]);
    }
    let buffer = &mut buffer[before..before + count * CHUNK];
    buffer[stored..].fill(0);
    let mut frames = Vec::with_capacity(SEGMENT / 2);
    let mut frame = vec![0; compress_bound(CHUNK)];
    let mut chunks = Vec::with_capacity(count);
    let before = options.before.map(|frames| Before::new(frames, offset / SEGMENT as u64));
    for (number, chunk) in buffer.chunks_exact(CHUNK).enumerate() {
        if chunk == ZEROS {
            chunks.push(Chunk { digest: zero, frame: 0 });
            continue;
        }
        let digest = Digest::of(chunk);
        if let Some(stored) = before.as_ref().and_then(|before| before.frame(number, &digest)) {
            frames.extend_from_slice(stored);
            chunks.push(Chunk { digest, frame: length_of(stored) });
            continue;
        }
        let length = compressor
            .compress_to_buffer(chunk, &mut frame[..])
            .map_err(|source| Error::Compress { offset: offset + (number * CHUNK) as u64, source })?;
        frames.extend_from_slice(&frame[..length]);
        chunks.push(Chunk { digest, frame: length_of(&frame[..length]) });
    }
    Ok(Segment { chunks, frames })
}

/// A frame is at most `compress_bound(CHUNK)` long.
fn length_of(frame: &[u8]) -> u32 {
    u32::try_from(frame.len()).unwrap_or(u32::MAX)
}

/// One segment of the disk before; its bytes are read when the first of its frames is wanted.
struct Before<'a> {
    frames: &'a dyn StoredFrames,
    number: u64,
    blob: OnceCell<Option<Vec<u8>>>,
}

impl<'a> Before<'a> {
    fn new(frames: &'a dyn StoredFrames, number: u64) -> Self {
        Self { frames, number, blob: OnceCell::new() }
    }

    /// The frame of the chunk at `place`, when that chunk is the one that `digest` names.
    fn frame(&self, place: usize, digest: &Digest) -> Option<&[u8]> {
        let chunks = self.frames.chunks(self.number);
        let chunk = chunks.get(place).filter(|chunk| chunk.frame != 0 && chunk.digest == *digest)?;
        let blob = self.blob.get_or_init(|| self.frames.blob(self.number)).as_deref()?;
        let start: usize = chunks[..place].iter().map(stored_length).sum();
        blob.get(start..start + stored_length(chunk))
    }
}
