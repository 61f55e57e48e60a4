//! Publishers as processes: several at once, killed before each system call, and on a full disk: nothing is lost or half there.
//!
//! The publisher is this test program started again under `strace`, which delivers the signal or the error.

use std::{
    collections::BTreeMap,
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::Duration,
};

use kiln_core::Digest;
use kiln_io::guest::Quiet;
use kiln_registry::{Moved, Registry, RegistryError, Rules, Selector};

use crate::support::{artifact, fixed, intent};

/// What the disk of the child's artifact holds.
const CONTENT: &str = "KILN_TEST_PUBLISH";
/// What the child does: publish 1.1.0, or move `stable` to it.
const ACTION: &str = "KILN_TEST_ACTION";
/// Where the child publishes.
const DIRECTORY: &str = "KILN_TEST_PUBLISH_IN";

/// Every call by which a publish changes a file system, or makes a change last.
const CALLS: [&str; 10] =
    ["openat", "mkdir", "write", "fsync", "link", "linkat", "rename", "unlink", "flock", "fchmod"];

/// What is in the registry before.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Before {
    Nothing,
    Older,
    /// 1.0.0 and 1.1.0, and `stable` at 1.0.0.
    Channel,
}

/// Does nothing in an ordinary run; started by [`under_strace`] it publishes and says so.
#[test]
fn publisher() {
    let Some(directory) = env::var_os(DIRECTORY).map(PathBuf::from) else {
        return;
    };
    // A head that was written just now is read each time it is asked for, so the calls would not be the same in every run.
    #[expect(clippy::disallowed_methods, reason = "there is nothing to poll for")]
    thread::sleep(Duration::from_millis(200));
    if env::var(ACTION).is_ok_and(|action| action == "promote") {
        return promote(&directory);
    }
    if env::var(ACTION).is_ok_and(|action| action == "prune") {
        return prune(&directory);
    }
    let content = env::var(CONTENT).unwrap_or("two".to_owned());
    let source = directory.join(format!("baked-{content}"));
    let sealed = artifact(&source, "b-2", &content);
    // The marks keep what the test harness does out of the count.
    let _ = fs::metadata("/publish/begins");
    let registry = Registry::open(&directory.join("registry")).unwrap();
    let outcome = registry.publish(&sealed, &source, &fixed("1.1.0"), &Quiet);
    let _ = fs::metadata("/publish/ends");
    outcome.unwrap();
    fs::write(directory.join("acknowledged"), "").unwrap();
}

fn promote(directory: &Path) {
    let _ = fs::metadata("/publish/begins");
    let outcome = stable(directory, "1.1.0", None);
    let _ = fs::metadata("/publish/ends");
    outcome.unwrap();
    fs::write(directory.join("acknowledged"), "").unwrap();
}

fn prune(directory: &Path) {
    let registry = Registry::open(&directory.join("registry")).unwrap();
    let _ = fs::metadata("/publish/begins");
    let outcome = registry.prune(&Rules { newest: Some(1), days: None, now: 3_000 }, &intent("ada"));
    let _ = fs::metadata("/publish/ends");
    outcome.unwrap();
    fs::write(directory.join("acknowledged"), "").unwrap();
}

#[test]
fn a_collection_killed_at_any_call_loses_nothing_that_is_listed_and_is_finished_by_the_next() {
    killed_everywhere("prune", Before::Channel, &collected);
}

/// What is listed is complete, and the next collection comes to the end.
pub(crate) fn collected(scratch: &Path, _: Before, when: &str) {
    let registry = Registry::open(&scratch.join("registry")).unwrap();
    let image = "web".parse().unwrap();
    let report = registry.verify(&|_, _| true).unwrap_or_else(|error| panic!("{when}: {error}"));
    assert_eq!(report.findings, [], "{when}: what is listed is complete");
    assert!(registry.channels(&image).unwrap().len() == 1 && report.versions >= 2, "{when}");
    prune(scratch);
    let report = registry.verify(&|_, _| true).unwrap();
    assert_eq!((report.versions, report.whole, report.unneeded), (2, 2, 0), "{when}");
    let revisions: Vec<_> = registry.log(&image).unwrap().iter().map(|change| change.rev).collect();
    assert_eq!(revisions, (1..=revisions.len() as u64).collect::<Vec<_>>(), "{when}");
    assert_eq!(revisions.len(), 5, "{when}");
}

fn stable(directory: &Path, version: &str, expected: Option<&str>) -> Result<Moved, RegistryError> {
    let registry = Registry::open(&directory.join("registry"))?;
    let selector = format!("web@{version}").parse().unwrap();
    let expected = expected.map(|version| version.parse().unwrap());
    registry.promote(&selector, &"stable".parse().unwrap(), expected.as_ref(), &intent("ada"))
}

#[test]
fn a_publish_killed_at_any_call_leaves_the_version_absent_or_complete() {
    for before in [Before::Nothing, Before::Older] {
        killed_everywhere("publish", before, &published);
    }
}

