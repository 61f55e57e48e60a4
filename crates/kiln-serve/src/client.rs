//! The client of a server: what the verbs do against `--registry URL`.

mod change;
mod pull;
mod push;
mod read;

use std::{
    fmt,
    sync::{Arc, OnceLock},
    time::Duration,
};

use kiln_core::{ChannelName, Digest, ImageName, Version};
use kiln_io::time::{Clock, GaveUp};
use kiln_registry::{Record, Reference, Selector};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::{Client, Method, RequestBuilder, Response, Url};
use serde::{Serialize, de::DeserializeOwned};
use tokio_util::sync::CancellationToken;

pub use self::{
    pull::{Allowed, Pulled},
    push::Pushed,
};
use crate::{
    ServeError,
    again::again,
    pace::{PATIENCE, Pace},
    problem::Problem,
    wire,
};

/// Answers of JSON that are longer are not read: a page of 1000 versions is a tenth of it.
const LONGEST_ANSWER: usize = 64 << 20;
/// For a version to be entered, which reads all of its blobs first.
const ENTERING: Duration = Duration::from_hours(1);
/// In names of paths everything else is escaped.
const PLAIN: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b':');

/// A server, seen from a client. Cheap to clone.
#[derive(Clone)]
pub struct Remote {
    base: Url,
    client: Client,
    /// For requests that wait on threads of their own: connections belong to the runtime that opened them.
    apart: Arc<OnceLock<Result<Client, String>>>,
    token: Option<Arc<str>>,
    clock: Arc<dyn Clock>,
    cancel: CancellationToken,
    /// For an answer to begin, and for the least of it to come.
    patience: Duration,
}

impl fmt::Debug for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Remote").field("url", &self.url()).finish_non_exhaustive()
    }
}

/// Whether `text` names a server and not a directory.
pub fn is_url(text: &str) -> bool {
    text.starts_with("http://") || text.starts_with("https://")
}

impl Remote {
    /// The server at `url`. `token` goes with every request, and nowhere else: redirects are not followed.
    pub fn new(
        url: &str,
        token: Option<&str>,
        clock: Arc<dyn Clock>,
        cancel: CancellationToken,
    ) -> Result<Self, ServeError> {
        let refused = |problem: String| ServeError::Url { url: url.to_owned(), problem };
        let mut base: Url = url.parse().map_err(|error: <Url as std::str::FromStr>::Err| refused(error.to_string()))?;
        if !matches!(base.scheme(), "http" | "https") || base.cannot_be_a_base() || base.query().is_some() {
            return Err(refused("it is not of the form `https://host:port`".to_owned()));
        }
        if !base.username().is_empty() || base.password().is_some() {
            return Err(refused("a token belongs into `KILN_TOKEN`, not into the URL".to_owned()));
        }
        if !base.path().ends_with('/') {
            let path = format!("{}/", base.path());
            base.set_path(&path);
        }
        let client = http().map_err(refused)?;
        Ok(Self {
            base,
            client,
            apart: Arc::default(),
            token: token.map(Into::into),
            clock,
            cancel,
            patience: PATIENCE,
        })
    }

    /// As people write it, without a `/` at its end.
    pub fn url(&self) -> String {
        self.base.as_str().trim_end_matches('/').to_owned()
    }

    /// The same server, asked no longer than until `cancel`.
    #[must_use]
    pub fn until(&self, cancel: CancellationToken) -> Self {
        Self { cancel, ..self.clone() }
    }

    /// The same server, to whom so much time is given for an answer to begin, and again for every 16 KiB of it.
    #[must_use]
    pub fn patient(&self, patience: Duration) -> Self {
        Self { patience, ..self.clone() }
    }

    pub async fn images(&self) -> Result<wire::Images, ServeError> {
        self.fetch(&["images"], "").await
    }

