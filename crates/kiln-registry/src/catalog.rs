//! Reading: what is published, and its files out again, verified.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
    str::FromStr,
};

use kiln_core::{
    ImageName, Version,
    artifact::{Artifact, File},
    name::InvalidName,
};

use crate::{
    Registry, RegistryError,
    durable::{self, Temporary, failed},
    head::{Head, Listed, Record},
};

/// Which version of an image: `web` (the newest) or `web@1.4.0`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selector {
    pub image: ImageName,
    /// `None`: the newest.
    pub version: Option<Version>,
}

/// One line of the list of images.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageSummary {
    pub image: ImageName,
    pub versions: usize,
    pub newest: Listed,
}

impl Registry {
    /// Every image that has a version, by name.
    pub fn images(&self) -> Result<Vec<ImageSummary>, RegistryError> {
        let mut images = Vec::new();
        for image in self.names()? {
            let head = Head::read(&self.image(&image))?;
            if let Some(newest) = head.versions.first() {
                images.push(ImageSummary { image, versions: head.versions.len(), newest: newest.clone() });
            }
        }
        Ok(images)
    }

    /// The versions of `image`, newest first.
    pub fn versions(&self, image: &ImageName) -> Result<Vec<Listed>, RegistryError> {
        let versions = Head::read(&self.image(image))?.versions;
        if versions.is_empty() {
            let known = self.images()?.iter().map(|summary| summary.image.to_string()).collect();
            return Err(RegistryError::UnknownImage { image: image.clone(), registry: self.root().to_owned(), known });
        }
        Ok(versions)
    }

    /// The record of one version.
    pub fn artifact(&self, selector: &Selector) -> Result<Artifact, RegistryError> {
        let versions = self.versions(&selector.image)?;
        let unknown = |version: String| RegistryError::UnknownVersion {
            image: selector.image.clone(),
            version,
            known: versions.iter().map(|listed| listed.version.to_string()).collect(),
        };
        // Only what the head lists is published: a record without it belongs to a publish that is under way.
        let listed = match &selector.version {
            None => versions.first(),
            Some(version) => versions.iter().find(|listed| listed.version == *version),
        };
        let listed =
            listed.ok_or_else(|| unknown(selector.version.as_ref().map_or("newest".to_owned(), Version::to_string)))?;
        let path = self.record(&selector.image, &listed.version);
        let record = Record::read(&path)?.ok_or_else(|| failed("read", &path)(io::ErrorKind::NotFound.into()))?;
        if record.artifact.disk.digest != listed.disk {
            return Err(RegistryError::Altered { path, expected: listed.disk, found: record.artifact.disk.digest });
        }
        Ok(record.artifact)
    }

    /// Copies the file of `artifact` that has `format` to `to`, which appears when every byte was verified. `watch` gets
    /// the bytes done and says whether to go on.
    pub fn export(
        &self,
        artifact: &Artifact,
        format: &str,
        to: &Path,
        watch: &dyn Fn(u64) -> bool,
    ) -> Result<File, RegistryError> {
        let file = stored(artifact, format)?;
        let blob = self.blob(&file.sha256);
        let directory = match to.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let temporary = Temporary::in_directory(directory);
        let (found, written) = durable::copy(&blob, temporary.path(), file.bytes, watch)?;
        if found != file.sha256 {
            return Err(RegistryError::Altered { path: blob, expected: file.sha256, found });
        }
        written.sync_all().map_err(failed("sync", temporary.path()))?;
        temporary.replace(to)?;
        Ok(file.clone())
    }

    /// The path of the file of `artifact` that has `format`, after every byte of it was verified.
    pub fn verify(
        &self,
        artifact: &Artifact,
        format: &str,
        watch: &dyn Fn(u64) -> bool,
    ) -> Result<PathBuf, RegistryError> {
        let file = stored(artifact, format)?;
        let blob = self.blob(&file.sha256);
        let found = durable::digest(&blob, watch)?;
        if found != file.sha256 {
            return Err(RegistryError::Altered { path: blob, expected: file.sha256, found });
        }
        Ok(blob)
    }

    fn names(&self) -> Result<Vec<ImageName>, RegistryError> {
        let directory = self.root().join("images");
        let entries = match fs::read_dir(&directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failed("read", &directory)(error)),
        };
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry.map_err(failed("read", &directory))?;
            names.extend(entry.file_name().to_str().and_then(|name| name.parse().ok()));
        }
        names.sort();
        Ok(names)
    }
}

fn stored<'a>(artifact: &'a Artifact, format: &str) -> Result<&'a File, RegistryError> {
    artifact.files.iter().find(|file| file.format == format).ok_or_else(|| RegistryError::UnknownFormat {
        image: artifact.image.clone(),
        version: artifact.version.clone(),
        format: format.to_owned(),
        stored: artifact.files.iter().map(|file| file.format.clone()).collect(),
    })
}

impl FromStr for Selector {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let (image, version) = match text.split_once('@') {
            None => (text, None),
            Some((image, "latest")) => (image, None),
            Some((image, version)) => (image, Some(version.parse()?)),
        };
        Ok(Self { image: image.parse()?, version })
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.version {
            None => self.image.fmt(f),
            Some(version) => write!(f, "{}@{version}", self.image),
        }
    }
}
