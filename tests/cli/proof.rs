//! Signing, proving and comparing what is published, with the real binary.

use std::{
    fs::{self, File},
    path::Path,
    process::Command,
};

use kiln_disk::{
    DiskFile, GuestDisk,
    seal::{Options, seal},
};
use kiln_io::guest::Quiet;
use kiln_registry::{KeyStore, Registry};
use kiln_tests::home::Home;
use serde_json::Value;

use crate::registry::{artifact, publication};

const DEBIAN: &str =
    "Package: hello\nStatus: install ok installed\nArchitecture: amd64\nSource: hello-src\nVersion: 1.0-1\n";

/// Publishes a small Debian as a version of `web`, signed with the user's key if there is one.
fn publish(user: &Home, version: &str, status: &str) {
    let root = user.path("root");
    for directory in ["etc", "var/lib/dpkg"] {
        fs::create_dir_all(root.join(directory)).unwrap();
    }
    fs::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n").unwrap();
    fs::write(root.join("etc/os-release"), "ID=debian\nVERSION_ID=\"12\"\nPRETTY_NAME=\"Debian 12\"\n").unwrap();
    fs::write(root.join("etc/motd|`x`\n"), version).unwrap();
    fs::write(root.join("var/lib/dpkg/status"), status).unwrap();
    let baked = user.path(&format!("baked-{version}"));
    fs::create_dir_all(&baked).unwrap();
    let (raw, qcow2) = (baked.join("disk.raw"), baked.join("web.qcow2"));
    file_system(&root, &raw);
    let sealed = seal(&GuestDisk::open(&[DiskFile::raw(&raw)]).unwrap(), &qcow2, &Options::default()).unwrap();
    let (name, format) = ("web.qcow2".to_owned(), "qcow2".to_owned());
    let file = kiln_core::artifact::File { name, format, bytes: sealed.bytes, sha256: sealed.qcow2 };
    let mut artifact = artifact(file, sealed.disk_digest);
    (artifact.disk.size, artifact.disk.chunks) = (sealed.size, sealed.stored_chunks());
    let mut registry = Registry::open(&user.path("data/registry")).unwrap();
    if let Some(key) = KeyStore::new(user.path("data/keys")).signer().unwrap() {
        registry = registry.signing(key);
    }
    registry.publish(&artifact, &baked, &publication(version), &Quiet).unwrap();
}

fn file_system(root: &Path, raw: &Path) {
    File::create(raw).unwrap().set_len(16 << 20).unwrap();
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let made =
        Command::new("mke2fs").args(["-q", "-t", "ext4", "-F", "-d"]).arg(root).arg(raw).env("PATH", path).output();
    assert!(made.as_ref().is_ok_and(|made| made.status.success()), "{made:?}");
}