    /// An image with all its versions, page by page.
    pub async fn image(&self, image: &ImageName) -> Result<wire::Image, ServeError> {
        let mut whole: wire::Image = self.fetch(&["images", image.as_str()], "").await?;
        while let Some(next) = whole.next.take() {
            let after = format!("?after={}", utf8_percent_encode(next.as_str(), PLAIN));
            let page: wire::Image = self.fetch(&["images", image.as_str()], &after).await?;
            if page.versions.is_empty() {
                break;
            }
            whole.versions.extend(page.versions);
            whole.next = page.next;
        }
        Ok(whole)
    }

    /// The record of a version, revoked or not.
    pub async fn shown(&self, selector: &Selector) -> Result<wire::Shown, ServeError> {
        let reference = selector.reference.to_string();
        self.fetch(&["images", selector.image.as_str(), "versions", &reference], "").await
    }

    /// The record of the version that `selector` means, when it may be used.
    pub async fn usable(&self, selector: &Selector, allow_revoked: bool) -> Result<Record, ServeError> {
        let query = if allow_revoked { "?allow_revoked=true" } else { "" };
        let reference = selector.reference.to_string();
        let path = ["images", selector.image.as_str(), "resolve", &reference];
        let facts: std::collections::BTreeMap<String, String> = self.fetch(&path, query).await?;
        let version = facts.get("version").and_then(|version| version.parse::<Version>().ok());
        let version = version.ok_or_else(|| self.unreadable("it names no version"))?;
        let named = Selector { image: selector.image.clone(), reference: Reference::Named(version.clone()) };
        let record = self.shown(&named).await?.record;
        let found = (&record.artifact.image, &record.artifact.version);
        if found != (&selector.image, &version) {
            return Err(self.unreadable("it is another version than the one asked for"));
        }
        Ok(record)
    }

    /// The images whose base has a newer version, as far as the token may read both.
    pub async fn outdated(&self, channel: Option<&ChannelName>) -> Result<wire::OutdatedImages, ServeError> {
        let query = channel.map(|channel| format!("?channel={}", utf8_percent_encode(channel.as_str(), PLAIN)));
        self.fetch(&["outdated"], &query.unwrap_or_default()).await
    }

    /// The moves of a channel, newest first.
    pub async fn history(&self, image: &ImageName, channel: &ChannelName) -> Result<wire::Log, ServeError> {
        self.fetch(&["images", image.as_str(), "channels", channel.as_str()], "").await
    }

    /// An idempotent GET: made again while the server cannot be reached or is busy.
    async fn fetch<T: DeserializeOwned>(&self, path: &[&str], query: &str) -> Result<T, ServeError> {
        let attempt = || async {
            let response = self.send(self.request(Method::GET, path, query), self.patience).await?;
            self.read(response).await
        };
        self.again(attempt).await
    }

    async fn post<T: DeserializeOwned>(
        &self,
        path: &[&str],
        request: &impl Serialize,
        patience: Duration,
    ) -> Result<T, ServeError> {
        let body = serde_json::to_vec(request).map_err(|error| self.unreadable(&error.to_string()))?;
        let sent = self.request(Method::POST, path, "").header("content-type", "application/json").body(body);
        let response = self.send(sent, patience).await?;
        self.read(response).await
    }

    /// Does `attempt` again, after a growing pause, while what is wrong may pass.
    async fn again<T, F: Future<Output = Result<T, ServeError>>>(
        &self,
        attempt: impl FnMut() -> F,
    ) -> Result<T, ServeError> {
        again(&*self.clock, &self.cancel, passes, attempt).await.map_err(|gave_up| match gave_up {
            GaveUp::Cancelled => ServeError::Stopped,
            GaveUp::Deadline(error) | GaveUp::Stopped(error) => error,
        })
    }

    fn request(&self, method: Method, path: &[&str], query: &str) -> RequestBuilder {
        let path: Vec<_> = path.iter().map(|part| utf8_percent_encode(part, PLAIN).to_string()).collect();
        let request = self.client.request(method, format!("{}api/v1/{}{query}", self.base, path.join("/")));
        match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }

