//! Blobs as objects of a bucket. The same bytes under the same name may be written by several at once.

use std::{
    fs::File,
    io::{self, Seek as _},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{SyncSender, sync_channel},
    },
    thread::{self, JoinHandle},
};

use kiln_core::Digest;
use kiln_disk::ordered::ordered;
use kiln_io::fs::Unnamed;

use super::{
    super::{Batch, Blobs, Lease, Mark, Records as _, Spool, SpoolName, StoredBlob, blob_key, digest_of_name},
    Bucket,
};
use crate::{RegistryError, durable::failed, objects::Condition};

/// Blobs on their way at once.
const AT_ONCE: usize = 8;
/// Where it stands that a blob is not what its name says, with the tag that it had.
const DAMAGED: &str = "damaged";

impl Blobs for Bucket {
    fn are_near(&self) -> bool {
        false
    }

    fn open(&self, digest: &Digest) -> io::Result<Option<StoredBlob>> {
        let key = blob_key(digest);
        let meta = self.objects.stat(&key)?;
        Ok(meta.map(|meta| StoredBlob::object(self.objects.clone(), key, meta.size, meta.tag)))
    }

    /// Of a blob that is known to be damaged, nothing is there.
    fn size(&self, digest: &Digest) -> io::Result<Option<u64>> {
        let Some(meta) = self.objects.stat(&blob_key(digest))? else { return Ok(None) };
        let damaged = self.objects.read(&format!("{DAMAGED}/{}", digest.hex()), 4096)?;
        let damaged = damaged.is_some_and(|(tag, _)| tag == meta.tag.0.as_bytes());
        Ok((!damaged).then_some(meta.size))
    }

    fn all(&self) -> Result<Vec<(Digest, u64)>, RegistryError> {
        let found = self.objects.list("blobs/sha256").map_err(self.failed("list", "blobs/sha256"))?;
        let named = |(name, meta): (String, crate::objects::Meta)| Some((digest_of_name(&name)?, meta.size));
        Ok(found.objects.into_iter().filter_map(named).collect())
    }

    fn batch(&self) -> Box<dyn Batch + '_> {
        Box::new(Uploads::start(self))
    }

    fn spool(&self, digest: &Digest, _size: u64) -> Result<Spool, RegistryError> {
        let path = std::env::temp_dir().join(digest.hex());
        let unnamed = Unnamed::beside(&path).and_then(|unnamed| unnamed.file().try_clone());
        Ok(Spool { file: unnamed.map_err(failed("create", &path))?, name: SpoolName::Unnamed })
    }

    fn finish(&self, mut spool: Spool, digest: &Digest, size: u64) -> Result<(), RegistryError> {
        let key = blob_key(digest);
        if self.size(digest).map_err(self.failed("examine", &key))? == Some(size) {
            return Ok(());
        }
        spool.file.rewind().map_err(self.failed("read what is to become", &key))?;
        self.objects.upload(&key, &spool.file, size).map_err(self.failed("write", &key))
    }

    fn bring(&self, source: &Path, digest: &Digest, size: u64) -> Result<u64, RegistryError> {
        let key = blob_key(digest);
        if self.size(digest).map_err(self.failed("examine", &key))? == Some(size) {
            return Ok(0);
        }
        let mut file = File::open(source).map_err(failed("open", source))?;
        let found = kiln_disk::seal::digest_of(&mut file).map_err(failed("read", source))?;
        if found != *digest {
            return Err(RegistryError::Altered { path: source.to_owned(), expected: *digest, found });
        }
        file.rewind().map_err(failed("read", source))?;
        self.objects.upload(&key, &file, size).map_err(self.failed("write", &key))?;
        Ok(size)
    }

    fn remove(&self, unneeded: &[(Digest, u64)], alone: &Lease) -> Result<(), RegistryError> {
        let remove = |number: u64| {
            let (digest, _) = unneeded[usize::try_from(number).unwrap_or(usize::MAX)];
            // Before each, not once: a collector that was stopped for long must not go on with what it knew.
            alone.check_step()?;
            let key = blob_key(&digest);
            self.objects.remove(&key).map_err(self.failed("remove", &key))
        };
        ordered(unneeded.len() as u64, remove, |_, removed| removed)
    }

    /// The object stays, since nothing can be said of it in one step; its tag is noted, so that it counts as missing and the
    /// next who has the right bytes writes them over it.
    fn set_aside(&self, digest: &Digest, mark: &Mark) -> Result<Option<PathBuf>, RegistryError> {
        let Some(tag) = &mark.0 else { return Ok(None) };
        let key = format!("{DAMAGED}/{}", digest.hex());
        self.objects.write(&key, tag.as_bytes(), Condition::Always).map_err(self.failed("write", &key))?;
        Ok(Some(self.path(&key)))
    }
}

