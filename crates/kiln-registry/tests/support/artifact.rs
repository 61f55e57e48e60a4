//! Artifacts to publish: small disks, really sealed.

#![allow(dead_code, reason = "each test program uses a part of it")]

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering},
};

use kiln_core::{
    Digest,
    artifact::{Artifact, BaseRecord, Disk, File, Machine},
    plan::VersionSpec,
};
use kiln_disk::{
    DiskFile, GuestDisk,
    seal::{self, Sealed},
};
use kiln_registry::{Intent, Publication, Registry, Selector};

/// A directory of one test, removed when the test passes.
pub(crate) struct Scratch(pub(crate) PathBuf);

impl Scratch {
    pub(crate) fn new(name: &str) -> Self {
        // Tests of one program may choose the same name.
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("kiln-registry-{name}-{}-{number}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub(crate) fn registry(&self) -> Registry {
        Registry::open(&self.0.join("registry")).unwrap()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let _ = fs::remove_dir_all(&self.0);
        }
    }
}

pub(crate) fn intent(by: &str) -> Intent {
    Intent { by: by.to_owned(), now: 2_000, reason: Some("a test".to_owned()), allow_revoked: false }
}

pub(crate) fn select(text: &str) -> Selector {
    text.parse().unwrap()
}

/// Three segments: text and `content` in the first, nothing in the second, noise in the third.
pub(crate) fn disk(content: &str) -> Vec<u8> {
    let mut bytes = vec![0; (8 << 20) + (256 << 10)];
    let text = b"server { listen 80; root /var/www/html; }\n".repeat(10_000);
    bytes[70_000..70_000 + text.len()].copy_from_slice(&text);
    bytes[1 << 20..(1 << 20) + content.len()].copy_from_slice(content.as_bytes());
    let mut state = 7_u64;
    for byte in &mut bytes[8 << 20..(8 << 20) + (100 << 10)] {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        *byte = state.to_le_bytes()[7];
    }
    bytes
}

/// An artifact of the image `web` whose files are written into `directory`; another `content`, another disk.
pub(crate) fn artifact(directory: &Path, build: &str, content: &str) -> Artifact {
    sealed(directory, build, &disk(content), seal::LEVEL)
}

/// The same of any disk, compressed with `level`.
pub(crate) fn sealed(directory: &Path, build: &str, bytes: &[u8], level: i32) -> Artifact {
    fs::create_dir_all(directory).unwrap();
    let raw = directory.join("web.raw");
    let _ = fs::remove_file(&raw);
    fs::write(&raw, bytes).unwrap();
    let mut artifact = sealed_file(directory, build, &raw, level);
    artifact.files.push(File {
        name: "web.raw".to_owned(),
        format: "raw".to_owned(),
        bytes: bytes.len() as u64,
        sha256: Digest::of(bytes),
    });
    artifact
}

/// The same of a disk that lies somewhere; the artifact has the qcow2 alone.
pub(crate) fn sealed_file(directory: &Path, build: &str, raw: &Path, level: i32) -> Artifact {
    fs::create_dir_all(directory).unwrap();
    let qcow2 = directory.join("web.qcow2");
    let _ = fs::remove_file(&qcow2);
    let disk = GuestDisk::open(&[DiskFile::raw(raw)]).unwrap();
    let sealed = seal::seal(&disk, &qcow2, &seal::Options { level, ..Default::default() }).unwrap();
    let file =
        File { name: "web.qcow2".to_owned(), format: "qcow2".to_owned(), bytes: sealed.bytes, sha256: sealed.qcow2 };
    record(build, &sealed, vec![file])
}

fn record(build: &str, sealed: &Sealed, files: Vec<File>) -> Artifact {
    Artifact {
        format: kiln_core::artifact::FORMAT,
        image: "web".parse().unwrap(),
        version: "0".parse().unwrap(),
        description: None,
        member: BTreeMap::new(),
        build: build.to_owned(),
        created: 1,
        started: None,
        variables: BTreeMap::new(),
        recipe: Digest::of(b"recipe"),
        disk: Disk {
            digest: sealed.disk_digest,
            size: sealed.size,
            chunk_size: 1 << 16,
            chunks: sealed.stored_chunks(),
        },
        files,
        placement: None,
        base: BaseRecord {
            name: "debian bookworm".to_owned(),
            digest: Digest::of(b"base"),
            key: Digest::of(b"key"),
            parent: None,
        },
        boot: None,
        machine: Machine {
            builder: "qemu".to_owned(),
            accelerator: "tcg".to_owned(),
            reason: "a test".to_owned(),
            memory: 1 << 30,
            cpus: 1,
        },
        steps: Vec::new(),
        checks: Vec::new(),
        hygiene: Vec::new(),
        tools: BTreeMap::new(),
        times: BTreeMap::new(),
    }
}

pub(crate) fn fixed(version: &str) -> Publication {
    Publication {
        version: VersionSpec::Fixed(version.parse().unwrap()),
        date: "2026-11-21".to_owned(),
        now: 1_000,
        by: "ada@forge".to_owned(),
        allow_revoked: false,
    }
}
