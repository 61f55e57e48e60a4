//! A registry in a bucket: the same objects as in a directory, writers that race, processes that die, leases, damage.

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    sync::{Arc, atomic::Ordering},
    thread,
};

use kiln_core::plan::VersionSpec;
use kiln_io::guest::{Progress, Quiet};
use kiln_registry::{Moved, Objects, Publication, Registry, RegistryError, Rules};

use crate::memory::{Fault, Memory};
use crate::support::{Scratch, artifact, fixed, intent, select};

/// How long a lease lasts, and a little more.
const OVER: u64 = 601;

fn objects(memory: &Arc<Memory>) -> Arc<dyn Objects> {
    Arc::clone(memory) as Arc<dyn Objects>
}

fn registry(memory: &Arc<Memory>) -> Registry {
    Registry::init_in_bucket(&[objects(memory)]).unwrap()
}

fn open(memory: &Arc<Memory>) -> Registry {
    Registry::in_bucket(objects(memory)).unwrap()
}

fn publish(registry: &Registry, source: &Path, version: &str, content: &str) -> Result<(), RegistryError> {
    let baked = artifact(source, version, content);
    registry.publish(&baked, source, &fixed(version), &Quiet).map(drop)
}

fn promote(registry: &Registry, version: &str, expected: Option<&str>) -> Result<Moved, RegistryError> {
    let expected = expected.map(|version| version.parse().unwrap());
    registry.promote(&select(version), &"stable".parse().unwrap(), expected.as_ref(), &intent("ada"))
}

fn keep_one() -> Rules {
    Rules { newest: Some(1), days: None, now: 3_000 }
}

/// Everything that is listed reads and verifies, and nothing that is listed lacks a byte.
fn whole(registry: &Registry) -> usize {
    let report = registry.verify(&|_, _| true).unwrap();
    assert!(report.findings.is_empty(), "{:?}", report.findings);
    report.whole
}

#[test]
fn has_the_same_objects_as_a_directory_and_gives_the_same_disks() {
    let (scratch, memory) = (Scratch::new("bucket-same"), Memory::new());
    let bucket = registry(&memory);
    for (registry, name) in [(&bucket, "b"), (&scratch.registry(), "d")] {
        let source = scratch.0.join(name);
        publish(registry, &source, "1.0.0", "one").unwrap();
        publish(registry, &source, "1.1.0", "two").unwrap();
        promote(registry, "web@1.0.0", None).unwrap();
        promote(registry, "web@1.1.0", Some("1.0.0")).unwrap();
        registry.rollback(&"web".parse().unwrap(), &"stable".parse().unwrap(), None, None, &intent("ada")).unwrap();
        let record = registry.record(&select("web@stable")).unwrap();
        registry.export(&record, "qcow2", &scratch.0.join(format!("{name}.qcow2")), &|_| true).unwrap();
    }
    let same = fs::read(scratch.0.join("b.qcow2")).unwrap() == fs::read(scratch.0.join("d.qcow2")).unwrap();
    assert!(same);
    let directory = scratch.0.join("registry");
    let (mut files, mut folders) = (BTreeSet::new(), vec![directory.clone()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            let key = entry.strip_prefix(&directory).unwrap().to_str().unwrap().to_owned();
            if entry.is_dir() {
                folders.push(entry);
            } else if !key.starts_with("tmp/") && !key.ends_with("/lock") {
                files.insert(key);
            }
        }
    }
    // No lease is left, and nothing of the probe.
    assert_eq!(memory.keys().into_iter().collect::<BTreeSet<_>>(), files);
    assert_eq!(whole(&bucket), 2);
}

#[test]
fn is_not_a_registry_before_it_was_tried() {
    let error = Registry::in_bucket(objects(&Memory::new())).unwrap_err();
    assert!(matches!(error, RegistryError::NotInitialised { .. }));
    assert!(error.hint().unwrap().contains("kiln registry init"));
}

#[test]
fn refuses_a_store_whose_conditional_writes_do_not_hold() {
    for fault in [Fault::IgnoresConditions, Fault::LooksThenWrites] {
        let memory = Memory::with(fault);
        let connections = [objects(&memory), objects(&memory)];
        let error = Registry::init_in_bucket(&connections).unwrap_err();
        assert!(matches!(error, RegistryError::Unsound { .. }), "{fault:?}: {error}");
        assert!(error.to_string().contains("16 writers at once"), "{error}");
        assert_eq!(memory.keys(), Vec::<String>::new(), "nothing is left");
    }
    // One that is right is taken, also again.
    let memory = Memory::new();
    registry(&memory);
    registry(&memory);
    assert_eq!(memory.keys(), ["oci-layout", "registry.json"]);
}

