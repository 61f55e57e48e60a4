//! An image as a whole, read once: its versions with their marks, its channels, and what changed since a revision.

use std::{collections::BTreeMap, time::SystemTime};

use kiln_core::{ChannelName, ImageName};
use serde::{Deserialize, Serialize};

use crate::{
    Change, Registry, RegistryError,
    head::{Channel, Head, Listed},
    head_key,
    lineage::{DEEPEST, Parent, Revoked},
};

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
    /// Newest first.
    pub versions: Vec<Entry>,
}

impl Registry {
    /// Everything that `image` has at `now`.
    pub fn listing(&self, image: &ImageName, now: u64) -> Result<Listing, RegistryError> {
        let Head { rev, versions, state, .. } = self.head(image)?;
        // Most versions of an image have the same few parents.
        let mut inherited: BTreeMap<Parent, Option<Revoked>> = BTreeMap::new();
        let mut entries = Vec::with_capacity(versions.len());
        for listed in versions {
            let name = Parent { image: image.clone(), version: listed.version.clone() };
            let own = state.revoked.get(&listed.version).filter(|revocation| revocation.at <= now);
            let revoked = match (own, &listed.parent) {
                (Some(own), _) => Some(Revoked { chain: vec![name], revocation: own.clone() }),
                (None, None) => None,
                (None, Some(parent)) => {
                    if !inherited.contains_key(parent) {
                        inherited.insert(parent.clone(), self.revoked(parent, now)?);
                    }
                    inherited[parent].clone().map(|mut revoked| {
                        revoked.chain.insert(0, name);
                        revoked
                    })
                }
            };
            let channels = state.channels.iter().filter(|(_, channel)| channel.version == listed.version);
            let channels = channels.map(|(name, _)| name.clone()).collect();
            entries.push(Entry { listed, channels, revoked });
        }
        Ok(Listing { image: image.clone(), rev, channels: state.channels, versions: entries })
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

    /// When the head of each image was replaced last, to see cheaply which of them changed.
    pub fn stamps(&self) -> Result<BTreeMap<ImageName, SystemTime>, RegistryError> {
        let stamp = |image: &ImageName| self.place.modified(&head_key(image));
        Ok(self.names()?.into_iter().filter_map(|image| stamp(&image).map(|stamp| (image, stamp))).collect())
    }
}
