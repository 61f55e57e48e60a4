//! Files from the web: resumed where they broke off, bounded in size and time, accepted by their digest only.

use std::{
    fmt,
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
    time::Duration,
};

use kiln_core::Digest;
use reqwest::{Client, Response, StatusCode, Url, header, redirect};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tokio_util::sync::CancellationToken;

use crate::{
    error::FsError,
    fs::{failed, require_space, write_atomic},
    guest::Progress,
    time::{Attempt, Clock, GaveUp, Policy, poll_until},
};

/// What to fetch and what it must be.
#[derive(Debug, Clone)]
pub struct Download {
    pub url: String,
    pub digest: Digest,
    /// Where the whole file goes; beside it `.part` holds what there is of it, and `.part.json` of what.
    pub target: PathBuf,
    pub limits: Limits,
}

/// Where a download ends that would never end.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Longest file in bytes.
    pub bytes: u64,
    /// Longest silence.
    pub stall: Duration,
    /// At least `rate` bytes a second over each `window`.
    pub rate: u64,
    pub window: Duration,
    /// How often a broken connection is taken up again without having brought a single byte.
    pub retries: u32,
}

impl Default for Limits {
    fn default() -> Self {
        let window = Duration::from_mins(1);
        Self { bytes: 64 << 30, stall: Duration::from_secs(30), rate: 1 << 10, window, retries: 4 }
    }
}

/// Why there is no file. URLs are shown without user and password.
#[derive(Debug, thiserror::Error)]
pub enum DownloadError {
    #[error("`{url}` is not a URL that kiln fetches: {reason}")]
    Url { url: String, reason: String },
    #[error("cannot fetch `{url}`: {reason}")]
    Request { url: String, reason: String },
    #[error("cannot fetch `{url}`: the server answered {status}")]
    Status { url: String, status: StatusCode },
    #[error("cannot fetch `{url}`: it redirects to `{to}`, {reason}")]
    Redirect { url: String, to: String, reason: &'static str },
    #[error(
        "gave up on `{url}`: fewer than {rate} bytes a second arrived over {window:?}; what came is kept, the next run goes on from there"
    )]
    Slow { url: String, rate: u64, window: Duration },
    #[error("gave up on `{url}`: it is longer than {limit} bytes")]
    TooLong { url: String, limit: u64 },
    #[error("`{url}` is not what was asked for: expected {expected}, got {got} over {bytes} bytes{}; if it changed there on purpose, put the new digest into the template", modified.as_deref().map(|date| format!(", last modified {date}")).unwrap_or_default())]
    Digest { url: String, expected: Digest, got: Digest, bytes: u64, modified: Option<String> },
    #[error(transparent)]
    Fs(#[from] FsError),
    #[error("cancelled")]
    Cancelled,
}

/// A URL for people: without user and password.
struct Shown<'a>(&'a Url);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut url = self.0.clone();
        let _ = url.set_username("").and_then(|()| url.set_password(None));
        f.write_str(url.as_str())
    }
}

/// `.part.json`: what the partial file is a part of.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Partial {
    url: String,
    /// A strong `ETag`, or the date of the last change.
    validator: Option<String>,
    modified: Option<String>,
}

/// One file on its way.
#[derive(Debug)]
struct Transfer<'a> {
    download: &'a Download,
    url: Url,
    client: Client,
    part: PathBuf,
    note: PathBuf,
    clock: &'a dyn Clock,
}