#[test]
fn a_directory_is_tried_too() {
    let scratch = Scratch::new("init");
    let registry = Registry::init(&scratch.0.join("registry")).unwrap();
    assert!(registry.images().unwrap().is_empty());
    let left: Vec<_> =
        fs::read_dir(scratch.0.join("registry/tmp")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["lock"]);
}

#[test]
fn of_publishers_of_one_version_one_wins() {
    let (scratch, memory) = (Scratch::new("bucket-one"), Memory::new());
    registry(&memory);
    let outcomes: Vec<_> = thread::scope(|scope| {
        let publishers: Vec<_> = (0..8)
            .map(|number| {
                let (memory, source) = (&memory, scratch.0.join(number.to_string()));
                scope.spawn(move || publish(&open(memory), &source, "1.0.0", &format!("content {number}")))
            })
            .collect();
        publishers.into_iter().map(|publisher| publisher.join().unwrap()).collect()
    });
    let won = outcomes.iter().filter(|outcome| outcome.is_ok()).count();
    let told = outcomes.iter().filter(|outcome| matches!(outcome, Err(RegistryError::Conflict { .. }))).count();
    assert_eq!((won, told), (1, 7), "{outcomes:?}");
    assert_eq!(whole(&open(&memory)), 1);
}

#[test]
fn a_version_that_was_counted_twice_is_left_to_the_quicker_publisher() {
    let (scratch, memory) = (Scratch::new("bucket-counted"), Memory::new());
    registry(&memory);
    let auto = Publication { version: VersionSpec::Auto, ..fixed("1") };
    let publish = |memory: &Arc<Memory>, name: &str, auto: &Publication| {
        let source = scratch.0.join(name);
        let published = open(memory).publish(&artifact(&source, name, name), &source, auto, &Quiet).unwrap();
        published.artifact.version.to_string()
    };
    let (other, files, theirs) = (Arc::clone(&memory), scratch.0.join("quicker"), auto.clone());
    memory.before_reading("images/web/v/2026.11.21.1.json", move || {
        let baked = artifact(&files, "quicker", "quicker");
        let published = open(&other).publish(&baked, &files, &theirs, &Quiet).unwrap();
        assert_eq!(published.artifact.version.as_str(), "2026.11.21.1");
    });
    assert_eq!(publish(&memory, "slower", &auto), "2026.11.21.2");
    assert_eq!(publish(&memory, "slower", &auto), "2026.11.21.2", "it is the same build");
    assert_eq!(whole(&open(&memory)), 2);
}

#[test]
fn publishers_of_automatic_versions_all_get_one() {
    let (scratch, memory) = (Scratch::new("bucket-auto"), Memory::new());
    registry(&memory);
    let mut versions: Vec<_> = thread::scope(|scope| {
        let publishers: Vec<_> = (0..6)
            .map(|number| {
                let (memory, source) = (&memory, scratch.0.join(number.to_string()));
                scope.spawn(move || {
                    let baked = artifact(&source, &format!("b-{number}"), &format!("content {number}"));
                    let publication = Publication { version: VersionSpec::Auto, ..fixed("1") };
                    let published = open(memory).publish(&baked, &source, &publication, &Quiet).unwrap();
                    assert!(!published.already);
                    published.artifact.version.to_string()
                })
            })
            .collect();
        publishers.into_iter().map(|publisher| publisher.join().unwrap()).collect()
    });
    versions.sort();
    let expected: Vec<_> = (1..=6).map(|number| format!("2026.11.21.{number}")).collect();
    assert_eq!(versions, expected);
    let registry = open(&memory);
    let revisions: Vec<_> = registry.log(&"web".parse().unwrap()).unwrap().iter().map(|change| change.rev).collect();
    assert_eq!(revisions, (1..=revisions.len() as u64).collect::<Vec<_>>());
    assert_eq!(whole(&registry), 6);
}

