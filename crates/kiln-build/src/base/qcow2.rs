//! `base.qcow2`: a disk made elsewhere, from a path or from the web, accepted by its digest and its header.

use std::{
    collections::BTreeMap,
    fs::File,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use kiln_core::{
    Digest,
    artifact::BaseRecord,
    event::{Event, Events, Phase, Unit},
    plan::{Qcow2Base, Qcow2Source},
};
use kiln_disk::{
    FileBytes,
    qcow2::header::{Limits, inspect},
};
use kiln_io::{
    dirs::Dirs,
    download::{self, Download, download},
    fs::{Lock, create_private_dir, failed},
    guest::Progress,
};

use super::{
    BaseContext, BaseError, DiskFormat, PreparedBase,
    cache::{Cache, DOWNLOADED, DOWNLOADS, Entry},
    release::seconds,
};

pub(super) async fn prepare(base: &Qcow2Base, context: &BaseContext) -> Result<PreparedBase, BaseError> {
    match &base.source {
        Qcow2Source::File { path, resolved, digest } => {
            let (disk, entry) = local(path, Path::new(resolved), *digest).await?;
            Ok(prepared(base, disk, entry, None))
        }
        Qcow2Source::Url { url, digest } => {
            let (disk, entry) = remote(url, *digest, context).await?;
            let lease = Cache::at(&context.dirs).lease(&entry_name(digest));
            Ok(prepared(base, disk, entry, lease))
        }
    }
}

fn entry_name(digest: &Digest) -> String {
    format!("{DOWNLOADED}{}", digest.hex())
}

fn prepared(base: &Qcow2Base, disk: PathBuf, entry: Entry, lease: Option<Lock>) -> PreparedBase {
    PreparedBase {
        disk,
        format: DiskFormat::Qcow2,
        size: entry.size,
        login: base.login,
        kernel: None,
        record: entry.record,
        tools: entry.tools,
        lease: lease.map(Arc::new),
    }
}

/// The base if it is on this machine; a local file's digest is the plan's.
pub(super) fn known(base: &Qcow2Base, dirs: &Dirs) -> Option<PreparedBase> {
    match &base.source {
        Qcow2Source::File { path, resolved, digest } => {
            let size = approve(path, Path::new(resolved)).ok()?;
            Some(prepared(base, PathBuf::from(resolved), entry(path, *digest, size, 0), None))
        }
        Qcow2Source::Url { digest, .. } => {
            let (cache, name) = (Cache::at(dirs), entry_name(digest));
            let entry = cache.find(&name)?;
            Some(prepared(base, cache.path(&name).join(&entry.disk), entry, None))
        }
    }
}

/// A file of the user's: used where it is. Its digest is compared on every bake; the header comes first, before anything
/// trusts the file.
async fn local(shown: &str, path: &Path, expected: Digest) -> Result<(PathBuf, Entry), BaseError> {
    let size = approve(shown, path)?;
    let got = digest(path).await?;
    if got != expected {
        return Err(BaseError::Changed { path: shown.to_owned(), expected, got });
    }
    Ok((path.to_owned(), entry(shown, expected, size, 0)))
}

async fn remote(url: &str, expected: Digest, context: &BaseContext) -> Result<(PathBuf, Entry), BaseError> {
    let cache = Cache::open(context)?;
    let name = entry_name(&expected);
    let found = |entry: Entry| (cache.path(&name).join(&entry.disk), entry);
    if let Some(entry) = cache.find(&name) {
        return Ok(found(entry));
    }
    let _lock = cache.lock(&name, context).await?;
    if let Some(entry) = cache.find(&name) {
        return Ok(found(entry));
    }
    // The part lives outside the work directory, which a later run sweeps.
    let parts = cache.path(DOWNLOADS);
    create_private_dir(&parts)?;
    let target = parts.join(expected.hex());
    let start = context.clock.monotonic();
    context.events.emit(Event::PhaseStarted { phase: Phase::Download, detail: without_password(url) });
    let wanted =
        Download { url: url.to_owned(), digest: expected, target: target.clone(), limits: download::Limits::default() };
    download(&wanted, &*context.clock, &context.cancel, &Bar { events: &*context.events, told: AtomicU64::new(0) })
        .await?;
    let size = match approve(url, &target) {
        Ok(size) => size,
        Err(refused) => {
            let _ = std::fs::remove_file(&target);
            return Err(refused);
        }
    };
    let work = cache.work(&name)?;
    let disk = work.path("disk.qcow2");
    std::fs::rename(&target, &disk).map_err(failed("put into the cache", &disk, 0))?;
    let made = entry(&without_password(url), expected, size, seconds(context.clock.wall()));
    let entry = cache.put(&name, &work, made)?;
    let took = context.clock.monotonic().saturating_sub(start);
    context.events.emit(Event::PhaseFinished {
        phase: Phase::Download,
        milliseconds: u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
        detail: expected.short(),
    });
    Ok(found(entry))
}

/// The virtual size, once our own reading of the header finds nothing that could lead another tool astray.
fn approve(name: &str, path: &Path) -> Result<u64, BaseError> {
    let opened = File::open(path).and_then(FileBytes::new).map_err(failed("open the base", path, 0))?;
    let header = inspect(&opened, Limits::default());
    header.map(|header| header.size).map_err(|source| BaseError::Refused { name: without_password(name), source })
}

async fn digest(path: &Path) -> Result<Digest, BaseError> {
    let (file, shown) = (path.to_owned(), path.to_owned());
    let hashed = tokio::task::spawn_blocking(move || download::digest(&file)).await.map_err(std::io::Error::other);
    Ok(hashed.and_then(|digest| digest).map_err(failed("read the base", &shown, 0))?)
}

fn entry(name: &str, digest: Digest, size: u64, made: u64) -> Entry {
    Entry {
        record: BaseRecord { name: name.to_owned(), digest, key: digest, parent: None },
        disk: "disk.qcow2".into(),
        size,
        command_line: None,
        tools: BTreeMap::new(),
        made,
        changed: (0, 0),
    }
}

/// What stands between `//` and `@` is nobody's business.
fn without_password(url: &str) -> String {
    match url.split_once("://") {
        Some((scheme, rest)) => {
            let host = rest.find('/').unwrap_or(rest.len());
            let from = rest[..host].rfind('@').map_or(0, |at| at + 1);
            format!("{scheme}://{}", &rest[from..])
        }
        None => url.to_owned(),
    }
}

/// One event a MiB, not one a packet.
#[derive(Debug)]
struct Bar<'a> {
    events: &'a dyn Events,
    told: AtomicU64,
}

impl Progress for Bar<'_> {
    fn at(&self, done: u64) {
        if self.told.swap(done >> 20, Ordering::Relaxed) != done >> 20 {
            self.events.emit(Event::Progress { phase: Phase::Download, done, total: 0, unit: Unit::Bytes });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_do_not_reach_records_and_events() {
        assert_eq!(without_password("https://u:p@m.example/a@b"), "https://m.example/a@b");
        assert_eq!(without_password("https://m.example/a@b"), "https://m.example/a@b");
        assert_eq!(without_password("images/base.qcow2"), "images/base.qcow2");
    }

    #[tokio::test]
    async fn refuses_a_file_that_is_not_a_qcow2_or_not_the_one_planned() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("base.qcow2");
        std::fs::write(&path, vec![0; 4096]).unwrap();
        let error = local("base.qcow2", &path, Digest::of(b"")).await.unwrap_err();
        assert!(matches!(error, BaseError::Refused { .. }), "{error}");
        let missing = local("base.qcow2", &directory.path().join("none"), Digest::of(b"")).await.unwrap_err();
        assert!(missing.to_string().contains("none"), "{missing}");
    }
}