/// Fetches the file unless it is there already. What a cut connection or a killed run left is taken up again.
pub async fn download(
    download: &Download,
    clock: &dyn Clock,
    cancel: &CancellationToken,
    progress: &(dyn Progress + '_),
) -> Result<(), DownloadError> {
    let beside = |suffix: &str| {
        let mut name = download.target.clone().into_os_string();
        name.push(suffix);
        PathBuf::from(name)
    };
    let url = approve(&download.url)?;
    let (part, note) = (beside(".part"), beside(".part.json"));
    let transfer = Transfer { download, client: client(&url, download.limits)?, url, part, note, clock };
    let resumed = transfer.length() > 0;
    match transfer.whole(cancel, progress).await {
        // A part without a validator, or of another file under the same one: once more from the start.
        Err(DownloadError::Digest { .. }) if resumed => transfer.whole(cancel, progress).await,
        outcome => outcome,
    }
}

/// Fetches a small file into memory. `http` and `https` as in [`download`].
pub async fn fetch(url: &str, limit: usize, cancel: &CancellationToken) -> Result<Vec<u8>, DownloadError> {
    let url = approve(url)?;
    let limits = Limits { stall: Duration::from_secs(10), ..Limits::default() };
    let fetched = async {
        let request = client(&url, limits)?.get(url.clone()).timeout(Duration::from_mins(1));
        let mut response = request.send().await.map_err(|error| broken(&url, &error))?;
        refuse_status(&url, &response)?;
        let mut bytes = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| broken(&url, &error))? {
            if bytes.len() + chunk.len() > limit {
                return Err(DownloadError::TooLong { url: Shown(&url).to_string(), limit: limit as u64 });
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes)
    };
    tokio::select! {
        biased;
        () = cancel.cancelled() => Err(DownloadError::Cancelled),
        fetched = fetched => fetched,
    }
}

impl Transfer<'_> {
    fn length(&self) -> u64 {
        self.part.metadata().map_or(0, |metadata| metadata.len())
    }

    async fn whole(&self, cancel: &CancellationToken, progress: &(dyn Progress + '_)) -> Result<(), DownloadError> {
        let policy = Policy {
            first: Duration::from_millis(500),
            max: Duration::from_secs(10),
            deadline: Duration::from_hours(24),
        };
        let fruitless = std::sync::atomic::AtomicU32::new(0);
        let attempt = || async {
            let before = self.length();
            let error = match self.attempt(progress).await {
                Ok(()) => return Attempt::Done(()),
                Err(error) => error,
            };
            let tries =
                if self.length() > before { 0 } else { fruitless.load(std::sync::atomic::Ordering::Relaxed) + 1 };
            fruitless.store(tries, std::sync::atomic::Ordering::Relaxed);
            let passing = match &error {
                DownloadError::Request { .. } => true,
                DownloadError::Status { status, .. } => status.is_server_error() || status.as_u16() == 429,
                _ => false,
            };
            if passing && tries <= self.download.limits.retries { Attempt::Again(error) } else { Attempt::Stop(error) }
        };
        poll_until(self.clock, policy, cancel, attempt).await.map_err(|gave_up| match gave_up {
            GaveUp::Cancelled => DownloadError::Cancelled,
            GaveUp::Deadline(error) | GaveUp::Stopped(error) => error,
        })?;
        self.accept()
    }

    /// One connection: from where the part ends to the end of the file.
    async fn attempt(&self, progress: &(dyn Progress + '_)) -> Result<(), DownloadError> {
        let partial = self.partial();
        let have = if partial.is_some() { self.length() } else { 0 };
        let mut request = self.client.get(self.url.clone());
        if have > 0 {
            request = request.header(header::RANGE, format!("bytes={have}-"));
            if let Some(validator) = partial.and_then(|partial| partial.validator) {
                request = request.header(header::IF_RANGE, validator);
            }
        }
        let response = request.send().await.map_err(|error| broken(&self.url, &error))?;
        if response.status() == StatusCode::RANGE_NOT_SATISFIABLE && have > 0 {
            // Nothing behind what we have: it is all there, or it is of another file. The digest tells.
            return if total(&response) == Some(have) { Ok(()) } else { self.restart() };
        }
        refuse_status(&self.url, &response)?;
        let from = match response.status() {
            StatusCode::PARTIAL_CONTENT if start(&response) == Some(have) => have,
            StatusCode::PARTIAL_CONTENT => return self.restart(),
            _ => 0,
        };
        let rest = response.content_length();
        if rest.is_some_and(|rest| from + rest > self.download.limits.bytes) {
            return Err(self.too_long());
        }
        require_space("download to", &self.part, rest.unwrap_or(0))?;
        if from == 0 {
            self.begin(&response)?;
        }
        self.receive(response, from, progress).await?;
        match rest {
            Some(rest) if self.length() < from + rest => Err(self.request_error("the connection was cut".into())),
            _ => Ok(()),
        }
    }

    async fn receive(
        &self,
        mut response: Response,
        from: u64,
        progress: &(dyn Progress + '_),
    ) -> Result<(), DownloadError> {
        let limits = self.download.limits;
        let opened = OpenOptions::new().append(true).open(&self.part);
        let mut file = opened.map_err(failed("open", &self.part, 0))?;
        let (mut at, mut mark) = (from, (self.clock.monotonic(), from));
        progress.at(at);
        while let Some(chunk) = response.chunk().await.map_err(|error| broken(&self.url, &error))? {
            at += chunk.len() as u64;
            if at > limits.bytes {
                return Err(self.too_long());
            }
            file.write_all(&chunk).map_err(failed("write", &self.part, chunk.len() as u64))?;
            progress.at(at);
            let passed = self.clock.monotonic().saturating_sub(mark.0);
            if passed >= limits.window {
                if at - mark.1 < limits.rate.saturating_mul(passed.as_secs().max(1)) {
                    let url = Shown(&self.url).to_string();
                    return Err(DownloadError::Slow { url, rate: limits.rate, window: limits.window });
                }
                mark = (self.clock.monotonic(), at);
            }
        }
        Ok(())
    }

    fn partial(&self) -> Option<Partial> {
        let partial: Partial = serde_json::from_slice(&fs::read(&self.note).ok()?).ok()?;
        (partial.url == Shown(&self.url).to_string()).then_some(partial)
    }

    /// An empty part, and a note of what it will be a part of.
    fn begin(&self, response: &Response) -> Result<(), DownloadError> {
        let text = |name| response.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let etag = text(header::ETAG).filter(|etag| !etag.starts_with("W/"));
        let modified = text(header::LAST_MODIFIED);
        let validator = etag.or_else(|| modified.clone());
        let note = Partial { url: Shown(&self.url).to_string(), validator, modified };
        File::create(&self.part).map_err(failed("write", &self.part, 0))?;
        write_atomic(&self.note, &serde_json::to_vec(&note).unwrap_or_default(), 0o600)?;
        Ok(())
    }

    /// The server's file is not the one we have a part of.
    fn restart(&self) -> Result<(), DownloadError> {
        self.drop_part();
        Err(self.request_error("it changed there since the download began".into()))
    }

    fn drop_part(&self) {
        let _ = fs::remove_file(&self.part);
        let _ = fs::remove_file(&self.note);
    }

    /// The digest over the whole file decides, however it came together.
    fn accept(&self) -> Result<(), DownloadError> {
        let got = digest(&self.part).map_err(failed("read", &self.part, 0))?;
        if got != self.download.digest {
            let (bytes, modified) = (self.length(), self.partial().and_then(|partial| partial.modified));
            self.drop_part();
            let url = Shown(&self.url).to_string();
            return Err(DownloadError::Digest { url, expected: self.download.digest, got, bytes, modified });
        }
        let target = &self.download.target;
        let stored =
            File::open(&self.part).and_then(|file| file.sync_all()).and_then(|()| fs::rename(&self.part, target));
        stored.map_err(failed("store", target, 0))?;
        let _ = fs::remove_file(&self.note);
        Ok(())
    }

    fn too_long(&self) -> DownloadError {
        self.drop_part();
        DownloadError::TooLong { url: Shown(&self.url).to_string(), limit: self.download.limits.bytes }
    }

    fn request_error(&self, reason: String) -> DownloadError {
        DownloadError::Request { url: Shown(&self.url).to_string(), reason }
    }
}

fn approve(text: &str) -> Result<Url, DownloadError> {
    let url =
        Url::parse(text).map_err(|error| DownloadError::Url { url: text.to_owned(), reason: error.to_string() })?;
    if !matches!(url.scheme(), "http" | "https") {
        let reason = format!("the scheme `{}` is neither `http` nor `https`", url.scheme());
        return Err(DownloadError::Url { url: Shown(&url).to_string(), reason });
    }
    Ok(url)
}

/// Why a redirect is not followed.
#[derive(Debug, thiserror::Error)]
#[error("{to}\n{reason}")]
struct Refused {
    to: String,
    reason: &'static str,
}

fn client(url: &Url, limits: Limits) -> Result<Client, DownloadError> {
    let policy = redirect::Policy::custom(|attempt| {
        let from = attempt.previous().last().cloned();
        match from.and_then(|from| refusal(&from, attempt.url(), attempt.previous().len())) {
            Some(reason) => {
                let to = Shown(attempt.url()).to_string();
                attempt.error(Refused { to, reason })
            }
            None => attempt.follow(),
        }
    });
    let builder =
        Client::builder().redirect(policy).connect_timeout(Duration::from_secs(30)).read_timeout(limits.stall);
    let client = builder.user_agent(concat!("kiln/", env!("CARGO_PKG_VERSION"))).build();
    client.map_err(|error| DownloadError::Request { url: Shown(url).to_string(), reason: error.to_string() })
}

/// A server may send us elsewhere on the web; not into our files, our own machine or its cloud's metadata.
fn refusal(from: &Url, to: &Url, hops: usize) -> Option<&'static str> {
    if !matches!(to.scheme(), "http" | "https") {
        Some("which is neither `http` nor `https`")
    } else if from.scheme() == "https" && to.scheme() == "http" {
        Some("away from `https`")
    } else if own(to) && !own(from) {
        Some("an address of the build host itself")
    } else if hops > 10 {
        Some("after ten redirects")
    } else {
        None
    }
}

/// Loopback and link-local addresses, the latter being where clouds serve an instance its credentials.
fn own(url: &Url) -> bool {
    match url.host_str().map(|host| host.trim_matches(['[', ']']).parse::<std::net::IpAddr>()) {
        Some(Ok(std::net::IpAddr::V4(address))) => address.is_loopback() || address.is_link_local(),
        Some(Ok(std::net::IpAddr::V6(address))) => address.is_loopback() || address.is_unicast_link_local(),
        _ => url.host_str() == Some("localhost"),
    }
}

fn broken(url: &Url, error: &reqwest::Error) -> DownloadError {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
    let mut reason = "no answer".to_owned();
    while let Some(cause) = source {
        if let Some(Refused { to, reason }) = cause.downcast_ref::<Refused>() {
            return DownloadError::Redirect { url: Shown(url).to_string(), to: to.clone(), reason };
        }
        reason = cause.to_string();
        source = cause.source();
    }
    if error.is_timeout() {
        reason = "nothing arrived for too long".into();
    }
    DownloadError::Request { url: Shown(url).to_string(), reason }
}

fn refuse_status(url: &Url, response: &Response) -> Result<(), DownloadError> {
    // A redirect that the client did not follow leads to no other place: a scheme that it does not know.
    let to = response.headers().get(header::LOCATION).and_then(|to| to.to_str().ok());
    match (response.status(), to) {
        (status, _) if status.is_success() => Ok(()),
        (status, Some(to)) if status.is_redirection() => Err(DownloadError::Redirect {
            url: Shown(url).to_string(),
            to: to.to_owned(),
            reason: "which is neither `http` nor `https`",
        }),
        (status, _) => Err(DownloadError::Status { url: Shown(url).to_string(), status }),
    }
}

/// `Content-Range: bytes 100-199/200` begins at 100.
fn start(response: &Response) -> Option<u64> {
    let range = response.headers().get(header::CONTENT_RANGE)?.to_str().ok()?;
    range.strip_prefix("bytes ")?.split('-').next()?.parse().ok()
}

/// `Content-Range: bytes */200` is of a file of 200 bytes.
fn total(response: &Response) -> Option<u64> {
    let range = response.headers().get(header::CONTENT_RANGE)?.to_str().ok()?;
    range.split('/').nth(1)?.parse().ok()
}

/// The SHA-256 of a file.
pub fn digest(path: &Path) -> io::Result<Digest> {
    let mut file = File::open(path)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(Digest::from_bytes(hash.finalize().into())),
            count => hash.update(&buffer[..count]),
        }
    }
}

#[cfg(test)]
mod tests;
