//! A version from one registry to another, whatever the places are: only the blobs that are missing go.

use std::{collections::BTreeMap, io::Read as _};

use kiln_core::Digest;
use kiln_disk::ordered::ordered;

use crate::{
    Offer, Publication, Published, Record, Registry, RegistryError,
    content::{Descriptor, LONGEST_MANIFEST},
    lay_down::Form,
};

/// Bytes that are read and written at once.
const BLOCK: usize = 4 << 20;

/// What a copy did.
#[derive(Debug, Clone, PartialEq)]
pub struct Copied {
    pub published: Published,
    /// Bytes of the blobs that were not there before.
    pub sent: u64,
    /// Bytes of all blobs of the version.
    pub whole: u64,
}

impl Registry {
    /// Brings the version of `record` from the registry `from` to this one. Where keys are trusted here and `proven` is asked for, one
    /// that is not proven is refused before its disk comes. `watch` gets the bytes done and says whether to go on.
    pub fn copy(
        &self,
        from: &Self,
        record: &Record,
        publication: &Publication,
        proven: bool,
        watch: &(dyn Fn(u64) -> bool + Sync),
    ) -> Result<Copied, RegistryError> {
        let _leased = (from.lease()?, self.lease()?);
        let unreadable = |problem| RegistryError::Content { blob: from.blob(&record.manifest.digest), problem };
        let manifest = from.small_blob(&record.manifest.digest, LONGEST_MANIFEST)?;
        let manifest = manifest.ok_or_else(|| unreadable("it is missing".to_owned()))?;
        let said: BTreeMap<_, _> = from.statement_blobs(&record.attestations)?.into_iter().collect();
        let mut blobs: BTreeMap<Digest, u64> = from.blobs_of(&manifest)?.into_iter().collect();
        blobs.insert(record.manifest.digest, record.manifest.size);
        let stored = record.artifact.files.iter().filter(|file| Form::of(&file.format).is_none());
        blobs.extend(stored.map(|file| (file.sha256, file.bytes)));
        // What is said about the disk goes first: nobody waits for gigabytes to hear that they are refused.
        let mut sent = self.bring_missing(from, &said, watch)?;
        if proven && !self.trust().is_empty() {
            self.proof(record)?;
        }
        sent += self.bring_missing(from, &blobs, watch)?;
        let offer = Offer {
            manifest: record.manifest.clone(),
            artifact: record.artifact.clone(),
            attestations: record.attestations.clone(),
        };
        let published = self.enter_offer(&offer, publication)?;
        Ok(Copied { published, sent, whole: said.values().chain(blobs.values()).sum() })
    }

    /// Brings those of `blobs` that are not here; how many bytes came.
    fn bring_missing(
        &self,
        from: &Self,
        blobs: &BTreeMap<Digest, u64>,
        watch: &(dyn Fn(u64) -> bool + Sync),
    ) -> Result<u64, RegistryError> {
        let all: Vec<_> = blobs.iter().map(|(digest, size)| (*digest, *size)).collect();
        let missing = self.missing(&all);
        let bring = |number: u64| {
            let digest = missing[usize::try_from(number).unwrap_or(usize::MAX)];
            self.bring(from, digest, blobs[&digest], watch)
        };
        let mut sent = 0;
        ordered(missing.len() as u64, bring, |_, brought| {
            sent += brought?;
            Ok(())
        })
        .map(|()| sent)
    }

    fn bring(
        &self,
        from: &Self,
        digest: Digest,
        size: u64,
        watch: &(dyn Fn(u64) -> bool + Sync),
    ) -> Result<u64, RegistryError> {
        let open = from.sized_blob(&Descriptor { media_type: String::new(), digest, size });
        let open = open.map_err(|damage| from.set_aside(damage))?;
        let mut incoming = self.receive(digest, size)?;
        let mut reader = open.stored.reader();
        let mut block = vec![0; BLOCK];
        loop {
            let count = reader.read(&mut block).map_err(|error| from.set_aside(open.unread(error)))?;
            if count == 0 {
                break;
            }
            incoming.write(&block[..count])?;
            if !watch(incoming.received()) {
                return Err(RegistryError::Stopped { path: from.blob(&digest) });
            }
        }
        open.judge(incoming.found()).map_err(|damage| from.set_aside(damage))?;
        incoming.finish()?;
        Ok(size)
    }
}
