//! `base.image`: a version of an image of the registry, laid down once for each disk.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use kiln_core::{
    artifact::{BaseRecord, ParentRecord},
    event::{Event, Phase, Unit},
    plan::{ImageBase, ImageVersion},
};
use kiln_disk::{DiskFile, GuestDisk, ReadAt, hygiene};
use kiln_io::{
    dirs::Dirs,
    fs::{Lock, failed, require_space},
};

use super::{
    BaseContext, BaseError, DirectKernel, DiskFormat, Images, NotLaidDown, PreparedBase,
    cache::{Cache, Entry, INITRD, KERNEL, Work},
    release::seconds,
};

const DISK: &str = "disk.qcow2";
/// Versions of one image that stay in the cache although nobody uses them.
const KEPT: usize = 3;

pub(super) async fn prepare(base: &ImageBase, context: &BaseContext) -> Result<PreparedBase, BaseError> {
    let Some(version) = &base.version else { return Err(BaseError::NotBuilt { name: base.reference.clone() }) };
    let cache = Cache::open(context)?;
    let name = entry_name(version);
    if let Some(found) = leased(&cache, &name, base, version) {
        return Ok(found);
    }
    let _lock = cache.lock(&name, context).await?;
    if let Some(found) = leased(&cache, &name, base, version) {
        return Ok(found);
    }
    let work = cache.work(&name)?;
    let entry = lay_down(base, version, &work, context).await?;
    cache.put(&name, &work, entry)?;
    let found = leased(&cache, &name, base, version);
    let of_image =
        |_: &str, entry: &Entry| entry.record.parent.as_ref().is_some_and(|parent| parent.image == base.image);
    cache.forget_unused(of_image, KEPT);
    found.ok_or_else(|| BaseError::NotBuilt { name: base.reference.clone() })
}

/// The base as it lies in the cache.
pub(super) fn known(base: &ImageBase, dirs: &Dirs) -> Option<PreparedBase> {
    let version = base.version.as_ref()?;
    let (cache, name) = (Cache::at(dirs), entry_name(version));
    let entry = cache.find(&name)?;
    Some(prepared(&cache, &name, entry, None, base, version))
}

/// By the disk alone: two versions of one disk are one entry.
fn entry_name(version: &ImageVersion) -> String {
    format!("image-{}", version.disk.hex())
}

fn leased(cache: &Cache, name: &str, base: &ImageBase, version: &ImageVersion) -> Option<PreparedBase> {
    cache.find(name)?;
    let lease = cache.lease(name)?;
    let entry = cache.find(name)?;
    Some(prepared(cache, name, entry, Some(lease), base, version))
}

fn prepared(
    cache: &Cache,
    name: &str,
    entry: Entry,
    lease: Option<Lock>,
    base: &ImageBase,
    version: &ImageVersion,
) -> PreparedBase {
    let directory = cache.path(name);
    let kernel = entry.command_line.map(|command_line| DirectKernel {
        kernel: directory.join(KERNEL),
        initrd: directory.join(INITRD),
        command_line,
    });
    PreparedBase {
        disk: directory.join(entry.disk),
        format: DiskFormat::Qcow2,
        size: entry.size,
        login: version.boot.login,
        kernel,
        record: record(base, version),
        tools: BTreeMap::new(),
        lease: lease.map(Arc::new),
    }
}

fn record(base: &ImageBase, version: &ImageVersion) -> BaseRecord {
    let parent = ParentRecord { image: base.image.clone(), version: version.version.clone(), disk: version.disk };
    let name = format!("{}@{}", parent.image, parent.version);
    BaseRecord { name, digest: version.qcow2, key: version.disk, parent: Some(parent) }
}

async fn lay_down(
    base: &ImageBase,
    version: &ImageVersion,
    work: &Work,
    context: &BaseContext,
) -> Result<Entry, BaseError> {
    let name = format!("{}@{}", base.image, version.version);
    let refused = |message: &str| BaseError::Image {
        name: name.clone(),
        source: NotLaidDown { message: message.to_owned(), hint: None },
    };
    let images = context.images.clone().ok_or_else(|| refused("there is no registry here"))?;
    let start = context.clock.monotonic();
    context.events.emit(Event::PhaseStarted { phase: Phase::Base, detail: format!("{name}, from the registry") });
    // Compressed, it is never larger than the disk, and seldom half of it.
    require_space("lay down a base beneath", work.directory(), version.size.bytes() / 2)?;
    let (to, kernel_to) = (work.path(DISK), work.directory().to_owned());
    let laying = Laying { image: base.image.clone(), version: version.clone(), images, context: context.clone() };
    let direct = version.boot.command_line.clone();
    let laid = tokio::task::spawn_blocking(move || {
        laying.write(&to)?;
        Ok(match direct {
            Some(command_line) => kernel(&to, &kernel_to)?.then_some(command_line),
            None => None,
        })
    });
    let command_line = match laid.await {
        Ok(Ok(command_line)) => command_line,
        _ if context.cancel.is_cancelled() => return Err(BaseError::Cancelled),
        Ok(Err(Failed::Laying(source))) => return Err(BaseError::Image { name, source }),
        Ok(Err(Failed::Here(error))) => return Err(error),
        Err(_) => return Err(refused("the work was ended")),
    };
    let took = context.clock.monotonic().saturating_sub(start);
    context.events.emit(Event::PhaseFinished {
        phase: Phase::Base,
        milliseconds: u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
        detail: format!("{name}, disk {}", version.disk.short()),
    });
    Ok(Entry {
        record: record(base, version),
        disk: DISK.to_owned(),
        size: version.size.bytes(),
        command_line,
        tools: BTreeMap::new(),
        made: seconds(context.clock.wall()),
        changed: (0, 0),
    })
}

enum Failed {
    Laying(NotLaidDown),
    Here(BaseError),
}

impl From<BaseError> for Failed {
    fn from(error: BaseError) -> Self {
        Self::Here(error)
    }
}

struct Laying {
    image: kiln_core::ImageName,
    version: ImageVersion,
    images: Arc<dyn Images>,
    context: BaseContext,
}

impl Laying {
    fn write(&self, to: &Path) -> Result<(), Failed> {
        let (events, total) = (&self.context.events, self.version.size.bytes());
        let told = AtomicU64::new(0);
        let watch = |done: u64| {
            // One event for 16 MiB.
            if told.swap(done >> 24, Ordering::Relaxed) != done >> 24 {
                events.emit(Event::Progress { phase: Phase::Base, done, total, unit: Unit::Bytes });
            }
            !self.context.cancel.is_cancelled()
        };
        self.images.lay_down(&self.image, &self.version, to, &watch).map_err(Failed::Laying)
    }
}

/// Puts the disk's own kernel beside it, for a boot without its boot loader; false when it has none that can be found.
fn kernel(disk: &Path, directory: &Path) -> Result<bool, BaseError> {
    let unreadable = |error: kiln_disk::Error| failed("read", disk, 0)(std::io::Error::other(error));
    let guest: Arc<dyn ReadAt> = Arc::new(GuestDisk::open(&[DiskFile::qcow2(disk)]).map_err(unreadable)?);
    let Some(found) = hygiene::kernel(&guest).map_err(failed("read", disk, 0))? else { return Ok(false) };
    for (name, bytes) in [(KERNEL, &found.kernel), (INITRD, &found.initrd)] {
        let path = directory.join(name);
        fs::write(&path, bytes).map_err(failed("write", &path, bytes.len() as u64))?;
    }
    Ok(true)
}
