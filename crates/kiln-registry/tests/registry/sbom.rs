//! The bill of materials of a real ext4 disk: right, the same every time, and not to be broken by what the disk says.

use std::{fs, path::Path};

use kiln_core::{Digest, artifact::Artifact};
use kiln_disk::inventory::Inventory;
use kiln_registry::{
    Record, Registry,
    sbom::{Bom, spdx},
};

use crate::support::Scratch;
use crate::system::System;

/// The artifact with everything in it that two runs of this test do not share made constant.
fn settled(artifact: &Artifact) -> Artifact {
    let mut artifact = artifact.clone();
    artifact.disk.digest = Digest::of(b"disk");
    artifact.files[0].sha256 = Digest::of(b"qcow2");
    artifact.created = 1_795_267_500;
    artifact.tools.insert("kiln".to_owned(), "0.1.0".to_owned());
    artifact
}

fn inventory(registry: &Registry, record: &Record) -> Inventory {
    registry.inventory(record).unwrap().unwrap()
}

/// Compares with the golden file; writes it when goldens are updated.
fn golden(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/goldens/sbom").join(name);
    if std::env::var_os("KILN_UPDATE_GOLDENS").is_some() {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
    }
    let expected = fs::read_to_string(&path).unwrap_or_default();
    assert!(expected == text, "{name} differs; `KILN_UPDATE_GOLDENS=1` writes it anew\n{text}");
}

#[test]
fn the_documents_of_a_small_debian_are_these() {
    let scratch = Scratch::new("sbom-golden");
    let registry = scratch.registry();
    let record = System::debian(&scratch.0).publish(&registry, "1.0.0");
    let bom = Bom::new(&settled(&record.artifact), &inventory(&registry, &record));
    golden("web.cdx.json", &bom.text().unwrap());
    golden("web.spdx.json", &format!("{}\n", serde_json::to_string_pretty(&spdx::document(&bom)).unwrap()));
    let again: Bom = serde_json::from_str(&serde_json::to_string(&bom).unwrap()).unwrap();
    assert_eq!(again, bom, "nothing is lost on the way");
}

#[test]
fn a_database_that_is_not_read_makes_the_list_incomplete_and_is_named() {
    let scratch = Scratch::new("sbom-rpm");
    let registry = scratch.registry();
    let system = System::debian(&scratch.0);
    system.write("var/lib/rpm/rpmdb.sqlite", "SQLite format 3");
    system.write("lib/apk/db/installed", "P:musl\nV:1.2.4-r2\nA:x86_64\nL:MIT\n\nP:\nV:1\n");
    let record = system.publish(&registry, "1.0.0");
    let bom = Bom::new(&record.artifact, &inventory(&registry, &record));
    assert_eq!(bom.compositions[0].aggregate, "incomplete");
    assert!(bom.metadata.component.property("kiln:unread").unwrap().contains("rpm"));
    assert!(bom.packages().any(|package| package.purl.as_deref() == Some("pkg:apk/debian/musl@1.2.4-r2?arch=x86_64&distro=debian-12")));
}

#[test]
fn a_disk_without_a_root_file_system_has_no_list_rather_than_an_empty_one() {
    let scratch = Scratch::new("sbom-none");
    let registry = scratch.registry();
    let source = scratch.0.join("baked");
    let artifact = crate::support::artifact(&source, "b-1", "no file system");
    registry.publish(&artifact, &source, &crate::support::fixed("1.0.0"), &kiln_io::guest::Quiet).unwrap();
    let record = registry.record(&crate::support::select("web")).unwrap();
    assert_eq!(registry.inventory(&record).unwrap(), Err("there is no ext4 root file system".to_owned()));
}

/// What a guest writes into its database is not believed to be short, sane or text.
#[test]
fn a_hostile_database_makes_no_document_that_cannot_be_read() {
    let scratch = Scratch::new("sbom-hostile");
    let registry = scratch.registry();
    let system = System::debian(&scratch.0);
    let name = "x".repeat(100_000);
    let status = format!(
        "Package: {name}\nVersion: 1\n\nPackage: a\u{1b}]0;x\u{7}\"\\\nVersion: 1\u{0}2\nSource: (((\nHomepage: https://x/<y>\n\n\
         Package: ../../../etc/shadow\nVersion: 1\n\nPackage: twice\nVersion: 1\n\nPackage: twice\nVersion: 1\nMaintainer: other\n"
    );
    fs::write(system.path("var/lib/dpkg/status"), [status.as_bytes(), &[0xff, 0xfe, b'\n', b'\n']].concat()).unwrap();
    fs::write(system.path("usr/lib/os-release"), [b"ID=\"a b/c\"\nVERSION_ID=".as_slice(), &[0xc3, 0x28]].concat())
        .unwrap();
    let record = system.publish(&registry, "1.0.0");
    let bom = Bom::new(&record.artifact, &inventory(&registry, &record));
    let text = serde_json::to_string(&bom).unwrap();
    assert_eq!(serde_json::from_str::<Bom>(&text).unwrap(), bom);
    assert!(text.len() < 20_000 && !text.contains(['\u{1b}', '\u{7}', '\u{0}']), "{}", text.len());
    let references: Vec<_> = bom.components.iter().map(|component| &component.reference).collect();
    let unique: std::collections::BTreeSet<_> = references.iter().collect();
    assert_eq!(references.len(), unique.len(), "{references:?}");
    spdx::document(&bom);
}