/// Blobs that several threads write, each with its digest.
struct Uploads<'a> {
    bucket: &'a Bucket,
    send: Option<SyncSender<(Digest, Vec<u8>)>>,
    workers: Vec<JoinHandle<()>>,
    done: Arc<Mutex<Done>>,
}

/// How many bytes were new, and what went wrong first.
#[derive(Default)]
struct Done {
    bytes: u64,
    failed: Option<(Digest, io::Error)>,
}

impl<'a> Uploads<'a> {
    fn start(bucket: &'a Bucket) -> Self {
        let (send, receive) = sync_channel::<(Digest, Vec<u8>)>(AT_ONCE);
        let receive = Arc::new(Mutex::new(receive));
        let done = Arc::<Mutex<Done>>::default();
        let worker = |_| {
            let (receive, done) = (Arc::clone(&receive), Arc::clone(&done));
            let bucket = Bucket::new(Arc::clone(&bucket.objects));
            thread::spawn(move || {
                loop {
                    let next = receive.lock().unwrap_or_else(PoisonError::into_inner).recv();
                    let Ok((digest, bytes)) = next else { return };
                    let stored = store(&bucket, &digest, &bytes);
                    let mut done = done.lock().unwrap_or_else(PoisonError::into_inner);
                    match stored {
                        Ok(new) => done.bytes += new,
                        Err(error) => {
                            done.failed.get_or_insert((digest, error));
                            return;
                        }
                    }
                }
            })
        };
        let workers = (0..AT_ONCE).map(worker).collect();
        Self { bucket, send: Some(send), workers, done }
    }

    /// Waits for every blob that was taken.
    fn finish(&mut self) -> Result<u64, RegistryError> {
        self.send = None;
        let ended = self.workers.drain(..).filter_map(|worker| worker.join().err()).count();
        if ended > 0 {
            return Err(self.bucket.failed("write", "blobs")(io::Error::other("a thread that wrote them ended")));
        }
        let mut done = self.done.lock().unwrap_or_else(PoisonError::into_inner);
        match done.failed.take() {
            None => Ok(done.bytes),
            Some((digest, error)) => Err(self.bucket.failed("write", &blob_key(&digest))(error)),
        }
    }
}

impl Batch for Uploads<'_> {
    fn add(&mut self, digest: Digest, bytes: &[u8]) -> Result<(), RegistryError> {
        let sent = self.send.as_ref().map(|send| send.send((digest, bytes.to_vec())));
        if matches!(sent, Some(Ok(()))) { Ok(()) } else { self.finish().map(drop) }
    }

    fn commit(mut self: Box<Self>) -> Result<u64, RegistryError> {
        self.finish()
    }
}

/// Writes a blob unless it is there; how many bytes were new.
fn store(bucket: &Bucket, digest: &Digest, bytes: &[u8]) -> io::Result<u64> {
    let size = bytes.len() as u64;
    if bucket.size(digest)? == Some(size) {
        return Ok(0);
    }
    let key = blob_key(digest);
    if bucket.objects.write(&key, bytes, Condition::Absent)?.is_some() {
        return Ok(size);
    }
    // Somebody was quicker, or what is there is damaged. These are the right bytes in both cases.
    if bucket.size(digest)? != Some(size) {
        bucket.objects.write(&key, bytes, Condition::Always)?;
    }
    Ok(size)
}
