//! An image as a whole, read once: its versions with their marks, its channels, and what changed since a revision.

use std::{collections::BTreeMap, fmt, time::SystemTime};

use kiln_core::{ChannelName, ImageName, Version};
use serde::{Deserialize, Serialize};

use crate::{
    Change, Registry, RegistryError,
    durable::failed,
    head::{Channel, Listed},
    head_key,
    lineage::{DEEPEST, Parent, Revoked},
};

/// Versions that an error names.
const KNOWN: usize = 20;

/// A version with what holds for it now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    #[serde(flatten)]
    pub listed: Listed,
    /// The channels that point to it.
    pub channels: Vec<ChannelName>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked: Option<Revoked>,
}

/// An image at one revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing {
    pub image: ImageName,
    pub rev: u64,
    pub channels: BTreeMap<ChannelName, Channel>,
    /// Versions in all, and how many are newer than the first of these.
    pub count: usize,
    pub start: usize,
    /// Newest first.
    pub versions: Vec<Entry>,
}

/// Where a page of versions begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start<'a> {
    Newest,
    After(&'a Version),
    At(&'a Version),
}

impl fmt::Display for Start<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Newest => f.write_str("latest"),
            Self::After(version) | Self::At(version) => version.fmt(f),
        }
    }
}

impl Registry {
    /// Everything that `image` has at `now`.
    pub fn listing(&self, image: &ImageName, now: u64) -> Result<Listing, RegistryError> {
        self.page(image, Start::Newest, usize::MAX, now)
    }

    /// The same with at most `limit` versions, from the newest downwards. A version that is not there is an error.
    pub fn page(&self, image: &ImageName, start: Start<'_>, limit: usize, now: u64) -> Result<Listing, RegistryError> {
        let head = self.head(image)?;
        let place = match start {
            Start::Newest => Some(0),
            Start::After(version) => head.place(version).map(|place| place + 1),
            Start::At(version) => head.place(version),
        };
        let begin = place.ok_or_else(|| RegistryError::UnknownVersion {
            image: image.clone(),
            version: start.to_string(),
            known: head.versions.iter().take(KNOWN).map(|listed| listed.version.to_string()).collect(),
        })?;
        let mut pointing: BTreeMap<&Version, Vec<ChannelName>> = BTreeMap::new();
        for (name, channel) in &head.state.channels {
            pointing.entry(&channel.version).or_default().push(name.clone());
        }
        let reading = self.reading();
        // Most versions of an image have the same few parents.
        let mut inherited: BTreeMap<Parent, Option<Revoked>> = BTreeMap::new();
        let mut entries = Vec::new();
        for listed in head.versions.iter().skip(begin).take(limit) {
            let name = Parent { image: image.clone(), version: listed.version.clone() };
            let own = head.state.revoked.get(&listed.version).filter(|revocation| revocation.at <= now);
            let revoked = match (own, &listed.parent) {
                (Some(own), _) => Some(Revoked { chain: vec![name], revocation: own.clone() }),
                (None, None) => None,
                (None, Some(parent)) => {
                    if !inherited.contains_key(parent) {
                        inherited.insert(parent.clone(), reading.revoked(parent, now)?);
                    }
                    inherited[parent].clone().map(|mut revoked| {
                        revoked.chain.insert(0, name);
                        revoked
                    })
                }
            };
            let channels = pointing.get(&listed.version).cloned().unwrap_or_default();
            entries.push(Entry { listed: listed.clone(), channels, revoked });
        }
        Ok(Listing {
            image: image.clone(),
            rev: head.rev,
            channels: head.state.channels.clone(),
            count: head.versions.len(),
            start: begin,
            versions: entries,
        })
    }

    /// What `version` was baked on, and that on, from the nearest to the first.
    pub fn lineage(&self, version: &Parent) -> Result<Vec<Parent>, RegistryError> {
        let mut chain = vec![version.clone()];
        while let Some(last) = chain.last().filter(|_| chain.len() <= DEEPEST) {
            let head = self.read_head(&last.image)?;
            match head.lists(&last.version).and_then(|listed| listed.parent.clone()) {
                Some(parent) => chain.push(parent),
                None => break,
            }
        }
        Ok(chain.split_off(1))
    }

    /// What changed `image` after revision `rev`, oldest first, at most `limit`.
    pub fn changes_after(&self, image: &ImageName, rev: u64, limit: usize) -> Result<Vec<Change>, RegistryError> {
        let head = self.head(image)?;
        let mut changes = Vec::new();
        // What is logged and not yet in the head has not happened yet.
        let new = self.revisions(image)?.into_iter().filter(|found| *found > rev && *found <= head.rev);
        for rev in new.take(limit) {
            changes.extend(self.change(image, rev)?);
        }
        Ok(changes)
    }

    /// The revision that `image` has now; 0 when nothing was published.
    pub fn revision(&self, image: &ImageName) -> Result<u64, RegistryError> {
        Ok(self.read_head(image)?.rev)
    }

    /// Which state the head of `image` is in, when that can be named. The same name never stands for another state.
    pub fn mark(&self, image: &ImageName) -> Result<Option<String>, RegistryError> {
        let key = head_key(image);
        self.place.mark(&key).map(|mark| mark.0).map_err(failed("read", &self.place.path(&key)))
    }

    /// When the head of each image was replaced last, to see cheaply which of them changed.
    pub fn stamps(&self) -> Result<BTreeMap<ImageName, SystemTime>, RegistryError> {
        let stamp = |image: &ImageName| self.place.modified(&head_key(image));
        Ok(self.names()?.into_iter().filter_map(|image| stamp(&image).map(|stamp| (image, stamp))).collect())
    }
}
