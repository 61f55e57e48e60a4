//! DSSE envelopes: a payload, its type, and signatures over both. Format: <https://github.com/secure-systems-lab/dsse>, version 1.0.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use kiln_io::signing::{SigningError, SigningKey};
use serde::{Deserialize, Serialize};

/// The type of a payload that is an in-toto statement.
pub const IN_TOTO: &str = "application/vnd.in-toto+json";

/// Nobody signs more often; each signature costs a verification with every key.
const MOST_SIGNATURES: usize = 16;

/// A payload with its signatures.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Envelope {
    payload: String,
    payload_type: String,
    signatures: Vec<Signature>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signature {
    /// Which key is meant: a hint that nobody signed, good for words only.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub keyid: String,
    pub sig: String,
}

/// The bytes that are signed: `"DSSEv1" SP length SP type SP length SP payload`.
pub fn pre_authentication_encoding(payload_type: &str, payload: &[u8]) -> Vec<u8> {
    let mut bytes = format!("DSSEv1 {} {payload_type} {} ", payload_type.len(), payload.len()).into_bytes();
    bytes.extend_from_slice(payload);
    bytes
}

impl Envelope {
    /// `payload` signed with `key`.
    pub fn sign(payload_type: &str, payload: &[u8], key: &SigningKey) -> Result<Self, SigningError> {
        let signature = key.sign(&pre_authentication_encoding(payload_type, payload))?;
        Ok(Self {
            payload: STANDARD.encode(payload),
            payload_type: payload_type.to_owned(),
            signatures: vec![Signature { keyid: key.public().id().hex(), sig: STANDARD.encode(signature) }],
        })
    }

    /// Reads an envelope. The error says what is wrong with it.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        let envelope: Self = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        if envelope.signatures.len() > MOST_SIGNATURES {
            return Err(format!("it has {} signatures; {MOST_SIGNATURES} is the limit", envelope.signatures.len()));
        }
        Ok(envelope)
    }

    pub fn payload_type(&self) -> &str {
        &self.payload_type
    }

    pub fn signatures(&self) -> &[Signature] {
        &self.signatures
    }

    /// The payload, unverified. The error says what is wrong with it.
    pub fn payload(&self) -> Result<Vec<u8>, String> {
        STANDARD.decode(&self.payload).map_err(|error| format!("its payload: {error}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The vector that the specification prints.
    #[test]
    fn encodes_as_the_specification_does() {
        let encoded = pre_authentication_encoding("http://example.com/HelloWorld", b"hello world");
        assert_eq!(encoded, b"DSSEv1 29 http://example.com/HelloWorld 11 hello world");
        assert_eq!(pre_authentication_encoding("", b""), b"DSSEv1 0  0 ");
    }

    #[test]
    fn more_signatures_than_anybody_makes_are_refused() {
        let signature = r#"{"sig":""}"#;
        let text = |count| {
            let signatures = vec![signature; count].join(",");
            format!(r#"{{"payload":"","payloadType":"","signatures":[{signatures}]}}"#)
        };
        assert!(Envelope::parse(text(16).as_bytes()).is_ok());
        assert!(Envelope::parse(text(17).as_bytes()).unwrap_err().contains("17 signatures"));
    }
}
