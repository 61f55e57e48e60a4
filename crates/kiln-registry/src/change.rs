//! The log of an image: every revision of its head is first written there, once, with who, when and why.
//!
//! Whoever changes a head holds the lock of the image (a bucket has none), brings an interrupted change to its end (`recover`),
//! writes the log entry of the next revision, which only one can, and then replaces the head that it read. A change is done when the head is; one whose log entry exists
//! is finished by the next who comes. A head that is lost, or older than its log, is rebuilt the same way.

use kiln_core::{ChannelName, ImageName, Version};
use serde::{Deserialize, Serialize};

use crate::{
    Registry, RegistryError,
    durable::failed,
    head::{FORMAT, Head, Record, State, read_json},
    head_key, image_key,
};

/// One revision of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    pub format: u32,
    pub rev: u64,
    /// Seconds since 1970, UTC.
    pub at: u64,
    pub by: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    #[serde(flatten)]
    pub action: Action,
    /// What the head says after it.
    pub(crate) state: State,
}

/// What a revision did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "action", rename_all = "snake_case")]
pub enum Action {
    Publish {
        versions: Vec<Version>,
    },
    Promote {
        channel: ChannelName,
        from: Option<Version>,
        to: Version,
    },
    Rollback {
        channel: ChannelName,
        from: Option<Version>,
        to: Version,
    },
    /// The channel takes only proven versions from now on.
    Restrict {
        channel: ChannelName,
    },
    /// It takes any version again.
    Unrestrict {
        channel: ChannelName,
    },
    Revoke {
        version: Version,
        from: u64,
    },
    /// A revocation was taken back.
    Lift {
        version: Version,
    },
    /// Removed by retention.
    Retire {
        versions: Vec<Version>,
    },
    /// The state was signed anew, and is good for so many seconds from then on; without end when there is no number.
    Renew {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        valid_for: Option<u64>,
    },
}

impl Action {
    /// The channel that it moved.
    pub const fn channel(&self) -> Option<&ChannelName> {
        match self {
            Self::Promote { channel, .. } | Self::Rollback { channel, .. } => Some(channel),
            _ => None,
        }
    }

    /// The channel that it is about.
    pub const fn concerns(&self) -> Option<&ChannelName> {
        match self {
            Self::Restrict { channel } | Self::Unrestrict { channel } => Some(channel),
            _ => self.channel(),
        }
    }
}

impl Registry {
    /// Every revision of `image`, oldest first.
    pub fn log(&self, image: &ImageName) -> Result<Vec<Change>, RegistryError> {
        let mut changes = Vec::new();
        for rev in self.revisions(image)? {
            changes.extend(self.change(image, rev)?);
        }
        Ok(changes)
    }

    /// One revision of `image`, if it is there.
    pub fn change(&self, image: &ImageName, rev: u64) -> Result<Option<Change>, RegistryError> {
        read_json(&*self.place, &log_key(image, rev))
    }

    pub(crate) fn revisions(&self, image: &ImageName) -> Result<Vec<u64>, RegistryError> {
        let folder = format!("{}/log", image_key(image));
        let names = self.place.names(&folder).map_err(failed("read", &self.place.path(&folder)))?;
        let mut revisions: Vec<u64> =
            names.iter().filter_map(|name| name.strip_suffix(".json")?.parse().ok()).collect();
        revisions.sort_unstable();
        Ok(revisions)
    }

    /// Does `change` with the head of `image`, under the lock of the image. Where there is no lock, somebody may be quicker: then
    /// it is done again with the head that there is now.
    pub(crate) fn settled<T>(
        &self,
        image: &ImageName,
        mut change: impl FnMut() -> Result<T, RegistryError>,
    ) -> Result<T, RegistryError> {
        let _locked = self.place.lock(image)?;
        let mut attempts = self.place.attempts();
        loop {
            attempts -= 1;
            match change() {
                Err(RegistryError::Raced { .. }) if attempts > 0 => {}
                done => return done,
            }
        }
    }

    /// The head of `image` after everything that was begun is done: revisions that are logged but not in the head, and
    /// versions whose publisher was killed between record and log. A record is written when everything it names is
    /// stored, so such a version is complete. The caller is within [`Registry::settled`].
    pub(crate) fn recover(&self, image: &ImageName, now: u64) -> Result<Head, RegistryError> {
        let head = self.finished(image)?;
        let unlisted = self.unlisted_records(image, &head)?;
        if !unlisted.is_empty() {
            self.settle_records(image)?;
        }
        self.list(image, &head, &unlisted, "recovery", now)
    }

    /// Makes the names of records last that others wrote: they may be younger than the last sync, and what a head lists has
    /// to be there.
    fn settle_records(&self, image: &ImageName) -> Result<(), RegistryError> {
        self.place.settle(&format!("{}/v", image_key(image)))
    }