#[test]
fn of_promoters_who_expect_the_same_one_wins() {
    let (scratch, memory) = (Scratch::new("bucket-promote"), Memory::new());
    let first = registry(&memory);
    for version in ["1.0.0", "1.1.0", "1.2.0"] {
        publish(&first, &scratch.0.join("baked"), version, version).unwrap();
    }
    promote(&first, "web@1.0.0", None).unwrap();
    let outcomes: Vec<_> = thread::scope(|scope| {
        let promoters: Vec<_> = (0..8)
            .map(|number| {
                let (memory, version) = (&memory, if number % 2 == 0 { "web@1.1.0" } else { "web@1.2.0" });
                scope.spawn(move || promote(&open(memory), version, Some("1.0.0")))
            })
            .collect();
        promoters.into_iter().map(|promoter| promoter.join().unwrap()).collect()
    });
    assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 1, "{outcomes:?}");
    assert!(outcomes.iter().all(|outcome| matches!(outcome, Ok(_) | Err(RegistryError::Moved { .. }))), "{outcomes:?}");
}

/// Lets `work` die before each of its calls in turn, beginning from `before`, and looks at what is left with `after`; how many
/// points there were.
fn dying(
    before: &Arc<Memory>,
    work: impl Fn(&Registry) -> Result<(), RegistryError>,
    after: impl Fn(&Arc<Memory>, bool),
) -> usize {
    for point in 0.. {
        let memory = before.copy();
        let registry = open(&memory);
        memory.left.store(point, Ordering::SeqCst);
        let acknowledged = work(&registry).is_ok();
        drop(registry);
        memory.left.store(usize::MAX, Ordering::SeqCst);
        // What the dead left is over.
        memory.clock.fetch_add(OVER, Ordering::SeqCst);
        after(&memory, acknowledged);
        if acknowledged {
            return point;
        }
    }
    unreachable!()
}

#[test]
fn a_publisher_that_dies_leaves_its_version_absent_or_complete() {
    let (scratch, memory) = (Scratch::new("bucket-die"), Memory::new());
    let source = scratch.0.join("baked");
    publish(&registry(&memory), &source, "1.0.0", "one").unwrap();
    let again = scratch.0.join("again");
    let baked = artifact(&again, "1.1.0", "two");
    let work = |registry: &Registry| registry.publish(&baked, &again, &fixed("1.1.0"), &Quiet).map(drop);
    let points = dying(&memory, work, |memory, acknowledged| {
        let registry = open(memory);
        let there = registry.record(&select("web@1.1.0")).is_ok();
        assert!(there || !acknowledged);
        assert_eq!(whole(&registry), 1 + usize::from(there));
        work(&registry).unwrap();
        assert_eq!(whole(&registry), 2);
    });
    assert!(points > 20, "{points}");
}

#[test]
fn a_promoter_that_dies_leaves_the_channel_old_or_new() {
    let (scratch, memory) = (Scratch::new("bucket-die-promote"), Memory::new());
    let first = registry(&memory);
    for version in ["1.0.0", "1.1.0"] {
        publish(&first, &scratch.0.join("baked"), version, version).unwrap();
    }
    promote(&first, "web@1.0.0", None).unwrap();
    let image = "web".parse().unwrap();
    let moves = first.history(&image, None).unwrap().len();
    dying(
        &memory,
        |registry| promote(registry, "web@1.1.0", None).map(drop),
        |memory, acknowledged| {
            let registry = open(memory);
            let points_to = registry.record(&select("web@stable")).unwrap().artifact.version.to_string();
            assert!(points_to == "1.1.0" || (points_to == "1.0.0" && !acknowledged), "{points_to}");
            promote(&registry, "web@1.1.0", None).unwrap();
            assert_eq!(registry.history(&image, None).unwrap().len(), moves + 1);
        },
    );
}

#[test]
fn a_collector_that_dies_loses_nothing_that_is_needed() {
    let (scratch, memory) = (Scratch::new("bucket-die-prune"), Memory::new());
    let first = registry(&memory);
    for version in ["1.0.0", "1.1.0", "1.2.0"] {
        publish(&first, &scratch.0.join("baked"), version, version).unwrap();
    }
    let prune = |registry: &Registry| registry.prune(&keep_one(), &intent("ada")).map(drop);
    dying(&memory, prune, |memory, _| {
        let registry = open(memory);
        assert!(whole(&registry) >= 1);
        assert!(registry.record(&select("web@1.2.0")).is_ok());
        prune(&registry).unwrap();
        assert_eq!(whole(&registry), 1);
        assert!(!memory.keys().iter().any(|key| key.starts_with("leases/") || key == "collecting"));
    });
}

/// Does something in the middle of a publish, once.
struct Meanwhile<F>(F, std::sync::Once);

impl<F: Fn() + Send + Sync> Progress for Meanwhile<F> {
    fn at(&self, _done: u64) {
        self.1.call_once(&self.0);
    }
}

