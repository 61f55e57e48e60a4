//! Pulling: only what is missing here comes, of a changed segment only the frames that no version here has; everything is
//! compared with its digest before it is kept, and what was kept stays when a pull is interrupted.

use std::collections::HashMap;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use kiln_core::{Digest, moment::Moment, plan::VersionSpec};
use kiln_disk::segment::{self, stored_length};
use kiln_registry::{
    Content, LONGEST_CONFIG, LONGEST_MANIFEST, Offer, Publication, Record, Reference, Registry, RegistryError,
    Selector, StoredSegment,
};
use percent_encoding::utf8_percent_encode;
use reqwest::{Method, StatusCode, header};
use tokio::sync::Mutex;

use super::{PLAIN, Remote};
use crate::{ServeError, pace::Pace};

/// Segments on their way at once.
const AT_ONCE: usize = 4;
/// Frames that lie closer than this come in one request.
const GAP: u64 = 64 << 10;
/// A segment that would need more requests than this comes as a whole.
const REQUESTS: usize = 6;

/// As the registry has it.
const LONGEST_STATEMENT: u64 = 64 << 20;

/// What a pull did.
#[derive(Debug, Clone, PartialEq)]
pub struct Pulled {
    pub record: Record,
    /// It was here before.
    pub already: bool,
    /// Bytes that came over the network.
    pub fetched: u64,
    /// Bytes that the blobs of the version have.
    pub whole: u64,
}

/// What is used although something speaks against it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Allowed {
    pub revoked: bool,
    /// No proof is asked for, though keys are trusted here.
    pub unproven: bool,
}

/// Where a chunk lies in a blob that is here.
type Frames = HashMap<Digest, (Digest, u64, usize)>;

impl Remote {
    /// Brings the version that `selector` means into the registry `into`, under its own name.
    pub async fn pull(
        &self,
        selector: &Selector,
        allowed: Allowed,
        into: &Registry,
        by: &str,
    ) -> Result<Pulled, ServeError> {
        let record = self.usable(selector, allowed.revoked).await?;
        let artifact = &record.artifact;
        let named = Reference::Named(artifact.version.clone());
        let here = into.record(&Selector { image: artifact.image.clone(), reference: named });
        if let Ok(here) = here.as_ref()
            && here.artifact.version == artifact.version
        {
            if here.artifact.disk.digest != artifact.disk.digest {
                let (image, version) = (artifact.image.clone(), artifact.version.clone());
                let (published, offered) = (here.artifact.disk.digest, artifact.disk.digest);
                return Err(RegistryError::Conflict { image, version, published, offered }.into());
            }
            return Ok(Pulled { record: here.clone(), already: true, fetched: 0, whole: 0 });
        }
        let _leased = into.lease()?;
        // What is said about the disk comes first: nobody waits for gigabytes to hear that they are refused.
        let mut fetched = self.statements(&record, into).await?;
        if !allowed.unproven && !into.trust().is_empty() {
            into.proof(&record)?;
        }
        let manifest = self.whole_blob(&record, record.manifest.digest, record.manifest.size, LONGEST_MANIFEST).await?;
        let blobs = into.blobs_of(&manifest)?;
        let (digest, size) = blobs.first().copied().ok_or_else(|| self.unreadable("a manifest without a config"))?;
        let config = self.whole_blob(&record, digest, size, LONGEST_CONFIG).await?;
        let content = into.read_content(&manifest, &config)?;
        into.receive_bytes(record.manifest.digest, &manifest)?;
        into.receive_bytes(digest, &config)?;
        fetched += (manifest.len() + config.len()) as u64;
        fetched += self.segments(&record, &content, into).await?;
        let files = artifact.files.iter().filter(|file| !["qcow2", "raw", "raw.zst"].contains(&file.format.as_str()));
        for file in files.filter(|file| !into.missing([&(file.sha256, file.bytes)]).is_empty()) {
            fetched += self.stream_blob(&record, file.sha256, file.bytes, into).await?;
        }
        let whole = blobs.iter().map(|(_, size)| size).sum::<u64>() + record.manifest.size;
        let (manifest, attestations) = (record.manifest.clone(), record.attestations.clone());
        let offer = Offer { manifest, artifact: artifact.clone(), attestations };
        let now = self.clock.wall().duration_since(std::time::SystemTime::UNIX_EPOCH).map_or(0, |now| now.as_secs());
        let version = VersionSpec::Fixed(artifact.version.clone());
        let publication =
            Publication { version, date: Moment::of_seconds(now).date(), now, by: by.to_owned(), allow_revoked: false };
        let registry = into.clone();
        let entered = tokio::task::spawn_blocking(move || registry.enter_offer(&offer, &publication)).await;
        let entered = entered.map_err(|error| self.unreadable(&error.to_string()))??;
        Ok(Pulled { record, already: entered.already, fetched, whole })
    }

