//! What all requests share: the registry, who may do what, and what is worth keeping in memory.

use std::{
    collections::{HashMap, VecDeque},
    fmt,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, SystemTime},
};

use kiln_core::{Digest, ImageName, Version};
use kiln_index::Index;
use kiln_io::time::Clock;
use kiln_registry::{Pieces, Record, Registry, RegistryError, View};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

use crate::{
    access::Caller, comparisons::Comparisons, dashboard::Sessions, holds::Holds, metrics::Metrics, problem::Problem,
    proven::Sent, tokens::TokensFile,
};

/// Verified pieces of disks, kept for who asks next: one client reads a piece in many small ranges.
const PIECES: usize = 64 << 20;
/// Downloads that run at once. Each holds two reads of 1 MiB beside the pieces.
pub(crate) const STREAMS: usize = 64;
/// Listeners to events at once. Each looks at the registry every second.
const LISTENERS: usize = 64;
/// Publishers whose blobs are looked for at once.
const ASKING: usize = 4;
/// Files whose places are known: about 40 bytes for each chunk of the disk.
const VIEWS: usize = 16;
/// Chunks of all the views together; 8 million are 500 GiB of disks.
const VIEWED_CHUNKS: u64 = 8 << 20;

/// Says a line in the server's log.
pub(crate) type Log = Arc<dyn Fn(&str) + Send + Sync>;

/// The server's state.
pub(crate) struct App {
    pub(crate) registry: Registry,
    pub(crate) index: Index,
    pub(crate) tokens: TokensFile,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) log: Log,
    /// `https://images.example.org`, when it is not what the request says.
    pub(crate) url: Option<String>,
    pub(crate) tls: bool,
    /// Where the logs of builds are.
    pub(crate) builds: Option<PathBuf>,
    pub(crate) pieces: Pieces,
    pub(crate) streams: Arc<Semaphore>,
    /// The turn to make a sum that nobody recorded, which reads a whole disk: one at a time, and none in the place of a download.
    pub(crate) summing: Arc<Semaphore>,
    pub(crate) listeners: Arc<Semaphore>,
    /// Publishers whose blobs are looked for at once, which reads many manifests.
    pub(crate) asking: Semaphore,
    /// Reads that run at once, over all downloads: more threads would not be quicker, and each holds a piece.
    pub(crate) readers: Arc<Semaphore>,
    pub(crate) metrics: Metrics,
    pub(crate) sessions: Sessions,
    pub(crate) comparisons: Comparisons,
    pub(crate) holds: Holds,
    pub(crate) sent: Sent,
    /// Something was changed through this server.
    pub(crate) changed: Notify,
    views: Mutex<VecDeque<(Digest, String, Arc<View>)>>,
    /// The version of each image that named the blob that was asked for last.
    near: Mutex<HashMap<ImageName, Version>>,
    /// SHA-256 of files that no record has, by disk and format.
    sums: Mutex<HashMap<(Digest, String), Digest>>,
}

impl fmt::Debug for App {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("App").field("registry", &self.registry).finish_non_exhaustive()
    }
}

impl App {
    pub(crate) fn new(
        index: Index,
        tokens: TokensFile,
        clock: Arc<dyn Clock>,
        log: Log,
        url: Option<String>,
        tls: bool,
    ) -> Self {
        Self {
            registry: index.registry().clone(),
            index,
            tokens,
            clock,
            log,
            url,
            tls,
            builds: None,
            pieces: Pieces::new(PIECES),
            streams: Arc::new(Semaphore::new(STREAMS)),
            summing: Arc::new(Semaphore::new(1)),
            listeners: Arc::new(Semaphore::new(LISTENERS)),
            asking: Semaphore::new(ASKING),
            readers: Arc::new(Semaphore::new(2 * thread::available_parallelism().map_or(2, usize::from))),
            metrics: Metrics::default(),
            sessions: Sessions::default(),
            comparisons: Comparisons::default(),
            holds: Holds::default(),
            sent: Sent::default(),
            changed: Notify::new(),
            views: Mutex::default(),
            near: Mutex::default(),
            sums: Mutex::default(),
        }
    }

