//! Publishing and reading through the public interface, from one thread and from many.

use std::{collections::BTreeSet, fs, thread};

use kiln_core::{artifact::Artifact, plan::VersionSpec};
use kiln_io::guest::Quiet;
use kiln_registry::{Publication, Registry, RegistryError};

use crate::support::{Scratch, artifact, disk, fixed, select};

fn auto() -> Publication {
    Publication { version: VersionSpec::Auto, ..fixed("0") }
}

#[test]
fn what_was_published_is_listed_shown_and_exported() {
    let scratch = Scratch::new("roundtrip");
    let registry = scratch.registry();
    let source = scratch.0.join("baked");
    for (version, content) in [("1.0.0", "one"), ("1.1.0", "two")] {
        let sealed = artifact(&source, version, content);
        let published = registry.publish(&sealed, &source, &fixed(version), &Quiet).unwrap();
        assert!(!published.already);
        assert_eq!(published.artifact.version.as_str(), version);
    }
    let images = registry.images().unwrap();
    assert_eq!(images.len(), 1);
    assert_eq!((images[0].image.as_str(), images[0].versions), ("web", 2));
    assert_eq!(images[0].newest.version.as_str(), "1.1.0");
    let newest = registry.artifact(&select("web")).unwrap();
    assert_eq!(newest.version.as_str(), "1.1.0");
    let older = registry.record(&select("web@1.0.0")).unwrap();
    let to = scratch.0.join("out.raw");
    let bytes = registry.export(&older, "raw", &to, &|_| true).unwrap();
    assert!(fs::read(&to).unwrap() == disk("one"));
    assert_eq!(bytes, disk("one").len() as u64);
    assert_eq!(fs::read_dir(scratch.0.join("registry/tmp")).unwrap().count(), 1, "only the lock");
}

#[test]
fn the_same_disk_again_is_no_news_and_another_disk_is_refused_by_name() {
    let scratch = Scratch::new("twice");
    let registry = scratch.registry();
    let source = scratch.0.join("baked");
    let first = artifact(&source, "b-1", "one");
    registry.publish(&first, &source, &fixed("1.0.0"), &Quiet).unwrap();
    let head = fs::read(scratch.0.join("registry/images/web/head.json")).unwrap();
    let again = registry.publish(&artifact(&source, "b-2", "one"), &source, &fixed("1.0.0"), &Quiet).unwrap();
    assert!(again.already);
    assert_eq!(again.artifact.build, "b-1");
    let other = artifact(&source, "b-3", "two");
    let error = registry.publish(&other, &source, &fixed("1.0.0"), &Quiet).unwrap_err();
    let text = error.to_string();
    assert!(text.contains(&first.disk.digest.to_string()) && text.contains(&other.disk.digest.to_string()), "{text}");
    assert_eq!(fs::read(scratch.0.join("registry/images/web/head.json")).unwrap(), head);
}

#[test]
fn the_calendar_counts_up_and_a_repeated_build_keeps_its_version() {
    let scratch = Scratch::new("calendar");
    let registry = scratch.registry();
    let source = scratch.0.join("baked");
    let mut versions = Vec::new();
    for (build, content) in [("b-1", "one"), ("b-2", "two"), ("b-2", "two"), ("b-3", "one")] {
        let sealed = artifact(&source, build, content);
        let published = registry.publish(&sealed, &source, &auto(), &Quiet).unwrap();
        versions.push((published.artifact.version.to_string(), published.already));
    }
    let expected = [("2026.11.21.1", false), ("2026.11.21.2", false), ("2026.11.21.2", true), ("2026.11.21.3", false)];
    assert_eq!(versions, expected.map(|(version, already)| (version.to_owned(), already)));
}

#[test]
fn a_file_that_differs_from_its_record_is_not_published() {
    let scratch = Scratch::new("altered");
    let registry = scratch.registry();
    let source = scratch.0.join("baked");
    let sealed = artifact(&source, "b-1", "one");
    let other = artifact(&scratch.0.join("other"), "b-1", "onf");
    fs::copy(scratch.0.join("other/web.qcow2"), source.join("web.qcow2")).unwrap();
    let error = registry.publish(&sealed, &source, &fixed("1.0.0"), &Quiet).unwrap_err();
    assert!(matches!(error, RegistryError::Altered { .. }), "{error}");
    // The qcow2 is what its record says, but not the disk of the record.
    let mixed = Artifact { files: other.files, ..sealed };
    let error = registry.publish(&mixed, &source, &fixed("1.0.0"), &Quiet).unwrap_err();
    assert!(matches!(error, RegistryError::Altered { .. }), "{error}");
    assert!(registry.images().unwrap().is_empty());
    // Nothing half-written stays.
    assert_eq!(fs::read_dir(scratch.0.join("registry/tmp")).unwrap().count(), 1);
}

