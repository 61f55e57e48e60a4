//! Artifacts to publish, made of a few bytes.

use std::{collections::BTreeMap, fs, path::Path};

use kiln_core::{
    Digest,
    artifact::{Artifact, BaseRecord, Disk, File, Machine},
    plan::VersionSpec,
};
use kiln_registry::Publication;

/// An artifact of the image `web` whose files are written into `directory`; another `content`, another disk.
pub(crate) fn artifact(directory: &Path, build: &str, content: &str) -> Artifact {
    fs::create_dir_all(directory).unwrap();
    let files = [("web.qcow2", "qcow2"), ("web.raw", "raw")].map(|(name, format)| {
        let bytes = format!("{format} of {content}").into_bytes();
        let path = directory.join(name);
        // Published files are read-only, and the registry may hold a second name of this one.
        let _ = fs::remove_file(&path);
        fs::write(path, &bytes).unwrap();
        File { name: name.to_owned(), format: format.to_owned(), bytes: bytes.len() as u64, sha256: Digest::of(&bytes) }
    });
    Artifact {
        format: kiln_core::artifact::FORMAT,
        image: "web".parse().unwrap(),
        version: "0".parse().unwrap(),
        description: None,
        member: BTreeMap::new(),
        build: build.to_owned(),
        created: 1,
        recipe: Digest::of(b"recipe"),
        disk: Disk { digest: Digest::of(content.as_bytes()), size: 1 << 20, chunk_size: 1 << 16, chunks: 1 },
        files: files.into(),
        base: BaseRecord { name: "debian bookworm".to_owned(), digest: Digest::of(b"base"), key: Digest::of(b"key") },
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
    Publication { version: VersionSpec::Fixed(version.parse().unwrap()), date: "2026-11-21".to_owned(), now: 1_000 }
}
