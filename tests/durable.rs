//! What a registry is after anything: publish, promote, rollback, revoke, restrict, collect, pull and export are killed before
//! every call by which they change a file system, killed again while the next run recovers, and refused by the file system.
//!
//! `KILN_TEST_ALL=1 cargo test -p kiln-tests --test durable -- --nocapture` is the long run: every error at every call, and
//! every pair of kills.

#![expect(clippy::disallowed_methods, reason = "tests drive programs as a user would")]
#![expect(clippy::unwrap_used, reason = "tests")]

#[path = "../crates/kiln-registry/tests/support/artifact.rs"]
mod artifacts;
#[path = "durable/limits.rs"]
mod limits;
#[path = "durable/operations.rs"]
mod operations;
#[path = "durable/race.rs"]
mod race;
#[path = "durable/scene.rs"]
mod scene;

use std::{
    env,
    fs::File,
    io::Write as _,
    panic::{self, AssertUnwindSafe},
    path::{Path, PathBuf},
    process::{self, Output},
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use kiln_tests::{
    home::Home,
    strace::{Point, with_fault},
};

use operations::{Operation, operations};
use scene::{ACTOR, Place, State, collected, publish, registry, revisions, unfinished};

/// Does nothing in an ordinary run; started by [`scene::publisher`] it publishes.
#[test]
fn actor() {
    let [Some(home), Some(baked)] = ACTOR.map(|name| env::var_os(name).map(PathBuf::from)) else { return };
    let version = baked.file_name().unwrap().to_string_lossy().into_owned();
    // Calls are counted on each thread: this one is far ahead of the others, so that only it is hit.
    let mut nowhere = File::create("/dev/null").unwrap();
    (0..100).for_each(|_| nowhere.write_all(b"x").unwrap());
    if let Err(error) = publish(&registry(&home), &baked, &version) {
        eprintln!("error: {error}\n{error:?}");
        process::exit(1);
    }
}

/// What happens at a point.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fault {
    Kill,
    /// And the run after it is killed at the second point.
    KillTwice(Point),
    /// The call fails with this error, and the reason that is said holds this text.
    Error(&'static str, &'static str),
}

const FULL: Fault = Fault::Error("ENOSPC", "no space left to");
const QUOTA: Fault = Fault::Error("EDQUOT", "quota");
const BROKEN: Fault = Fault::Error("EIO", "Input/output error");
const READ_ONLY: Fault = Fault::Error("EROFS", "Read-only file system");

/// The errors that a call can meet in the field.
const fn errors(call: &str) -> &'static [Fault] {
    match call.as_bytes() {
        b"openat" => &[FULL, READ_ONLY, QUOTA, Fault::Error("EMFILE", "Too many open files")],
        b"write" | b"pwrite64" | b"copy_file_range" => &[FULL, BROKEN, QUOTA, Fault::Error("EFBIG", "File too large")],
        b"fsync" | b"fdatasync" => &[BROKEN, FULL, QUOTA],
        b"mkdir" | b"mkdirat" | b"link" | b"linkat" => &[FULL, READ_ONLY, QUOTA],
        b"rename" | b"renameat2" => &[BROKEN, READ_ONLY, FULL, Fault::Error("EXDEV", "cross-device link")],
        b"ftruncate" => &[BROKEN, FULL],
        b"unlink" | b"unlinkat" => &[BROKEN, READ_ONLY],
        _ => &[],
    }
}

fn all() -> bool {
    env::var_os("KILN_TEST_ALL").is_some()
}

#[test]
fn whatever_kills_an_operation_nothing_is_lost_half_visible_or_left_behind() {
    let place = Place::new("killed");
    let operations = operations(&place);
    let mut runs = Vec::new();
    for operation in &operations {
        for (number, point) in operation.points.iter().enumerate() {
            runs.push((operation, *point, Fault::Kill));
            let others: Vec<_> = if all() { operation.points.clone() } else { vec![chosen(&operation.points, number)] };
            runs.extend(others.into_iter().map(|second| (operation, *point, Fault::KillTwice(second))));
        }
    }
    let hit = at_every(&place, &runs);
    assert!(hit >= 1000, "only {hit} of {} points were reached", runs.len());
    eprintln!("killed at {hit} points of {} operations: 0 lost, 0 half visible, 0 left behind", operations.len());
}

#[test]
fn an_operation_that_the_file_system_refuses_says_why_and_changes_nothing_or_all() {
    let place = Place::new("refused");
    let operations = operations(&place);
    let mut runs = Vec::new();
    for operation in &operations {
        for (number, point) in operation.points.iter().enumerate() {
            // With several threads, another one may be hit: it wakes its kin by writing, and opens what has nothing to do with this.
            let ours = !operation.threads || !["write", "openat"].contains(&point.call);
            let errors = if ours { errors(point.call) } else { &[] };
            let chosen = if all() {
                errors
            } else {
                errors.get(number % errors.len().max(1)).map_or(&[][..], std::slice::from_ref)
            };
            runs.extend(chosen.iter().map(|fault| (operation, *point, *fault)));
        }
    }
    let hit = at_every(&place, &runs);
    eprintln!("{hit} calls of {} operations failed: 0 lost, 0 half visible, 0 left behind", operations.len());
}

