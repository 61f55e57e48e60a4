//! Retention and collection, alone and in the middle of everything else.

use std::{
    fs,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use kiln_core::plan::VersionSpec;
use kiln_disk::seal::LEVEL;
use kiln_io::guest::Quiet;
use kiln_registry::{Pruned, Publication, RegistryError, Rules};

use crate::support::{Scratch, artifact, fixed, intent, sealed, select};

const DAY: u64 = 86_400;

fn publish(scratch: &Scratch, version: &str, content: &str, now: u64) {
    let source = scratch.0.join("baked");
    let artifact = artifact(&source, version, content);
    let publication = Publication { now, ..fixed(version) };
    scratch.registry().publish(&artifact, &source, &publication, &Quiet).unwrap();
}

fn rules(newest: Option<usize>, days: Option<u64>) -> Rules {
    Rules { newest, days, now: 100 * DAY }
}

fn reasons(pruned: &Pruned) -> Vec<(&str, &str)> {
    let reason = |kept: &'static str| kept;
    pruned
        .versions
        .iter()
        .map(|verdict| (verdict.version.version.as_str(), verdict.kept.as_deref().unwrap_or(reason("goes"))))
        .collect()
}

#[test]
fn says_why_each_version_stays_and_removes_only_what_nothing_needs() {
    let scratch = Scratch::new("reasons");
    for (version, day) in [("1", 10), ("2", 20), ("3", 30), ("4", 95), ("5", 40)] {
        publish(&scratch, version, &format!("content {version}"), day * DAY);
    }
    let registry = scratch.registry();
    for version in ["web@1", "web@2"] {
        registry.promote(&select(version), &"stable".parse().unwrap(), None, &intent("ada")).unwrap();
    }
    let dry = registry.prune_dry(&rules(Some(1), Some(10))).unwrap();
    let expected = [
        ("5", "one of the newest 1"),
        ("4", "younger than 10 days"),
        ("3", "goes"),
        ("2", "stable points there"),
        ("1", "a rollback of stable goes there"),
    ];
    assert_eq!(reasons(&dry), expected);
    assert_eq!(registry.prune_dry(&rules(None, None)).unwrap().blobs, 0);
    let before = registry.verify(&|_, _| true).unwrap();
    assert_eq!((before.versions, before.unneeded), (5, 0), "a dry run changes nothing");
    let pruned = registry.prune(&rules(Some(1), Some(10)), &intent("ada")).unwrap();
    assert_eq!(pruned, dry, "what was said is what is done");
    // The changed segment, the config and the manifest of version 3, its statement and that one's manifest; the rest is shared.
    assert_eq!(pruned.blobs, 5);
    let after = registry.verify(&|_, _| true).unwrap();
    assert_eq!((after.versions, after.whole, after.blobs, after.unneeded), (4, 4, before.blobs - 5, 0), "{after:?}");
    let source = scratch.0.join("baked");
    for content in ["content 3", "other"] {
        let again = registry.publish(&artifact(&source, "b", content), &source, &fixed("3"), &Quiet);
        let error = again.unwrap_err();
        let expected = matches!(error, RegistryError::Retired { .. } | RegistryError::Conflict { .. });
        assert!(expected && error.hint().is_some(), "{error}");
    }
    // What those two refused publishes left goes with the next collection, and nothing else.
    registry.prune(&rules(None, None), &intent("ada")).unwrap();
    assert_eq!(registry.verify(&|_, _| true).unwrap(), after);
}

#[test]
fn a_removed_version_comes_back_from_a_registry_that_has_it() {
    let (elsewhere, scratch) = (Scratch::new("back-there"), Scratch::new("back-here"));
    let (there, here) = (elsewhere.registry(), scratch.registry());
    let bring = |version: &str| {
        let record = there.record(&select(&format!("web@{version}"))).unwrap();
        here.copy(&there, &record, &fixed(version), true, &|_| true).unwrap().published
    };
    for (version, day) in [("1", 10), ("2", 20), ("3", 30)] {
        publish(&elsewhere, version, &format!("content {version}"), day * DAY);
        bring(version);
    }
    here.prune(&rules(Some(1), None), &intent("ada")).unwrap();
    assert!(here.record(&select("web@1")).is_err());
    // A channel there was rolled back to it.
    bring("1");
    assert!(bring("1").already);
    let verified = here.verify(&|_, _| true).unwrap();
    assert_eq!((verified.versions, verified.whole, verified.unneeded), (2, 2, 0), "{verified:?}");
    here.prune(&rules(Some(1), None), &intent("ada")).unwrap();
    assert!(here.record(&select("web@1")).is_ok() && here.record(&select("web@3")).is_err(), "it came last");
}

#[test]
fn what_a_kept_version_was_baked_on_stays() {
    let scratch = Scratch::new("parents");
    publish(&scratch, "1", "one", DAY);
    publish(&scratch, "2", "two", 2 * DAY);
    publish(&scratch, "3", "three", 3 * DAY);
    let registry = scratch.registry();
    let source = scratch.0.join("baked");
    let mut child = artifact(&source, "b", "shop");
    child.image = "shop".parse().unwrap();
    child.base.digest = registry.record(&select("web@1")).unwrap().file("qcow2").unwrap().sha256;
    registry.publish(&child, &source, &fixed("7"), &Quiet).unwrap();
    let pruned = registry.prune(&rules(Some(1), None), &intent("ada")).unwrap();
    let expected =
        [("7", "one of the newest 1"), ("3", "one of the newest 1"), ("2", "goes"), ("1", "shop@7 is baked on it")];
    assert_eq!(reasons(&pruned), expected);
}

#[test]
fn nothing_is_removed_while_somebody_reads_or_when_needs_cannot_be_told() {
    let scratch = Scratch::new("busy");
    publish(&scratch, "1", "one", DAY);
    publish(&scratch, "2", "two", 2 * DAY);
    let registry = scratch.registry();
    let record = registry.record(&select("web@1")).unwrap();
    let to = scratch.0.join("out.raw");
    registry
        .export(&record, "raw", &to, &|_| {
            let busy = registry.prune(&rules(Some(1), None), &intent("ada"));
            assert!(matches!(busy, Err(RegistryError::Busy { .. })), "{busy:?}");
            true
        })
        .unwrap();
    let newest = registry.record(&select("web@2")).unwrap();
    let manifest = registry.blob(&newest.manifest.digest);
    let sound = fs::read(&manifest).unwrap();
    fs::remove_file(&manifest).unwrap();
    fs::write(&manifest, "{}").unwrap();
    let blobs = || fs::read_dir(manifest.parent().unwrap()).unwrap().count();
    let before = blobs();
    let unknown = registry.prune(&rules(Some(1), None), &intent("ada"));
    assert!(matches!(unknown, Err(RegistryError::Damaged { .. })), "{unknown:?}");
    assert_eq!(blobs(), before - 1, "only the bad manifest is set aside");
    fs::write(&manifest, sound).unwrap();
    registry.prune(&rules(Some(1), None), &intent("ada")).unwrap();
    assert_eq!(registry.versions(&"web".parse().unwrap()).unwrap().len(), 1);
}

#[test]
fn publishes_exports_moves_and_collections_do_not_disturb_each_other() {
    const EACH: usize = 12;
    let scratch = Scratch::new("soak");
    publish(&scratch, "0", "zero", DAY);
    let registry = scratch.registry();
    registry.promote(&select("web@0"), &"stable".parse().unwrap(), None, &intent("ada")).unwrap();
    let (running, collected, exported) = (AtomicUsize::new(2), AtomicUsize::new(0), AtomicUsize::new(0));
    thread::scope(|scope| {
        for me in 0..2 {
            let (scratch, running) = (&scratch, &running);
            scope.spawn(move || {
                let registry = scratch.registry();
                let source = scratch.0.join(format!("baked-{me}"));
                for round in 0..EACH {
                    // The same contents again and again: blobs that are being collected are wanted anew.
                    let artifact = artifact(&source, "b", &format!("content {}", round % 3));
                    let version = format!("{me}.{round}");
                    registry.publish(&artifact, &source, &fixed(&version), &Quiet).unwrap();
                    // With one newest kept, another publisher may have been faster, and a collection too.
                    let moved = registry.promote(&select("web"), &"stable".parse().unwrap(), None, &intent("ada"));
                    moved.unwrap();
                }
                running.fetch_sub(1, Ordering::SeqCst);
            });
        }
        scope.spawn(|| {
            let to = scratch.0.join("out.raw");
            while running.load(Ordering::SeqCst) > 0 || exported.load(Ordering::SeqCst) == 0 {
                // Between finding a version and holding it, it may be retired; it is never served half.
                let record = registry.record(&select("web@stable")).unwrap();
                match registry.export(&record, "raw", &to, &|_| true) {
                    Ok(_) => exported.fetch_add(1, Ordering::SeqCst),
                    Err(RegistryError::UnknownVersion { .. }) => 0,
                    Err(error) => panic!("{error}: {:?}", error.hint()),
                };
            }
        });
        scope.spawn(|| {
            while running.load(Ordering::SeqCst) > 0 || collected.load(Ordering::SeqCst) == 0 {
                match registry.prune(&rules(Some(1), None), &intent("ada")) {
                    Ok(_) => collected.fetch_add(1, Ordering::SeqCst),
                    Err(RegistryError::Busy { .. }) => 0,
                    Err(error) => panic!("{error}: {:?}", error.hint()),
                };
            }
        });
    });
    registry.prune(&rules(Some(1), None), &intent("ada")).unwrap();
    let report = registry.verify(&|_, _| true).unwrap();
    assert!(report.findings.is_empty() && report.unneeded == 0 && report.versions <= 3, "{report:?}");
}

#[test]
fn of_a_thousand_publishes_of_one_version_exactly_one_wins() {
    const THREADS: usize = 20;
    let scratch = Scratch::new("thousand");
    let disks: Vec<_> = (0..THREADS)
        .map(|number| {
            let source = scratch.0.join(format!("baked-{number}"));
            let bytes = vec![u8::try_from(number).unwrap() + 1; 64 << 10];
            let artifact = sealed(&source, &format!("b-{number}"), &bytes, LEVEL);
            (source, artifact)
        })
        .collect();
    let outcomes = thread::scope(|scope| {
        let publishers: Vec<_> = disks
            .iter()
            .map(|(source, artifact)| {
                let registry = scratch.registry();
                scope.spawn(move || {
                    let publication = Publication { version: VersionSpec::Fixed("1".parse().unwrap()), ..fixed("1") };
                    let publish = |_| registry.publish(artifact, source, &publication, &Quiet);
                    (0..50).map(publish).collect::<Vec<_>>()
                })
            })
            .collect();
        publishers.into_iter().flat_map(|publisher| publisher.join().unwrap()).collect::<Vec<_>>()
    });
    let won = outcomes.iter().flatten().filter(|published| !published.already).count();
    let again = outcomes.iter().flatten().filter(|published| published.already).count();
    let refused = outcomes.iter().filter(|outcome| matches!(outcome, Err(RegistryError::Conflict { .. }))).count();
    assert_eq!((won, again, refused), (1, 49, 950));
}
