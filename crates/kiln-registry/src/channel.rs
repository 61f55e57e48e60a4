//! Channels: named pointers that move by compare-and-set, each move a new revision with who, when and why.

use std::collections::{BTreeMap, BTreeSet};

use kiln_core::{ChannelName, ImageName, Version};

use crate::{
    Action, Change, Registry, RegistryError, Selector,
    head::{Channel, Listed},
    heads::Known,
    lineage::Parent,
    place::Lease,
};

/// Who changes something, when, and why.
#[derive(Debug, Clone)]
pub struct Intent {
    /// `ada@builder`.
    pub by: String,
    /// Seconds since 1970, UTC.
    pub now: u64,
    pub reason: Option<String>,
    /// A revoked version that is named itself is used all the same.
    pub allow_revoked: bool,
}

/// What became of a channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Moved {
    pub from: Option<Version>,
    pub to: Version,
    /// The revision that made it so.
    pub rev: u64,
    /// It pointed there before; nothing was changed.
    pub already: bool,
}

impl Registry {
    /// The channels of `image`.
    pub fn channels(&self, image: &ImageName) -> Result<BTreeMap<ChannelName, Channel>, RegistryError> {
        Ok(self.head(image)?.state.channels.clone())
    }

    /// The channels of `image` that take only proven versions.
    pub fn restricted(&self, image: &ImageName) -> Result<BTreeSet<ChannelName>, RegistryError> {
        Ok(self.head(image)?.state.restricted.clone())
    }

    /// The revisions that moved or restricted a channel of `image`, or only `channel`, oldest first.
    pub fn history(&self, image: &ImageName, channel: Option<&ChannelName>) -> Result<Vec<Change>, RegistryError> {
        let head = self.head(image)?;
        if let Some(channel) = channel.filter(|channel| !head.state.channels.contains_key(channel)) {
            return Err(unknown(image, channel, &head));
        }
        let mut changes = self.log(image)?;
        changes.retain(|change| {
            // What is logged and not yet in the head has not happened yet.
            let moved = change.action.concerns().filter(|_| change.rev <= head.rev);
            moved.is_some() && channel.is_none_or(|channel| moved == Some(channel))
        });
        Ok(changes)
    }

    /// Points `channel` to what `selector` means. With `expected`, only if it points there now. The version must be complete.
    pub fn promote(
        &self,
        selector: &Selector,
        channel: &ChannelName,
        expected: Option<&Version>,
        intent: &Intent,
    ) -> Result<Moved, RegistryError> {
        sound(channel)?;
        let image = &selector.image;
        self.change_channel(image, channel, expected, intent, |head| {
            if head.versions.iter().any(|listed| listed.version.as_str() == channel.as_str()) {
                return Err(RegistryError::NameTaken { image: image.clone(), name: channel.to_string() });
            }
            let to = self.select_usable(head, selector, intent.now, intent.allow_revoked)?.clone();
            let from = head.state.channels.get(channel).map(|channel| channel.version.clone());
            let action = Action::Promote { channel: channel.clone(), from, to: to.version.clone() };
            Ok((to, action))
        })
    }

    /// Points `channel` to `to`, or to the version it pointed to before the one it points to now.
    pub fn rollback(
        &self,
        image: &ImageName,
        channel: &ChannelName,
        to: Option<&Version>,
        expected: Option<&Version>,
        intent: &Intent,
    ) -> Result<Moved, RegistryError> {
        self.change_channel(image, channel, expected, intent, |head| {
            let Some(now) = head.state.channels.get(channel) else { return Err(unknown(image, channel, head)) };
            let to = match to {
                Some(to) => to.clone(),
                None => self.before(image, channel, head, intent.now)?.ok_or_else(|| RegistryError::NothingBefore {
                    image: image.clone(),
                    channel: channel.clone(),
                    current: now.version.clone(),
                })?,
            };
            let selector = Selector { image: image.clone(), reference: crate::Reference::Named(to) };
            let to = self.select_usable(head, &selector, intent.now, intent.allow_revoked)?.clone();
            let from = Some(now.version.clone());
            let action = Action::Rollback { channel: channel.clone(), from, to: to.version.clone() };
            Ok((to, action))
        })
    }

    /// From now on `channel` takes only versions that are proven and whose checks and hygiene hold; or any again. It need
    /// not point anywhere yet; where it does, that version must be such a one. Says whether anything changed.
    pub fn restrict(
        &self,
        image: &ImageName,
        channel: &ChannelName,
        restricted: bool,
        intent: &Intent,
    ) -> Result<bool, RegistryError> {
        sound(channel)?;
        self.head(image)?;
        let _leased = self.lease()?;
        self.settled(image, || {
            let head = Known::of(self.recover(image, intent.now)?);
            if head.state.restricted.contains(channel) == restricted {
                return Ok(false);
            }
            let action = if restricted {
                let now = head.state.channels.get(channel).and_then(|now| head.lists(&now.version));
                now.map(|now| self.refuse_unworthy(image, channel, now)).transpose()?;
                Action::Restrict { channel: channel.clone() }
            } else {
                Action::Unrestrict { channel: channel.clone() }
            };
            let mut head = head.into_head();
            if restricted {
                head.state.restricted.insert(channel.clone());
            } else {
                head.state.restricted.remove(channel);
            }
            self.commit(image, head, action, (&intent.by, intent.now), intent.reason.clone())?;
            Ok(true)
        })
    }

