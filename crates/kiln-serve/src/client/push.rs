//! Pushing: the server says which blobs it lacks, gets those, and then the version.

use std::{
    collections::HashSet,
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use http_body_util::StreamBody;
use hyper::body::Frame;
use kiln_core::{Digest, ImageName, artifact::Artifact};
use kiln_registry::{LONGEST_MANIFEST, Record, Registry, RegistryError, StoredBlob};
use reqwest::{Body, Method};

use super::{ENTERING, Remote};
use crate::{ServeError, pace::LEAST, wire};

/// Blobs on their way at once.
const AT_ONCE: usize = 4;
/// Asked about in one request.
const QUESTION: usize = 100_000;
/// Larger blobs are read while they are sent.
const SMALL: u64 = 16 << 20;
const READ: u64 = 1 << 20;
const SLICE: usize = 64 << 10;
/// Of the client's patience, for a server to keep what it took: it may write it into a bucket only then.
const CLOSING: usize = 20;

/// What a push did.
#[derive(Debug, Clone, PartialEq)]
pub struct Pushed {
    pub artifact: Artifact,
    /// The same disk was there under this version before.
    pub already: bool,
    /// Bytes of blobs that went over the network.
    pub sent: u64,
    /// Bytes that the blobs of the version have.
    pub whole: u64,
}

impl Remote {
    /// Publishes the version of `record`, from the registry `from`, under its own version.
    pub async fn push(&self, record: &Record, from: &Registry, by: &str) -> Result<Pushed, ServeError> {
        let artifact = &record.artifact;
        let _leased = from.lease()?;
        let manifest = from.small_blob(&record.manifest.digest, LONGEST_MANIFEST)?;
        let manifest = manifest.ok_or_else(|| RegistryError::Content {
            blob: from.blob(&record.manifest.digest),
            problem: "it is missing".to_owned(),
        })?;
        let mut blobs = from.blobs_of(&manifest)?;
        blobs.push((record.manifest.digest, record.manifest.size));
        let stored = artifact.files.iter().filter(|file| !["qcow2", "raw", "raw.zst"].contains(&file.format.as_str()));
        blobs.extend(stored.map(|file| (file.sha256, file.bytes)));
        blobs.extend(from.statement_blobs(&record.attestations)?);
        blobs.sort_unstable();
        blobs.dedup();
        let whole = blobs.iter().map(|(_, size)| size).sum();
        let mut sent = 0;
        let mut rounds = 0;
        loop {
            sent += self.send_missing(record, from, &blobs).await?;
            let offer = wire::Offer {
                manifest: record.manifest.clone(),
                artifact: artifact.clone(),
                version: artifact.version.to_string(),
                by: Some(by.to_owned()),
                attestations: record.attestations.clone(),
            };
            let path = ["images", artifact.image.as_str(), "versions"];
            match self.post::<wire::Published>(&path, &offer, ENTERING).await {
                // Collected on the server between the blobs and the version.
                Err(ServeError::Refused { kind, .. }) if kind == "missing-blobs" && rounds < 3 => rounds += 1,
                other => {
                    let wire::Published { artifact, already } = other?;
                    return Ok(Pushed { artifact, already, sent, whole });
                }
            }
        }
    }

    /// Whether whoever has this token may publish versions of `image`.
    pub async fn may_publish(&self, image: &ImageName) -> Result<(), ServeError> {
        let path = ["images", image.as_str(), "missing"];
        let nothing = wire::Blobs { blobs: Vec::new() };
        self.again(|| self.post::<wire::Missing>(&path, &nothing, self.patience)).await.map(drop)
    }

    async fn send_missing(&self, record: &Record, from: &Registry, blobs: &[(Digest, u64)]) -> Result<u64, ServeError> {
        let image = record.artifact.image.as_str();
        let mut missing = Vec::new();
        for part in blobs.chunks(QUESTION) {
            let blobs = part.iter().map(|(digest, size)| wire::Blob { digest: *digest, size: *size }).collect();
            let question = wire::Blobs { blobs };
            let path = ["images", image, "missing"];
            let answer: wire::Missing = self.again(|| self.post(&path, &question, self.patience)).await?;
            let lacks: HashSet<_> = answer.missing.into_iter().collect();
            missing.extend(part.iter().filter(|(digest, _)| lacks.contains(digest)).copied());
        }
        let sending = missing.into_iter().map(|(digest, size)| self.send_blob(image, from, digest, size));
        stream::iter(sending).buffer_unordered(AT_ONCE).try_fold(0, |sum, size| async move { Ok(sum + size) }).await
    }

    async fn send_blob(&self, image: &str, from: &Registry, digest: Digest, size: u64) -> Result<u64, ServeError> {
        let path = from.blob(&digest);
        let failed = |source| RegistryError::Io { operation: "read", path: path.clone(), source };
        let attempt = || async {
            let taken = Arc::<AtomicU64>::default();
            let body = if size <= SMALL {
                // Compared here too, so that damage is found where it is.
                let bytes = from.small_blob(&digest, SMALL)?;
                in_memory(bytes.ok_or_else(|| failed(io::ErrorKind::NotFound.into()))?, &taken)
            } else {
                streamed(from.open_blob(&digest)?, size, &taken)
            };
            let request = self.request(Method::PUT, &["images", image, "blobs", &digest.to_string()], "");
            let request = request.header("content-length", size).body(body);
            tokio::select! {
                sent = self.send(request, Duration::MAX) => sent.map(|_| size),
                () = self.too_slow(&taken, size) => Err(self.silent()),
            }
        };
        self.again(attempt).await
    }

    /// Returns when a server takes less than the least pace of what it is sent, or has all of it and says nothing.
    async fn too_slow(&self, taken: &AtomicU64, size: u64) {
        let (mut before, mut closing) = (0, 0);
        while closing < CLOSING {
            self.clock.sleep(self.patience).await;
            let now = taken.load(Ordering::Relaxed);
            if now < size && now - before < LEAST as u64 {
                return;
            }
            closing += usize::from(now == size);
            before = now;
        }
    }
}

/// Bytes as a body of which it is counted how much was taken.
fn in_memory(bytes: Vec<u8>, taken: &Arc<AtomicU64>) -> Body {
    let (bytes, taken) = (Bytes::from(bytes), Arc::clone(taken));
    let slices = (0..bytes.len()).step_by(SLICE).map(move |at| {
        let slice = bytes.slice(at..bytes.len().min(at + SLICE));
        taken.fetch_add(slice.len() as u64, Ordering::Relaxed);
        Ok::<_, io::Error>(Frame::data(slice))
    });
    Body::wrap(StreamBody::new(stream::iter(slices)))
}

/// `blob` as a body that is read while it is sent.
fn streamed(blob: StoredBlob, size: u64, taken: &Arc<AtomicU64>) -> Body {
    let (blob, taken) = (Arc::new(blob), Arc::clone(taken));
    let reads = stream::try_unfold(0, move |at| {
        let (blob, taken) = (Arc::clone(&blob), Arc::clone(&taken));
        async move {
            if at >= size {
                return Ok(None);
            }
            let mut bytes = vec![0; usize::try_from((size - at).min(READ)).unwrap_or(0)];
            let read = tokio::task::spawn_blocking(move || blob.read_exact_at(&mut bytes, at).map(|()| bytes));
            let bytes = read.await.map_err(io::Error::other)??;
            let end = at + bytes.len() as u64;
            taken.store(end, Ordering::Relaxed);
            Ok::<_, io::Error>(Some((Frame::data(Bytes::from(bytes)), end)))
        }
    });
    Body::wrap(StreamBody::new(reads))
}
