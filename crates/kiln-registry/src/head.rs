//! `head.json`: which versions of an image there are. The only file of an image that ever changes.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    io,
};

use kiln_core::{
    ChannelName, Digest, ImageName, Version,
    artifact::{Artifact, File},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    Registry,
    content::Descriptor,
    durable::failed,
    error::RegistryError,
    head_key,
    lineage::{Parent, Revocation},
    place::{Mark, Place, Records},
    proof::{envelope::Envelope, stored::Attestation},
    record_key,
};

/// The format of `head.json` and of the records. 3: statements about a version stand in its record. Kilns that do not know them would
/// collect their blobs, and must not read such a record.
pub(crate) const FORMAT: u32 = 3;

/// Nobody's history is longer; a file that grows without end is not read at all.
const LONGEST: u64 = 64 << 20;

/// The state of one image.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Head {
    pub(crate) format: u32,
    /// Grows by one with every change.
    pub(crate) rev: u64,
    /// Newest first.
    pub(crate) versions: Vec<Listed>,
    #[serde(flatten)]
    pub(crate) state: State,
    /// What else stands in the file is carried along untouched.
    #[serde(flatten)]
    pub(crate) rest: BTreeMap<String, serde_json::Value>,
    /// Which `head.json` this was read from.
    #[serde(skip)]
    pub(crate) mark: Mark,
}

/// What of an image moves, beside the list of versions.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct State {
    #[serde(default)]
    pub(crate) channels: BTreeMap<ChannelName, Channel>,
    /// Channels that take only versions that are proven.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub(crate) restricted: BTreeSet<ChannelName>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) revoked: BTreeMap<Version, Revocation>,
    /// Versions that retention removed, with the disk that they were.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) retired: BTreeMap<Version, Digest>,
    /// How long the signed state is good for, in seconds since it was signed; without it, without end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) valid_for: Option<u64>,
    /// All of the above with image and revision, signed, when it was made with a key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) signed: Option<Envelope>,
}

/// Where a channel points.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Channel {
    pub version: Version,
    pub disk: Digest,
    /// Seconds since 1970, UTC.
    pub since: u64,
    pub by: String,
    /// The revision that moved it here.
    pub rev: u64,
}

/// A version as `head.json` lists it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listed {
    pub version: Version,
    pub disk: Digest,
    pub build: String,
    /// Seconds since 1970, UTC.
    pub published: u64,
    /// The SHA-256 of its qcow2 file, by which another image can name it as its base.
    pub qcow2: Digest,
    /// The SHA-256 of the disk file it was baked on.
    pub base: Digest,
    /// The version of this registry that it was baked on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<Parent>,
}

/// `v/<version>.json`: written once, when everything it names is stored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    pub format: u32,
    /// Seconds since 1970, UTC.
    pub published: u64,
    /// The OCI image manifest that names every blob of the version.
    pub manifest: Descriptor,
    /// The version of this registry that it was baked on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<Parent>,
    /// What is said about it, stored before the record.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub attestations: Vec<Attestation>,
    pub artifact: Artifact,
}

impl Head {
    pub(crate) fn empty() -> Self {
        Self {
            format: FORMAT,
            rev: 0,
            versions: Vec::new(),
            state: State::default(),
            rest: BTreeMap::new(),
            mark: Mark::default(),
        }
    }

    /// Those of `records` that are not listed, in the order they were published.
    pub(crate) fn unlisted<'a>(&self, records: &'a [Record]) -> Vec<&'a Record> {
        let listed = self.listed_versions();
        let mut missing: Vec<_> = records.iter().filter(|record| !listed.contains(&record.artifact.version)).collect();
        missing.sort_by(|a, b| (a.published, &a.artifact.version).cmp(&(b.published, &b.artifact.version)));
        missing
    }

    pub(crate) fn listed_versions(&self) -> HashSet<&Version> {
        self.versions.iter().map(|listed| &listed.version).collect()
    }

    /// Lists `records`, which are in the order they were published, as the newest.
    pub(crate) fn put(&mut self, records: &[&Record]) {
        self.versions.splice(..0, records.iter().rev().map(|record| record.listed()));
    }
}

impl Record {
    pub(crate) fn listed(&self) -> Listed {
        Listed {
            version: self.artifact.version.clone(),
            disk: self.artifact.disk.digest,
            build: self.artifact.build.clone(),
            published: self.published,
            qcow2: self.file("qcow2").map_or(self.artifact.disk.digest, |file| file.sha256),
            base: self.artifact.base.digest,
            parent: self.parent.clone(),
        }
    }

    /// What is recorded of the file with this format.
    pub fn file(&self, format: &str) -> Option<&File> {
        self.artifact.files.iter().find(|file| file.format == format)
    }
}

impl Registry {
    /// The head of `image`, from where it lies; empty when nothing was published yet.
    pub(crate) fn read_newest_head(&self, image: &ImageName) -> Result<Head, RegistryError> {
        let Some((head, mark)) = read_marked::<Head>(&*self.place, &head_key(image))? else { return Ok(Head::empty()) };
        Ok(Head { mark, ..head })
    }

    pub(crate) fn read_record(&self, image: &ImageName, version: &Version) -> Result<Option<Record>, RegistryError> {
        read_json(&*self.place, &record_key(image, version))
    }

    /// `value` as it is written.
    pub(crate) fn json(&self, value: &impl Serialize) -> Result<Vec<u8>, RegistryError> {
        let mut bytes = serde_json::to_vec_pretty(value)
            .map_err(|source| RegistryError::Unreadable { path: self.root().to_owned(), source })?;
        bytes.push(b'\n');
        Ok(bytes)
    }
}

/// Whether the marker of a registry is there and of a format that this kiln reads.
pub(crate) fn is_known_format(place: &impl Place) -> Result<bool, RegistryError> {
    #[derive(Deserialize)]
    struct Marker {}
    Ok(read_json::<Marker>(place, "registry.json")?.is_some())
}

pub(crate) fn read_json<T: DeserializeOwned>(
    place: &(impl Records + ?Sized),
    key: &str,
) -> Result<Option<T>, RegistryError> {
    Ok(read_marked(place, key)?.map(|(value, _)| value))
}

fn read_marked<T: DeserializeOwned>(
    place: &(impl Records + ?Sized),
    key: &str,
) -> Result<Option<(T, Mark)>, RegistryError> {
    #[derive(Deserialize)]
    struct Format {
        format: u32,
    }
    let path = place.path(key);
    let Some((bytes, mark)) = place.read(key, LONGEST).map_err(failed("read", &path))? else { return Ok(None) };
    if bytes.len() as u64 > LONGEST {
        return Err(failed("read", &path)(io::Error::other("it is longer than any record is")));
    }
    // A newer format may not parse as ours, so its number is looked at first.
    if let Ok(Format { format: found }) = serde_json::from_slice::<Format>(&bytes)
        && found > FORMAT
    {
        return Err(RegistryError::NewerFormat { path, found, known: FORMAT });
    }
    serde_json::from_slice(&bytes)
        .map(|value| Some((value, mark)))
        .map_err(|source| RegistryError::Unreadable { path, source })
}
