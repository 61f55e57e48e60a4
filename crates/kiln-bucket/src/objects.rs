//! The calls: each waits for its answer on threads of its own, so it may be made from anywhere.

use std::{
    fmt,
    fs::File,
    io,
    ops::Range,
    os::unix::fs::FileExt as _,
    sync::{Arc, mpsc::channel},
    time::Duration,
};

use bytes::Bytes;
use kiln_io::time::{Attempt, GaveUp, Policy, SystemClock, poll_until};
use kiln_registry::{Condition, Folder, Meta, Objects, Tag};
use object_store::{
    ClientOptions, Error, GetOptions, GetRange, MultipartUpload, ObjectMeta, ObjectStore as _, ObjectStoreExt as _,
    PutMode, PutPayload, RetryConfig, UpdateVersion,
    aws::{AmazonS3, AmazonS3Builder},
    path::Path,
};
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

use crate::{Address, BucketError, crypto::OpenSsl};

/// For a connection, and for an answer that does not get on.
const CONNECT: Duration = Duration::from_secs(10);
const SILENT: Duration = Duration::from_secs(30);
/// For a whole request: 16 MiB over a slow line.
const REQUEST: Duration = Duration::from_mins(5);
const GIVES_UP: Duration = Duration::from_mins(1);
/// Larger files are sent in parts of this size.
const PART: u64 = 16 << 20;

/// A bucket of S3.
pub struct S3 {
    address: Address,
    /// Tries again what may be done twice.
    store: AmazonS3,
    /// Tries nothing again: of a conditional write it must be known whether an earlier try took place.
    once: AmazonS3,
    runtime: Option<Runtime>,
}

impl fmt::Debug for S3 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("S3").field("location", &self.location()).finish_non_exhaustive()
    }
}

impl S3 {
    /// The bucket at `address`, with the credentials of the environment or the machine. Asks nobody yet.
    pub fn new(address: &Address) -> Result<Self, BucketError> {
        let failed = |problem: String| BucketError::Connection { location: address.to_string(), problem };
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let runtime = runtime.map_err(|error| failed(error.to_string()))?;
        let build = |max_retries| {
            let backoff = object_store::BackoffConfig::default();
            let retry = RetryConfig { backoff, max_retries, retry_timeout: GIVES_UP };
            builder(address).with_retry(retry).build().map_err(|error| failed(error.to_string()))
        };
        Ok(Self { address: address.clone(), store: build(6)?, once: build(0)?, runtime: Some(runtime) })
    }

    /// Several connections to the same bucket that share nothing.
    pub fn connections(address: &Address, count: usize) -> Result<Vec<Arc<dyn Objects>>, BucketError> {
        (0..count).map(|_| Self::new(address).map(|one| Arc::new(one) as Arc<dyn Objects>)).collect()
    }

    fn path(&self, key: &str) -> Path {
        let prefix = &self.address.prefix;
        if prefix.is_empty() { Path::from(key) } else { Path::from(format!("{prefix}/{key}")) }
    }

    /// Sends what `part` reads at each place, one after the other.
    fn send(
        &self,
        mut upload: Box<dyn MultipartUpload>,
        size: u64,
        part: impl Fn(u64) -> io::Result<Vec<u8>>,
    ) -> io::Result<()> {
        let mut at = 0;
        let mut sent = Ok(());
        while sent.is_ok() && at < size {
            sent = part(at).and_then(|bytes| {
                at += bytes.len() as u64;
                self.wait(upload.put_part(PutPayload::from(bytes)))?.map_err(error)
            });
        }
        self.wait(async move {
            let sent = match sent {
                Ok(()) => upload.complete().await.map(drop).map_err(error),
                failed => failed,
            };
            if sent.is_err() {
                // A store keeps the parts, and wants to be paid for them, until it is told. What failed first is what is said.
                let _ = upload.abort().await;
            }
            sent
        })?
    }

    fn wait<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> io::Result<T> {
        let (send, receive) = channel();
        if let Some(runtime) = &self.runtime {
            runtime.spawn(async move {
                // Nobody waits any more.
                let _ = send.send(work.await);
            });
        }
        receive.recv().map_err(io::Error::other)
    }
}

