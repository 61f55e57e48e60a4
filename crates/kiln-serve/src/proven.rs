//! Which blobs a publisher may use on a server that not everybody reads: those of images that it may read, and those whose bytes it
//! has sent. To know a digest is not to have the blob.

use std::{
    collections::{HashMap, HashSet},
    sync::{Mutex, PoisonError},
};

use kiln_core::{Digest, ImageName};
use kiln_registry::{Offer, RegistryError};

use crate::{
    access::{Caller, Scope},
    state::App,
};

/// Versions that are looked through for blobs: of the image itself, and of all others together. What stands only in older ones is
/// sent again.
const NEWEST: usize = 32;
const OTHERS: usize = 32;
/// Blobs that are remembered for one token, twice: a disk of a TiB has as many. What was forgotten is sent again.
const SENT: usize = 1 << 18;

/// What came with which token, by the token's hash. A server that starts anew knows nothing, and is sent it again.
#[derive(Debug, Default)]
pub(crate) struct Sent(Mutex<HashMap<Digest, Came>>);

/// Blobs of one token. When there are too many, the older half is forgotten.
#[derive(Debug, Default)]
struct Came {
    new: HashSet<Digest>,
    old: HashSet<Digest>,
}

impl Sent {
    fn note(&self, token: Digest, blob: Digest, in_force: impl Fn(&Digest) -> bool) {
        let mut sent = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !sent.contains_key(&token) {
            sent.retain(|token, _| in_force(token));
        }
        let came = sent.entry(token).or_default();
        if came.new.len() >= SENT {
            came.old = std::mem::take(&mut came.new);
        }
        came.new.insert(blob);
    }

    /// Takes out of `blobs` what came with this token.
    fn strike(&self, caller: &Caller, blobs: &mut HashSet<Digest>) {
        let sent = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(came) = caller.token_hash().and_then(|token| sent.get(&token)) {
            blobs.retain(|blob| !came.new.contains(blob) && !came.old.contains(blob));
        }
    }
}

impl App {
    /// Remembers who sent a blob, where that matters.
    pub(crate) fn note_sent(&self, caller: &Caller, blob: Digest) {
        if let Some(token) = caller.token_hash().filter(|_| !self.tokens.public()) {
            self.sent.note(token, blob, |token| self.tokens.has(token));
        }
    }

    /// Those of `blobs` that this publisher of `image` has to send, in their order: whether one is here for others does not show.
    pub(crate) fn lacking(
        &self,
        caller: &Caller,
        image: &ImageName,
        blobs: &[(Digest, u64)],
    ) -> Result<Vec<Digest>, RegistryError> {
        let missing = self.registry.missing(blobs);
        if self.tokens.public() {
            return Ok(missing);
        }
        let mut lacking: HashSet<_> = missing.into_iter().collect();
        let mut here: HashSet<_> = blobs.iter().map(|(blob, _)| *blob).filter(|blob| !lacking.contains(blob)).collect();
        self.sent.strike(caller, &mut here);
        self.registry.strike_named(image, &mut here, NEWEST);
        let mut left = OTHERS;
        let others = if here.is_empty() { Vec::new() } else { self.registry.names()? };
        for other in others.iter().filter(|other| *other != image && caller.may(Scope::Read, other)) {
            if here.is_empty() || left == 0 {
                break;
            }
            left -= self.registry.strike_named(other, &mut here, left);
        }
        lacking.extend(here);
        Ok(blobs.iter().map(|(blob, _)| *blob).filter(|blob| lacking.remove(blob)).collect())
    }

    /// Whether a blob that this publisher is about to send is here and known to come from it already. Who sends has asked before
    /// what is missing, so that nothing further is looked at.
    pub(crate) fn has_from(&self, caller: &Caller, digest: Digest, size: u64) -> bool {
        let mut unproven = HashSet::from([digest]);
        self.sent.strike(caller, &mut unproven);
        (self.tokens.public() || unproven.is_empty()) && self.registry.missing(&[(digest, size)]).is_empty()
    }

    /// Refuses an offer that names what this publisher lacks. Manifests first: what stands in one is for those who have it.
    pub(crate) fn refuse_lacking(&self, caller: &Caller, offer: &Offer) -> Result<(), RegistryError> {
        if self.tokens.public() {
            return Ok(());
        }
        let image = &offer.artifact.image;
        let refuse = |blobs: &[_]| match self.lacking(caller, image, blobs)? {
            missing if missing.is_empty() => Ok(()),
            missing => Err(RegistryError::Incomplete { image: image.clone(), missing }),
        };
        let statements = offer.attestations.iter().map(|said| &said.manifest);
        let manifests: Vec<_> =
            std::iter::once(&offer.manifest).chain(statements).map(|blob| (blob.digest, blob.size)).collect();
        refuse(&manifests)?;
        refuse(&self.registry.offer_blobs(offer)?)
    }
}
