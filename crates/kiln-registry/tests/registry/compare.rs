//! What differs between two versions: real file systems, compared as they are stored.

use std::{cell::Cell, fs, os::unix::fs::symlink};

use kiln_registry::{Difference, Record, Registry, RegistryError, compare::FileChange};

use crate::support::Scratch;
use crate::system::{STATUS, System};

fn compared(registry: &Registry, from: &Record, to: &Record) -> Difference {
    registry.compare(from, to, &|_, _| true).unwrap()
}

fn change<'a>(difference: &'a Difference, path: &str) -> Option<&'a FileChange> {
    difference.files.iter().find(|change| change.path == path)
}

/// A system with a file of each kind, before and after.
fn versions(scratch: &Scratch) -> (Registry, Record, Record) {
    let registry = scratch.registry();
    let system = System::debian(&scratch.0);
    system.write("usr/bin/tool", "#!/bin/sh\necho one\n");
    system.mode("usr/bin/tool", 0o4755);
    system.write("usr/bin/plain", "#!/bin/sh\n");
    system.mode("usr/bin/plain", 0o755);
    system.write("usr/lib/large.bin", &"kiln ".repeat(200_000));
    system.write("etc/gone.conf", "x\n");
    system.write("etc/same.conf", "the same\n");
    system.write("etc/systemd/system/multi-user.target.wants/old.service", "");
    symlink("plain", system.path("usr/bin/link")).unwrap();
    let from = system.publish(&registry, "1.3.0");
    system.write("usr/bin/tool", "#!/bin/sh\necho two\n");
    system.mode("usr/bin/plain", 0o2755);
    system.write("usr/lib/large.bin", &("kiln ".repeat(199_999) + "bake "));
    fs::remove_file(system.path("etc/gone.conf")).unwrap();
    system.write("etc/new.conf", "new\n");
    fs::remove_file(system.path("usr/bin/link")).unwrap();
    symlink("tool", system.path("usr/bin/link")).unwrap();
    fs::remove_file(system.path("etc/systemd/system/multi-user.target.wants/old.service")).unwrap();
    symlink(
        "/usr/lib/systemd/system/nginx.service",
        system.path("etc/systemd/system/multi-user.target.wants/nginx.service"),
    )
    .unwrap();
    let status = STATUS
        .replace("12.2.0-14+deb12u1", "12.2.0-14+deb12u2")
        .replace("deinstall ok config-files", "install ok installed");
    let status = status
        .replace("Package: tzdata\nStatus: install ok installed", "Package: tzdata\nStatus: deinstall ok config-files");
    system.write("var/lib/dpkg/status", &status);
    let to = system.publish(&registry, "1.4.0");
    (registry, from, to)
}

#[test]
fn every_kind_of_change_is_found_and_nothing_else() {
    let scratch = Scratch::new("compare");
    let (registry, from, to) = versions(&scratch);
    let difference = compared(&registry, &from, &to);
    let packages: Vec<_> = difference
        .packages
        .iter()
        .map(|change| (change.name.as_str(), change.from.as_deref(), change.to.as_deref()))
        .collect();
    let expected = [
        ("libgcc-s1", Some("12.2.0-14+deb12u1"), Some("12.2.0-14+deb12u2")),
        ("nginx-light", None, Some("1.22.1-9")),
        ("tzdata", Some("2024a-0+deb12u1"), None),
    ];
    assert_eq!(packages, expected);
    assert_eq!(difference.packages[0].source, "gcc-12");
    let paths: Vec<_> = difference.files.iter().map(|change| change.path.as_str()).collect();
    let expected = [
        "/etc/gone.conf",
        "/etc/new.conf",
        "/etc/systemd/system/multi-user.target.wants/nginx.service",
        "/etc/systemd/system/multi-user.target.wants/old.service",
        "/usr/bin/link",
        "/usr/bin/plain",
        "/usr/bin/tool",
        "/usr/lib/large.bin",
        "/var/lib/dpkg/status",
    ];
    assert_eq!(paths, expected);
    let plain = change(&difference, "/usr/bin/plain").unwrap();
    let modes = (plain.from.as_ref().unwrap().mode.as_str(), plain.to.as_ref().unwrap().mode.as_str());
    assert_eq!((modes, plain.content), (("0755", "2755"), false));
    assert!(change(&difference, "/usr/lib/large.bin").unwrap().content, "the same length, other bytes");
    assert!(change(&difference, "/usr/bin/link").unwrap().content, "it points elsewhere");
    let set_id: Vec<_> = difference.set_id.iter().map(|change| change.path.as_str()).collect();
    assert_eq!(set_id, ["/usr/bin/plain", "/usr/bin/tool"]);
    assert_eq!(difference.units.added, ["nginx.service (multi-user.target)"]);
    assert_eq!(difference.units.removed, ["old.service (multi-user.target)"]);
    assert!(difference.unread.is_empty(), "{:?}", difference.unread);
    let sizes = &difference.sizes;
    assert!(sizes.shared > 0 && sizes.shared < sizes.chunks && sizes.new_bytes > 0, "{sizes:?}");
}