/// Another point of the same operation, always the same one for `number`.
fn chosen(points: &[Point], number: usize) -> Point {
    points[(number * 7 + 3) % points.len()]
}

/// Does every run, on all processors; how many of the points were reached.
fn at_every(place: &Place, runs: &[(&Operation, Point, Fault)]) -> usize {
    let (next, hit, failed) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(2, usize::from) {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let Some(run) = runs.get(number) else { return };
                    // Each says itself what is wrong with it; all of them are wanted.
                    match panic::catch_unwind(AssertUnwindSafe(|| at_point(place, number, *run))) {
                        Ok(reached) => drop(hit.fetch_add(usize::from(reached), Ordering::Relaxed)),
                        Err(_) => drop(failed.fetch_add(1, Ordering::Relaxed)),
                    }
                }
            });
        }
    });
    let (hit, failed) = (hit.into_inner(), failed.into_inner());
    assert_eq!(failed, 0, "of {} runs", runs.len());
    // On several threads the same calls come in another order each time: of a pull some points are not met.
    assert!(hit * 10 >= runs.len() * 7, "only {hit} of {} points were reached", runs.len());
    hit
}

/// Runs `operation` with `fault` at `point` and judges what it left; whether the point was reached.
fn at_point(place: &Place, number: usize, (operation, point, fault): (&Operation, Point, Fault)) -> bool {
    let when = format!("{} with {fault:?} at {} {}", operation.name, point.call, point.number);
    let home = place.copy(&operation.scene, &format!("{}-{number}", process::id()));
    let program = (operation.program)(&home);
    let hit = match fault {
        Fault::Kill | Fault::KillTwice(_) => {
            let output = with_fault(&program, point, "signal=KILL");
            if let Fault::KillTwice(second) = fault {
                with_fault(&(operation.program)(&home), second, "signal=KILL");
            }
            let done = output.status.success();
            look(operation, &home, done, &when);
            !done
        }
        Fault::Error(error, reason) => {
            let output = with_fault(&program, point, &format!("error={error}"));
            refused(operation, &output, point, reason, &when);
            // What it was writing is gone, unless that was what could not be removed, or others still wrote when it ended.
            let may_stay = point.call.starts_with("unlink") || operation.threads;
            assert!(may_stay || unfinished(&registry(&home.path(""))).is_empty(), "{when}: {output:?}");
            let done = output.status.success();
            look(operation, &home, done, &when);
            !done
        }
    };
    // A collection finishes what was begun and removes the rest, before anybody repeats anything or after it.
    let collected_first = number.is_multiple_of(2);
    if collected_first {
        collected(&registry(&home.path("")), &when);
        look(operation, &home, false, &when);
    }
    repeat(operation, &home, &when);
    if !collected_first {
        collected(&registry(&home.path("")), &when);
        assert_eq!(State::of(&registry(&home.path("")), &when), operation.after, "{when}");
    }
    hit
}

/// It ended by itself, with a reason; what must not be passed over was not.
fn refused(operation: &Operation, output: &Output, point: Point, reason: &str, when: &str) {
    let said = String::from_utf8_lossy(&output.stderr);
    match output.status.code() {
        Some(1) => assert!(said.contains(reason), "{when}: {said}"),
        // With several threads it may not have been reached.
        Some(0) => {
            assert!(operation.threads || !point.call.contains("sync"), "{when}: a sync that failed was passed over");
        }
        _ => panic!("{when}: {output:?}"),
    }
}

/// What is seen is what was, or what should be; when it was acknowledged, what should be.
fn look(operation: &Operation, home: &Home, done: bool, when: &str) {
    let registry = registry(&home.path(""));
    let seen = State::of(&registry, when);
    assert!(seen == operation.after || !done && seen == operation.before, "{when}: {seen:#?}");
    (operation.check)(&home.path(""), when);
}

/// The same once more does it, and it was done once.
fn repeat(operation: &Operation, home: &Home, when: &str) {
    let output = (operation.program)(home).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    // What was begun is finished first: then the one who repeats it with `--expect` hears that the channel has moved.
    assert!(output.status.success() || said.contains("somebody moved it"), "{when}, once more: {output:?}");
    let registry = registry(&home.path(""));
    assert_eq!(State::of(&registry, when), operation.after, "{when}, once more");
    assert_eq!(revisions(&registry, when), operation.revisions, "{when}, once more");
}

/// Nothing of an unfinished file is in `directory`.
pub(crate) fn only_whole_files(directory: &Path, whole: &[u8], when: &str) {
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        assert!(std::fs::read(entry.path()).unwrap() == whole, "{when}: {entry:?} is not whole");
    }
}