#[test]
fn names_that_leave_the_directory_are_refused() {
    let scratch = Scratch::new("names");
    let registry = scratch.registry();
    let source = scratch.0.join("baked");
    for name in ["../web.qcow2", "/etc/passwd", "", ".."] {
        let mut sealed = artifact(&source, "b-1", "one");
        name.clone_into(&mut sealed.files[0].name);
        let error = registry.publish(&sealed, &source, &fixed("1.0.0"), &Quiet).unwrap_err();
        assert!(matches!(error, RegistryError::FileName { .. }), "{error}");
    }
    let sealed = artifact(&source, "b-1", "one");
    fs::rename(source.join("web.qcow2"), source.join("elsewhere")).unwrap();
    std::os::unix::fs::symlink("elsewhere", source.join("web.qcow2")).unwrap();
    assert!(registry.publish(&sealed, &source, &fixed("1.0.0"), &Quiet).is_err());
}

#[test]
fn a_directory_with_other_things_in_it_is_no_registry() {
    let scratch = Scratch::new("foreign");
    fs::write(scratch.0.join("thesis.tex"), "\\relax").unwrap();
    assert!(matches!(Registry::open(&scratch.0), Err(RegistryError::NotARegistry { .. })));
    fs::create_dir(scratch.0.join("images")).unwrap();
    fs::write(scratch.0.join("oci-layout"), "{}").unwrap();
    let early = Registry::open(&scratch.0).unwrap_err();
    assert!(matches!(early, RegistryError::FirstForm { .. }) && early.hint().is_some(), "{early}");
    fs::write(scratch.0.join("registry.json"), "{\"format\":4}").unwrap();
    assert!(matches!(Registry::open(&scratch.0), Err(RegistryError::NewerFormat { found: 4, .. })));
}

#[test]
fn an_unknown_image_or_version_names_what_there_is() {
    let scratch = Scratch::new("unknown");
    let registry = scratch.registry();
    let source = scratch.0.join("baked");
    registry.publish(&artifact(&source, "b-1", "one"), &source, &fixed("1.0.0"), &Quiet).unwrap();
    let image = registry.artifact(&select("wep")).unwrap_err();
    assert!(image.hint().is_some_and(|hint| hint.contains("`web`")), "{image}");
    let version = registry.artifact(&select("web@2.0.0")).unwrap_err();
    assert!(version.hint().is_some_and(|hint| hint.contains("`1.0.0`")), "{version}");
}

#[test]
fn what_a_later_kiln_keeps_in_the_head_survives_a_publish() {
    let scratch = Scratch::new("channels");
    let registry = scratch.registry();
    let source = scratch.0.join("baked");
    registry.publish(&artifact(&source, "b-1", "one"), &source, &fixed("1.0.0"), &Quiet).unwrap();
    let path = scratch.0.join("registry/images/web/head.json");
    let mut head: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    head["labels"] = serde_json::json!({ "stable": { "version": "1.0.0" } });
    fs::write(&path, head.to_string()).unwrap();
    registry.publish(&artifact(&source, "b-2", "two"), &source, &fixed("1.1.0"), &Quiet).unwrap();
    let after: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    assert_eq!(after["labels"], head["labels"]);
    assert_eq!(after["rev"], 2);
}

#[test]
fn of_many_publishers_of_one_version_exactly_one_wins() {
    for round in 0..8 {
        let scratch = Scratch::new(&format!("race-{round}"));
        let results: Vec<_> = thread::scope(|scope| {
            let publishers: Vec<_> = (0..8)
                .map(|number| {
                    let scratch = &scratch;
                    scope.spawn(move || {
                        let source = scratch.0.join(format!("baked-{number}"));
                        let sealed = artifact(&source, &format!("b-{number}"), &format!("disk {number}"));
                        scratch.registry().publish(&sealed, &source, &fixed("1.0.0"), &Quiet)
                    })
                })
                .collect();
            publishers.into_iter().map(|publisher| publisher.join().unwrap()).collect()
        });
        let winners: Vec<_> = results.iter().flatten().filter(|published| !published.already).collect();
        assert_eq!(winners.len(), 1, "{results:?}");
        let losers = results.iter().filter(|result| matches!(result, Err(RegistryError::Conflict { .. }))).count();
        assert_eq!(losers, 7, "{results:?}");
        assert_eq!(scratch.registry().artifact(&select("web")).unwrap(), winners[0].artifact);
    }
}

#[test]
fn publishers_of_calendar_versions_get_one_each_without_gaps() {
    let scratch = Scratch::new("calendar-race");
    let versions: BTreeSet<_> = thread::scope(|scope| {
        let publishers: Vec<_> = (0..24)
            .map(|number| {
                let scratch = &scratch;
                scope.spawn(move || {
                    let source = scratch.0.join(format!("baked-{number}"));
                    let sealed = artifact(&source, &format!("b-{number}"), &format!("disk {number}"));
                    let published = scratch.registry().publish(&sealed, &source, &auto(), &Quiet).unwrap();
                    published.artifact.version.to_string()
                })
            })
            .collect();
        publishers.into_iter().map(|publisher| publisher.join().unwrap()).collect()
    });
    let expected: BTreeSet<_> = (1..=24).map(|number| format!("2026.11.21.{number}")).collect();
    assert_eq!(versions, expected);
    assert_eq!(scratch.registry().versions(&"web".parse().unwrap()).unwrap().len(), 24);
}
