//! A machine's memory and devices on their way to a file and back: QEMU's migration stream over a Unix socket in the
//! build's directory. QEMU may start no programs, so kiln itself compresses.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Write},
    os::{fd::AsRawFd as _, unix::fs::OpenOptionsExt as _, unix::net::UnixStream},
    path::{Path, PathBuf},
    time::Duration,
};

use kiln_core::Digest;
use kiln_io::{
    fs::failed,
    time::{Attempt, GaveUp, Policy, poll_until},
};
use serde_json::json;
use sha2::{Digest as _, Sha256};
use tokio::net::UnixListener;

use super::{VmHost, qmp::Qmp, running::ANSWERS_WITHIN};
use crate::checkpoint::{CheckpointError, Stored};

/// Memory goes faster through the lowest level than the disk takes it.
const LEVEL: i32 = 1;
const BUFFER: usize = 1 << 20;
/// A machine of many GiB on a slow disk takes minutes; one that hangs takes for ever.
const MOVES_WITHIN: Duration = Duration::from_mins(10);
/// More than any machine moves; QEMU's own default is meant for networks.
const UNLIMITED: u64 = 1 << 40;

/// Writes the memory of a machine that stands still to `path`.
pub(super) async fn save(qmp: &Qmp, host: &VmHost<'_>, socket: &str, path: &Path) -> Result<Stored, CheckpointError> {
    let there = Socket::open(host, socket)?;
    let listener = UnixListener::bind(&there.path).map_err(failed("listen at", &there.path, 0))?;
    execute(qmp, "migrate-set-parameters", json!({"max-bandwidth": UNLIMITED})).await?;
    execute(qmp, "migrate", json!({"uri": format!("unix:{socket}")})).await?;
    let accepted = tokio::time::timeout(ANSWERS_WITHIN, listener.accept()).await;
    let accepted = accepted.map_err(|_| CheckpointError::Qemu("it does not send its memory".into()))?;
    let (stream, _) = accepted.map_err(failed("listen at", &there.path, 0))?;
    let stream = blocking_stream(stream.into_std()).map_err(failed("listen at", &there.path, 0))?;
    let file = path.to_owned();
    let written = on_a_thread(host, move || compress(stream, &file)).await;
    let moved = finished(qmp, host).await;
    let stored = written?;
    moved?;
    Ok(stored)
}

/// Hands a machine that waits for its memory what [`save`] wrote, and holds it against its checksum on the way: the
/// machine must not run before this has returned.
pub(super) async fn load(
    qmp: &Qmp,
    host: &VmHost<'_>,
    socket: &str,
    path: &Path,
    expected: Stored,
) -> Result<(), CheckpointError> {
    let there = Socket::open(host, socket)?;
    execute(qmp, "migrate-incoming", json!({"uri": format!("unix:{socket}")})).await?;
    let stream = UnixStream::connect(&there.path).map_err(failed("connect to", &there.path, 0))?;
    let file = path.to_owned();
    let found = on_a_thread(host, move || decompress(&file, stream)).await?;
    if found != expected {
        let (expected, found) = (expected.sha256, found.sha256);
        return Err(CheckpointError::Damaged { file: "memory", expected, found });
    }
    finished(qmp, host).await
}

async fn execute(qmp: &Qmp, command: &str, arguments: serde_json::Value) -> Result<(), CheckpointError> {
    qmp.execute(command, arguments, ANSWERS_WITHIN).await.map(|_| ()).map_err(CheckpointError::Qemu)
}

/// Waits until QEMU says that all of it has moved.
async fn finished(qmp: &Qmp, host: &VmHost<'_>) -> Result<(), CheckpointError> {
    let policy =
        Policy { first: Duration::from_millis(5), max: Duration::from_millis(100), deadline: Duration::from_mins(1) };
    let done = poll_until(host.clock, policy, host.cancel, || async {
        match qmp.execute("query-migrate", json!({}), ANSWERS_WITHIN).await {
            Ok(state) => match state["status"].as_str() {
                Some("completed") => Attempt::Done(()),
                Some("failed" | "cancelled") => {
                    let why = state["error-desc"].as_str().unwrap_or("its memory did not move");
                    Attempt::Stop(CheckpointError::Qemu(why.to_owned()))
                }
                _ => Attempt::Again(CheckpointError::Qemu("its memory does not move".to_owned())),
            },
            Err(reason) => Attempt::Stop(CheckpointError::Qemu(reason)),
        }
    });
    done.await.map_err(|gave_up| match gave_up {
        GaveUp::Cancelled => CheckpointError::Cancelled,
        GaveUp::Deadline(error) | GaveUp::Stopped(error) => error,
    })
}

