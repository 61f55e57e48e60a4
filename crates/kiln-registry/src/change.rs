//! The log of an image: every revision of its head is first written there, once, with who, when and why.
//!
//! Whoever changes a head holds the lock of the image, brings an interrupted change to its end (`recover`), writes the
//! log entry of the next revision, and then replaces the head. A change is done when the head is; one whose log entry exists
//! is finished by the next who comes. A head that is lost, or older than its log, is rebuilt the same way.

use std::{fs, io};

use kiln_core::{ChannelName, ImageName, Version};
use serde::{Deserialize, Serialize};

use crate::{
    Registry, RegistryError,
    durable::{self, failed},
    head::{FORMAT, Head, Record, State, read_json},
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

    pub(crate) fn change(&self, image: &ImageName, rev: u64) -> Result<Option<Change>, RegistryError> {
        read_json(&self.image(image).join("log").join(format!("{rev}.json")))
    }

    pub(crate) fn revisions(&self, image: &ImageName) -> Result<Vec<u64>, RegistryError> {
        let directory = self.image(image).join("log");
        let entries = match fs::read_dir(&directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failed("read", &directory)(error)),
        };
        let mut revisions = Vec::new();
        for entry in entries {
            let name = entry.map_err(failed("read", &directory))?.file_name();
            revisions.extend(name.to_str().and_then(|name| name.strip_suffix(".json")?.parse::<u64>().ok()));
        }
        revisions.sort_unstable();
        Ok(revisions)
    }

    /// The head of `image` after everything that was begun is done: revisions that are logged but not in the head, and
    /// versions whose publisher was killed between record and log. A record is written when everything it names is
    /// stored, so such a version is complete. The caller holds the lock of the image.
    pub(crate) fn recover(&self, image: &ImageName, now: u64) -> Result<Head, RegistryError> {
        let mut head = Head::read(&self.image(image))?;
        let records = self.unlisted_records(image, &head)?;
        if let Some(rev) = self.revisions(image)?.last().copied().filter(|rev| *rev > head.rev)
            && let Some(change) = self.change(image, rev)?
        {
            (head.rev, head.state) = (rev, change.state);
            let retired = &head.state.retired;
            head.versions.retain(|listed| !retired.contains_key(&listed.version));
            if let Action::Publish { versions } = &change.action {
                let missing = head.unlisted(&records).into_iter();
                let listed: Vec<_> = missing.filter(|record| versions.contains(&record.artifact.version)).collect();
                for record in listed {
                    head.versions.insert(0, record.listed());
                }
            }
            // The name of the log entry may be younger than the last sync.
            durable::sync_directory_of(&self.image(image).join("log/entry"))?;
            self.write_json(&head)?.replace(&self.image(image).join("head.json"))?;
        }
        // A retired version keeps its record, so that its name never means another disk.
        let unlisted: Vec<_> =
            records.into_iter().filter(|record| !head.state.retired.contains_key(&record.artifact.version)).collect();
        self.list(image, &head, &unlisted, "recovery", now)
    }

    /// The records of `image` that `head` does not list.
    fn unlisted_records(&self, image: &ImageName, head: &Head) -> Result<Vec<Record>, RegistryError> {
        let directory = self.image(image).join("v");
        let mut records = Vec::new();
        let entries = match fs::read_dir(&directory) {
            Ok(entries) => entries,
            // The first publish was killed before it made the directory.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(records),
            Err(error) => return Err(failed("read", &directory)(error)),
        };
        for entry in entries {
            let entry = entry.map_err(failed("read", &directory))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let Some(version) = name.strip_suffix(".json").and_then(|name| name.parse::<Version>().ok()) else {
                continue;
            };
            if head.lists(&version).is_none() {
                records.extend(Record::read(&entry.path())?);
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
        for record in missing {
            next.versions.insert(0, record.listed());
        }
        self.commit(image, next, Action::Publish { versions }, (by, now), None)
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
        let change = Change { format: FORMAT, rev, at, by: by.to_owned(), reason, action, state: next.state.clone() };
        let directory = self.image(image).join("log");
        durable::directory(&directory)?;
        if !self.write_json(&change)?.create(&directory.join(format!("{rev}.json")))? {
            return Err(RegistryError::Raced { image: image.clone(), rev });
        }
        self.write_json(&next)?.replace(&self.image(image).join("head.json"))?;
        Ok(next)
    }
}
