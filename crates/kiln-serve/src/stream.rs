//! Bodies of files and blobs: read while the client takes them, never more than two reads in memory for each.

use std::{
    io,
    ops::Range,
    sync::{Arc, atomic::Ordering},
};

use axum::{
    body::Body,
    http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header},
    response::IntoResponse as _,
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use futures_util::stream;
use kiln_core::Digest;
use kiln_io::random::nonce;
use kiln_registry::{Lease, StoredBlob, View};
use sha2::{Digest as _, Sha256};
use tokio::{sync::OwnedSemaphorePermit, task::JoinHandle};

use crate::{
    problem::Problem,
    ranges::{Wanted, http_date, wanted},
    state::App,
};

/// One read.
const READ: u64 = 1 << 20;

/// Where bytes come from.
#[derive(Debug, Clone)]
pub(crate) enum Source {
    /// Verified on the way.
    View(Arc<View>),
    /// A stored blob; compared with its digest when it is sent whole.
    Blob(Arc<StoredBlob>, Digest),
    Memory(Bytes),
}

/// Something that can be asked for in ranges.
#[derive(Debug)]
pub(crate) struct Representation {
    pub(crate) source: Source,
    pub(crate) size: u64,
    /// Without quotes.
    pub(crate) etag: String,
    pub(crate) sha256: Option<Digest>,
    pub(crate) content_type: &'static str,
    pub(crate) modified: u64,
    /// The address is a digest of the content, so it never means anything else.
    pub(crate) immutable: bool,
    pub(crate) file_name: Option<String>,
    /// Keeps the version from being removed while it is sent.
    pub(crate) held: Option<Arc<Lease>>,
    /// The place among the downloads, when it had to be taken before the bytes were read.
    pub(crate) permit: Option<OwnedSemaphorePermit>,
}

#[derive(Debug)]
enum Part {
    Text(Bytes),
    Bytes(Range<u64>),
}

impl Representation {
    /// The answer to `method` with `headers`.
    pub(crate) async fn answer(
        self,
        app: &Arc<App>,
        method: &Method,
        headers: &HeaderMap,
    ) -> Result<Response<Body>, Problem> {
        let etag = format!("\"{}\"", self.etag);
        // A range of what HEAD asks about means nothing (RFC 9110, 14.2).
        let wanted = match wanted(headers, self.size, &etag, self.modified) {
            Wanted::Parts(_) | Wanted::Unsatisfiable if method == Method::HEAD => Wanted::Whole,
            wanted => wanted,
        };
        let mut response = Response::new(Body::empty());
        self.describe(response.headers_mut(), &etag, app.tokens.public())?;
        let (parts, length) = match wanted {
            Wanted::NotModified => {
                *response.status_mut() = StatusCode::NOT_MODIFIED;
                return Ok(response);
            }
            Wanted::PreconditionFailed => {
                let detail = "this is not the representation that `If-Match` names";
                return Err(Problem::new(StatusCode::PRECONDITION_FAILED, "precondition", detail));
            }
            Wanted::Unsatisfiable => {
                let detail = format!("these are not ranges of {} bytes that are served", self.size);
                let problem = Problem::new(StatusCode::RANGE_NOT_SATISFIABLE, "range", detail);
                let mut response = problem.into_response();
                insert(response.headers_mut(), header::CONTENT_RANGE, &format!("bytes */{}", self.size))?;
                return Ok(response);
            }
            Wanted::Whole => (vec![Part::Bytes(0..self.size)], self.size),
            Wanted::Parts(parts) => {
                *response.status_mut() = StatusCode::PARTIAL_CONTENT;
                self.parts(response.headers_mut(), parts)?
            }
        };
        insert(response.headers_mut(), header::CONTENT_LENGTH, &length.to_string())?;
        if method == Method::HEAD {
            return Ok(response);
        }
        let permit = match (self.permit, &self.source) {
            (None, Source::View(_) | Source::Blob(..)) => Some(app.place_to_download().await?),
            (permit, _) => permit,
        };
        let whole = length == self.size && response.status() == StatusCode::OK;
        *response.body_mut() = body(Arc::clone(app), self.source, parts, whole, (permit, self.held));
        Ok(response)
    }