    /// Seconds since 1970, UTC.
    pub(crate) fn now(&self) -> u64 {
        self.clock.wall().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
    }

    /// The file of `record` in `format`, opened once for many requests.
    pub(crate) fn view(&self, record: &Record, format: &str) -> Result<Arc<View>, RegistryError> {
        let manifest = record.manifest.digest;
        let same = |held: &(Digest, String, Arc<View>)| held.0 == manifest && held.1 == format;
        {
            let mut views = self.views.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(held) = views.iter().position(same).and_then(|place| views.remove(place)) {
                let view = Arc::clone(&held.2);
                views.push_back(held);
                return Ok(view);
            }
        }
        let view = Arc::new(self.registry.view(record, format)?);
        let mut views = self.views.lock().unwrap_or_else(PoisonError::into_inner);
        views.push_back((manifest, format.to_owned(), Arc::clone(&view)));
        let chunks = |views: &VecDeque<(Digest, String, Arc<View>)>| {
            views.iter().map(|(_, _, view)| view.content().size >> 16).sum::<u64>()
        };
        while views.len() > VIEWS || (views.len() > 1 && chunks(&views) > VIEWED_CHUNKS) {
            views.pop_front();
        }
        Ok(view)
    }

    /// Whether a version of `image` names this blob.
    pub(crate) fn names_blob(&self, image: &ImageName, blob: &Digest) -> Result<bool, RegistryError> {
        let near = self.near.lock().unwrap_or_else(PoisonError::into_inner).get(image).cloned();
        let found = self.registry.naming(image, blob, near.as_ref())?;
        if let Some(version) = found.clone().filter(|found| near.as_ref() != Some(found)) {
            self.near.lock().unwrap_or_else(PoisonError::into_inner).insert(image.clone(), version);
        }
        Ok(found.is_some())
    }

    /// The SHA-256 of the file of `record` in `format`, if it is known without reading the file.
    pub(crate) fn known_sum(&self, record: &Record, format: &str) -> Option<Digest> {
        // The raw.zst of another compressor has other bytes: only what the record says counts.
        record.file(format).map(|file| file.sha256).or_else(|| {
            let sums = self.sums.lock().unwrap_or_else(PoisonError::into_inner);
            sums.get(&(record.manifest.digest, format.to_owned())).copied()
        })
    }

    pub(crate) fn learn_sum(&self, record: &Record, format: &str, sum: Digest) {
        let mut sums = self.sums.lock().unwrap_or_else(PoisonError::into_inner);
        if sums.len() < 10_000 {
            sums.insert((record.manifest.digest, format.to_owned()), sum);
        }
    }

    /// A place among the downloads that run at once, or that there is none.
    pub(crate) async fn place_to_download(&self) -> Result<OwnedSemaphorePermit, Problem> {
        let waiting = Arc::clone(&self.streams).acquire_owned();
        let place = tokio::time::timeout(Duration::from_secs(10), waiting).await;
        place.map_err(|_| Problem::busy())?.map_err(|_| Problem::busy())
    }

    /// Does `work` on a thread that may wait for the disk.
    pub(crate) async fn on_disk<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self) -> Result<T, RegistryError> + Send + 'static,
    ) -> Result<T, Problem> {
        let app = Arc::clone(self);
        let done = tokio::task::spawn_blocking(move || work(&app)).await;
        done.map_err(|error| Problem::internal(error.to_string()))?.map_err(Problem::from)
    }

    /// The same for somebody who may not hear of every image.
    pub(crate) async fn on_disk_for<T: Send + 'static>(
        self: &Arc<Self>,
        caller: &Caller,
        work: impl FnOnce(&Self) -> Result<T, RegistryError> + Send + 'static,
    ) -> Result<T, Problem> {
        let caller = caller.clone();
        self.on_disk(move |app| Ok(work(app).map_err(|error| Problem::for_caller(error, &caller)))).await?
    }
}
