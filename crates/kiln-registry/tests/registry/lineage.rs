//! Lineage and revocation.

use kiln_core::{
    Digest,
    artifact::{Artifact, BaseRecord, ParentRecord},
};
use kiln_io::guest::Quiet;
use kiln_registry::{Intent, Parent, Publication, Registry, RegistryError};

use crate::support::{Scratch, artifact, fixed, intent, select};

fn name(text: &str) -> Parent {
    let (image, version) = text.split_once('@').unwrap();
    Parent { image: image.parse().unwrap(), version: version.parse().unwrap() }
}

/// Publishes `of`, baked on `base` if there is one.
fn publish(scratch: &Scratch, of: &str, base: Option<&str>) -> Result<(), RegistryError> {
    let registry = scratch.registry();
    let source = scratch.0.join("baked");
    let mut artifact = artifact(&source, of, of);
    let Parent { image, version } = name(of);
    artifact.image = image;
    if let Some(base) = base {
        artifact.base.digest = registry.record(&select(base))?.file("qcow2").unwrap().sha256;
    }
    registry.publish(&artifact, &source, &fixed(version.as_str()), &Quiet).map(|_| ())
}

/// `base` 1 and 2; `web` 1 and 2 on `base` 1, 3 on `base` 2; `shop` 1 on `web` 2.
fn family(scratch: &Scratch) -> Registry {
    for (of, base) in [
        ("base@1", None),
        ("base@2", None),
        ("web@1", Some("base@1")),
        ("web@3", Some("base@2")),
        ("web@2", Some("base@1")),
        ("shop@1", Some("web@2")),
    ] {
        publish(scratch, of, base).unwrap();
    }
    scratch.registry()
}

fn why(registry: &Registry, of: &str, now: u64) -> Option<String> {
    registry.refuse_revoked(&name(of), now).err().map(|error| error.to_string())
}

#[test]
fn children_inherit_a_revocation_with_the_chain_from_its_moment_on() {
    let scratch = Scratch::new("inherit");
    let registry = family(&scratch);
    let inherited = registry.revoke(&name("base@1"), Some(5_000), &intent("ada")).unwrap();
    let names: Vec<_> = inherited.iter().map(ToString::to_string).collect();
    assert_eq!(names, ["web@2", "web@1", "shop@1"]);
    for of in ["base@1", "web@2", "shop@1"] {
        assert_eq!(why(&registry, of, 4_999), None, "{of}");
    }
    assert_eq!(why(&registry, "base@1", 5_000).as_deref(), Some("base@1 is revoked: a test"));
    let chain = "shop@1 is revoked, baked on web@2, baked on base@1: a test";
    assert_eq!(why(&registry, "shop@1", 5_000).as_deref(), Some(chain));
    assert_eq!(why(&registry, "web@3", 5_000), None);
    registry.revoke(&name("base@1"), None, &intent("ada")).unwrap();
    assert_eq!(why(&registry, "shop@1", 9_000), None);
    let log: Vec<_> = registry.log(&"base".parse().unwrap()).unwrap().iter().map(|change| change.rev).collect();
    assert_eq!(log, [1, 2, 3, 4], "revoked and lifted, each once");
}

