//! Releases what builds left whose kiln is gone. Every step may be repeated: a reaper that is itself killed is
//! followed by another one.

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};

use super::{Bounds, Ledger, LedgerError, Outstanding, Resource, is_owned, read};
use crate::{dirs::Dirs, process::Identity};

/// How long a killed process may take to be gone; only one stuck in the kernel takes longer than an instant.
const GONE_WITHIN: i64 = 10;

/// Which builds to release.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Choice {
    /// Also what a person asked to keep.
    pub kept: bool,
    /// Only this build.
    pub build: Option<String>,
}

/// What stands in one build's ledger, and what became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuildReport {
    pub build: String,
    pub condition: Condition,
    /// What was outstanding.
    pub found: Vec<Outstanding>,
    pub released: usize,
    /// What could not be released, and why.
    pub failed: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Condition {
    /// Its kiln runs; nothing was touched.
    Alive,
    /// Kept for a person.
    Kept,
    /// Its kiln is gone.
    Interrupted,
    /// Its ledger cannot be understood; nothing was touched.
    Unreadable(String),
}

impl BuildReport {
    /// `1 VM, 2 overlays`.
    pub fn summary(&self) -> String {
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        for entry in &self.found {
            *counts.entry(&entry.what).or_default() += 1;
        }
        let plural = |count: usize| if count == 1 { "" } else { "s" };
        counts.iter().map(|(what, count)| format!("{count} {what}{}", plural(*count))).collect::<Vec<_>>().join(", ")
    }
}

/// Every build with something outstanding, oldest first. Changes nothing.
pub fn survey(dirs: &Dirs) -> Result<Vec<BuildReport>, LedgerError> {
    let builds = dirs.state.join("builds");
    let entries = match fs::read_dir(&builds) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(LedgerError::Io { operation: "list", path: builds, source }),
    };
    let mut names: Vec<_> = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    Ok(names.iter().filter_map(|build| look(dirs, build)).collect())
}

fn look(dirs: &Dirs, build: &str) -> Option<BuildReport> {
    let directory = dirs.build(build);
    if !directory.join(super::FILE).exists() {
        return None;
    }
    let report =
        |condition, found| BuildReport { build: build.to_owned(), condition, found, released: 0, failed: Vec::new() };
    match read(&directory) {
        // The first line never reached the disk, so nothing was acquired.
        Err(LedgerError::Damaged { line: 1, .. }) if is_torn(&directory.join(super::FILE)) => None,
        Err(error) => Some(report(Condition::Unreadable(error.to_string()), Vec::new())),
        Ok(journal) if journal.outstanding.is_empty() => None,
        Ok(journal) => {
            let condition = match (is_owned(&directory, &journal), journal.kept) {
                (true, _) => Condition::Alive,
                (false, true) => Condition::Kept,
                (false, false) => Condition::Interrupted,
            };
            Some(report(condition, journal.outstanding))
        }
    }
}

fn is_torn(path: &Path) -> bool {
    fs::read(path).is_ok_and(|text| !text.contains(&b'\n'))
}

/// Releases what builds left, newest thing first, and reports about every build that has something outstanding.
/// Builds whose kiln runs are never touched.
pub fn reap(dirs: &Dirs, choice: &Choice) -> Result<Vec<BuildReport>, LedgerError> {
    let mut reports = survey(dirs)?;
    reports.retain(|report| choice.build.as_ref().is_none_or(|build| *build == report.build));
    for report in &mut reports {
        let wanted = match report.condition {
            Condition::Interrupted => true,
            Condition::Kept => choice.kept,
            Condition::Alive | Condition::Unreadable(_) => false,
        };
        if wanted {
            let ledger = Ledger::join(dirs, &report.build)?;
            (report.released, report.failed) = release_all(&ledger, &report.found);
        }
    }
    Ok(reports)
}