#[test]
fn a_promote_killed_at_any_call_leaves_the_channel_where_it_was_or_moved_with_one_line_of_history() {
    killed_everywhere("promote", Before::Channel, &promoted);
}

/// The channel is where it was or where it was moved to, there when that was acknowledged, and moves with one line of history.
pub(crate) fn promoted(scratch: &Path, _: Before, when: &str) {
    let registry = Registry::open(&scratch.join("registry")).unwrap();
    let (image, channel) = ("web".parse().unwrap(), "stable".parse().unwrap());
    let seen = || {
        let now = registry.channels(&image).unwrap()[&channel].version.to_string();
        let history = registry.history(&image, Some(&channel)).unwrap();
        (now, history.len(), history.iter().map(|change| change.rev).max())
    };
    let (now, lines, _) = seen();
    match now.as_str() {
        "1.0.0" => assert!(lines == 1 && !scratch.join("acknowledged").exists(), "{when}: {lines}"),
        "1.1.0" => assert_eq!(lines, 2, "{when}"),
        other => panic!("{when}: stable is {other}"),
    }
    stable(scratch, "1.1.0", None).unwrap_or_else(|error| panic!("{when}: {error}"));
    assert_eq!(seen(), ("1.1.0".to_owned(), 2, Some(4)), "{when}");
    let revisions: Vec<_> = registry.log(&image).unwrap().iter().map(|change| change.rev).collect();
    assert_eq!(revisions, [1, 2, 3, 4], "{when}");
}

/// Runs `action` again and again, killed before another of its calls each time, and verifies what it left.
fn killed_everywhere(action: &str, before: Before, verify: &(dyn Fn(&Path, Before, &str) + Sync)) {
    let points = points("kill", action, before);
    at_every(&points, action, before, "signal=KILL", &|scratch, output, when| {
        assert!(!output.status.success(), "{when} was not killed");
        verify(scratch, before, when);
    });
}

/// Runs `action` once for each point, with `fault` at it, and judges what it left.
fn at_every(
    points: &[(String, usize)],
    action: &str,
    before: Before,
    fault: &str,
    judge: &(dyn Fn(&Path, &Output, &str) + Sync),
) {
    // The children wait for the disk and for strace more than they work.
    let next = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                loop {
                    let point = next.fetch_add(1, Ordering::Relaxed);
                    let Some((call, number)) = points.get(point) else { return };
                    let scratch = prepared(&format!("{fault}-{action}-{before:?}-{point}"), before);
                    let output = under_strace(&scratch, action, &[&format!("--inject={call}:{fault}:when={number}")]);
                    judge(&scratch, &output, &format!("{action} with {fault} at {call} {number}"));
                    fs::remove_dir_all(&scratch).unwrap();
                }
            });
        }
    });
}

#[test]
fn a_publish_on_a_full_disk_says_so_and_leaves_the_version_absent_or_complete() {
    for before in [Before::Nothing, Before::Older] {
        let mut points = points("full", "publish", before);
        points.retain(|(call, _)| ["write", "fsync", "mkdir"].contains(&call.as_str()));
        at_every(&points, "publish", before, "error=ENOSPC", &|scratch, output, when| {
            assert!(contains(output, "Full {"), "{when}: {output:?}");
            let left: Vec<_> = match fs::read_dir(scratch.join("registry/tmp")) {
                Ok(entries) => entries.flatten().map(|entry| entry.file_name()).collect(),
                Err(_) => Vec::new(),
            };
            assert!(left.iter().all(|name| name == "lock"), "{when} left {left:?}");
            published(scratch, before, when);
        });
    }
}

#[test]
#[expect(clippy::disallowed_methods, reason = "other processes are what this is about")]
fn of_publishers_in_several_processes_exactly_one_wins() {
    for _ in 0..5 {
        let scratch = prepared("processes", Before::Nothing);
        let children: Vec<_> = (0..4)
            .map(|number| {
                let mut command = Command::new(env::current_exe().unwrap());
                command.args(["--exact", "processes::publisher", "--nocapture"]).env(DIRECTORY, &scratch);
                command.env(CONTENT, format!("disk-{number}")).stdout(Stdio::piped()).stderr(Stdio::piped());
                command.spawn().unwrap()
            })
            .collect();
        let outputs: Vec<_> = children.into_iter().map(|child| child.wait_with_output().unwrap()).collect();
        let winners = outputs.iter().filter(|output| output.status.success()).count();
        let refused = outputs.iter().filter(|output| contains(output, "Conflict {")).count();
        assert_eq!((winners, refused), (1, 3), "{outputs:?}");
        complete(&Registry::open(&scratch.join("registry")).unwrap(), "1.1.0", "after the race");
        fs::remove_dir_all(&scratch).unwrap();
    }
}

fn contains(output: &Output, text: &str) -> bool {
    [&output.stdout, &output.stderr].iter().any(|bytes| String::from_utf8_lossy(bytes).contains(text))
}