    fn change_channel(
        &self,
        image: &ImageName,
        channel: &ChannelName,
        expected: Option<&Version>,
        intent: &Intent,
        decide: impl Fn(&Known) -> Result<(Listed, Action), RegistryError>,
    ) -> Result<Moved, RegistryError> {
        self.head(image)?;
        let leased = self.lease()?;
        self.settled(image, || {
            let head = Known::of(self.recover(image, intent.now)?);
            let now = head.state.channels.get(channel).cloned();
            let from = now.as_ref().map(|channel| channel.version.clone());
            if let Some(expected) = expected.filter(|expected| from.as_ref() != Some(expected)) {
                return Err(RegistryError::Moved {
                    image: image.clone(),
                    channel: channel.clone(),
                    expected: expected.to_string(),
                    found: from.map_or("nothing".to_owned(), |version| version.to_string()),
                });
            }
            let (to, action) = decide(&head)?;
            if let Some(now) = now.filter(|now| now.version == to.version) {
                return Ok(Moved { from, to: to.version, rev: now.rev, already: true });
            }
            self.stored_completely(image, &to)?;
            if head.state.restricted.contains(channel) {
                self.refuse_unworthy(image, channel, &to)?;
            }
            leased.as_ref().map_or(Ok(()), Lease::check)?;
            let (version, disk, rev) = (to.version.clone(), to.disk, head.rev + 1);
            let pointer = Channel { version, disk, since: intent.now, by: intent.by.clone(), rev };
            let mut head = head.into_head();
            head.state.channels.insert(channel.clone(), pointer);
            self.commit(image, head, action, (&intent.by, intent.now), intent.reason.clone())?;
            Ok(Moved { from, to: to.version, rev, already: false })
        })
    }

    /// The version to go back to: the latest before the present one that is still there and not revoked.
    fn before(
        &self,
        image: &ImageName,
        channel: &ChannelName,
        head: &Known,
        now: u64,
    ) -> Result<Option<Version>, RegistryError> {
        for version in before(&self.log(image)?, channel) {
            let name = Parent { image: image.clone(), version: version.clone() };
            if head.lists(&version).is_some() && self.revoked(&name, now)?.is_none() {
                return Ok(Some(version));
            }
        }
        Ok(None)
    }

    /// Whether every blob of a version is there with its length; its bytes are compared when it is exported.
    fn stored_completely(&self, image: &ImageName, listed: &Listed) -> Result<(), RegistryError> {
        let content = self.content(&self.listed_record(image, listed)?)?;
        let blobs: BTreeMap<_, _> =
            content.segments.iter().map(|segment| (segment.blob.digest, &segment.blob)).collect();
        let sizes: Vec<_> = blobs.values().map(|blob| (blob.digest, blob.size)).collect();
        for digest in self.missing(&sizes) {
            // Says which, sets it aside and names the harmed.
            self.blob_bytes(blobs[&digest]).map_err(|damage| self.set_aside(damage))?;
        }
        Ok(())
    }
}

fn sound(channel: &ChannelName) -> Result<(), RegistryError> {
    if channel.can_be_made() { Ok(()) } else { Err(RegistryError::NotAChannel { name: channel.clone() }) }
}

fn unknown(image: &ImageName, channel: &ChannelName, head: &Known) -> RegistryError {
    let known = head.state.channels.keys().map(ToString::to_string).collect();
    RegistryError::UnknownChannel { image: image.clone(), channel: channel.clone(), known }
}

/// The versions that `channel` pointed to before the present one, the latest first, by what was promoted and not rolled
/// back since. Two rollbacks in a row go back two versions.
pub(crate) fn before(log: &[Change], channel: &ChannelName) -> Vec<Version> {
    let mut stack: Vec<&Version> = Vec::new();
    for change in log {
        match &change.action {
            Action::Promote { channel: moved, to, .. } if moved == channel => stack.push(to),
            Action::Rollback { channel: moved, to, .. } if moved == channel => {
                match stack.iter().rposition(|version| *version == to) {
                    Some(place) => stack.truncate(place + 1),
                    None => stack.push(to),
                }
            }
            _ => {}
        }
    }
    stack.pop();
    stack.into_iter().rev().cloned().collect()
}