#[test]
fn a_version_does_not_differ_from_itself_and_backwards_is_the_reverse() {
    let scratch = Scratch::new("compare-self");
    let (registry, from, to) = versions(&scratch);
    let none = compared(&registry, &from, &from);
    assert!(none.files.is_empty() && none.packages.is_empty() && none.set_id.is_empty(), "{none:?}");
    assert_eq!((none.sizes.shared, none.sizes.new_bytes), (none.sizes.chunks, 0));
    let (forth, back) = (compared(&registry, &from, &to), compared(&registry, &to, &from));
    assert_eq!(forth.files.len(), back.files.len());
    for (a, b) in forth.files.iter().zip(&back.files) {
        assert_eq!((&a.path, &a.from, &a.to, a.content), (&b.path, &b.to, &b.from, b.content));
    }
    assert_eq!(forth.units.added, back.units.removed);
}

#[test]
fn it_stops_when_it_is_told_to() {
    let scratch = Scratch::new("compare-stop");
    let (registry, from, to) = versions(&scratch);
    let seen = Cell::new(0);
    let stopped = registry.compare(&from, &to, &|done, all| {
        seen.set(done);
        assert!(done < all);
        done < 5
    });
    assert!(matches!(stopped, Err(RegistryError::Stopped { .. })) && seen.get() == 5, "{stopped:?}");
}

/// A file that cannot be read is said to differ, and named; the blob is set aside with the versions it harms.
#[test]
fn a_damaged_segment_is_named_and_never_taken_for_the_same() {
    let scratch = Scratch::new("compare-damage");
    let (registry, from, to) = versions(&scratch);
    let content = registry.content(&to).unwrap();
    let old: Vec<_> = registry.content(&from).unwrap().segments.iter().map(|segment| segment.blob.digest).collect();
    let mut damaged = 0;
    for segment in content.segments.iter().filter(|segment| !old.contains(&segment.blob.digest)) {
        let path = registry.blob(&segment.blob.digest);
        let bytes = fs::read(&path).unwrap();
        fs::remove_file(&path).unwrap();
        fs::write(&path, bytes.iter().map(|byte| !byte).collect::<Vec<_>>()).unwrap();
        damaged += 1;
    }
    assert!(damaged > 0);
    let difference = compared(&registry, &from, &to);
    assert!(!difference.unread.is_empty(), "{difference:?}");
    assert!(fs::read_dir(scratch.0.join("registry/damaged")).unwrap().count() > 1);
}

#[test]
fn disks_without_a_file_system_are_compared_by_their_chunks() {
    let scratch = Scratch::new("compare-raw");
    let registry = scratch.registry();
    for (version, text) in [("1.0.0", "one"), ("1.1.0", "two")] {
        let source = scratch.0.join(version);
        let artifact = crate::support::artifact(&source, version, text);
        registry.publish(&artifact, &source, &crate::support::fixed(version), &kiln_io::guest::Quiet).unwrap();
    }
    let record = |version: &str| registry.record(&crate::support::select(version)).unwrap();
    let difference = compared(&registry, &record("web@1.0.0"), &record("web@1.1.0"));
    assert_eq!(difference.unread.len(), 2, "both say why");
    assert_eq!(difference.sizes.chunks - difference.sizes.shared, 1);
}