    fn describe(&self, headers: &mut HeaderMap, etag: &str, public: bool) -> Result<(), Problem> {
        insert(headers, header::ETAG, etag)?;
        insert(headers, header::ACCEPT_RANGES, "bytes")?;
        insert(headers, header::LAST_MODIFIED, &http_date(self.modified))?;
        insert(headers, header::CONTENT_TYPE, self.content_type)?;
        insert(headers, header::CACHE_CONTROL, caching(public, self.immutable))?;
        if let Some(sha256) = &self.sha256 {
            let text = STANDARD.encode(sha256.as_bytes());
            headers.insert("repr-digest", value(&format!("sha-256=:{text}:"))?);
            headers.insert("digest", value(&format!("sha-256={text}"))?);
        }
        if let Some(name) = &self.file_name {
            insert(headers, header::CONTENT_DISPOSITION, &format!("attachment; filename=\"{name}\""))?;
        }
        Ok(())
    }

    /// One range as it is, several as `multipart/byteranges`.
    fn parts(&self, headers: &mut HeaderMap, ranges: Vec<Range<u64>>) -> Result<(Vec<Part>, u64), Problem> {
        let content_range = |range: &Range<u64>| format!("bytes {}-{}/{}", range.start, range.end - 1, self.size);
        if let [range] = ranges.as_slice() {
            insert(headers, header::CONTENT_RANGE, &content_range(range))?;
            let length = range.end - range.start;
            return Ok((vec![Part::Bytes(range.clone())], length));
        }
        let boundary = nonce();
        let mut parts = Vec::new();
        for range in ranges {
            let head = format!(
                "\r\n--{boundary}\r\nContent-Type: {}\r\nContent-Range: {}\r\n\r\n",
                self.content_type,
                content_range(&range)
            );
            parts.extend([Part::Text(head.into()), Part::Bytes(range)]);
        }
        parts.push(Part::Text(format!("\r\n--{boundary}--\r\n").into()));
        insert(headers, header::CONTENT_TYPE, &format!("multipart/byteranges; boundary={boundary}"))?;
        let length = parts.iter().map(|part| match part {
            Part::Text(text) => text.len() as u64,
            Part::Bytes(range) => range.end - range.start,
        });
        let length = length.sum();
        Ok((parts, length))
    }
}

/// What caches may do with an answer. What needs a token is not for a cache that many share, and each one asks whether the token
/// still holds.
const fn caching(public: bool, immutable: bool) -> &'static str {
    match (public, immutable) {
        (true, true) => "public, max-age=31536000, immutable",
        (true, false) => "no-cache",
        (false, _) => "private, no-cache",
    }
}

pub(crate) fn insert(headers: &mut HeaderMap, name: header::HeaderName, text: &str) -> Result<(), Problem> {
    headers.insert(name, value(text)?);
    Ok(())
}

fn value(text: &str) -> Result<HeaderValue, Problem> {
    HeaderValue::from_str(text).map_err(|_| Problem::internal(format!("`{text}` cannot stand in a header")))
}

/// A body on its way.
struct Sending {
    app: Arc<App>,
    source: Source,
    parts: std::vec::IntoIter<Part>,
    range: Range<u64>,
    /// The read that was begun before it is needed.
    next: Option<JoinHandle<io::Result<Vec<u8>>>>,
    /// Pieces up to here are made ahead of being read.
    ahead: u64,
    /// Of a blob that is sent whole.
    hasher: Option<(Sha256, Digest)>,
    _held: (Option<OwnedSemaphorePermit>, Option<Arc<Lease>>),
}

