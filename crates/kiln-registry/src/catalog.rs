//! Reading: what is published, and its files out again, verified.

use std::{fmt, io, str::FromStr, sync::Arc};

use kiln_core::{Digest, ImageName, Version, artifact::Artifact, name::InvalidName};
use serde::{Deserialize, Serialize};

use crate::{
    Registry, RegistryError,
    content::{Content, LONGEST_MANIFEST},
    damage::Damage,
    durable::failed,
    head::{Listed, Record},
    heads::Known,
    record_key,
};

/// Which version of an image: `web` (the newest), `web@1.4.0`, `web@stable` or `web@sha256:..` (the disk digest).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selector {
    pub image: ImageName,
    pub reference: Reference,
}

/// What stands behind the `@`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reference {
    Newest,
    /// A version, or else a channel.
    Named(Version),
    Disk(Digest),
}

/// One line of the list of images.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageSummary {
    pub image: ImageName,
    pub versions: usize,
    pub newest: Listed,
}

impl Registry {
    /// Every image that has a version, by name.
    pub fn images(&self) -> Result<Vec<ImageSummary>, RegistryError> {
        let summaries = self.names()?.into_iter().map(|image| self.summary(&image).map(|(summary, _)| summary));
        summaries.filter_map(Result::transpose).collect()
    }

    /// An image in short, if it has a version, with the mark of the head that says so.
    pub fn summary(&self, image: &ImageName) -> Result<(Option<ImageSummary>, Option<String>), RegistryError> {
        let head = self.read_head(image)?;
        let versions = head.versions.len();
        let newest = head.versions.first().cloned();
        Ok((newest.map(|newest| ImageSummary { image: image.clone(), versions, newest }), head.mark.0.clone()))
    }

    /// The versions of `image`, newest first.
    pub fn versions(&self, image: &ImageName) -> Result<Vec<Listed>, RegistryError> {
        self.head(image).map(|head| head.versions.clone())
    }

    /// What a version is and where it came from.
    pub fn artifact(&self, selector: &Selector) -> Result<Artifact, RegistryError> {
        self.record(selector).map(|record| record.artifact)
    }

    /// The record of one version.
    pub fn record(&self, selector: &Selector) -> Result<Record, RegistryError> {
        let head = self.head(&selector.image)?;
        // Only what the head lists is published: a record without it belongs to a publish that is under way.
        self.listed_record(&selector.image, Self::select(&head, selector)?)
    }

    /// The head of an image that has versions.
    pub(crate) fn head(&self, image: &ImageName) -> Result<Arc<Known>, RegistryError> {
        let head = self.read_head(image)?;
        if head.versions.is_empty() {
            let known = self.images()?.iter().map(|summary| summary.image.to_string()).collect();
            return Err(RegistryError::UnknownImage { image: image.clone(), registry: self.root().to_owned(), known });
        }
        Ok(head)
    }

    /// The version of `head` that is meant. Where a version and a channel could be meant, it is the version.
    pub(crate) fn select<'a>(head: &'a Known, selector: &Selector) -> Result<&'a Listed, RegistryError> {
        let found = match &selector.reference {
            Reference::Newest => head.versions.first(),
            Reference::Disk(digest) => head.versions.iter().find(|listed| listed.disk == *digest),
            Reference::Named(name) => head.lists(name).or_else(|| {
                let mut channels = head.state.channels.iter();
                let (_, channel) = channels.find(|(channel, _)| channel.as_str() == name.as_str())?;
                head.lists(&channel.version)
            }),
        };
        found.ok_or_else(|| {
            if let Reference::Named(name) = &selector.reference
                && head.state.retired.contains_key(name)
            {
                return RegistryError::Retired { image: selector.image.clone(), version: name.clone() };
            }
            let channels = head.state.channels.keys().map(ToString::to_string);
            let versions = head.versions.iter().map(|listed| listed.version.to_string());
            RegistryError::UnknownVersion {
                image: selector.image.clone(),
                version: selector.reference.to_string(),
                known: channels.chain(versions).collect(),
            }
        })
    }

    /// The record of a version that the head lists.
    pub fn listed_record(&self, image: &ImageName, listed: &Listed) -> Result<Record, RegistryError> {
        let path = self.place.path(&record_key(image, &listed.version));
        let record = self.read_record(image, &listed.version)?;
        let record = record.ok_or_else(|| failed("read", &path)(io::ErrorKind::NotFound.into()))?;
        let named = (&record.artifact.image, &record.artifact.version);
        if record.artifact.disk.digest != listed.disk || named != (image, &listed.version) {
            return Err(RegistryError::Altered { path, expected: listed.disk, found: record.artifact.disk.digest });
        }
        Ok(record)
    }

    /// The records of all published versions that can be read.
    pub(crate) fn records(&self) -> Result<Vec<Record>, RegistryError> {
        let mut records = Vec::new();
        for image in self.names()? {
            let head = self.read_head(&image)?;
            records.extend(head.versions.iter().filter_map(|listed| self.listed_record(&image, listed).ok()));
        }
        Ok(records)
    }

    /// The disk of a version as it is stored.
    pub fn content(&self, record: &Record) -> Result<Content, RegistryError> {
        self.try_content(record)
            .map_err(|damage| self.set_aside(damage))?
            .map_err(|problem| RegistryError::Content { blob: self.blob(&record.manifest.digest), problem })
    }

    /// The same without setting anything aside; the inner error says what is wrong with a sound blob.
    pub(crate) fn try_content(&self, record: &Record) -> Result<Result<Content, String>, Damage> {
        if record.manifest.size > LONGEST_MANIFEST {
            return Ok(Err("it would be longer than any manifest".to_owned()));
        }
        let manifest = self.blob_bytes(&record.manifest)?;
        let config = match Content::config_of(&manifest) {
            Ok(config) => self.blob_bytes(&config)?,
            Err(problem) => return Ok(Err(problem)),
        };
        Ok(Content::parse(&manifest, &config).and_then(|content| {
            let disk = &record.artifact.disk;
            let same = (content.disk, content.size) == (disk.digest, disk.size);
            if same { Ok(content) } else { Err("it is another disk than the one in the record".to_owned()) }
        }))
    }

    /// The images, by name; also one whose first version is on its way.
    pub fn names(&self) -> Result<Vec<ImageName>, RegistryError> {
        let names = self.place.names("images").map_err(failed("read", &self.place.path("images")))?;
        let mut names: Vec<ImageName> = names.iter().filter_map(|name| name.parse().ok()).collect();
        names.sort();
        Ok(names)
    }
}

impl FromStr for Selector {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let (image, reference) = text.split_once('@').unwrap_or((text, "latest"));
        Ok(Self { reference: reference.parse()?, image: image.parse()? })
    }
}

impl FromStr for Reference {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        if text == "latest" {
            return Ok(Self::Newest);
        }
        if text.starts_with("sha256:") {
            let unreadable = |_| InvalidName { text: text.to_owned(), what: "a disk digest", limit: 71 };
            return text.parse().map(Self::Disk).map_err(unreadable);
        }
        text.parse().map(Self::Named)
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.reference {
            Reference::Newest => self.image.fmt(f),
            reference => write!(f, "{}@{reference}", self.image),
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Newest => f.write_str("latest"),
            Self::Named(name) => name.fmt(f),
            Self::Disk(digest) => digest.fmt(f),
        }
    }
}
