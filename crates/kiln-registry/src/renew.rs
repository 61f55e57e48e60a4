//! Renewing: a state that says how long it is good for is signed anew before that time is over, by who has the key.
//!
//! Who shows the same old state for ever, well signed as it is, can otherwise keep a client from ever hearing of a rollback or a
//! revocation.

use std::time::Duration;

use kiln_core::ImageName;

use crate::{Action, Intent, Registry, RegistryError, head::Head};

/// How long the signed state of an image is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Validity {
    For(Duration),
    /// Without end.
    Unlimited,
}

/// The state of an image after [`Registry::renew`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Renewed {
    pub rev: u64,
    /// Seconds since 1970, UTC; `None` when it is good without end.
    pub expires: Option<u64>,
    /// It was signed anew; otherwise it was not time yet.
    pub renewed: bool,
}

impl Registry {
    /// Signs the state of `image` anew, as a revision that changes nothing else, when half of the time it is good for has passed; and
    /// at once when `validity` is another than before.
    pub fn renew(
        &self,
        image: &ImageName,
        validity: Option<Validity>,
        intent: &Intent,
    ) -> Result<Renewed, RegistryError> {
        self.head(image)?;
        let _leased = self.lease()?;
        self.settled(image, || {
            let mut head = self.recover(image, intent.now)?;
            let valid_for = match validity {
                None => head.state.valid_for,
                Some(Validity::Unlimited) => None,
                Some(Validity::For(time)) => Some(time.as_secs()),
            };
            if valid_for == head.state.valid_for {
                let Some(time) = valid_for else { return Ok(Renewed { rev: head.rev, expires: None, renewed: false }) };
                let signed = self.signed_at(image, &head).filter(|at| intent.now.saturating_sub(*at) < time / 2);
                if let Some(at) = signed {
                    return Ok(Renewed { rev: head.rev, expires: Some(at.saturating_add(time)), renewed: false });
                }
            }
            if self.signer().is_none() {
                return Err(RegistryError::CannotSign { image: image.clone() });
            }
            head.state.valid_for = valid_for;
            let action = Action::Renew { valid_for };
            let head = self.commit(image, head, action, (&intent.by, intent.now), intent.reason.clone())?;
            let expires = valid_for.map(|time| intent.now.saturating_add(time));
            Ok(Renewed { rev: head.rev, expires, renewed: true })
        })
    }

    /// When the state was signed, by somebody who is believed here.
    fn signed_at(&self, image: &ImageName, head: &Head) -> Option<u64> {
        let envelope = head.state.signed.as_ref()?;
        self.signed_state(envelope, image, head.rev, &head.state).ok().map(|signed| signed.at)
    }
}
