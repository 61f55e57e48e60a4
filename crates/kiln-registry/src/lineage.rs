//! Lineage and revocation: what a version was baked on, and what may not be used any more.

use std::collections::{BTreeMap, BTreeSet};

use kiln_core::{Digest, ImageName, Version, artifact::BaseRecord};
use serde::{Deserialize, Serialize};

use crate::{
    Action, Registry, RegistryError, Selector,
    catalog::Reference,
    channel::Intent,
    head::{Listed, Record},
    heads::{Known, Reading},
};

/// Nobody bakes on more bases; also the end of a lineage that somebody made a circle of.
pub(crate) const DEEPEST: usize = 64;

/// A version of an image of this registry.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Parent {
    pub image: ImageName,
    pub version: Version,
}

impl std::fmt::Display for Parent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}@{}", self.image, self.version)
    }
}

/// Why a version may not be used, and from when on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revocation {
    /// Seconds since 1970, UTC; may lie ahead.
    pub at: u64,
    pub by: String,
    pub reason: String,
}

/// A revocation that holds for a version, maybe by inheritance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revoked {
    /// From the version itself to the one that was revoked, each baked on the next.
    pub chain: Vec<Parent>,
    #[serde(flatten)]
    pub revocation: Revocation,
}

/// A version whose base has a newer version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outdated {
    pub image: Parent,
    pub base: Parent,
    pub newer: Version,
}

impl Reading<'_> {
    /// The revocation that holds at `now` for a version, its own or that of what it was baked on.
    pub(crate) fn revoked(&self, version: &Parent, now: u64) -> Result<Option<Revoked>, RegistryError> {
        let mut chain = vec![version.clone()];
        while let Some(last) = chain.last().filter(|_| chain.len() <= DEEPEST) {
            let head = self.head(&last.image)?;
            if let Some(revocation) = head.state.revoked.get(&last.version).filter(|revocation| revocation.at <= now) {
                return Ok(Some(Revoked { revocation: revocation.clone(), chain }));
            }
            match head.lists(&last.version).and_then(|listed| listed.parent.clone()) {
                Some(parent) => chain.push(parent),
                None => break,
            }
        }
        Ok(None)
    }
}

impl Registry {
    /// The version whose qcow2 has this SHA-256.
    pub fn with_qcow2(&self, digest: &Digest) -> Result<Option<Parent>, RegistryError> {
        for image in self.names()? {
            let Ok(head) = self.read_head(&image) else { continue };
            if let Some(listed) = head.versions.iter().find(|listed| listed.qcow2 == *digest) {
                return Ok(Some(Parent { image, version: listed.version.clone() }));
            }
        }
        Ok(None)
    }

    /// The version of this registry that a base is: the one it was taken from, else one with the same qcow2.
    pub(crate) fn parent(&self, base: &BaseRecord) -> Result<Option<Parent>, RegistryError> {
        if let Some(parent) = &base.parent {
            let head = self.read_head(&parent.image)?;
            if head.lists(&parent.version).is_some_and(|listed| listed.disk == parent.disk) {
                return Ok(Some(Parent { image: parent.image.clone(), version: parent.version.clone() }));
            }
        }
        self.with_qcow2(&base.digest)
    }

    /// The revocation that holds at `now` for a version, its own or that of what it was baked on.
    pub fn revoked(&self, version: &Parent, now: u64) -> Result<Option<Revoked>, RegistryError> {
        self.reading().revoked(version, now)
    }

    /// The same for many versions, in their order.
    pub fn revocations(
        &self,
        versions: impl Iterator<Item = Parent>,
        now: u64,
    ) -> Result<Vec<Option<Revoked>>, RegistryError> {
        let reading = self.reading();
        versions.map(|version| reading.revoked(&version, now)).collect()
    }

    /// Refuses a version that is revoked at `now`.
    pub fn refuse_revoked(&self, version: &Parent, now: u64) -> Result<(), RegistryError> {
        match self.revoked(version, now)? {
            None => Ok(()),
            Some(revoked) => Err(RegistryError::Revoked { revoked: Box::new(revoked) }),
        }
    }

    /// The record that `selector` means, when it may be used: the newest is the newest that is not revoked, and a revoked one
    /// is given only when `allowed` and when the version itself is named.
    pub fn usable(&self, selector: &Selector, now: u64, allowed: bool) -> Result<Record, RegistryError> {
        let head = self.head(&selector.image)?;
        self.listed_record(&selector.image, self.select_usable(&head, selector, now, allowed)?)
    }

