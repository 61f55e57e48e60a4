//! Retention and collection: which versions go, and which blobs nobody needs any more.
//!
//! What is removed is decided and removed while nobody publishes, exports or moves a channel: all of them hold a shared lock,
//! which the kernel takes back when they die, and collection needs it alone. First the versions leave the log and
//! the head, then blobs that no listed version names are unlinked. Killed anywhere, the next collection goes on. When it
//! cannot be told what a version needs, nothing is removed.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use kiln_core::{Digest, ImageName, Version};
use serde::Serialize;

use crate::{
    Action, Registry, RegistryError,
    channel::{self, Intent},
    content::Content,
    head::{Head, Listed},
    heads::Known,
    lay_down::Form,
    lineage::Parent,
    record_key,
};

/// Every image.
type Heads = BTreeMap<ImageName, Arc<Known>>;

/// What is kept besides what channels and kept versions need. Without any rule every version is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// The newest so many versions of each image.
    pub newest: Option<usize>,
    /// Versions published in the last so many days.
    pub days: Option<u64>,
    /// Seconds since 1970, UTC.
    pub now: u64,
}

/// What becomes of a version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Verdict {
    pub version: Parent,
    /// Seconds since 1970, UTC.
    pub published: u64,
    /// Why it is kept; `None`: it goes.
    pub kept: Option<String>,
}

/// What was removed, or would be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Pruned {
    pub versions: Vec<Verdict>,
    /// Blobs that no kept version needs, and their bytes.
    pub blobs: usize,
    pub bytes: u64,
}

impl Registry {
    /// Says what `rules` would remove, and changes nothing.
    pub fn prune_dry(&self, rules: &Rules) -> Result<Pruned, RegistryError> {
        let heads = self.heads()?;
        let versions = self.decide(&heads, rules, &mut |_| Ok(false))?;
        let mut unneeded = Vec::new();
        if !heads.is_empty() {
            unneeded = self.unneeded(&self.needed(&heads, &versions)?)?;
        }
        Ok(Pruned { blobs: unneeded.len(), bytes: unneeded.iter().map(|(_, bytes)| bytes).sum(), versions })
    }

    /// Removes the versions that `rules` do not keep, and every blob that no kept version needs. Fails at once when
    /// somebody publishes, exports or moves a channel.
    pub fn prune(&self, rules: &Rules, intent: &Intent) -> Result<Pruned, RegistryError> {
        let Some(alone) = self.place.alone()? else { return self.prune_dry(rules) };
        // What was begun by somebody who is dead is finished first: it must not look unneeded.
        for image in self.names()? {
            self.recover(&image, intent.now)?;
        }
        let heads = self.heads()?;
        // Who reads a version holds it. Those that go are held here until they are gone.
        let mut claimed = Vec::new();
        let mut in_use = |version: &Parent| {
            let claim = self.place.claim(&record_key(&version.image, &version.version))?;
            let in_use = claim.is_none();
            claimed.extend(claim);
            Ok(in_use)
        };
        let versions = self.decide(&heads, rules, &mut in_use)?;
        let needed = self.needed(&heads, &versions)?;
        let mut retired: BTreeMap<&ImageName, BTreeMap<Version, Digest>> = BTreeMap::new();
        for Verdict { version: Parent { image, version }, .. } in
            versions.iter().filter(|verdict| verdict.kept.is_none())
        {
            let listed = heads.get(image).and_then(|head| head.lists(version));
            retired.entry(image).or_default().extend(listed.map(|listed| (version.clone(), listed.disk)));
        }
        for (image, retired) in retired {
            let Some(head) = heads.get(image) else { continue };
            let mut next = Head::clone(head);
            next.versions.retain(|listed| !retired.contains_key(&listed.version));
            let action = Action::Retire { versions: retired.keys().cloned().collect() };
            next.state.retired.extend(retired);
            self.commit(image, next, action, (&intent.by, intent.now), intent.reason.clone())?;
        }
        let unneeded = self.unneeded(&needed)?;
        self.place.remove(&unneeded, &alone)?;
        drop(claimed);
        Ok(Pruned { blobs: unneeded.len(), bytes: unneeded.iter().map(|(_, bytes)| bytes).sum(), versions })
    }

    /// As they lie there now: what is removed is not decided on what was read before.
    fn heads(&self) -> Result<Heads, RegistryError> {
        self.names()?
            .into_iter()
            .map(|image| {
                let head = Known::of(self.read_newest_head(&image)?);
                Ok((image, Arc::new(head)))
            })
            .collect()
    }

