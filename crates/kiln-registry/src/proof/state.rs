//! The state of an image, signed: its revision, where its channels point, what is revoked.
//!
//! The number only grows: a rollback is a new, higher state that points at an older version. So who has seen one state can tell that
//! an older one is an old one, however well it is signed; [`super::seen`] remembers.

use kiln_core::{Digest, ImageName};
use serde::{Deserialize, Serialize};

use super::{envelope::Envelope, verify::Unproven};
use crate::{Registry, RegistryError, head::State};

/// The type of the payload.
const STATE: &str = "application/vnd.kiln.image-state.v1+json";

/// What is signed.
#[derive(Debug, Serialize, Deserialize)]
struct Said {
    image: ImageName,
    rev: u64,
    /// Seconds since 1970, UTC.
    at: u64,
    #[serde(flatten)]
    state: State,
}

/// Which state an image is in, and whose word that is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    pub rev: u64,
    /// The key that signed it; `None` when nobody did.
    pub signer: Option<Digest>,
    /// Until when it is good, by what was signed. Seconds since 1970, UTC.
    pub expires: Option<u64>,
}

/// Whose word a state is, and of when.
pub(crate) struct Signed {
    key: Digest,
    /// Seconds since 1970, UTC.
    pub(crate) at: u64,
}

impl Registry {
    /// `state` as the revision `rev` of `image`, signed when there is a key.
    pub(crate) fn sign_state(
        &self,
        image: &ImageName,
        (rev, at): (u64, u64),
        state: &State,
    ) -> Result<Option<Envelope>, RegistryError> {
        let Some(key) = self.signer() else { return Ok(None) };
        let state = State { signed: None, ..state.clone() };
        let said = Said { image: image.clone(), rev, at, state };
        let payload = serde_json::to_vec(&said)
            .map_err(|source| RegistryError::Unreadable { path: self.root().to_owned(), source })?;
        Envelope::sign(STATE, &payload, key).map(Some).map_err(RegistryError::Signing)
    }

    /// The state that `image` is in. Where keys are trusted, one that somebody else signed, or that says something else than
    /// was signed, is refused; one that nobody signed is not.
    pub fn standing(&self, image: &ImageName) -> Result<Standing, RegistryError> {
        let head = self.head(image)?;
        let Some(envelope) = head.state.signed.as_ref().filter(|_| !self.trust().is_empty()) else {
            return Ok(Standing { rev: head.rev, signer: None, expires: None });
        };
        let refused = |why| RegistryError::State { image: image.clone(), rev: head.rev, why: Box::new(why) };
        let signed = self.signed_state(envelope, image, head.rev, &head.state).map_err(refused)?;
        let expires = head.state.valid_for.map(|time| signed.at.saturating_add(time));
        Ok(Standing { rev: head.rev, signer: Some(signed.key), expires })
    }

    /// Opens `envelope`, which is to be `state` as the revision `rev` of `image`.
    pub(crate) fn signed_state(
        &self,
        envelope: &Envelope,
        image: &ImageName,
        rev: u64,
        state: &State,
    ) -> Result<Signed, Unproven> {
        let (payload, key) = self.trust().open(envelope)?;
        if envelope.payload_type() != STATE {
            return Err(Unproven::WrongSubject(format!("it is a `{}`", envelope.payload_type())));
        }
        let said: Said = serde_json::from_slice(&payload).map_err(|error| Unproven::Unreadable(error.to_string()))?;
        if (&said.image, said.rev) != (image, rev) {
            return Err(Unproven::WrongSubject(format!("revision {} of `{}`", said.rev, said.image)));
        }
        if said.state != (State { signed: None, ..state.clone() }) {
            return Err(Unproven::Contradicts("channels or revocations are not those that were signed".to_owned()));
        }
        Ok(Signed { key: key.id, at: said.at })
    }
}