    /// The head of `image` with every revision that is logged.
    pub(crate) fn finished(&self, image: &ImageName) -> Result<Head, RegistryError> {
        let mut head = Head::clone(&*self.read_head(image)?);
        // Revisions have no gaps: only who finds the next one needs to know which is the last. A head that is lost says nothing.
        if head.rev > 0 && self.change(image, head.rev + 1)?.is_none() {
            return Ok(head);
        }
        let Some(rev) = self.revisions(image)?.last().copied().filter(|rev| *rev > head.rev) else { return Ok(head) };
        let Some(change) = self.change(image, rev)? else { return Ok(head) };
        (head.rev, head.state) = (rev, change.state);
        let retired = &head.state.retired;
        head.versions.retain(|listed| !retired.contains_key(&listed.version));
        if let Action::Publish { versions } = &change.action {
            let records = self.unlisted_records(image, &head)?;
            let missing = head.unlisted(&records).into_iter();
            let published: Vec<_> = missing.filter(|record| versions.contains(&record.artifact.version)).collect();
            if !published.is_empty() {
                self.settle_records(image)?;
            }
            head.put(&published);
        }
        // The name of the log entry may be younger than the last sync.
        self.place.settle(&format!("{}/log", image_key(image)))?;
        self.replace_head(image, head)
    }

    /// Puts `head` in the place of the one it was made of.
    fn replace_head(&self, image: &ImageName, head: Head) -> Result<Head, RegistryError> {
        match self.place.replace(&head_key(image), &self.json(&head)?, &head.mark)? {
            Some(mark) => Ok(Head { mark, ..head }),
            None => Err(RegistryError::Raced { image: image.clone(), rev: head.rev }),
        }
    }

    /// The records of `image` that `head` neither lists nor retired: a retired version keeps its record, so that its name never means
    /// another disk.
    fn unlisted_records(&self, image: &ImageName, head: &Head) -> Result<Vec<Record>, RegistryError> {
        let folder = format!("{}/v", image_key(image));
        let mut records = Vec::new();
        let listed = head.listed_versions();
        for name in self.place.names(&folder).map_err(failed("read", &self.place.path(&folder)))? {
            let Some(version) = name.strip_suffix(".json").and_then(|name| name.parse::<Version>().ok()) else {
                continue;
            };
            if !listed.contains(&version) && !head.state.retired.contains_key(&version) {
                records.extend(self.read_record(image, &version)?);
            }
        }
        Ok(records)
    }

    /// Lists those of `records` that `head` does not list, as one revision.
    pub(crate) fn list(
        &self,
        image: &ImageName,
        head: &Head,
        records: &[Record],
        by: &str,
        now: u64,
    ) -> Result<Head, RegistryError> {
        let missing = head.unlisted(records);
        if missing.is_empty() {
            return Ok(head.clone());
        }
        let mut next = head.clone();
        let versions: Vec<_> = missing.iter().map(|record| record.artifact.version.clone()).collect();
        next.put(&missing);
        self.commit(image, next, Action::Publish { versions }, (by, now), None)
    }

    /// Lists a version that was removed and is whole again.
    pub(crate) fn relist(
        &self,
        image: &ImageName,
        head: &Head,
        record: &Record,
        by: &str,
        now: u64,
    ) -> Result<Head, RegistryError> {
        let mut next = head.clone();
        let version = record.artifact.version.clone();
        next.state.retired.remove(&version);
        next.put(&[record]);
        self.commit(image, next, Action::Publish { versions: vec![version] }, (by, now), None)
    }

    /// Makes `next` the head of `image` as its next revision: first the log, then the head.
    pub(crate) fn commit(
        &self,
        image: &ImageName,
        mut next: Head,
        action: Action,
        (by, at): (&str, u64),
        reason: Option<String>,
    ) -> Result<Head, RegistryError> {
        next.rev += 1;
        next.format = FORMAT;
        let rev = next.rev;
        next.state.signed = self.sign_state(image, (rev, at), &next.state)?;
        let change = Change { format: FORMAT, rev, at, by: by.to_owned(), reason, action, state: next.state.clone() };
        if !self.place.create(&log_key(image, rev), &self.json(&change)?)? {
            return Err(RegistryError::Raced { image: image.clone(), rev });
        }
        match self.replace_head(image, next) {
            // It is logged, so it is done, by us or by somebody who finds it; nobody is told before the head says so.
            Err(RegistryError::Raced { .. }) => loop {
                match self.finished(image) {
                    Err(RegistryError::Raced { .. }) => {}
                    finished => return finished,
                }
            },
            replaced => replaced,
        }
    }
}

fn log_key(image: &ImageName, rev: u64) -> String {
    format!("{}/log/{rev}.json", image_key(image))
}
