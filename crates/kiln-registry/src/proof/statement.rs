//! in-toto statements: what is said about which bytes. Format: <https://github.com/in-toto/attestation>, Statement v1.

use std::collections::BTreeMap;

use kiln_core::{Digest, artifact::Artifact};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::content::Descriptor;

pub(crate) const TYPE: &str = "https://in-toto.io/Statement/v1";

/// The name of the disk digest among the digests of a subject: SHA-256 over the ordered digests of 64 KiB chunks.
pub const DISK: &str = "kilnDiskV1";
const SHA256: &str = "sha256";

/// A statement with any predicate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Statement {
    #[serde(rename = "_type")]
    pub kind: String,
    pub subject: Vec<Subject>,
    pub predicate_type: String,
    pub predicate: Value,
}

/// Bytes by name and digests.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subject {
    pub name: String,
    pub digest: BTreeMap<String, String>,
}

impl Subject {
    pub(crate) fn new(name: impl Into<String>, algorithm: &str, digest: &Digest) -> Self {
        Self { name: name.into(), digest: BTreeMap::from([(algorithm.to_owned(), digest.hex())]) }
    }
}

/// What a version is in a statement: its disk, its manifest, its files.
pub(crate) fn subjects(artifact: &Artifact, manifest: &Descriptor) -> Vec<Subject> {
    let name = name(artifact);
    let mut subjects = vec![
        Subject::new(&name, DISK, &artifact.disk.digest),
        Subject::new(format!("{name} (OCI manifest)"), SHA256, &manifest.digest),
    ];
    subjects.extend(artifact.files.iter().map(|file| Subject::new(&file.name, SHA256, &file.sha256)));
    subjects
}

fn name(artifact: &Artifact) -> String {
    format!("{}@{}", artifact.image, artifact.version)
}

impl Statement {
    pub(crate) fn new(artifact: &Artifact, manifest: &Descriptor, predicate_type: &str, predicate: Value) -> Self {
        Self {
            kind: TYPE.to_owned(),
            subject: subjects(artifact, manifest),
            predicate_type: predicate_type.to_owned(),
            predicate,
        }
    }

    /// Whether it is about the version that `artifact` and `manifest` are. The error says about what else it is.
    pub(crate) fn is_about(&self, artifact: &Artifact, manifest: &Descriptor) -> Result<(), String> {
        if self.kind != TYPE {
            return Err(format!("it is a `{}`, not an in-toto statement of version 1", self.kind));
        }
        let Some(first) = self.subject.first().filter(|first| first.digest.contains_key(DISK)) else {
            return Err("it names no disk".to_owned());
        };
        if first.digest.get(DISK) != Some(&artifact.disk.digest.hex()) {
            return Err(format!("it is about another disk, that of {}", first.name));
        }
        // The same disk may be published twice; a statement is about one of the versions.
        if first.name != name(artifact) {
            return Err(format!("it is about {}", first.name));
        }
        for expected in &subjects(artifact, manifest)[1..] {
            if !self.subject.contains(expected) {
                return Err(format!("it does not name the recorded digest of {}", expected.name));
            }
        }
        Ok(())
    }
}