fn body(
    app: Arc<App>,
    source: Source,
    parts: Vec<Part>,
    whole: bool,
    held: (Option<OwnedSemaphorePermit>, Option<Arc<Lease>>),
) -> Body {
    let hasher = match &source {
        Source::Blob(_, digest) if whole => Some((Sha256::new(), *digest)),
        _ => None,
    };
    let sending =
        Sending { app, source, parts: parts.into_iter(), range: 0..0, next: None, ahead: 0, hasher, _held: held };
    Body::from_stream(stream::try_unfold(sending, |mut sending| async move {
        let bytes = match sending.next().await {
            Ok(bytes) => bytes,
            Err(error) => {
                // The connection is cut before its length is reached: nobody takes it for the whole.
                (sending.app.log)(&format!("a download was cut: {error}"));
                return Err(error);
            }
        };
        if let Some(bytes) = &bytes {
            sending.app.metrics.sent.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        }
        Ok(bytes.map(|bytes| (bytes, sending)))
    }))
}

impl Sending {
    async fn next(&mut self) -> io::Result<Option<Bytes>> {
        while self.range.is_empty() {
            match self.parts.next() {
                None => return Ok(None),
                Some(Part::Text(text)) => return Ok(Some(text)),
                Some(Part::Bytes(range)) => self.range = range,
            }
        }
        if let Source::Memory(bytes) = &self.source {
            let place = |at: u64| usize::try_from(at).unwrap_or(usize::MAX).min(bytes.len());
            let part = bytes.slice(place(self.range.start)..place(self.range.end));
            self.range = 0..0;
            return Ok(Some(part));
        }
        let reading = self.next.take().unwrap_or_else(|| self.begin());
        let bytes = reading.await.map_err(io::Error::other)??;
        if bytes.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.range.start += bytes.len() as u64;
        if let Some((hasher, digest)) = &mut self.hasher {
            hasher.update(&bytes);
            // The end is not sent before all is known to be right.
            if self.range.is_empty() && Digest::from_bytes(hasher.clone().finalize().into()) != *digest {
                self.app.metrics.damaged.fetch_add(1, Ordering::Relaxed);
                return Err(io::Error::new(io::ErrorKind::InvalidData, format!("the blob {digest} is damaged")));
            }
        }
        if !self.range.is_empty() {
            self.next = Some(self.begin());
        }
        Ok(Some(bytes.into()))
    }

    /// Begins to read what comes next, and to make the piece after it where a reader is free.
    fn begin(&mut self) -> JoinHandle<io::Result<Vec<u8>>> {
        let (app, source, range) = (Arc::clone(&self.app), self.source.clone(), self.range.clone());
        let length = usize::try_from((range.end - range.start).min(READ)).unwrap_or(0);
        let reading = tokio::spawn(async move {
            let Ok(_reader) = Arc::clone(&app.readers).acquire_owned().await else {
                return Err(io::Error::other("the server ends"));
            };
            let read = tokio::task::spawn_blocking(move || read(&app, &source, range.start, length)).await;
            read.map_err(io::Error::other)?
        });
        self.prepare();
        reading
    }

    fn prepare(&mut self) {
        let Source::View(view) = &self.source else { return };
        let next = view.next_piece(self.range.start).filter(|next| *next > self.ahead && *next < self.range.end);
        let Some(next) = next else { return };
        let Ok(reader) = Arc::clone(&self.app.readers).try_acquire_owned() else { return };
        self.ahead = next;
        let (app, view) = (Arc::clone(&self.app), Arc::clone(view));
        tokio::task::spawn_blocking(move || {
            view.prepare(next, &app.pieces);
            drop(reader);
        });
    }
}

fn read(app: &App, source: &Source, offset: u64, length: usize) -> io::Result<Vec<u8>> {
    match source {
        Source::View(view) => view.read(offset, length, &app.pieces).map_err(|error| {
            if matches!(error, kiln_registry::RegistryError::Damaged { .. }) {
                app.metrics.damaged.fetch_add(1, Ordering::Relaxed);
            }
            io::Error::other(error)
        }),
        Source::Blob(blob, _) => {
            let mut bytes = vec![0; length];
            blob.read_exact_at(&mut bytes, offset).map(|()| bytes)
        }
        Source::Memory(_) => Ok(Vec::new()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_everybody_may_read_for_ever_is_kept_without_asking() {
        assert_eq!(caching(true, true), "public, max-age=31536000, immutable");
        assert_eq!(caching(true, false), "no-cache");
        assert_eq!((caching(false, true), caching(false, false)), ("private, no-cache", "private, no-cache"));
    }
}