#[test]
fn collection_waits_for_publishers_and_goes_on_without_the_dead() {
    let (scratch, memory) = (Scratch::new("bucket-lease"), Memory::new());
    let source = scratch.0.join("baked");
    publish(&registry(&memory), &source, "1.0.0", "one").unwrap();
    let baked = artifact(&source, "1.1.0", "two");
    let collect = || open(&memory).prune(&keep_one(), &intent("ada"));
    let busy = Meanwhile(|| assert!(matches!(collect(), Err(RegistryError::Busy { .. }))), std::sync::Once::new());
    open(&memory).publish(&baked, &source, &fixed("1.1.0"), &busy).unwrap();
    assert_eq!(whole(&open(&memory)), 2);
    // A publisher that is stopped for longer than its lease lasts does not publish what may have been collected.
    let baked = artifact(&source, "1.2.0", "three");
    let stopped = Meanwhile(
        || {
            memory.clock.fetch_add(OVER, Ordering::SeqCst);
            // First the lease is taken away from it, then there is nobody else.
            collect().unwrap();
        },
        std::sync::Once::new(),
    );
    let error = open(&memory).publish(&baked, &source, &fixed("1.2.0"), &stopped).unwrap_err();
    // It may notice by what it misses before it asks for its lease.
    assert!(matches!(error, RegistryError::LeaseLost { .. } | RegistryError::Damaged { .. }), "{error}");
    assert_eq!(whole(&open(&memory)), 1);
    open(&memory).publish(&baked, &source, &fixed("1.2.0"), &Quiet).unwrap();
    assert_eq!(whole(&open(&memory)), 2);
}

#[test]
fn a_damaged_or_missing_blob_harms_its_versions_only_and_comes_back() {
    let (scratch, memory) = (Scratch::new("bucket-damage"), Memory::new());
    let source = scratch.0.join("baked");
    let registry = registry(&memory);
    publish(&registry, &source, "1.0.0", "one").unwrap();
    publish(&registry, &source, "1.1.0", "two").unwrap();
    let record = |version: &str| registry.record(&select(version)).unwrap();
    let content = registry.content(&record("web@1.1.0")).unwrap();
    let old = registry.content(&record("web@1.0.0")).unwrap();
    let own = content.segments.iter().find(|segment| !old.segments.contains(segment)).unwrap();
    let keys =
        [own.blob.digest, record("web@1.1.0").manifest.digest].map(|digest| format!("blobs/sha256/{}", digest.hex()));
    for (number, (key, missing)) in keys.iter().flat_map(|key| [(key, false), (key, true)]).enumerate() {
        if missing {
            memory.lose(key);
        } else {
            memory.alter(key, |bytes| bytes[0] ^= 1);
        }
        let report = registry.verify(&|_, _| true).unwrap();
        let harmed: BTreeSet<_> = report.findings.iter().flat_map(|finding| finding.harmed.clone()).collect();
        assert!(harmed.contains("web@1.1.0") && !harmed.contains("web@1.0.0"), "{key}: {:?}", report.findings);
        let target = scratch.0.join("out.raw");
        registry.export(&record("web@1.0.0"), "raw", &target, &|_| true).unwrap();
        // The same disk again brings the blob back.
        publish(&registry, &source, &format!("2.{number}"), "two").unwrap();
        assert_eq!(whole(&registry), 3 + number, "{key}");
    }
}

#[test]
fn versions_travel_between_places() {
    let (scratch, memory) = (Scratch::new("bucket-copy"), Memory::new());
    let (here, there) = (scratch.registry(), registry(&memory));
    let source = scratch.0.join("baked");
    publish(&here, &source, "1.0.0", "one").unwrap();
    publish(&here, &source, "1.1.0", "two").unwrap();
    let copy = |into: &Registry, from: &Registry, version: &str| {
        let record = from.record(&select(&format!("web@{version}"))).unwrap();
        into.copy(from, &record, &fixed(version), true, &|_| true).unwrap()
    };
    let first = copy(&there, &here, "1.0.0");
    assert_eq!(first.sent, first.whole);
    let second = copy(&there, &here, "1.1.0");
    assert!(second.sent < second.whole / 2, "{second:?}");
    assert!(copy(&there, &here, "1.1.0").published.already);
    let back = Registry::open(&scratch.0.join("back")).unwrap();
    copy(&back, &there, "1.1.0");
    assert_eq!(whole(&back), 1);
    assert_eq!(back.record(&select("web")).unwrap().artifact, here.record(&select("web")).unwrap().artifact);
}
