//! `base.debian`: a system from Debian's own packages, built once for each set of inputs.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use kiln_core::{
    Digest,
    artifact::BaseRecord,
    event::{Event, Phase, Unit},
    plan::{DebianBase, Login},
};
use kiln_io::{
    dirs::Dirs,
    fs::{Lock, require_space},
    process::version,
};
use serde::Serialize;

use super::{
    BaseContext, BaseError, DirectKernel, DiskFormat, PreparedBase,
    bootstrap::{self, Bootstrap},
    cache::{Cache, Entry, INITRD, KERNEL, Work},
    disk,
    release::{self, Release},
    sources::{self, HostSources},
};

/// Raised when the same scripts and packages come to give other bytes: another partition layout, a new `mkext4`.
const LAYOUT: u32 = 1;

/// Systemd and what it needs to boot, a kernel for virtual machines, SSH, cloud-init for real clouds, GRUB for both firmwares.
const PACKAGES: [&str; 21] = [
    "ca-certificates",
    "cloud-guest-utils",
    "cloud-init",
    "dbus",
    "e2fsprogs",
    "fdisk",
    "grub-cloud-amd64",
    "iproute2",
    "iputils-ping",
    "kmod",
    "less",
    "libnss-resolve",
    "linux-image-cloud-amd64",
    "netbase",
    "openssh-server",
    "procps",
    "sudo",
    "systemd-resolved",
    "systemd-sysv",
    "systemd-timesyncd",
    "zstd",
];

/// Bytes that a build takes for a while: the unpacked tree, its archive, and the disk.
const SPACE: u64 = 4 << 30;
/// Bases of the same inputs that stay in the cache: overlays of kept guests may stand on the older ones.
const KEPT: usize = 3;

#[derive(Serialize)]
struct Inputs<'a> {
    layout: u32,
    scripts: [&'a str; 3],
    suite: &'a str,
    sources: &'a [String],
    packages: &'a [String],
}

pub(super) async fn prepare(base: &DebianBase, context: &BaseContext) -> Result<PreparedBase, BaseError> {
    if !["bookworm", "trixie"].contains(&base.suite.as_str()) {
        return Err(BaseError::Suite { suite: base.suite.clone() });
    }
    let Wanted { sources, packages, inputs, prefix } = wanted(base);
    if let Some(message) = sources::without_security(&sources) {
        context.events.emit(Event::Warning { message });
    }
    let cache = Cache::open(context)?;
    let Release { state, time } = match release::now(&cache, &prefix, &base.suite, &sources, context).await {
        Ok(release) => release,
        Err(reason) => match cache.entries(&format!("{prefix}-")).into_iter().next() {
            Some((name, entry)) => {
                let message = format!(
                    "cannot ask the mirror whether `{}` has newer packages ({reason}); taking the base built before",
                    base.suite
                );
                context.events.emit(Event::Warning { message });
                return Ok(leased(&cache, &name, entry));
            }
            None => Release::unknown(&base.suite, context.clock.wall()),
        },
    };
    let name = format!("{prefix}-{state}");
    if let Some(entry) = cache.find(&name) {
        return Ok(leased(&cache, &name, entry));
    }
    let _lock = cache.lock(&prefix, context).await?;
    if let Some(entry) = cache.find(&name) {
        return Ok(leased(&cache, &name, entry));
    }
    let work = cache.work(&prefix)?;
    let mut entry = build(base, &sources, &packages, time, &work, context).await?;
    entry.record.key = Digest::of(format!("{inputs} {state}").as_bytes());
    let entry = cache.put(&name, &work, entry)?;
    let found = leased(&cache, &name, entry);
    let of_inputs = format!("{prefix}-");
    cache.forget_unused(|name, _| name.starts_with(&of_inputs), KEPT);
    Ok(found)
}

/// The newest base of these inputs that is in the cache.
pub(super) fn known(base: &DebianBase, dirs: &Dirs) -> Option<PreparedBase> {
    let cache = Cache::at(dirs);
    let (name, entry) = cache.entries(&format!("{}-", wanted(base).prefix)).into_iter().next()?;
    Some(prepared(&cache, &name, entry, None))
}