    /// Brings what is said about the version: first the manifests, then what they name.
    async fn statements(&self, record: &Record, into: &Registry) -> Result<u64, ServeError> {
        let mut fetched = 0;
        for _ in 0..2 {
            let blobs = into.statement_blobs(&record.attestations)?;
            let missing = into.missing(&blobs);
            for (digest, size) in blobs.into_iter().filter(|(digest, _)| missing.contains(digest)) {
                if size > LONGEST_STATEMENT {
                    return Err(self.unreadable("a statement longer than anybody makes"));
                }
                fetched += self.stream_blob(record, digest, size, into).await?;
            }
        }
        Ok(fetched)
    }

    /// Brings the segments that are missing; how many bytes came for them.
    async fn segments(&self, record: &Record, content: &Content, into: &Registry) -> Result<u64, ServeError> {
        let blobs: Vec<_> = content.segments.iter().map(|segment| (segment.blob.digest, segment.blob.size)).collect();
        let mut missing: Vec<_> = into.missing(&blobs);
        missing.sort_unstable();
        missing.dedup();
        let wanted: HashMap<_, _> = content.segments.iter().map(|segment| (segment.blob.digest, segment)).collect();
        let frames = if missing.is_empty() { Frames::new() } else { frames_here(into, record) };
        let fetching = missing.iter().filter_map(|digest| wanted.get(digest)).map(|segment| {
            let frames = &frames;
            async move { self.segment(record, segment, frames, into).await }
        });
        stream::iter(fetching).buffer_unordered(AT_ONCE).try_fold(0, |sum, bytes| async move { Ok(sum + bytes) }).await
    }

    /// Brings one segment: put together from frames that are here and ranges of the blob, or as a whole.
    async fn segment(
        &self,
        record: &Record,
        segment: &StoredSegment,
        frames: &Frames,
        into: &Registry,
    ) -> Result<u64, ServeError> {
        let mut spent = 0;
        if let Some((mut blob, ranges)) = assemble(segment, frames, into) {
            for (start, end) in ranges {
                let part = self.part(&record.artifact.image, segment.blob.digest, start, end).await?;
                spent += end - start;
                let place = |at: u64| usize::try_from(at).unwrap_or(usize::MAX);
                blob[place(start)..place(end)].copy_from_slice(&part);
            }
            // Another compressor made the frames that are here: then they are of no use.
            if Digest::of(&blob) == segment.blob.digest {
                store(into, segment.blob.digest, blob).await?;
                return Ok(spent);
            }
        }
        Ok(spent + self.stream_blob(record, segment.blob.digest, segment.blob.size, into).await?)
    }

    /// A blob of which nothing is here, in memory, verified.
    async fn whole_blob(&self, record: &Record, digest: Digest, size: u64, limit: u64) -> Result<Vec<u8>, ServeError> {
        if size > limit {
            return Err(self.unreadable("a manifest or config longer than any version has"));
        }
        let attempt = || async {
            let response = self.send(self.blob_request(record, &digest), self.patience).await?;
            let bytes = self.body(response, usize::try_from(size).unwrap_or(usize::MAX)).await?;
            match bytes.len() as u64 == size {
                true if Digest::of(&bytes) == digest => Ok(bytes),
                true => Err(self.altered(digest)),
                false => Err(self.cut()),
            }
        };
        self.again(attempt).await
    }