#[test]
fn a_revoked_version_is_used_only_when_it_is_named_and_allowed() {
    let scratch = Scratch::new("used");
    let registry = family(&scratch);
    let (web, stable) = ("web".parse().unwrap(), "stable".parse().unwrap());
    for version in ["web@3", "web@1", "web@2"] {
        registry.promote(&select(version), &stable, None, &intent("ada")).unwrap();
    }
    registry.revoke(&name("base@1"), Some(0), &intent("ada")).unwrap();
    let version = |text: &str, allowed| {
        registry.usable(&select(text), 2_000, allowed).map(|record| record.artifact.version.to_string())
    };
    assert_eq!(version("web", false).unwrap(), "3", "the newest that may be used");
    assert_eq!(version("web@2", true).unwrap(), "2");
    for (text, allowed) in [("web@2", false), ("web@stable", true), ("web@stable", false), ("shop", true)] {
        assert!(matches!(version(text, allowed), Err(RegistryError::Revoked { .. })), "{text} {allowed}");
    }
    let promoted = |allow_revoked| {
        registry.promote(
            &select("web@1"),
            &"candidate".parse().unwrap(),
            None,
            &Intent { allow_revoked, ..intent("ada") },
        )
    };
    assert!(matches!(promoted(false), Err(RegistryError::Revoked { .. })));
    promoted(true).unwrap();
    // 1 was before 2, but is revoked too.
    assert_eq!(registry.rollback(&web, &stable, None, None, &intent("ada")).unwrap().to.as_str(), "3");
    assert!(matches!(publish(&scratch, "web@4", Some("base@1")), Err(RegistryError::Revoked { .. })));
    let channel = registry.revoke(&name("web@stable"), Some(0), &intent("ada"));
    assert!(matches!(channel, Err(RegistryError::NotAVersion { .. })), "{channel:?}");
    assert!(matches!(
        registry.revoke(&name("web@9"), Some(0), &intent("ada")),
        Err(RegistryError::UnknownVersion { .. })
    ));
}

#[test]
fn images_whose_base_has_a_newer_version_are_outdated() {
    let scratch = Scratch::new("outdated");
    let registry = family(&scratch);
    let outdated = |channel: Option<&str>| -> Vec<String> {
        let channel = channel.map(|channel| channel.parse().unwrap());
        let list = registry.outdated(channel.as_ref(), 2_000).unwrap();
        list.iter().map(|one| format!("{} on {}, not {}", one.image, one.base, one.newer)).collect()
    };
    // The newest `web` was published on the old base; that of `shop` is on the newest `web`.
    assert_eq!(outdated(None), ["web@2 on base@1, not 2"]);
    let stable = "stable".parse().unwrap();
    registry.promote(&select("base@1"), &stable, None, &intent("ada")).unwrap();
    assert!(outdated(Some("stable")).is_empty(), "the channel is no further");
    registry.revoke(&name("base@2"), Some(0), &intent("ada")).unwrap();
    assert!(outdated(None).is_empty(), "what is revoked is nobody's update");
    assert_eq!(registry.with_qcow2(&Digest::of(b"unknown")).unwrap(), None);
}

/// Two versions of one disk have the same qcow2: the record of the parent says which of them it was.
#[test]
fn a_child_knows_the_very_version_it_was_baked_on() {
    let scratch = Scratch::new("very");
    let registry = scratch.registry();
    let source = scratch.0.join("baked");
    let base = artifact(&source, "b-1", "base");
    let base = Artifact { image: "base".parse().unwrap(), ..base };
    for version in ["1", "2"] {
        registry.publish(&base, &source, &fixed(version), &Quiet).unwrap();
    }
    let child = |version: &str, on: ParentRecord, allow_revoked| {
        let artifact = artifact(&source, version, version);
        let base = BaseRecord { digest: base.files[0].sha256, parent: Some(on), ..artifact.base.clone() };
        let publication = Publication { allow_revoked, ..fixed(version) };
        registry.publish(&Artifact { base, ..artifact }, &source, &publication, &Quiet)?;
        Ok::<_, RegistryError>(registry.record(&select(&format!("web@{version}")))?.parent.unwrap().to_string())
    };
    let on =
        |version: &str, disk| ParentRecord { image: "base".parse().unwrap(), version: version.parse().unwrap(), disk };
    assert_eq!(child("1", on("1", base.disk.digest), false).unwrap(), "base@1");
    assert_eq!(child("2", on("2", base.disk.digest), false).unwrap(), "base@2");
    // Another registry's version of that name is not it; the qcow2 still tells.
    assert_eq!(child("3", on("1", Digest::of(b"other")), false).unwrap(), "base@2");
    registry.revoke(&name("base@1"), Some(0), &intent("ada")).unwrap();
    let refused = child("4", on("1", base.disk.digest), false);
    assert!(matches!(refused, Err(RegistryError::Revoked { .. })), "{refused:?}");
    assert_eq!(child("4", on("1", base.disk.digest), true).unwrap(), "base@1");
    assert!(why(&registry, "web@4", 2_000).unwrap().contains("web@4 is revoked, baked on base@1"));
}