struct Wanted {
    sources: Vec<String>,
    packages: Vec<String>,
    inputs: Digest,
    /// Of the names in the cache.
    prefix: String,
}

fn wanted(base: &DebianBase) -> Wanted {
    let sources = sources::lines(&base.suite, base.mirror.as_deref(), &HostSources::read(Path::new("/etc")));
    let mut packages: Vec<String> =
        PACKAGES.iter().map(|name| (*name).to_owned()).chain(base.packages.clone()).collect();
    packages.sort();
    packages.dedup();
    let scripts = bootstrap::scripts();
    let inputs = Inputs { layout: LAYOUT, scripts, suite: &base.suite, sources: &sources, packages: &packages };
    let inputs = Digest::of(&serde_json::to_vec(&inputs).unwrap_or_default());
    let prefix = format!("{}-{}", base.suite, &inputs.hex()[..16]);
    Wanted { sources, packages, inputs, prefix }
}

async fn build(
    base: &DebianBase,
    sources: &[String],
    packages: &[String],
    time: i64,
    work: &Work,
    context: &BaseContext,
) -> Result<Entry, BaseError> {
    let name = format!("debian {}", base.suite);
    let start = context.clock.monotonic();
    context.events.emit(Event::PhaseStarted { phase: Phase::Base, detail: format!("{name}, from packages") });
    require_space("build a base beneath", work.directory(), SPACE)?;
    let tools = BTreeMap::from([("mmdebstrap".to_owned(), version("mmdebstrap").await?)]);
    let recipe =
        Digest::of(serde_json::to_vec(&(LAYOUT, bootstrap::scripts())).unwrap_or_default().as_slice()).to_string();
    let bootstrap = Bootstrap { name: &name, suite: &base.suite, sources, packages, recipe: &recipe, time };
    let archive = bootstrap::run_to_archive(&bootstrap, work, context).await?;

    let (directory, tar, events) = (work.directory().to_owned(), archive.clone(), context.events.clone());
    let written = tokio::task::spawn_blocking(move || {
        let mut told = 0;
        disk::write(&tar, &directory, time, &mut |done, total| {
            if done - told >= 16 << 20 || done == total {
                told = done;
                events.emit(Event::Progress { phase: Phase::Base, done, total, unit: Unit::Bytes });
            }
        })
    });
    let failed = |source| BaseError::Disk { name: name.clone(), source };
    let written = written.await.map_err(|error| failed(error.into()))?.map_err(|error| failed(error.into()))?;
    std::fs::remove_file(&archive).map_err(kiln_io::fs::failed("remove", &archive, 0))?;
    let took = context.clock.monotonic().saturating_sub(start);
    context.events.emit(Event::PhaseFinished {
        phase: Phase::Base,
        milliseconds: u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
        detail: format!("{name}, {}", written.digest.short()),
    });
    Ok(Entry {
        record: BaseRecord { name, digest: written.digest, key: Digest::of(b""), parent: None },
        disk: "disk.raw".into(),
        size: written.size,
        command_line: Some(written.command_line),
        tools,
        made: release::seconds(context.clock.wall()),
        changed: (0, 0),
    })
}

fn leased(cache: &Cache, name: &str, entry: Entry) -> PreparedBase {
    prepared(cache, name, entry, cache.lease(name))
}

fn prepared(cache: &Cache, name: &str, entry: Entry, lease: Option<Lock>) -> PreparedBase {
    let directory = cache.path(name);
    let kernel = entry.command_line.map(|command_line| DirectKernel {
        kernel: directory.join(KERNEL),
        initrd: directory.join(INITRD),
        command_line,
    });
    PreparedBase {
        disk: directory.join(entry.disk),
        format: DiskFormat::Raw,
        size: entry.size,
        login: Login::Credentials,
        kernel,
        record: entry.record,
        tools: entry.tools,
        lease: lease.map(Arc::new),
    }
}