    pub(crate) fn select_usable<'a>(
        &self,
        head: &'a Known,
        selector: &Selector,
        now: u64,
        allowed: bool,
    ) -> Result<&'a Listed, RegistryError> {
        let name = |listed: &Listed| Parent { image: selector.image.clone(), version: listed.version.clone() };
        if selector.reference == Reference::Newest {
            for listed in &head.versions {
                if self.revoked(&name(listed), now)?.is_none() {
                    return Ok(listed);
                }
            }
        }
        let listed = Self::select(head, selector)?;
        let by_name = match &selector.reference {
            Reference::Newest => false,
            Reference::Named(named) => *named == listed.version,
            Reference::Disk(_) => true,
        };
        if !(allowed && by_name) {
            self.refuse_revoked(&name(listed), now)?;
        }
        Ok(listed)
    }

    /// Revokes a version from `at` on, or lifts its revocation with `None`. Returns the versions that inherit it.
    pub fn revoke(&self, version: &Parent, at: Option<u64>, intent: &Intent) -> Result<Vec<Parent>, RegistryError> {
        let image = &version.image;
        self.head(image)?;
        let _leased = self.lease()?;
        self.settled(image, || self.change_revocation(version, at, intent))?;
        self.descendants(version)
    }

    fn change_revocation(&self, version: &Parent, at: Option<u64>, intent: &Intent) -> Result<(), RegistryError> {
        let image = &version.image;
        let head = Known::of(self.recover(image, intent.now)?);
        let selector = Selector { image: image.clone(), reference: Reference::Named(version.version.clone()) };
        let named = Self::select(&head, &selector)?.version.clone();
        // A channel is not a version: what it points to may move meanwhile.
        if named != version.version {
            return Err(RegistryError::NotAVersion {
                image: image.clone(),
                channel: version.version.clone(),
                points_to: named,
            });
        }
        let before = head.state.revoked.get(&named).cloned();
        let after = at.map(|at| Revocation {
            at,
            by: intent.by.clone(),
            reason: intent.reason.clone().unwrap_or_else(|| "no reason given".to_owned()),
        });
        let same = match (&before, &after) {
            (Some(before), Some(after)) => (before.at, &before.reason) == (after.at, &after.reason),
            (before, after) => before.is_none() && after.is_none(),
        };
        if !same {
            let action = match &after {
                Some(revocation) => Action::Revoke { version: named.clone(), from: revocation.at },
                None => Action::Lift { version: named.clone() },
            };
            let mut head = head.into_head();
            match after {
                Some(revocation) => head.state.revoked.insert(named, revocation),
                None => head.state.revoked.remove(&named),
            };
            self.commit(image, head, action, (&intent.by, intent.now), intent.reason.clone())?;
        }
        Ok(())
    }

    /// The versions that were baked on `version`, and those baked on them.
    pub fn descendants(&self, version: &Parent) -> Result<Vec<Parent>, RegistryError> {
        let mut children: BTreeMap<Parent, Vec<Parent>> = BTreeMap::new();
        for image in self.names()? {
            for listed in &self.read_head(&image)?.versions {
                if let Some(parent) = &listed.parent {
                    let child = Parent { image: image.clone(), version: listed.version.clone() };
                    children.entry(parent.clone()).or_default().push(child);
                }
            }
        }
        let mut found = vec![version.clone()];
        let mut next = 0;
        while let Some(parent) = found.get(next) {
            // A version that is named twice, by a circle that somebody made, is taken once.
            found.extend(children.remove(parent).unwrap_or_default());
            next += 1;
        }
        let mut once = BTreeSet::from([version.clone()]);
        found.retain(|child| once.insert(child.clone()));
        Ok(found)
    }

    /// The newest version of each image whose base has a newer one: the newest, or the one `channel` points to.
    pub fn outdated(&self, channel: Option<&kiln_core::ChannelName>, now: u64) -> Result<Vec<Outdated>, RegistryError> {
        let mut outdated = Vec::new();
        for summary in self.images()? {
            let Some(base) = summary.newest.parent.clone() else { continue };
            let head = self.head(&base.image)?;
            let newer = if let Some(channel) = channel {
                head.state.channels.get(channel).map(|channel| channel.version.clone())
            } else {
                let selector = Selector { image: base.image.clone(), reference: Reference::Newest };
                self.select_usable(&head, &selector, now, false).ok().map(|listed| listed.version.clone())
            };
            if let Some(newer) = newer.filter(|newer| head.place(newer) < head.place(&base.version)) {
                let image = Parent { image: summary.image, version: summary.newest.version };
                outdated.push(Outdated { image, base, newer });
            }
        }
        Ok(outdated)
    }
}
