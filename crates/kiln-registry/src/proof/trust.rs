//! Whose signatures are believed: public keys, the builders each may speak for, and which were revoked.

use kiln_core::Digest;
use kiln_io::signing::VerifyingKey;
use serde::{Deserialize, Serialize};

use super::{
    envelope::{Envelope, pre_authentication_encoding},
    verify::Unproven,
};
use base64::{Engine as _, engine::general_purpose::STANDARD};

/// A key that is, or was, believed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrustedKey {
    /// The SHA-256 of the key.
    pub id: Digest,
    /// For people: `ada@builder`.
    pub name: String,
    /// SPKI PEM.
    pub public: String,
    /// Seconds since 1970, UTC.
    pub since: u64,
    /// The builders whose statements it may sign.
    pub builders: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked: Option<RevokedKey>,
}

/// Since when, and why, a key is not believed any more. What it signed before is not believed either: nobody can tell when
/// something was signed by who has the key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RevokedKey {
    /// Seconds since 1970, UTC.
    pub at: u64,
    pub reason: String,
}

/// All keys that are known.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Trust {
    pub(crate) keys: Vec<TrustedKey>,
}

impl Trust {
    pub const fn of(keys: Vec<TrustedKey>) -> Self {
        Self { keys }
    }

    pub fn keys(&self) -> &[TrustedKey] {
        &self.keys
    }

    /// Whether nobody ever trusted a key here, so that nothing is to be proven. Revoked keys count: whoever revokes his last one
    /// wants what it signed refused, not believed unseen.
    pub const fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// The payload of an envelope that a believed key signed, and the key. Nothing of the payload is looked at before.
    pub fn open(&self, envelope: &Envelope) -> Result<(Vec<u8>, &TrustedKey), Unproven> {
        if envelope.signatures().is_empty() {
            return Err(Unproven::Unsigned);
        }
        let payload = envelope.payload().map_err(Unproven::Unreadable)?;
        let signed = pre_authentication_encoding(envelope.payload_type(), &payload);
        let mut revoked = None;
        for signature in envelope.signatures() {
            let Ok(bytes) = STANDARD.decode(&signature.sig) else { continue };
            for key in &self.keys {
                if !VerifyingKey::from_pem(&key.public).is_ok_and(|public| public.verifies(&signed, &bytes)) {
                    continue;
                }
                match &key.revoked {
                    None => return Ok((payload, key)),
                    Some(_) => revoked = Some(key),
                }
            }
        }
        if let Some((key, revocation)) = revoked.and_then(|key| Some((key, key.revoked.as_ref()?))) {
            let (name, reason) = (key.name.clone(), revocation.reason.clone());
            return Err(Unproven::RevokedKey { key: key.id, name, reason });
        }
        // The hint decides on the words only.
        let named = |key: &&TrustedKey| envelope.signatures().iter().any(|signature| signature.keyid == key.id.hex());
        Err(match self.keys.iter().find(named) {
            Some(key) => Unproven::Altered { name: key.name.clone() },
            None => Unproven::UnknownKey {
                keys: envelope
                    .signatures()
                    .iter()
                    .map(|signature| signature.keyid.chars().take(12).collect())
                    .collect(),
            },
        })
    }
}