/// The calls a publish makes, each with its number among the calls of its kind on its thread.
fn points(name: &str, action: &str, before: Before) -> Vec<(String, usize)> {
    let scratch = prepared(&format!("count-{name}-{action}-{before:?}"), before);
    let output = under_strace(&scratch, action, &[]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    let trace = fs::read_to_string(scratch.join("trace")).unwrap();
    fs::remove_dir_all(&scratch).unwrap();
    let mut counts = BTreeMap::<(&str, &str), usize>::new();
    let mut points = Vec::new();
    let mut publishing = false;
    for line in trace.lines() {
        let Some((thread, line)) = line.split_once(' ') else { continue };
        let line = line.trim_start();
        publishing = (publishing || line.contains("/publish/begins")) && !line.contains("/publish/ends");
        if let Some(call) = CALLS.iter().find(|call| line.starts_with(&format!("{call}("))) {
            let count = counts.entry((thread, call)).or_default();
            *count += 1;
            if publishing {
                points.push(((*call).to_owned(), *count));
            }
        }
    }
    assert!(points.len() > 15, "{trace}");
    points
}

pub(crate) fn prepared(name: &str, before: Before) -> PathBuf {
    let scratch = env::temp_dir().join(format!("kiln-registry-{name}-{}", std::process::id()));
    let _ = fs::remove_dir_all(&scratch);
    fs::create_dir_all(&scratch).unwrap();
    let versions: &[_] = match before {
        Before::Nothing => &[],
        Before::Older => &["1.0.0"],
        // For collection, a version that nothing keeps.
        Before::Channel if name.contains("prune") => &["0.9.0", "1.0.0", "1.1.0"],
        Before::Channel => &["1.0.0", "1.1.0"],
    };
    for version in versions {
        let source = scratch.join(format!("baked-{version}"));
        let sealed = artifact(&source, version, version);
        let registry = Registry::open(&scratch.join("registry")).unwrap();
        registry.publish(&sealed, &source, &fixed(version), &Quiet).unwrap();
    }
    if before == Before::Channel {
        stable(&scratch, "1.0.0", None).unwrap();
    }
    scratch
}

#[expect(clippy::disallowed_methods, reason = "the process under test is traced, which kiln itself never does")]
pub(crate) fn under_strace(scratch: &Path, action: &str, options: &[&str]) -> Output {
    let mut command = Command::new("strace");
    command.args(["-f", "-o"]).arg(scratch.join("trace"));
    command.arg(format!("--trace={},statx,stat,newfstatat", CALLS.join(","))).args(options);
    command.arg(env::current_exe().unwrap());
    command.args(["--exact", "processes::publisher", "--nocapture"]).env(DIRECTORY, scratch).env(ACTION, action);
    command.output().expect("`strace` runs")
}

/// The older version is there; the newer one is absent or complete; a publish of the same completes it.
pub(crate) fn published(scratch: &Path, before: Before, when: &str) {
    let registry = Registry::open(&scratch.join("registry")).unwrap();
    let image = "web".parse().unwrap();
    let versions = registry.versions(&image).unwrap_or_default();
    let older = versions.iter().any(|listed| listed.version.as_str() == "1.0.0");
    assert_eq!(older, before == Before::Older, "{when}: 1.0.0");
    let newer = versions.iter().any(|listed| listed.version.as_str() == "1.1.0");
    assert!(newer || !scratch.join("acknowledged").exists(), "{when}: an acknowledged publish is lost");
    for listed in &versions {
        complete(&registry, listed.version.as_str(), when);
    }
    let source = scratch.join("baked-again");
    let sealed = artifact(&source, "b-2", "two");
    let publish = || registry.publish(&sealed, &source, &fixed("1.1.0"), &Quiet);
    publish().unwrap_or_else(|error| panic!("{when}: {error}"));
    assert_eq!(registry.versions(&image).unwrap().len(), 1 + usize::from(older), "{when}");
    complete(&registry, "1.1.0", when);
    let left = || fs::read_dir(scratch.join("registry/tmp")).unwrap().count();
    // A program that another test starts holds all our locks until it is loaded; who publishes meanwhile is not alone and clears nothing,
    // but the next one does.
    let cleared = (0..100).any(|_| left() == 1 || publish().is_err());
    assert!(cleared && left() == 1, "{when}: temporary files stay");
    for blob in fs::read_dir(scratch.join("registry/blobs/sha256")).unwrap() {
        let blob = blob.unwrap();
        let digest = Digest::of(&fs::read(blob.path()).unwrap()).hex();
        assert_eq!(blob.file_name().to_string_lossy(), digest, "{when}: a blob is not what its name says");
    }
}

fn complete(registry: &Registry, version: &str, when: &str) {
    let selector: Selector = format!("web@{version}").parse().unwrap();
    let record = registry.record(&selector).unwrap_or_else(|error| panic!("{when}: {version} is listed: {error}"));
    let report = registry.verify(&|_, _| true).unwrap_or_else(|error| panic!("{when}: {version}: {error}"));
    assert_eq!(report.findings, [], "{when}: {version}");
    let content = registry.content(&record).unwrap_or_else(|error| panic!("{when}: {version}: {error}"));
    assert_eq!(content.disk, record.artifact.disk.digest, "{when}: {version}");
}
