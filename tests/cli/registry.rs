//! The verbs on a registry with images in it.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use kiln_core::{
    Digest,
    artifact::{Artifact, BaseRecord, CheckRecord, Disk, File, Machine, StepRecord},
    plan::VersionSpec,
};
use kiln_io::guest::Quiet;
use kiln_registry::{Publication, Registry};

use crate::user::User;

/// A registry with `web` 1.0.0: a qcow2 of 8 MiB with some data in it. The path of the same disk as raw.
fn published(user: &User) -> PathBuf {
    let directory = user.path("baked");
    fs::create_dir_all(&directory).unwrap();
    let raw = user.path("disk.raw");
    let mut bytes = vec![0; 8 << 20];
    for (number, byte) in bytes[1 << 20..2 << 20].iter_mut().enumerate() {
        *byte = u8::try_from(number % 251).unwrap();
    }
    fs::write(&raw, &bytes).unwrap();
    let qcow2 = directory.join("web.qcow2");
    let convert = Command::new("qemu-img").args(["convert", "-f", "raw", "-O", "qcow2"]).arg(&raw).arg(&qcow2).status();
    assert!(convert.unwrap().success());
    let stored = fs::read(&qcow2).unwrap();
    let file = File {
        name: "web.qcow2".to_owned(),
        format: "qcow2".to_owned(),
        bytes: stored.len() as u64,
        sha256: Digest::of(&stored),
    };
    let artifact = artifact(file, Digest::of(&bytes));
    let publication = Publication {
        version: VersionSpec::Fixed("1.0.0".parse().unwrap()),
        date: "2026-11-21".to_owned(),
        now: 1_795_267_596,
    };
    let registry = Registry::open(&user.path("data/registry")).unwrap();
    registry.publish(&artifact, &directory, &publication, &Quiet).unwrap();
    raw
}

fn artifact(file: File, disk: Digest) -> Artifact {
    Artifact {
        format: kiln_core::artifact::FORMAT,
        image: "web".parse().unwrap(),
        version: "1.0.0".parse().unwrap(),
        description: Some("nginx on Debian 12".to_owned()),
        member: BTreeMap::new(),
        build: "b-6b01a9d1-f2791225".to_owned(),
        created: 1_795_267_500,
        recipe: Digest::of(b"recipe"),
        disk: Disk { digest: disk, size: 8 << 20, chunk_size: 1 << 16, chunks: 16 },
        files: vec![file],
        base: BaseRecord { name: "debian bookworm".to_owned(), digest: Digest::of(b"base"), key: Digest::of(b"key") },
        machine: Machine {
            builder: "qemu".to_owned(),
            accelerator: "tcg".to_owned(),
            reason: "no guest answers under KVM".to_owned(),
            memory: 1 << 30,
            cpus: 2,
        },
        steps: vec![StepRecord {
            name: "web server\u{1b}[31m".to_owned(),
            provisioner: "nginx".to_owned(),
            provisioner_digest: Digest::of(b"nginx"),
            outcome: "ok".to_owned(),
            milliseconds: 41_200,
        }],
        checks: vec![CheckRecord {
            name: "http http://localhost/".to_owned(),
            on: "artifact".to_owned(),
            passed: true,
            milliseconds: 120,
        }],
        hygiene: Vec::new(),
        tools: BTreeMap::from([("qemu".to_owned(), "7.2.22".to_owned())]),
        times: BTreeMap::new(),
    }
}

#[test]
fn images_and_show_tell_what_is_published() {
    let user = User::new("images");
    let empty = user.kiln(&["images"]).code(0);
    assert!(empty.stdout.is_empty() && empty.stderr.contains("kiln build"), "{empty:?}");
    published(&user);
    let list = user.kiln(&["images"]).code(0).stdout;
    assert!(list.lines().nth(1).is_some_and(|line| line.starts_with("web    1.0.0   ")), "{list}");
    let versions = user.kiln(&["images", "web"]).code(0).stdout;
    assert!(versions.contains("b-6b01a9d1-f2791225"), "{versions}");
    let shown = user.kiln(&["show", "web@1.0.0"]).code(0).stdout;
    for part in ["web 1.0.0", "8 MiB virtual", "no guest answers under KVM", "41.2 s  ok", "passed on the artifact"] {
        assert!(shown.contains(part), "{part} is not in\n{shown}");
    }
    assert!(!shown.contains('\u{1b}'), "{shown:?}");
    let record: serde_json::Value =
        serde_json::from_str(&user.kiln(&["show", "web", "--json"]).code(0).stdout).unwrap();
    assert_eq!(record["version"], "1.0.0");
    let unknown = user.kiln(&["show", "web@2.0.0"]).code(1).stderr;
    assert!(unknown.contains("hint: published versions: `1.0.0`"), "{unknown}");
}

#[test]
fn every_format_comes_out_with_the_bytes_that_went_in() {
    let user = User::new("export");
    let raw = published(&user);
    for (format, judged_as) in [("qcow2", "qcow2"), ("raw", "raw"), ("vmdk", "vmdk"), ("vhd", "vpc")] {
        let to = user.path(&format!("out.{format}"));
        let ran = user.kiln(&["export", "web", "--format", format, "--to", to.to_str().unwrap()]).code(0);
        assert!(ran.stdout.is_empty(), "{ran:?}");
        same_disk(&raw, &to, judged_as);
    }
    let to = user.path("out.raw");
    let refused = user.kiln(&["export", "web", "--format", "raw", "--to", to.to_str().unwrap()]).code(2);
    assert!(refused.stderr.contains("--force"), "{refused:?}");
    user.kiln(&["export", "web", "--format", "raw", "--force", "--to", to.to_str().unwrap()]).code(0);
    let missing =
        user.kiln(&["export", "web", "--format", "raw.zst", "--to", user.path("x").to_str().unwrap()]).code(1);
    assert!(missing.stderr.contains("outputs"), "{missing:?}");
}

#[test]
fn a_damaged_image_is_not_exported_in_any_format() {
    let user = User::new("damaged");
    published(&user);
    let blobs = user.path("data/registry/blobs/sha256");
    let blob = fs::read_dir(blobs).unwrap().next().unwrap().unwrap().path();
    let mut bytes = fs::read(&blob).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::remove_file(&blob).unwrap();
    fs::write(&blob, bytes).unwrap();
    for format in ["qcow2", "raw"] {
        let to = user.path(&format!("out.{format}"));
        let ran = user.kiln(&["export", "web", "--format", format, "--to", to.to_str().unwrap()]).code(1);
        assert!(ran.stderr.contains("has the digest"), "{ran:?}");
        assert!(!to.exists());
    }
    let left: Vec<_> = fs::read_dir(user.path("")).unwrap().flatten().map(|entry| entry.file_name()).collect();
    assert!(!left.iter().any(|name| name.to_string_lossy().starts_with('.')), "{left:?}");
}

/// `qemu-img compare` is the outside judge. A format may round the size up; what is beyond must be zero.
fn same_disk(raw: &Path, other: &Path, format: &str) {
    let compare = Command::new("qemu-img").args(["compare", "-f", "raw", "-F", format]).arg(raw).arg(other).output();
    let compare = compare.unwrap();
    assert!(compare.status.success(), "{format}: {compare:?}");
}
