//! The stored frames of a version, for sealing the next one: what did not change is not compressed again.

use kiln_disk::seal::{Chunk, StoredFrames};

use crate::{Record, Registry, RegistryError, content::Content};

/// The frames of one version.
#[derive(Debug)]
pub struct Frames {
    registry: Registry,
    content: Content,
}

impl Registry {
    /// The frames of `record`, each of which was compared with the digest of its chunk when the version came; `None` where
    /// fetching them would take longer than making them anew.
    pub fn frames(&self, record: &Record) -> Result<Option<Frames>, RegistryError> {
        if !self.place.are_near() {
            return Ok(None);
        }
        Ok(Some(Frames { registry: self.clone(), content: self.content(record)? }))
    }
}

impl StoredFrames for Frames {
    fn chunks(&self, number: u64) -> &[Chunk] {
        let segment = usize::try_from(number).ok().and_then(|number| self.content.segments.get(number));
        segment.map_or(&[], |segment| &segment.chunks)
    }

    fn blob(&self, number: u64) -> Option<Vec<u8>> {
        let segment = self.content.segments.get(usize::try_from(number).ok()?)?;
        // One that is damaged or was collected is no obstacle: the chunks are compressed as if there were none.
        self.registry.blob_bytes(&segment.blob).ok()
    }
}