    /// Brings a blob of any size; a connection that is cut is taken up where it was.
    async fn stream_blob(
        &self,
        record: &Record,
        digest: Digest,
        size: u64,
        into: &Registry,
    ) -> Result<u64, ServeError> {
        let incoming = Mutex::new(into.receive(digest, size)?);
        let attempt = || async {
            let mut incoming = incoming.lock().await;
            let have = incoming.received();
            let mut request = self.blob_request(record, &digest);
            if have > 0 {
                request = request.header(header::RANGE, format!("bytes={have}-"));
            }
            let mut response = self.send(request, self.patience).await?;
            if have > 0 && response.status() != StatusCode::PARTIAL_CONTENT {
                return Err(self.unreadable("it does not serve ranges"));
            }
            let mut pace = Pace::new(self.patience);
            while let Some(bytes) = self.chunk(&mut response, &mut pace).await? {
                let written = incoming.write(&bytes);
                written.map_err(|error| if error.is_refusal() { self.altered(digest) } else { error.into() })?;
            }
            if incoming.received() < size { Err(self.cut()) } else { Ok(()) }
        };
        self.again(attempt).await?;
        let finished = tokio::task::spawn_blocking(move || incoming.into_inner().finish()).await;
        match finished.map_err(|error| self.unreadable(&error.to_string()))? {
            Err(error) if error.is_refusal() => Err(self.altered(digest)),
            other => other.map(|()| size).map_err(Into::into),
        }
    }

    fn blob_request(&self, record: &Record, digest: &Digest) -> reqwest::RequestBuilder {
        let image = record.artifact.image.as_str();
        let version = utf8_percent_encode(record.artifact.version.as_str(), PLAIN);
        self.request(Method::GET, &["images", image, "blobs", &digest.to_string()], &format!("?version={version}"))
    }
}

async fn store(into: &Registry, digest: Digest, blob: Vec<u8>) -> Result<(), ServeError> {
    let registry = into.clone();
    let stored = tokio::task::spawn_blocking(move || registry.receive_bytes(digest, &blob)).await;
    let lost = |error: tokio::task::JoinError| ServeError::Answer { url: String::new(), problem: error.to_string() };
    Ok(stored.map_err(lost)??)
}

/// The chunks of the newest version that is here.
fn frames_here(into: &Registry, record: &Record) -> Frames {
    let selector = Selector { image: record.artifact.image.clone(), reference: Reference::Newest };
    let content = into.record(&selector).and_then(|newest| into.content(&newest));
    let mut frames = Frames::new();
    for segment in content.iter().flat_map(|content| &content.segments) {
        let mut at = 0;
        for chunk in &segment.chunks {
            let length = stored_length(chunk);
            if chunk.frame != 0 {
                frames.insert(chunk.digest, (segment.blob.digest, at, length));
            }
            at += length as u64;
        }
    }
    frames
}

/// The first byte and the one behind the last.
type Range = (u64, u64);

/// The blob of `segment` with the frames that are here, and the ranges that are not; `None` where that is not worth it.
fn assemble(segment: &StoredSegment, frames: &Frames, into: &Registry) -> Option<(Vec<u8>, Vec<Range>)> {
    let mut blob = vec![0; usize::try_from(segment.blob.size).ok()?];
    let mut ranges: Vec<Range> = Vec::new();
    let mut held: HashMap<Digest, Vec<u8>> = HashMap::new();
    let mut at = 0_u64;
    for chunk in &segment.chunks {
        let length = stored_length(chunk);
        let end = at + length as u64;
        let place = usize::try_from(at).ok()?..usize::try_from(end).ok()?;
        if chunk.frame == 0 {
            blob[place].copy_from_slice(&segment::ZERO_FRAME);
        } else if let Some((from, offset, _)) = frames.get(&chunk.digest).filter(|(_, _, found)| *found == length) {
            if !held.contains_key(from) {
                // At most a few blobs of a segment's size.
                if held.len() > 3 {
                    held.clear();
                }
                held.insert(*from, into.small_blob(from, 16 << 20).ok()??);
            }
            let start = usize::try_from(*offset).ok()?;
            blob[place].copy_from_slice(held[from].get(start..start + length)?);
        } else if let Some(last) = ranges.last_mut().filter(|last| at - last.1 <= GAP) {
            last.1 = end;
        } else {
            ranges.push((at, end));
        }
        at = end;
    }
    let missing: u64 = ranges.iter().map(|(start, end)| end - start).sum();
    (ranges.len() <= REQUESTS && missing * 4 <= segment.blob.size * 3).then_some((blob, ranges))
}
