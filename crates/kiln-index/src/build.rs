//! Builds: what the records of versions say of how they were made, without reading each record again.

use std::collections::BTreeMap;

use kiln_core::{
    Digest, ImageName, Version,
    artifact::{Machine, StepRecord},
};
use kiln_registry::{Listed, Record};
use serde::{Deserialize, Serialize};

use crate::Index;

/// How a version was made, and how large it became.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Build {
    pub version: Version,
    pub build: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// When the bake began and when it was sealed and proven, seconds since 1970, UTC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started: Option<u64>,
    pub created: u64,
    /// What it was baked on, in words.
    pub base: String,
    pub machine: Machine,
    /// Bytes of its qcow2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub qcow2: Option<u64>,
    /// Phase to milliseconds.
    pub times: BTreeMap<String, u64>,
    pub steps: Vec<StepRecord>,
}

/// A build with the line of the head that it belongs to.
#[derive(Debug, Serialize, Deserialize)]
struct Row {
    listed: Digest,
    build: Build,
}

impl Build {
    fn of(record: &Record) -> Self {
        let artifact = &record.artifact;
        Self {
            version: artifact.version.clone(),
            build: artifact.build.clone(),
            description: artifact.description.clone(),
            started: artifact.started,
            created: artifact.created,
            base: artifact.base.name.clone(),
            machine: artifact.machine.clone(),
            qcow2: record.file("qcow2").map(|file| file.bytes),
            times: artifact.times.clone(),
            steps: artifact.steps.clone(),
        }
    }

    /// All phases together, in milliseconds.
    pub fn duration(&self) -> u64 {
        self.times.values().sum()
    }
}

/// Names what the head lists: a version of the same name in another registry is another one.
fn name(listed: &Listed) -> Digest {
    Digest::of(&serde_json::to_vec(listed).unwrap_or_default())
}

impl Index {
    /// The builds of `listed`, which are versions of `image` that its head lists, in the same order. `None` where the record cannot be read.
    pub fn builds<'a>(&self, image: &ImageName, listed: impl Iterator<Item = &'a Listed>) -> Vec<Option<Build>> {
        let listed: Vec<_> = listed.collect();
        let names: Vec<_> = listed.iter().map(|listed| name(listed)).collect();
        let known = self.with(|database| {
            let rows = listed.iter().map(|listed| database.build::<Row>(image.as_str(), listed.version.as_str()));
            rows.collect::<Result<Vec<_>, _>>()
        });
        let known = known.unwrap_or_default().into_iter().chain(std::iter::repeat_with(|| None));
        let mut new = Vec::new();
        let builds = listed.iter().zip(&names).zip(known).map(|((listed, name), row)| {
            row.filter(|row| row.listed == *name).map(|row| row.build).or_else(|| {
                let record = self.registry().listed_record(image, listed).ok()?;
                let build = Build::of(&record);
                new.push(Row { listed: *name, build: build.clone() });
                Some(build)
            })
        });
        let builds = builds.collect();
        if !new.is_empty() {
            let rows = || new.iter().map(|row| (row.build.version.as_str(), row));
            self.with(|database| database.put_builds(image.as_str(), rows()));
        }
        builds
    }
}