impl Drop for S3 {
    fn drop(&mut self) {
        // Not waited for: this may be a thread of another runtime.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

fn builder(address: &Address) -> AmazonS3Builder {
    let client = ClientOptions::new()
        .with_connect_timeout(CONNECT)
        .with_read_timeout(SILENT)
        .with_timeout(REQUEST)
        .with_allow_http(address.endpoint.as_ref().is_some_and(|endpoint| endpoint.starts_with("http://")));
    let builder = AmazonS3Builder::from_env()
        .with_client_options(client)
        .with_crypto_provider(Arc::new(OpenSsl))
        .with_bucket_name(&address.bucket);
    let builder = match &address.region {
        Some(region) => builder.with_region(region),
        None => builder,
    };
    match &address.endpoint {
        Some(endpoint) => builder.with_endpoint(endpoint),
        None => builder,
    }
}

impl Objects for S3 {
    fn location(&self) -> String {
        self.address.to_string()
    }

    fn stat(&self, key: &str) -> io::Result<Option<Meta>> {
        let (store, path) = (self.store.clone(), self.path(key));
        there(self.wait(async move { store.head(&path).await })?).map(|found| found.map(|found| meta(&found)))
    }

    fn read(&self, key: &str, longest: u64) -> io::Result<Option<(Vec<u8>, Meta)>> {
        let (store, path) = (self.store.clone(), self.path(key));
        let read = self.wait(async move {
            let found = store.get(&path).await?;
            let meta = meta(&found.meta);
            let bytes = if meta.size > longest { None } else { Some(found.bytes().await?) };
            Ok((bytes, meta))
        })?;
        match there(read)? {
            None => Ok(None),
            Some((Some(bytes), meta)) => Ok(Some((bytes.into(), meta))),
            Some((None, _)) => Err(io::Error::new(io::ErrorKind::FileTooLarge, "it is longer than any such object is")),
        }
    }

    fn read_part(&self, key: &str, part: Range<u64>, tag: &Tag) -> io::Result<Vec<u8>> {
        let (store, path) = (self.store.clone(), self.path(key));
        let options =
            GetOptions { range: Some(GetRange::Bounded(part)), if_match: Some(tag.0.clone()), ..GetOptions::default() };
        let read = self.wait(async move { store.get_opts(&path, options).await?.bytes().await })?;
        read.map(Into::into).map_err(error)
    }

    fn list(&self, folder: &str) -> io::Result<Folder> {
        let (store, path) = (self.store.clone(), self.path(folder));
        let listed = self.wait(async move { store.list_with_delimiter(Some(&path)).await })?.map_err(error)?;
        let name = |path: &Path| path.filename().map(str::to_owned);
        let objects = listed.objects.iter().filter_map(|found| Some((name(&found.location)?, meta(found))));
        Ok(Folder { folders: listed.common_prefixes.iter().filter_map(name).collect(), objects: objects.collect() })
    }

    fn write(&self, key: &str, bytes: &[u8], condition: Condition<'_>) -> io::Result<Option<Tag>> {
        let (path, bytes) = (self.path(key), Bytes::copy_from_slice(bytes));
        let mode = match condition {
            Condition::Always => {
                let store = self.store.clone();
                let put = self.wait(async move { store.put(&path, PutPayload::from(bytes)).await })?;
                return tag(put.map_err(error)?.e_tag).map(Some);
            }
            Condition::Absent => PutMode::Create,
            Condition::Unchanged(tag) => PutMode::Update(UpdateVersion { e_tag: Some(tag.0.clone()), version: None }),
        };
        self.wait(conditional(self.once.clone(), self.store.clone(), path, bytes, mode))?
    }

    fn upload(&self, key: &str, source: &File, size: u64) -> io::Result<()> {
        let part = |at: u64| {
            let mut bytes = vec![0; usize::try_from((size - at).min(PART)).unwrap_or(0)];
            source.read_exact_at(&mut bytes, at).map(|()| bytes)
        };
        if size <= PART {
            return self.write(key, &part(0)?, Condition::Always).map(drop);
        }
        let (store, path) = (self.store.clone(), self.path(key));
        let upload = self.wait(async move { store.put_multipart(&path).await })?.map_err(error)?;
        self.send(upload, size, part)
    }

    fn remove(&self, key: &str) -> io::Result<()> {
        let (store, path) = (self.store.clone(), self.path(key));
        there(self.wait(async move { store.delete(&path).await })?).map(drop)
    }
}

/// Writes on a condition. When an answer was lost, the write is made again; where the condition does not hold any more then,
/// the bytes that are there tell whether they are ours.
async fn conditional(
    once: AmazonS3,
    store: AmazonS3,
    path: Path,
    bytes: Bytes,
    mode: PutMode,
) -> io::Result<Option<Tag>> {
    let policy = Policy { first: Duration::from_millis(100), max: Duration::from_secs(4), deadline: GIVES_UP };
    let mut lost = 0_u32;
    let attempt = || {
        let uncertain = lost > 0;
        lost += 1;
        let put = once.put_opts(&path, PutPayload::from(bytes.clone()), mode.clone().into());
        let (store, path, bytes) = (&store, &path, &bytes);
        async move {
            match put.await {
                Ok(put) => Attempt::Done(tag(put.e_tag).map(Some)),
                Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) if !uncertain => Attempt::Done(Ok(None)),
                Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) => match ours(store, path, bytes).await {
                    Ok(found) => Attempt::Done(Ok(found)),
                    Err(failed) => Attempt::Stop(failed),
                },
                Err(failed @ Error::Generic { .. }) => Attempt::Again(failed),
                Err(failed) => Attempt::Stop(failed),
            }
        }
    };
    match poll_until(&SystemClock::new(), policy, &CancellationToken::new(), attempt).await {
        Ok(written) => written,
        Err(GaveUp::Deadline(failed) | GaveUp::Stopped(failed)) => Err(error(failed)),
        Err(GaveUp::Cancelled) => Err(io::ErrorKind::Interrupted.into()),
    }
}