    /// Sends a request whose answer has to begin within `patience`.
    async fn send(&self, request: RequestBuilder, patience: Duration) -> Result<Response, ServeError> {
        let response = tokio::select! {
            biased;
            () = self.cancel.cancelled() => return Err(ServeError::Stopped),
            response = tokio::time::timeout(patience, request.send()) => {
                response.map_err(|_| self.silent())?.map_err(|error| self.broken(&error))?
            }
        };
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status().as_u16();
        let body = self.body(response, 1 << 20).await.unwrap_or_default();
        let refused = |kind: String, detail: String, hint, missing| ServeError::Refused {
            url: self.url(),
            status,
            kind,
            detail,
            hint,
            missing,
        };
        Err(match serde_json::from_slice::<Problem>(&body) {
            Ok(problem) => {
                let kind = problem.kind.trim_start_matches("urn:kiln:problem:").to_owned();
                refused(kind, problem.detail, problem.hint, problem.missing)
            }
            Err(_) => refused(String::new(), "this is not a kiln server".to_owned(), None, Vec::new()),
        })
    }

    async fn read<T: DeserializeOwned>(&self, response: Response) -> Result<T, ServeError> {
        let body = self.body(response, LONGEST_ANSWER).await?;
        serde_json::from_slice(&body).map_err(|error| self.unreadable(&error.to_string()))
    }

    /// All of a body, when it is not longer than `limit`.
    async fn body(&self, mut response: Response, limit: usize) -> Result<Vec<u8>, ServeError> {
        let (mut all, mut pace) = (Vec::new(), Pace::new(self.patience));
        while let Some(bytes) = self.chunk(&mut response, &mut pace).await? {
            if all.len() + bytes.len() > limit {
                return Err(self.unreadable("it is longer than any answer is"));
            }
            all.extend_from_slice(&bytes);
        }
        Ok(all)
    }

    async fn chunk(&self, response: &mut Response, pace: &mut Pace) -> Result<Option<bytes::Bytes>, ServeError> {
        let size = |chunk: &Result<Option<bytes::Bytes>, _>| match chunk {
            Ok(Some(bytes)) => bytes.len(),
            _ => 0,
        };
        tokio::select! {
            biased;
            () = self.cancel.cancelled() => Err(ServeError::Stopped),
            chunk = pace.next(response.chunk(), size) => {
                chunk.ok_or_else(|| self.silent())?.map_err(|error| self.broken(&error))
            }
        }
    }

    fn broken(&self, error: &reqwest::Error) -> ServeError {
        let mut problem = "the request failed".to_owned();
        let mut next = std::error::Error::source(error);
        // The last cause says what happened; those before say that something did.
        while let Some(cause) = next {
            problem = cause.to_string();
            next = cause.source();
        }
        ServeError::Request { url: self.url(), problem }
    }

    fn silent(&self) -> ServeError {
        ServeError::Request { url: self.url(), problem: "it does not answer in time, or too slowly".to_owned() }
    }

    fn unreadable(&self, problem: &str) -> ServeError {
        ServeError::Answer { url: self.url(), problem: problem.to_owned() }
    }

    fn cut(&self) -> ServeError {
        ServeError::Request { url: self.url(), problem: "the connection was cut".to_owned() }
    }

    fn altered(&self, expected: Digest) -> ServeError {
        ServeError::Altered { url: self.url(), expected }
    }
}

fn http() -> Result<Client, String> {
    let builder =
        Client::builder().redirect(reqwest::redirect::Policy::none()).connect_timeout(Duration::from_secs(10));
    builder.build().map_err(|error| error.to_string())
}

fn passes(error: &ServeError) -> bool {
    match error {
        ServeError::Request { .. } => true,
        ServeError::Refused { status, .. } => matches!(status, 429 | 502..=504),
        _ => false,
    }
}
