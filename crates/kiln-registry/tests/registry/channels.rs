//! Channels: what points where, how it came there, and that nobody overwrites anybody.

use std::{
    collections::BTreeMap,
    fs,
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use kiln_core::{ChannelName, ImageName, Version};
use kiln_io::guest::Quiet;
use kiln_registry::{Action, Moved, Registry, RegistryError};

use crate::support::{Scratch, artifact, fixed, intent, select};

fn image() -> ImageName {
    "web".parse().unwrap()
}

fn channel(name: &str) -> ChannelName {
    name.parse().unwrap()
}

fn version(text: &str) -> Version {
    text.parse().unwrap()
}

/// A registry with these versions of `web`.
fn with_versions(name: &str, versions: &[&str]) -> (Scratch, Registry) {
    let scratch = Scratch::new(name);
    let registry = scratch.registry();
    let source = scratch.0.join("baked");
    for version in versions {
        registry.publish(&artifact(&source, version, version), &source, &fixed(version), &Quiet).unwrap();
    }
    (scratch, registry)
}

fn promote(registry: &Registry, to: &str) -> Result<Moved, RegistryError> {
    registry.promote(&select(&format!("web@{to}")), &channel("stable"), None, &intent("ada"))
}

fn rollback(registry: &Registry, to: Option<&str>) -> Result<Moved, RegistryError> {
    registry.rollback(&image(), &channel("stable"), to.map(version).as_ref(), None, &intent("bob"))
}

fn stable(registry: &Registry) -> String {
    registry.artifact(&select("web@stable")).unwrap().version.to_string()
}

#[test]
fn a_channel_moves_goes_back_and_remembers_who_when_and_why() {
    let (_scratch, registry) = with_versions("moves", &["1.0.0", "1.1.0", "1.2.0"]);
    assert!(matches!(registry.artifact(&select("web@stable")), Err(RegistryError::UnknownVersion { .. })));
    for (to, from) in [("1.0.0", None), ("1.1.0", Some("1.0.0")), ("latest", Some("1.1.0"))] {
        let moved = promote(&registry, to).unwrap();
        assert_eq!((moved.from, moved.already), (from.map(version), false));
    }
    assert_eq!(stable(&registry), "1.2.0");
    let again = promote(&registry, "1.2.0").unwrap();
    assert!(again.already && again.rev == 6, "{again:?}");
    // Back twice is two versions back; forward again, and back to where it was before that.
    for (expected, rev) in [("1.1.0", 7), ("1.0.0", 8)] {
        let back = rollback(&registry, None).unwrap();
        assert_eq!((back.to.as_str(), back.rev), (expected, rev));
    }
    assert!(matches!(rollback(&registry, None), Err(RegistryError::NothingBefore { .. })));
    assert_eq!(rollback(&registry, Some("1.2.0")).unwrap().rev, 9);
    assert_eq!(rollback(&registry, None).unwrap().to.as_str(), "1.0.0");
    let history = registry.history(&image(), Some(&channel("stable"))).unwrap();
    let revisions: Vec<_> = history.iter().map(|change| change.rev).collect();
    assert_eq!(revisions, [4, 5, 6, 7, 8, 9, 10], "a rollback is a new, higher revision");
    let last = history.last().unwrap();
    assert_eq!((last.by.as_str(), last.at, last.reason.as_deref()), ("bob", 2_000, Some("a test")));
    let action = Action::Rollback { channel: channel("stable"), from: Some(version("1.2.0")), to: version("1.0.0") };
    assert_eq!(last.action, action);
    let one = &registry.channels(&image()).unwrap()[&channel("stable")];
    assert_eq!((one.version.as_str(), one.by.as_str(), one.rev), ("1.0.0", "bob", 10));
}

#[test]
fn a_move_that_was_decided_on_what_is_no_longer_so_is_refused() {
    let (_scratch, registry) = with_versions("expected", &["1.0.0", "1.1.0"]);
    promote(&registry, "1.1.0").unwrap();
    let expected = version("1.0.0");
    let stale = registry.promote(&select("web@1.0.0"), &channel("stable"), Some(&expected), &intent("eve"));
    let error = stale.unwrap_err();
    assert!(matches!(error, RegistryError::Moved { .. }), "{error}");
    assert_eq!(error.to_string(), "`stable` of `web` points to 1.1.0, not to 1.0.0: somebody moved it");
    let stale = registry.rollback(&image(), &channel("stable"), None, Some(&expected), &intent("eve"));
    assert!(matches!(stale, Err(RegistryError::Moved { .. })));
    assert_eq!(stable(&registry), "1.1.0");
}

#[test]
fn names_that_would_mean_two_things_are_refused() {
    let (scratch, registry) = with_versions("names-of-channels", &["1.0.0", "beta"]);
    let promote = |name: &str| registry.promote(&select("web@1.0.0"), &channel(name), None, &intent("ada"));
    for name in ["latest", "1.x", "2"] {
        assert!(matches!(promote(name), Err(RegistryError::NotAChannel { .. })), "{name}");
    }
    assert!(matches!(promote("beta"), Err(RegistryError::NameTaken { .. })));
    promote("stable").unwrap();
    let source = scratch.0.join("baked");
    let taken = registry.publish(&artifact(&source, "b", "two"), &source, &fixed("stable"), &Quiet);
    assert!(matches!(taken, Err(RegistryError::NameTaken { .. })));
}

#[test]
fn a_version_whose_blobs_are_not_all_there_is_not_promoted() {
    let (_scratch, registry) = with_versions("incomplete", &["1.0.0"]);
    let content = registry.content(&registry.record(&select("web")).unwrap()).unwrap();
    fs::remove_file(registry.blob(&content.segments[0].blob.digest)).unwrap();
    assert!(matches!(promote(&registry, "1.0.0"), Err(RegistryError::Damaged { .. })));
    assert!(registry.channels(&image()).unwrap().is_empty());
}

#[test]
fn a_lost_or_restored_head_is_rebuilt_from_records_and_log() {
    let (scratch, registry) = with_versions("lost", &["1.0.0", "1.1.0"]);
    promote(&registry, "1.0.0").unwrap();
    let head = scratch.0.join("registry/images/web/head.json");
    let old = fs::read(&head).unwrap();
    promote(&registry, "1.1.0").unwrap();
    rollback(&registry, None).unwrap();
    let before = fs::read(&head).unwrap();
    for restored in [Some(old), None] {
        match restored {
            Some(old) => fs::write(&head, old).unwrap(),
            None => fs::remove_file(&head).unwrap(),
        }
        let source = scratch.0.join("baked");
        registry.publish(&artifact(&source, "1.1.0", "1.1.0"), &source, &fixed("1.1.0"), &Quiet).unwrap();
        let after: serde_json::Value = serde_json::from_slice(&fs::read(&head).unwrap()).unwrap();
        let before: serde_json::Value = serde_json::from_slice(&before).unwrap();
        assert_eq!(after["channels"], before["channels"], "never an older state than the log has seen");
        assert_eq!(after["versions"].as_array().unwrap().len(), 2);
        assert!(after["rev"].as_u64() >= before["rev"].as_u64());
    }
}

#[test]
fn of_many_promoters_each_leaves_one_line_and_none_overwrites_another() {
    let versions: Vec<String> = (0..8).map(|number| format!("1.{number}.0")).collect();
    let names: Vec<_> = versions.iter().map(String::as_str).collect();
    let (scratch, registry) = with_versions("promoters", &names);
    promote(&registry, "1.0.0").unwrap();
    let done = AtomicBool::new(false);
    let won = thread::scope(|scope| {
        // A reader that never sees a channel that is empty or points to what is not there.
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                stable(&registry);
            }
        });
        let promoters: Vec<_> = (0..8)
            .map(|me| {
                let (scratch, names) = (&scratch, &names);
                scope.spawn(move || {
                    let registry = scratch.registry();
                    let mut won = BTreeMap::<u64, String>::new();
                    for round in 0..12 {
                        let seen = registry.channels(&image()).unwrap()[&channel("stable")].version.clone();
                        let to = names[(me + round) % names.len()];
                        let selector = select(&format!("web@{to}"));
                        match registry.promote(&selector, &channel("stable"), Some(&seen), &intent(&me.to_string())) {
                            Ok(moved) if !moved.already => {
                                assert_eq!(moved.from.as_ref(), Some(&seen));
                                won.insert(moved.rev, to.to_owned());
                            }
                            Ok(_) | Err(RegistryError::Moved { .. }) => {}
                            Err(error) => panic!("{error}"),
                        }
                    }
                    won
                })
            })
            .collect();
        let won: Vec<_> = promoters.into_iter().flat_map(|promoter| promoter.join().unwrap()).collect();
        done.store(true, Ordering::Relaxed);
        won
    });
    let history = registry.history(&image(), Some(&channel("stable"))).unwrap();
    assert!(won.len() > 12, "{won:?}");
    assert_eq!(history.len(), won.len() + 1, "one line for each move that was acknowledged");
    for pair in history.windows(2) {
        let (Action::Promote { to: before, .. }, Action::Promote { from, .. }) = (&pair[0].action, &pair[1].action)
        else {
            panic!("{pair:?}")
        };
        assert_eq!((Some(before), pair[0].rev + 1), (from.as_ref(), pair[1].rev), "an unbroken chain");
    }
    let last = won.iter().max_by_key(|(rev, _)| *rev).unwrap();
    assert_eq!(stable(&registry), last.1);
}
