//! mmdebstrap: Debian's packages to a tar archive, in a user namespace, without root and without loop devices.
//!
//! An ordinary user needs `newuidmap` and a range in `/etc/subuid`. Root without such a range gets one for this run
//! only, bound over the files in a mount namespace of its own; the host's files stay as they are.

use std::{
    ffi::OsString,
    fs::{self, Permissions},
    io::Write as _,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    time::Duration,
};

use kiln_core::event::{Event, Phase, Unit};
use kiln_io::{
    error::{FsError, ProcessError},
    fs::failed,
    process::{Limits, Spec, run},
    random,
};

use super::{
    BaseContext, BaseError,
    cache::{NOTE, Work},
};
use crate::HOST_KEYS_UNIT;

const ESSENTIAL: &str = include_str!("essential.sh");
const CUSTOMIZE: &str = include_str!("customize.sh");
/// User ids for root's run where nobody gave it any: above what `useradd` and containers hand out.
const ROOT_IDS: &str = "root:1879048192:65536\n";
const DEADLINE: Duration = Duration::from_hours(1);

/// The text of the package scripts: part of every base's inputs.
pub(super) fn scripts() -> [&'static str; 3] {
    [ESSENTIAL, CUSTOMIZE, HOST_KEYS_UNIT]
}

/// What to bootstrap.
#[derive(Debug)]
pub(super) struct Bootstrap<'a> {
    /// For messages: `debian bookworm`.
    pub(super) name: &'a str,
    pub(super) suite: &'a str,
    /// Lines of `sources.list`; none: mmdebstrap's own.
    pub(super) sources: &'a [String],
    pub(super) packages: &'a [String],
    /// What the identifiers in the image derive from, besides the packages.
    pub(super) recipe: &'a str,
    /// Seconds since 1970 for everything made during the build.
    pub(super) time: i64,
}

/// A directory that the mapped user ids may work in. The path is noted in the work directory before it is made, so that
/// it is found again if kiln is killed, and the note goes last.
#[derive(Debug)]
struct Scratch {
    path: PathBuf,
    note: PathBuf,
}

impl Scratch {
    fn make(work: &Work) -> Result<Self, FsError> {
        let parent = std::env::var_os("TMPDIR").map_or_else(|| PathBuf::from("/var/tmp"), PathBuf::from);
        let path = parent.join(format!("kiln-base-{}", &random::nonce()[..12]));
        let note = work.path(NOTE);
        std::os::unix::fs::symlink(&path, &note).map_err(failed("write", &note, 0))?;
        fs::create_dir(&path).map_err(failed("make", &path, 0))?;
        fs::set_permissions(&path, Permissions::from_mode(0o1777)).map_err(failed("open up", &path, 0))?;
        Ok(Self { path, note })
    }

    /// A file that the mapped root can read, and run.
    fn put(&self, name: &str, text: &str) -> Result<PathBuf, FsError> {
        let path = self.path.join(name);
        fs::write(&path, text).map_err(failed("write", &path, text.len() as u64))?;
        fs::set_permissions(&path, Permissions::from_mode(0o755)).map_err(failed("open up", &path, 0))?;
        Ok(path)
    }

    /// Most of it belongs to mapped ids, so it takes the same mapping to remove it.
    async fn remove(&self) -> Result<(), BaseError> {
        if self.path.exists() {
            if !runs_as_root() {
                // Without its files the rest is ours.
                let inside = fs::read_dir(&self.path).into_iter().flatten().flatten().map(|entry| entry.path());
                let foreign: Vec<PathBuf> = inside.filter(|path| !owned_by_us(path)).collect();
                if !foreign.is_empty() {
                    let spec = Spec::new("mmdebstrap").args(["--unshare-helper", "rm", "-rf", "--"]).args(foreign);
                    run(&spec, &Limits::default(), &mut |_, _| {}).await?;
                }
            }
            fs::remove_dir_all(&self.path).map_err(failed("remove", &self.path, 0))?;
        }
        fs::remove_file(&self.note).map_err(failed("remove", &self.note, 0))?;
        Ok(())
    }
}

