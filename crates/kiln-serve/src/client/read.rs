//! A served registry for those who only read: the records and blobs that the server has, as the objects of a registry. Whatever
//! they say is judged here, with the keys of whoever asks; the server is not believed. The one thing that is written this way are records
//! of AMIs.

use std::{
    fmt,
    fs::File,
    io,
    ops::Range,
    sync::{Arc, OnceLock, mpsc::channel},
};

use kiln_core::{Digest, ImageName};
use kiln_registry::{Condition, Folder, Meta, Objects, Record, Registry, Selector, Tag};
use reqwest::{Method, StatusCode, header};
use tokio::runtime::Runtime;

use super::Remote;
use crate::{ServeError, wire};

/// What `registry.json` says where one layout is served to all.
const MARKER: &[u8] = b"{\"format\":2}";

/// The records of all images, the blobs of one: a token may be for few of them.
struct Served {
    remote: Remote,
    image: ImageName,
}

impl fmt::Debug for Served {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Served").field("url", &self.remote.url()).field("image", &self.image).finish()
    }
}

impl Remote {
    /// The registry behind the server, for reading records, and blobs of `image`. It trusts no key yet.
    pub fn registry(&self, image: &ImageName) -> Result<Registry, ServeError> {
        let served = Served { remote: self.clone(), image: image.clone() };
        Ok(Registry::in_bucket(Arc::new(served))?)
    }
}

/// Waits for `work` on threads of its own, so it may be called from anywhere.
fn wait<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> io::Result<T> {
    static RUNTIME: OnceLock<io::Result<Runtime>> = OnceLock::new();
    let build = || tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = RUNTIME.get_or_init(build).as_ref().map_err(|error| io::Error::other(error.to_string()))?;
    let (send, receive) = channel();
    runtime.spawn(async move {
        // Nobody waits any more.
        let _ = send.send(work.await);
    });
    receive.recv().map_err(io::Error::other)
}

/// What a key means on the server.
enum Place {
    Record {
        image: ImageName,
        key: String,
    },
    Blob(Digest),
    /// Leases, marks of damage: the server's own affair.
    None,
}

impl Place {
    fn of(key: &str) -> Self {
        if let Some(name) = key.strip_prefix("blobs/sha256/") {
            return format!("sha256:{name}").parse().map_or(Self::None, Self::Blob);
        }
        let inside = key.strip_prefix("images/").and_then(|rest| rest.split_once('/'));
        match inside.and_then(|(image, key)| Some((image.parse().ok()?, key.to_owned()))) {
            Some((image, key)) => Self::Record { image, key },
            None => Self::None,
        }
    }
}

impl Served {
    /// An answer, where "not there" is one. What is told of other images that the token is not for is nothing.
    fn there<T>(&self, image: &ImageName, answer: Result<T, ServeError>) -> io::Result<Option<T>> {
        match answer {
            Ok(value) => Ok(Some(value)),
            Err(ServeError::Refused { status: 404, .. }) => Ok(None),
            Err(ServeError::Refused { status: 401 | 403, .. }) if *image != self.image => Ok(None),
            Err(error) => Err(io::Error::other(error)),
        }
    }

    fn ask<T: Send + 'static, F: Future<Output = Result<T, ServeError>> + Send + 'static>(
        &self,
        image: &ImageName,
        work: impl FnOnce(Remote) -> F,
    ) -> io::Result<Option<T>> {
        self.there(image, self.remote.apart(work))
    }
}

impl Objects for Served {
    fn location(&self) -> String {
        self.remote.url()
    }

    fn stat(&self, key: &str) -> io::Result<Option<Meta>> {
        let Place::Blob(digest) = Place::of(key) else { return Ok(None) };
        let image = self.image.clone();
        let size = self.ask(&self.image, |remote| async move { remote.blob_size(&image, &digest).await })?;
        Ok(size.map(|size| Meta { size, tag: Tag(digest.to_string()), modified: 0 }))
    }

    fn read(&self, key: &str, longest: u64) -> io::Result<Option<(Vec<u8>, Meta)>> {
        let bytes = match Place::of(key) {
            Place::None => (key == "registry.json").then(|| MARKER.to_vec()),
            Place::Blob(_) => None,
            Place::Record { image, key } => {
                let of = image.clone();
                self.ask(&image, |remote| async move { remote.raw_record(&of, &key, longest).await })?
            }
        };
        Ok(bytes.map(|bytes| {
            let meta = Meta { size: bytes.len() as u64, tag: Tag(Digest::of(&bytes).to_string()), modified: 0 };
            (bytes, meta)
        }))
    }