    fn decide(
        &self,
        heads: &Heads,
        rules: &Rules,
        in_use: &mut dyn FnMut(&Parent) -> Result<bool, RegistryError>,
    ) -> Result<Vec<Verdict>, RegistryError> {
        let mut verdicts = Vec::new();
        let mut parents = BTreeMap::new();
        for (image, head) in heads {
            let mut pointed = BTreeMap::<Version, String>::new();
            let log = if head.state.channels.is_empty() { Vec::new() } else { self.log(image)? };
            for name in head.state.channels.keys() {
                if let Some(version) = channel::before(&log, name).into_iter().next() {
                    pointed.entry(version).or_insert_with(|| format!("a rollback of {name} goes there"));
                }
            }
            for (name, channel) in &head.state.channels {
                pointed.insert(channel.version.clone(), format!("{name} points there"));
            }
            for (place, listed) in head.versions.iter().enumerate() {
                let version = Parent { image: image.clone(), version: listed.version.clone() };
                if let Some(parent) = &listed.parent {
                    parents.insert(version.clone(), parent.clone());
                }
                let mut kept = by_rule(listed, place, rules).or_else(|| pointed.get(&listed.version).cloned());
                if kept.is_none() && in_use(&version)? {
                    kept = Some("somebody is downloading it".to_owned());
                }
                verdicts.push(Verdict { version, published: listed.published, kept });
            }
        }
        // What a kept version was baked on is kept, and what that was baked on.
        let kept = verdicts.iter().filter(|verdict| verdict.kept.is_some());
        let mut kept: Vec<_> = kept.map(|verdict| verdict.version.clone()).collect();
        let places: BTreeMap<_, _> =
            verdicts.iter().enumerate().map(|(place, verdict)| (verdict.version.clone(), place)).collect();
        while let Some(child) = kept.pop() {
            let Some(parent) = parents.get(&child) else { continue };
            let verdict = places.get(parent).and_then(|place| verdicts.get_mut(*place));
            if let Some(verdict) = verdict.filter(|verdict| verdict.kept.is_none()) {
                verdict.kept = Some(format!("{child} is baked on it"));
                kept.push(parent.clone());
            }
        }
        Ok(verdicts)
    }

    /// Every blob that the kept versions name.
    fn needed(&self, heads: &Heads, verdicts: &[Verdict]) -> Result<BTreeSet<Digest>, RegistryError> {
        let mut needed = BTreeSet::new();
        for verdict in verdicts.iter().filter(|verdict| verdict.kept.is_some()) {
            let Parent { image, version } = &verdict.version;
            let Some(listed) = heads.get(image).and_then(|head| head.lists(version)) else { continue };
            let record = self.listed_record(image, listed)?;
            let manifest = self.blob_bytes(&record.manifest).map_err(|damage| self.set_aside(damage))?;
            let blobs = Content::blobs_of(&manifest)
                .map_err(|problem| RegistryError::Content { blob: self.blob(&record.manifest.digest), problem })?;
            needed.insert(record.manifest.digest);
            needed.extend(blobs.iter().map(|blob| blob.digest));
            for attestation in &record.attestations {
                needed.insert(attestation.manifest.digest);
                let blobs = self.try_attestation(attestation).map_err(|damage| self.set_aside(damage))?;
                let blobs = blobs.map_err(|problem| RegistryError::Content {
                    blob: self.blob(&attestation.manifest.digest),
                    problem,
                })?;
                needed.extend(blobs.iter().map(|blob| blob.digest));
            }
            let whole = record.artifact.files.iter().filter(|file| Form::of(&file.format).is_none());
            needed.extend(whole.map(|file| file.sha256));
        }
        Ok(needed)
    }

    /// The blobs that are not in `needed`, with their sizes.
    pub(crate) fn unneeded(&self, needed: &BTreeSet<Digest>) -> Result<Vec<(Digest, u64)>, RegistryError> {
        let mut blobs = self.place.all()?;
        blobs.retain(|(digest, _)| !needed.contains(digest));
        Ok(blobs)
    }
}

fn by_rule(listed: &Listed, place: usize, rules: &Rules) -> Option<String> {
    const DAY: u64 = 86_400;
    if rules.newest.is_none() && rules.days.is_none() {
        return Some("no rule was given".to_owned());
    }
    if let Some(newest) = rules.newest.filter(|newest| place < *newest) {
        return Some(format!("one of the newest {newest}"));
    }
    let days = rules.days.filter(|days| listed.published.saturating_add(days.saturating_mul(DAY)) > rules.now)?;
    Some(format!("younger than {days} days"))
}