#[test]
fn a_key_proves_what_is_published_and_its_loss_ends_that() {
    let user = Home::apart("proof");
    publish(&user, "1.0.0", DEBIAN);
    let unsigned = user.kiln(&["verify", "web"]).ends_with(1).stderr;
    assert!(unsigned.contains("no key is trusted here") && unsigned.contains("kiln key init"), "{unsigned}");
    // Without a key everything works as it did.
    user.kiln(&["export", "web", "--to", user.path("free.qcow2").to_str().unwrap()]).ends_with(0);
    user.kiln(&["key", "init", "--name", "ada"]).ends_with(0);
    let unsigned = user.kiln(&["verify", "web"]).ends_with(1).stderr;
    assert!(unsigned.contains("it has no signature: it was published without a key"), "{unsigned}");
    let to = user.path("out.qcow2");
    let refused = user.kiln(&["export", "web", "--to", to.to_str().unwrap()]).ends_with(1).stderr;
    assert!(refused.contains("--allow-unproven") && !to.exists(), "{refused}");
    user.kiln(&["export", "web", "--to", to.to_str().unwrap(), "--allow-unproven"]).ends_with(0);

    publish(&user, "1.1.0", DEBIAN);
    let proven = user.kiln(&["verify", "web@1.1.0"]).ends_with(0).stderr;
    for part in ["web@1.1.0 is proven", "signed by     ada", "packages      1", "all whole"] {
        assert!(proven.contains(part), "{part} is not in\n{proven}");
    }
    let proven: Value = serde_json::from_str(&user.kiln(&["verify", "web", "--json"]).ends_with(0).stdout).unwrap();
    assert_eq!((&proven["signer"], &proven["packages"]), (&"ada".into(), &1.into()));
    user.kiln(&["export", "web", "--force", "--to", to.to_str().unwrap()]).ends_with(0);

    // Somebody else trusts the public half.
    let public = user.path("ada.pub");
    fs::write(&public, user.kiln(&["key", "export"]).ends_with(0).stdout).unwrap();
    let other = Home::apart("proof-other");
    let trusted = other.kiln(&["key", "trust", public.to_str().unwrap()]).ends_with(0).stderr;
    assert!(trusted.contains("of ada is trusted"), "{trusted}");
    let registry = user.path("data/registry");
    let there = ["--registry", registry.to_str().unwrap()];
    other.kiln(&["verify", "web", there[0], there[1]]).ends_with(0);
    user.kiln(&["key", "rotate"]).ends_with(0);
    user.kiln(&["verify", "web", "--quick"]).ends_with(0);
    let listed: Value = serde_json::from_str(&user.kiln(&["key", "list", "--json"]).ends_with(0).stdout).unwrap();
    let old = listed[0]["id"].as_str().unwrap();
    user.kiln(&["key", "revoke", old, "--reason", "stolen"]).ends_with(0);
    let revoked = user.kiln(&["verify", "web"]).ends_with(1).stderr;
    assert!(revoked.contains("(ada), which is revoked: stolen"), "{revoked}");
    other.kiln(&["verify", "web", there[0], there[1]]).ends_with(0);
    assert!(!user.kiln(&["key", "trust", to.to_str().unwrap()]).ends_with(1).stderr.contains("panicked"));
}

#[test]
fn the_bill_of_materials_and_the_difference_are_printed_in_every_form() {
    let user = Home::apart("diff");
    publish(&user, "1.0.0", DEBIAN);
    publish(&user, "1.1.0", &DEBIAN.replace("1.0-1", "1.0-2"));
    let bom: Value = serde_json::from_str(&user.kiln(&["sbom", "web@1.0.0"]).ends_with(0).stdout).unwrap();
    assert_eq!(
        bom["components"][1]["purl"],
        "pkg:deb/debian/hello@1.0-1?arch=amd64&distro=debian-12&upstream=hello-src"
    );
    let spdx = user.kiln(&["sbom", "web", "--format", "spdx"]).ends_with(0).stdout;
    assert!(spdx.contains("\"SPDX-2.3\"") && spdx.contains("built from the source package hello-src 1.0-2"), "{spdx}");
    let text = user.kiln(&["diff", "web", "1.0.0", "1.1.0"]).ends_with(0).stdout;
    for part in [
        "web@1.0.0 -> web@1.1.0\n",
        "packages: 1 changed\n  ~ hello 1.0-1 -> 1.0-2\n",
        "files: 2 changed\n",
        "/etc/motd|`x`\u{fffd} (content)",
    ] {
        assert!(text.contains(part), "{part} is not in\n{text}");
    }
    let note = user.kiln(&["diff", "web", "1.0.0", "latest", "--markdown"]).ends_with(0).stdout;
    assert!(note.starts_with("## web 1.1.0 (from 1.0.0)\n"), "{note}");
    assert!(note.contains("- changed `/etc/motd|'x'\u{fffd} (content)`\n"), "{note}");
    let json: Value =
        serde_json::from_str(&user.kiln(&["diff", "web", "1.0.0", "1.1.0", "--json"]).ends_with(0).stdout).unwrap();
    assert_eq!((&json["packages"][0]["to"], json["files"].as_array().map(Vec::len)), (&"1.0-2".into(), Some(2)));
    assert!(user.kiln(&["diff", "web", "1.0.0", "1.0.0"]).ends_with(0).stdout.contains("no difference"));
    user.kiln(&["diff", "web", "1.0.0", "9.9.9"]).ends_with(1);
}