    fn read_part(&self, key: &str, part: Range<u64>, _tag: &Tag) -> io::Result<Vec<u8>> {
        let Place::Blob(digest) = Place::of(key) else { return Err(io::ErrorKind::NotFound.into()) };
        let image = self.image.clone();
        let read = |remote: Remote| async move { remote.part(&image, digest, part.start, part.end).await };
        self.ask(&self.image, read)?.ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn list(&self, folder: &str) -> io::Result<Folder> {
        let folders = if folder == "images" {
            let images = self.remote.apart(|remote| async move { remote.images().await });
            let images = images.map_err(io::Error::other)?.images;
            Some(images.into_iter().map(|entry| entry.image.to_string()).collect())
        } else if let Place::Record { image, key } = Place::of(folder) {
            let of = image.clone();
            self.ask(&image, |remote| async move { remote.raw_names(&of, &key).await })?
        } else {
            None
        };
        Ok(Folder { folders: folders.unwrap_or_default(), objects: Vec::new() })
    }

    fn write(&self, key: &str, bytes: &[u8], condition: Condition<'_>) -> io::Result<Option<Tag>> {
        let Place::Record { image, key } = Place::of(key) else { return Err(reads_only()) };
        if !key.starts_with("ami/") || !matches!(condition, Condition::Absent) {
            return Err(reads_only());
        }
        let (tag, bytes) = (Tag(Digest::of(bytes).to_string()), bytes.to_vec());
        let new = self.remote.apart(|remote| async move { remote.enter_record(&image, &key, &bytes).await });
        Ok(new.map_err(io::Error::other)?.then_some(tag))
    }

    fn upload(&self, _key: &str, _source: &File, _size: u64) -> io::Result<()> {
        Err(reads_only())
    }

    fn remove(&self, _key: &str) -> io::Result<()> {
        Err(reads_only())
    }
}

fn reads_only() -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, "a server writes to its registry itself")
}

impl Remote {
    /// Does `work` on threads of its own, so it may be called from anywhere.
    fn apart<T: Send + 'static, F: Future<Output = Result<T, ServeError>> + Send + 'static>(
        &self,
        work: impl FnOnce(Self) -> F,
    ) -> Result<T, ServeError> {
        let client = self.apart.get_or_init(super::http).clone();
        let client = client.map_err(|problem| ServeError::Url { url: self.url(), problem })?;
        let apart = Self { client, ..self.clone() };
        wait(work(apart)).map_err(|error| self.unreadable(&error.to_string()))?
    }

    /// [`Self::usable`] from anywhere.
    pub fn usable_now(&self, selector: &Selector, allow_revoked: bool) -> Result<Record, ServeError> {
        let selector = selector.clone();
        self.apart(|remote| async move { remote.usable(&selector, allow_revoked).await })
    }

    /// Whether the server knows `image` and shows it to whoever has this token.
    pub fn greet(&self, image: &ImageName) -> Result<(), ServeError> {
        let image = image.clone();
        let channels = |remote: Self| async move {
            remote.fetch::<serde::de::IgnoredAny>(&["images", image.as_str(), "channels"], "").await
        };
        self.apart(channels).map(drop)
    }

    async fn blob_size(&self, image: &ImageName, digest: &Digest) -> Result<u64, ServeError> {
        let path = ["images", image.as_str(), "blobs", &digest.to_string()];
        let attempt = || async {
            let response = self.send(self.request(Method::HEAD, &path, ""), self.patience).await?;
            let length = response.headers().get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok());
            length.and_then(|length| length.parse().ok()).ok_or_else(|| self.unreadable("a blob without a length"))
        };
        self.again(attempt).await
    }

    async fn raw_record(&self, image: &ImageName, key: &str, longest: u64) -> Result<Vec<u8>, ServeError> {
        let mut path = vec!["images", image.as_str(), "records"];
        path.extend(key.split('/'));
        let longest = usize::try_from(longest).unwrap_or(usize::MAX);
        let attempt = || async {
            let response = self.send(self.request(Method::GET, &path, ""), self.patience).await?;
            self.body(response, longest).await
        };
        self.again(attempt).await
    }

    /// Enters the record of an AMI; `false` when it was there. It may be sent twice: the second time changes nothing.
    async fn enter_record(&self, image: &ImageName, key: &str, bytes: &[u8]) -> Result<bool, ServeError> {
        let mut path = vec!["images", image.as_str(), "records"];
        path.extend(key.split('/'));
        let attempt = || async {
            let request = self.request(Method::PUT, &path, "").body(bytes.to_vec());
            Ok(self.send(request, self.patience).await?.status() == StatusCode::CREATED)
        };
        self.again(attempt).await
    }

    async fn raw_names(&self, image: &ImageName, folder: &str) -> Result<Vec<String>, ServeError> {
        let query = format!("?folder={}", percent_encoding::utf8_percent_encode(folder, super::PLAIN));
        let names: wire::Names = self.fetch(&["images", image.as_str(), "records"], &query).await?;
        Ok(names.names)
    }

    /// The bytes of a blob from `start` to before `end`; they are still to be judged.
    pub(super) async fn part(
        &self,
        image: &ImageName,
        digest: Digest,
        start: u64,
        end: u64,
    ) -> Result<Vec<u8>, ServeError> {
        let length = usize::try_from(end - start).unwrap_or(usize::MAX);
        let path = ["images", image.as_str(), "blobs", &digest.to_string()];
        let attempt = || async {
            let request = self.request(Method::GET, &path, "");
            let request = request.header(header::RANGE, format!("bytes={start}-{}", end - 1));
            let response = self.send(request, self.patience).await?;
            if response.status() != StatusCode::PARTIAL_CONTENT {
                return Err(self.unreadable("it does not serve ranges"));
            }
            let part = self.body(response, length).await?;
            if part.len() == length { Ok(part) } else { Err(self.cut()) }
        };
        self.again(attempt).await
    }
}