/// Removes what a killed run left outside its work directory.
pub(super) async fn sweep(left: &Work) -> Result<(), BaseError> {
    let note = left.path(NOTE);
    match fs::read_link(&note) {
        Ok(path) => Scratch { path, note }.remove().await,
        Err(_) => Ok(()),
    }
}

/// Runs mmdebstrap; the archive is `tree.tar` in `work`.
pub(super) async fn run_to_archive(
    bootstrap: &Bootstrap<'_>,
    work: &Work,
    context: &BaseContext,
) -> Result<PathBuf, BaseError> {
    let archive = work.path("tree.tar");
    let scratch = Scratch::make(work)?;
    let outcome = attempt(bootstrap, &scratch, &archive, context).await;
    let removed = scratch.remove().await;
    outcome?;
    removed?;
    Ok(archive)
}

async fn attempt(
    bootstrap: &Bootstrap<'_>,
    scratch: &Scratch,
    archive: &Path,
    context: &BaseContext,
) -> Result<(), BaseError> {
    let essential = scratch.put("essential", ESSENTIAL)?;
    let customize = scratch.put("customize", CUSTOMIZE)?;
    let mut command: Vec<OsString> = vec!["mmdebstrap".into()];
    command.extend(arguments(bootstrap, &essential, &customize, archive));
    let ids = if runs_as_root() && !has_ids("root") { Some(scratch.put("subids", ROOT_IDS)?) } else { None };
    let log_path = context.dirs.state.join(format!("base-{}.log", bootstrap.suite));
    fs::create_dir_all(&context.dirs.state).map_err(failed("make", &context.dirs.state, 0))?;
    let mut log = fs::File::create(&log_path).map_err(failed("write", &log_path, 0))?;
    let spec = mapped(command, ids.as_deref())
        .env("TMPDIR", &scratch.path)
        .env("SOURCE_DATE_EPOCH", bootstrap.time.to_string())
        .env("KILN_RECIPE", bootstrap.recipe)
        .env("KILN_HOST_KEYS_UNIT", HOST_KEYS_UNIT)
        .env("LC_ALL", "C.UTF-8")
        .env("DEBIAN_FRONTEND", "noninteractive");
    let limits = Limits { deadline: Some(DEADLINE), cancel: context.cancel.clone() };
    let mut packages = Packages::default();
    let mut complaints = Vec::new();
    let finished = run(&spec, &limits, &mut |_, line| {
        let _ = writeln!(log, "{line}");
        if let Some(complaint) = line.strip_prefix("E: ") {
            complaints.push(complaint.to_owned());
        }
        if packages.see(line) {
            let (done, total) = (packages.done, packages.total());
            context.events.emit(Event::Progress { phase: Phase::Base, done, total, unit: Unit::Items });
        }
    })
    .await;
    finished.map(|_| ()).map_err(|source| match source {
        ProcessError::Cancelled => BaseError::Cancelled,
        missing @ ProcessError::Missing { .. } => missing.into(),
        source => explained(bootstrap.name, &complaints, &log_path, source),
    })
}

fn arguments(bootstrap: &Bootstrap<'_>, essential: &Path, customize: &Path, archive: &Path) -> Vec<OsString> {
    let hook = |name: &str, path: &Path| {
        let mut argument = OsString::from(format!("--{name}-hook="));
        argument.push(path);
        argument
    };
    let mut arguments: Vec<OsString> = [
        "--mode=unshare",
        "--variant=minbase",
        "--architectures=amd64",
        "--format=tar",
        "--verbose",
        "--aptopt=Acquire::Retries \"3\"",
        // The tree is thrown away if anything fails, so nothing in it needs to reach the disk early.
        "--dpkgopt=force-unsafe-io",
    ]
    .map(OsString::from)
    .to_vec();
    arguments.push(format!("--include={}", bootstrap.packages.join(",")).into());
    arguments.extend([hook("essential", essential), hook("customize", customize)]);
    arguments.push(bootstrap.suite.into());
    arguments.push(archive.into());
    arguments.extend(bootstrap.sources.iter().map(OsString::from));
    arguments
}