/// The tag of the object, when it has exactly these bytes.
async fn ours(store: &AmazonS3, path: &Path, bytes: &Bytes) -> Result<Option<Tag>, Error> {
    let found = match store.get(path).await {
        Err(Error::NotFound { .. }) => return Ok(None),
        found => found?,
    };
    let tag = found.meta.e_tag.clone().map(Tag);
    Ok(if found.bytes().await? == *bytes { tag } else { None })
}

fn meta(found: &ObjectMeta) -> Meta {
    Meta {
        size: found.size,
        tag: Tag(found.e_tag.clone().unwrap_or_default()),
        modified: u64::try_from(found.last_modified.timestamp()).unwrap_or(0),
    }
}

fn tag(found: Option<String>) -> io::Result<Tag> {
    found.map(Tag).ok_or_else(|| io::Error::other("the store gives its objects no ETag"))
}

fn there<T>(found: Result<T, Error>) -> io::Result<Option<T>> {
    match found {
        Ok(found) => Ok(Some(found)),
        Err(Error::NotFound { .. }) => Ok(None),
        Err(failed) => Err(error(failed)),
    }
}

fn error(failed: Error) -> io::Error {
    let kind = match &failed {
        Error::NotFound { .. } => io::ErrorKind::NotFound,
        Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => io::ErrorKind::PermissionDenied,
        _ => io::ErrorKind::Other,
    };
    io::Error::new(kind, failed)
}

#[cfg(test)]
mod tests {
    use std::{
        pin::Pin,
        sync::atomic::{AtomicBool, Ordering},
    };

    use object_store::{Extensions, PutResult, UploadPart};

    use super::*;

    /// Takes parts up to the third, and is complete when it has as many as it wants.
    #[derive(Debug)]
    struct Store {
        parts: usize,
        wanted: usize,
        aborted: Arc<AtomicBool>,
    }

    type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, Error>> + Send + 'a>>;

    fn refusal(what: &str) -> Error {
        Error::Generic { store: "S3", source: what.into() }
    }

    impl MultipartUpload for Store {
        fn put_part(&mut self, _data: PutPayload) -> UploadPart {
            self.parts += 1;
            let taken = self.parts < 3;
            Box::pin(async move { if taken { Ok(()) } else { Err(refusal("no such part")) } })
        }

        fn complete<'a, 'b>(&'a mut self) -> Answer<'b, PutResult>
        where
            'a: 'b,
            Self: 'b,
        {
            Box::pin(async move {
                if self.parts == self.wanted {
                    Ok(PutResult { e_tag: None, version: None, extensions: Extensions::default() })
                } else {
                    Err(refusal("not complete"))
                }
            })
        }

        fn abort<'a, 'b>(&'a mut self) -> Answer<'b, ()>
        where
            'a: 'b,
            Self: 'b,
        {
            Box::pin(async move {
                self.aborted.store(true, Ordering::Relaxed);
                Err(refusal("no such upload"))
            })
        }
    }

    #[test]
    fn an_upload_that_fails_is_aborted_and_says_what_failed_first() {
        let s3 = S3::new(&Address::parse("s3://bucket").unwrap()).unwrap();
        let send = |parts: u64, wanted, readable: u64| {
            let aborted = Arc::new(AtomicBool::new(false));
            let upload = Store { parts: 0, wanted, aborted: aborted.clone() };
            let part = |at| if at < readable { Ok(vec![0]) } else { Err(io::Error::other("the file cannot be read")) };
            let sent = s3.send(Box::new(upload), parts, part).map_err(|error| error.to_string());
            (sent.err().unwrap_or_default(), aborted.load(Ordering::Relaxed))
        };
        assert_eq!(send(2, 2, 2), (String::new(), false));
        for (parts, wanted, readable, said) in
            [(3, 3, 3, "no such part"), (2, 3, 2, "not complete"), (2, 2, 1, "cannot be read")]
        {
            let (error, aborted) = send(parts, wanted, readable);
            assert!(error.contains(said) && aborted, "{error}");
        }
    }
}