/// Releases these things of one ledger, newest first: how many are gone, and what could not be released.
pub fn release_all(ledger: &Ledger, entries: &[Outstanding]) -> (usize, Vec<String>) {
    let (mut released, mut failed) = (0, Vec::new());
    for entry in entries.iter().rev() {
        let gone = match &entry.resource {
            Resource::Remote(remote) => Err(format!("it is at {} in {}", remote.provider, remote.region)),
            Resource::Process { marker, identity } => end(marker, identity.as_ref()),
            Resource::File { path } => {
                remove_unfinished(ledger.directory(), path);
                remove(ledger.bounds(), path, |path| fs::remove_file(path))
            }
            Resource::Directory { path } => remove(ledger.bounds(), path, |path| fs::remove_dir_all(path)),
        };
        match gone.and_then(|()| ledger.release(&entry.id).map_err(|error| error.to_string())) {
            Ok(()) => released += 1,
            Err(reason) => failed.push(format!("{}: {reason}", entry.what)),
        }
    }
    (released, failed)
}

/// Removes what an interrupted atomic write of `path` left beside it: `.<name>.<random>.part`. Only in the build's own
/// directory, where nobody else writes.
fn remove_unfinished(directory: &Path, path: &Path) {
    let Some(name) = path.file_name().and_then(|name| name.to_str()).filter(|_| path.parent() == Some(directory))
    else {
        return;
    };
    let prefix = format!(".{name}.");
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let file = entry.file_name();
        if file
            .to_str()
            .and_then(|file| file.strip_prefix(&prefix)?.rsplit_once('.'))
            .is_some_and(|(_, end)| end == "part")
        {
            // One that cannot be removed is as small as the file it was to become.
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// Kills the process a record means, if it still runs: the same pid *and* start time *and* boot, with the marker among
/// its arguments. A process whose start was never recorded is found by the marker alone.
fn end(marker: &str, identity: Option<&Identity>) -> Result<(), String> {
    let candidates = match identity {
        Some(identity) => vec![identity.clone()],
        None => with_argument(marker),
    };
    for identity in candidates {
        kill(marker, &identity)?;
    }
    Ok(())
}

fn kill(marker: &str, identity: &Identity) -> Result<(), String> {
    let Some(pid) = i32::try_from(identity.pid).ok().and_then(Pid::from_raw) else { return Ok(()) };
    if identity.pid == std::process::id() || pid.is_init() {
        return Ok(());
    }
    // The handle is taken first and the identity checked after: from then on the number cannot change its meaning.
    let Ok(handle) = pidfd_open(pid, PidfdFlags::empty()) else { return Ok(()) };
    if !identity.alive() || !has_argument(identity.pid, marker) {
        return Ok(());
    }
    match pidfd_send_signal(&handle, Signal::KILL) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => {}
        Err(error) => return Err(format!("cannot kill process {}: {error}", identity.pid)),
    }
    let within = Timespec { tv_sec: GONE_WITHIN, tv_nsec: 0 };
    match poll(&mut [PollFd::new(&handle, PollFlags::IN)], Some(&within)) {
        Ok(0) => Err(format!("process {} does not go away although it was killed", identity.pid)),
        _ => Ok(()),
    }
}

fn has_argument(pid: u32, marker: &str) -> bool {
    let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    arguments.split(|byte| *byte == 0).any(|argument| argument == marker.as_bytes())
}

fn with_argument(marker: &str) -> Vec<Identity> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid| *pid != std::process::id() && has_argument(*pid, marker)).filter_map(Identity::of).collect()
}

/// Removes a path that lies inside the bounds also after links in its parents are followed. Missing is fine.
fn remove(bounds: &Bounds, path: &Path, how: impl FnOnce(&Path) -> io::Result<()>) -> Result<(), String> {
    bounds.check(path).map_err(|error| error.to_string())?;
    let missing = |error: &io::Error| matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory);
    let parent = match path.parent().map(Path::canonicalize) {
        Some(Ok(parent)) => parent,
        Some(Err(error)) if missing(&error) => return Ok(()),
        Some(Err(error)) => return Err(format!("cannot find the directory of `{}`: {error}", path.display())),
        None => return Ok(()),
    };
    let roots: Vec<PathBuf> =
        [&bounds.build, &bounds.cache].iter().filter_map(|root| root.canonicalize().ok()).collect();
    if !roots
        .iter()
        .any(|root| parent.as_os_str().as_bytes() == root.as_os_str().as_bytes() || parent.starts_with(root))
    {
        return Err(format!("`{}` leads outside of kiln's directories through a link", path.display()));
    }
    match how(path) {
        Err(error) if !missing(&error) => Err(format!("cannot remove `{}`: {error}", path.display())),
        _ => Ok(()),
    }
}