/// The command as it runs: by itself, or with `ids` in the place of the host's tables of user id ranges.
/// Either way nothing of it outlives kiln: mmdebstrap's children do not end with it, so they end with their process id
/// namespace, or by a shell that kills their whole group when the kernel tells it that kiln is gone.
fn mapped(command: Vec<OsString>, ids: Option<&Path>) -> Spec {
    if let Some(ids) = ids {
        Spec::new("unshare")
            .args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c"])
            .arg(r#"mount --bind "$0" /etc/subuid && mount --bind "$0" /etc/subgid && exec "$@""#)
            .arg(ids)
            .args(command)
    } else {
        let guard = Spec::new("setpriv").args(["--pdeathsig", "TERM", "sh", "-c"]);
        let mut guard = guard.args([r#"trap 'kill -KILL 0' TERM; "$@" & wait $!"#, "sh"]).args(command);
        guard.dies_with_kiln = false;
        guard
    }
}

/// Counts packages by apt's and dpkg's own lines: each is retrieved, unpacked and set up.
#[derive(Debug, Default)]
struct Packages {
    done: u64,
    expected: u64,
    lists: u32,
}

impl Packages {
    /// Whether the line was a step forward.
    fn see(&mut self, line: &str) -> bool {
        if let Some((_, rest)) = line.split_once(" upgraded, ") {
            self.expected += rest.split(' ').next().and_then(|count| count.parse::<u64>().ok()).unwrap_or(0);
            self.lists += 1;
            return false;
        }
        let packet = line.starts_with("Get:")
            && line.contains(" amd64 ") | line.contains(" all ")
            && !line.contains(" Packages [");
        let forward = packet || line.starts_with("Unpacking ") || line.starts_with("Setting up ");
        self.done += u64::from(forward);
        forward
    }

    /// 0 until both of mmdebstrap's lists, the essential packages and the rest, are known.
    fn total(&self) -> u64 {
        if self.lists < 2 { 0 } else { (3 * self.expected).max(self.done) }
    }
}

fn explained(name: &str, complaints: &[String], log: &Path, source: ProcessError) -> BaseError {
    let all = complaints.join("\n");
    let says = |needles: &[&str]| needles.iter().any(|needle| all.contains(needle));
    let hint = if says(&["newuidmap", "newgidmap", "subuid", "subgid"]) {
        "install `uidmap` and give yourself a range of user ids: \
         `sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 $USER`"
    } else if says(&["Could not resolve", "Temporary failure resolving", "Could not connect", "Connection timed out"]) {
        "is the network up, and the mirror right? `base.debian.mirror` names another one; `http_proxy` is honoured"
    } else if says(&["Unable to locate package", "has no installation candidate"]) {
        "a package of `base.debian.packages` does not exist in this suite"
    } else if says(&["Release file", "404"]) {
        "the mirror does not carry this suite; leave `base.debian.mirror` out or name another one"
    } else if says(&["NO_PUBKEY", "is not signed", "keyring"]) {
        "install `debian-archive-keyring`"
    } else if says(&["No space left"]) {
        "free some space beneath `/var/tmp`, or point `TMPDIR` elsewhere"
    } else {
        ""
    };
    let see = format!("the whole output is in `{}`", log.display());
    let hint = if hint.is_empty() { see } else { format!("{hint}; {see}") };
    BaseError::Bootstrap {
        name: name.to_owned(),
        cause: complaints.first().cloned(),
        hint: Some(hint),
        source: Box::new(source),
    }
}

fn runs_as_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0)
}

fn owned_by_us(path: &Path) -> bool {
    match (fs::symlink_metadata(path), fs::metadata("/proc/self")) {
        (Ok(path), Ok(own)) => path.uid() == own.uid(),
        _ => false,
    }
}

fn has_ids(user: &str) -> bool {
    let prefix = format!("{user}:");
    ["/etc/subuid", "/etc/subgid"]
        .iter()
        .all(|file| fs::read_to_string(file).is_ok_and(|table| table.lines().any(|line| line.starts_with(&prefix))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure() -> ProcessError {
        ProcessError::Failed { command: "mmdebstrap".into(), status: "exited with status 1".into(), stderr: Vec::new() }
    }

    #[test]
    fn says_what_to_do_about_the_usual_failures() {
        for (complaint, word) in [
            ("newuidmap 123 0 100000 65536 failed: ", "usermod"),
            ("Failed to fetch x  Temporary failure resolving 'mirror.example'", "network"),
            ("Unable to locate package nginxx", "base.debian.packages"),
            ("The repository 'x' does not have a Release file.", "base.debian.mirror"),
            ("something else", "base.log"),
        ] {
            let error = explained("debian bookworm", &[complaint.to_owned()], Path::new("/s/base.log"), failure());
            assert!(error.hint().unwrap().contains(word), "{complaint}: {:?}", error.hint());
            assert!(error.to_string().ends_with(complaint));
        }
    }

    #[tokio::test]
    async fn a_scratch_that_cannot_be_removed_stays_noted_for_the_next_kiln() {
        let directory = tempfile::tempdir().unwrap();
        let (work, scratch) = (directory.path().join("work"), directory.path().join("scratch"));
        fs::create_dir(&work).unwrap();
        std::os::unix::fs::symlink(&scratch, work.join(NOTE)).unwrap();
        // Nobody removes a file as a directory.
        fs::write(&scratch, "").unwrap();
        sweep(&Work::inherit(work.clone())).await.unwrap_err();
        assert_eq!(fs::read_link(work.join(NOTE)).unwrap(), scratch);
        fs::remove_file(&scratch).unwrap();
        fs::create_dir(&scratch).unwrap();
        sweep(&Work::inherit(work.clone())).await.unwrap();
        assert!(!scratch.exists() && !work.exists());
    }

    #[test]
    fn counts_packages_by_the_lines_of_apt_and_dpkg() {
        let mut packages = Packages::default();
        let lines = [
            ("Get:4 http://m.example/debian bookworm/main amd64 Packages [8790 kB]", (0, 0)),
            ("0 upgraded, 2 newly installed, 0 to remove and 0 not upgraded.", (0, 0)),
            ("Get:1 http://m.example/debian bookworm/main amd64 dash amd64 0.5.12-2 [97.3 kB]", (1, 0)),
            ("Unpacking dash (0.5.12-2) ...", (2, 0)),
            ("0 upgraded, 1 newly installed, 0 to remove and 0 not upgraded.", (2, 9)),
            ("Setting up dash (0.5.12-2) ...", (3, 9)),
        ];
        for (line, expected) in lines {
            packages.see(line);
            assert_eq!((packages.done, packages.total()), expected, "{line}");
        }
    }

    #[test]
    fn root_without_ids_gets_them_in_a_mount_namespace() {
        let spec = mapped(vec!["mmdebstrap".into(), "a b".into()], Some(Path::new("/tmp/ids")));
        assert!(spec.to_string().starts_with("unshare --mount --pid"), "{spec}");
        assert!(spec.to_string().ends_with("/tmp/ids mmdebstrap 'a b'"), "{spec}");
        let spec = mapped(vec!["mmdebstrap".into(), "x".into()], None);
        assert!(spec.to_string().ends_with(" sh mmdebstrap x") && !spec.dies_with_kiln, "{spec}");
    }
}