async fn on_a_thread(
    host: &VmHost<'_>,
    work: impl FnOnce() -> Result<Stored, CheckpointError> + Send + 'static,
) -> Result<Stored, CheckpointError> {
    let work = tokio::task::spawn_blocking(work);
    tokio::select! {
        // The thread ends with QEMU, whose end of the socket it waits for.
        () = host.cancel.cancelled() => Err(CheckpointError::Cancelled),
        done = tokio::time::timeout(MOVES_WITHIN, work) => match done {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(CheckpointError::Qemu("moving its memory was ended".into())),
            Err(_) => Err(CheckpointError::Qemu(format!("its memory did not move within {MOVES_WITHIN:?}"))),
        },
    }
}

fn blocking_stream(stream: io::Result<UnixStream>) -> io::Result<UnixStream> {
    let stream = stream?;
    stream.set_nonblocking(false)?;
    Ok(stream)
}

/// A socket's path may be 107 bytes at most; through the directory's descriptor any directory will do.
struct Socket {
    _directory: File,
    path: PathBuf,
    name: PathBuf,
}

impl Socket {
    fn open(host: &VmHost<'_>, name: &str) -> Result<Self, CheckpointError> {
        let directory = host.ledger.directory();
        let handle = File::open(directory).map_err(failed("open", directory, 0))?;
        let path = PathBuf::from(format!("/proc/self/fd/{}", handle.as_raw_fd())).join(name);
        let name = directory.join(name);
        // One that was left would be in the way; it stands in the ledger.
        let _ = std::fs::remove_file(&name);
        Ok(Self { _directory: handle, path, name })
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.name);
    }
}

fn compress(mut from: impl Read, to: &Path) -> Result<Stored, CheckpointError> {
    let wrong = || failed("write", to, 0);
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(to).map_err(wrong())?;
    let counted = Counted { inner: file, hash: Sha256::new(), bytes: 0 };
    let mut encoder = zstd::Encoder::new(counted, LEVEL).map_err(wrong())?;
    let mut buffer = vec![0; BUFFER];
    loop {
        let read = from.read(&mut buffer).map_err(wrong())?;
        if read == 0 {
            break;
        }
        encoder.write_all(&buffer[..read]).map_err(wrong())?;
    }
    let counted = encoder.finish().map_err(wrong())?;
    Ok(counted.stored())
}

fn decompress(from: &Path, mut to: impl Write) -> Result<Stored, CheckpointError> {
    let unreadable = |error: io::Error| CheckpointError::Unreadable { file: "memory", reason: error.to_string() };
    let file = File::open(from).map_err(failed("read", from, 0))?;
    let mut counted = Counted { inner: file, hash: Sha256::new(), bytes: 0 };
    let mut decoder = zstd::Decoder::new(&mut counted).map_err(unreadable)?;
    let mut buffer = vec![0; BUFFER];
    loop {
        let read = decoder.read(&mut buffer).map_err(unreadable)?;
        if read == 0 {
            break;
        }
        to.write_all(&buffer[..read]).map_err(unreadable)?;
    }
    drop(decoder);
    // What follows the last frame is part of the file, too.
    io::copy(&mut counted, &mut io::sink()).map_err(unreadable)?;
    Ok(counted.stored())
}

/// Counts and hashes what passes.
struct Counted<T> {
    inner: T,
    hash: Sha256,
    bytes: u64,
}

impl<T> Counted<T> {
    fn stored(self) -> Stored {
        Stored { bytes: self.bytes, sha256: Digest::from_bytes(self.hash.finalize().into()) }
    }
}

impl<T: Write> Write for Counted<T> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.hash.update(&bytes[..written]);
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl<T: Read> Read for Counted<T> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.hash.update(&buffer[..read]);
        self.bytes += read as u64;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_comes_back_and_every_changed_byte_is_noticed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("memory");
        let memory: Vec<u8> = (0..3_000_000_u32).flat_map(|number| (number / 7).to_le_bytes()).collect();
        let stored = compress(&memory[..], &path).unwrap();
        let mut back = Vec::new();
        assert_eq!(decompress(&path, &mut back).unwrap(), stored);
        assert!(back == memory && stored.bytes == path.metadata().unwrap().len());
        let whole = std::fs::read(&path).unwrap();
        for place in [0, whole.len() / 2, whole.len() - 1] {
            let mut damaged = whole.clone();
            damaged[place] ^= 1;
            std::fs::write(&path, damaged).unwrap();
            assert!(decompress(&path, io::sink()).ok() != Some(stored), "byte {place}");
        }
        std::fs::write(&path, [&whole[..], b"more"].concat()).unwrap();
        assert!(decompress(&path, io::sink()).ok() != Some(stored), "bytes after the end");
        std::fs::write(&path, &whole[..whole.len() / 2]).unwrap();
        assert!(decompress(&path, io::sink()).ok() != Some(stored), "half of it");
    }
}
