//! Heads that were read, kept for as long as they are the newest: a question costs a look at the head of its image, not the parsing
//! of it. A directory tells by the file's identity and times, a bucket by the `ETag`.

use std::{
    cell::RefCell,
    collections::{BTreeMap, HashMap},
    fmt,
    ops::Deref,
    sync::{Arc, Mutex, PoisonError},
};

use kiln_core::{ImageName, Version};

use crate::{
    Registry, RegistryError,
    durable::failed,
    head::{Head, Listed},
    head_key,
    place::Mark,
};

/// Versions in all heads that are kept; each takes about half a KiB.
const VERSIONS: usize = 100_000;
/// Heads that are kept, however short.
const HEADS: usize = 1024;

/// A head as it was read, with a way to find a version in it.
#[derive(Debug)]
pub(crate) struct Known {
    head: Head,
    /// The places in `head.versions`, by version.
    by_version: Vec<usize>,
}

impl Known {
    pub(crate) fn of(head: Head) -> Self {
        let mut by_version: Vec<_> = (0..head.versions.len()).collect();
        by_version.sort_by(|a, b| head.versions[*a].version.cmp(&head.versions[*b].version));
        Self { head, by_version }
    }

    pub(crate) fn into_head(self) -> Head {
        self.head
    }

    /// Where `version` stands, counted from the newest.
    pub(crate) fn place(&self, version: &Version) -> Option<usize> {
        let found = self.by_version.binary_search_by(|place| self.head.versions[*place].version.cmp(version));
        found.ok().map(|found| self.by_version[found])
    }

    pub(crate) fn lists(&self, version: &Version) -> Option<&Listed> {
        self.place(version).map(|place| &self.head.versions[place])
    }
}

impl Deref for Known {
    type Target = Head;

    fn deref(&self) -> &Head {
        &self.head
    }
}

/// The heads of a registry that were read last.
#[derive(Default)]
pub(crate) struct Heads {
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    heads: BTreeMap<ImageName, (u64, Arc<Known>)>,
    /// Counts what was asked for; the least is the one that was asked for the longest ago.
    asked: u64,
    versions: usize,
}

impl fmt::Debug for Heads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Heads").finish_non_exhaustive()
    }
}

impl Heads {
    fn find(&self, image: &ImageName) -> Option<Arc<Known>> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.asked += 1;
        let now = held.asked;
        let (asked, head) = held.heads.get_mut(image)?;
        *asked = now;
        Some(Arc::clone(head))
    }

    fn keep(&self, image: &ImageName, head: &Arc<Known>) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.asked += 1;
        let entry = (held.asked, Arc::clone(head));
        held.versions += head.versions.len();
        if let Some((_, before)) = held.heads.insert(image.clone(), entry) {
            held.versions -= before.versions.len();
        }
        while held.heads.len() > 1 && (held.versions > VERSIONS || held.heads.len() > HEADS) {
            let oldest = held.heads.iter().min_by_key(|(_, (asked, _))| *asked).map(|(image, _)| image.clone());
            let Some((_, gone)) = oldest.and_then(|oldest| held.heads.remove(&oldest)) else { break };
            held.versions -= gone.versions.len();
        }
    }
}

impl Registry {
    /// The head of `image` as it is now; empty when nothing was published yet.
    pub(crate) fn read_head(&self, image: &ImageName) -> Result<Arc<Known>, RegistryError> {
        let key = head_key(image);
        if let Some(held) = self.heads.find(image) {
            let mark = self.place.mark(&key).map_err(failed("read", &self.place.path(&key)))?;
            if mark != Mark::default() && mark == held.mark {
                return Ok(held);
            }
        }
        let head = Arc::new(Known::of(self.read_newest_head(image)?));
        if head.mark != Mark::default() {
            self.heads.keep(image, &head);
        }
        Ok(head)
    }

    /// The heads for one question.
    pub(crate) fn reading(&self) -> Reading<'_> {
        Reading { registry: self, heads: RefCell::default() }
    }
}

/// The heads as one question finds them: each is looked at once.
pub(crate) struct Reading<'a> {
    registry: &'a Registry,
    heads: RefCell<HashMap<ImageName, Arc<Known>>>,
}

impl Reading<'_> {
    pub(crate) fn head(&self, image: &ImageName) -> Result<Arc<Known>, RegistryError> {
        if let Some(head) = self.heads.borrow().get(image) {
            return Ok(Arc::clone(head));
        }
        let head = self.registry.read_head(image)?;
        self.heads.borrow_mut().insert(image.clone(), Arc::clone(&head));
        Ok(head)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(versions: usize) -> Arc<Known> {
        let listed = |number: usize| {
            serde_json::from_value(serde_json::json!({
                "version": format!("1.{number}"), "disk": kiln_core::Digest::of(b""), "build": "b", "published": 1,
                "qcow2": kiln_core::Digest::of(b""), "base": kiln_core::Digest::of(b""),
            }))
            .unwrap()
        };
        Arc::new(Known::of(Head { versions: (0..versions).rev().map(listed).collect(), ..Head::empty() }))
    }

    #[test]
    fn finds_every_version_and_no_other() {
        let head = known(25);
        for (place, listed) in head.versions.iter().enumerate() {
            assert_eq!(head.place(&listed.version), Some(place));
        }
        assert!(head.lists(&"1.25".parse().unwrap()).is_none());
    }

    #[test]
    fn forgets_what_was_asked_for_the_longest_ago_when_there_is_too_much() {
        let heads = Heads::default();
        let name = |number: usize| -> ImageName { format!("i{number}").parse().unwrap() };
        let head = known(VERSIONS / 4);
        (0..4).for_each(|number| heads.keep(&name(number), &head));
        heads.find(&name(0));
        heads.keep(&name(4), &head);
        let there: Vec<_> = (0..5).filter(|number| heads.find(&name(*number)).is_some()).collect();
        assert_eq!(there, [0, 2, 3, 4]);
        // The same image again takes the place of the one before.
        heads.keep(&name(4), &known(1));
        heads.keep(&name(5), &known(VERSIONS / 4 - 1));
        assert!((0..6).filter(|number| heads.find(&name(*number)).is_some()).count() == 5);
    }
}
