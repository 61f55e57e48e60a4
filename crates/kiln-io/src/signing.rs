//! Ed25519 keys for signing what is published, in the forms that other programs read: PKCS#8 and SPKI PEM.

use kiln_core::{Digest, Secret};
use openssl::{
    error::ErrorStack,
    pkey::{Id, PKey, Private, Public},
    sign::{Signer, Verifier},
};

/// Bytes of an Ed25519 signature, and of a public key.
pub const SIGNATURE: usize = 64;
const PUBLIC: usize = 32;

/// A key cannot be made, read or used.
#[derive(Debug, thiserror::Error)]
pub enum SigningError {
    #[error("it is not an Ed25519 {what} in PEM form")]
    Form { what: &'static str },
    #[error("OpenSSL cannot {operation}: {reason}")]
    OpenSsl { operation: &'static str, reason: String },
}

/// A private key. Prints as the name of its public half.
#[derive(Clone)]
pub struct SigningKey {
    pair: PKey<Private>,
    public: VerifyingKey,
}

/// A public key.
#[derive(Clone, PartialEq, Eq)]
pub struct VerifyingKey([u8; PUBLIC]);

fn openssl(operation: &'static str) -> impl Fn(ErrorStack) -> SigningError {
    move |error| SigningError::OpenSsl { operation, reason: error.to_string() }
}

impl SigningKey {
    /// A new key from the operating system's randomness.
    pub fn generate() -> Result<Self, SigningError> {
        Self::of(PKey::generate_ed25519().map_err(openssl("make a key"))?)
    }

    /// The key in a PKCS#8 PEM, which must not be encrypted.
    pub fn from_pem(pem: &Secret) -> Result<Self, SigningError> {
        // Without a password of its own, OpenSSL would ask on the terminal.
        let pair = PKey::private_key_from_pem_passphrase(pem.reveal().as_bytes(), b"");
        Self::of(pair.map_err(|_| SigningError::Form { what: "private key" })?)
    }

    fn of(pair: PKey<Private>) -> Result<Self, SigningError> {
        if pair.id() != Id::ED25519 {
            return Err(SigningError::Form { what: "private key" });
        }
        let public = pair.raw_public_key().map_err(openssl("take the public key"))?;
        let public = public.try_into().map_err(|_| SigningError::Form { what: "private key" })?;
        Ok(Self { pair, public: VerifyingKey(public) })
    }

    /// PKCS#8 PEM, unencrypted.
    pub fn to_pem(&self) -> Result<Secret, SigningError> {
        let pem = self.pair.private_key_to_pem_pkcs8().map_err(openssl("write the key"))?;
        Ok(Secret::new(String::from_utf8(pem).map_err(|_| SigningError::Form { what: "private key" })?))
    }

    pub const fn public(&self) -> &VerifyingKey {
        &self.public
    }

    pub fn sign(&self, message: &[u8]) -> Result<Vec<u8>, SigningError> {
        let mut signer = Signer::new_without_digest(&self.pair).map_err(openssl("sign"))?;
        signer.sign_oneshot_to_vec(message).map_err(openssl("sign"))
    }
}

impl VerifyingKey {
    /// The key in an SPKI PEM. What stands around it is ignored.
    pub fn from_pem(pem: &str) -> Result<Self, SigningError> {
        let form = || SigningError::Form { what: "public key" };
        let key = PKey::public_key_from_pem(pem.as_bytes()).map_err(|_| form())?;
        if key.id() != Id::ED25519 {
            return Err(form());
        }
        let raw = key.raw_public_key().map_err(openssl("read the public key"))?;
        raw.try_into().map(Self).map_err(|_| form())
    }

    /// SPKI PEM.
    pub fn to_pem(&self) -> Result<String, SigningError> {
        let pem = self.key()?.public_key_to_pem().map_err(openssl("write the public key"))?;
        String::from_utf8(pem).map_err(|_| SigningError::Form { what: "public key" })
    }

    /// The name of the key: the SHA-256 of its 32 bytes.
    pub fn id(&self) -> Digest {
        Digest::of(&self.0)
    }

    /// Whether `signature` is this key's, of exactly `message`.
    pub fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        let verified = || {
            let key = self.key().ok()?;
            Verifier::new_without_digest(&key).ok()?.verify_oneshot(signature, message).ok()
        };
        signature.len() == SIGNATURE && verified().unwrap_or(false)
    }

    fn key(&self) -> Result<PKey<Public>, SigningError> {
        PKey::public_key_from_raw_bytes(&self.0, Id::ED25519).map_err(openssl("take the public key"))
    }
}

impl std::fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SigningKey({})", self.public.id().short())
    }
}

impl std::fmt::Debug for VerifyingKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "VerifyingKey({})", self.id().short())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 8032, section 7.1, test 2, wrapped as PKCS#8 (RFC 8410).
    const PEM: &str = "-----BEGIN PRIVATE KEY-----\n\
        MC4CAQAwBQYDK2VwBCIEIEzNCJso/5banbbDRuwRTg9bijGfNaumJNqM9u1PuKb7\n\
        -----END PRIVATE KEY-----\n";

    #[test]
    fn signs_as_the_standard_does() {
        let key = SigningKey::from_pem(&Secret::new(PEM.to_owned())).unwrap();
        assert_eq!(key.public().0[..4], [0x3d, 0x40, 0x17, 0xc3]);
        let signature = key.sign(&[0x72]).unwrap();
        assert_eq!(signature[..8], [0x92, 0xa0, 0x09, 0xa9, 0xf0, 0xd4, 0xca, 0xb8]);
        assert!(key.public().verifies(&[0x72], &signature));
        assert!(!key.public().verifies(&[0x73], &signature));
        assert!(!key.public().verifies(&[0x72], &signature[..63]));
        assert!(!key.public().verifies(&[0x72], &[]));
    }

    #[test]
    fn a_key_comes_back_from_its_file() {
        let key = SigningKey::generate().unwrap();
        let back = SigningKey::from_pem(&key.to_pem().unwrap()).unwrap();
        assert_eq!(back.public(), key.public());
        let public = VerifyingKey::from_pem(&key.public().to_pem().unwrap()).unwrap();
        assert_eq!(&public, key.public());
        assert!(!format!("{key:?}").contains("PRIVATE"));
    }

    #[test]
    fn refuses_keys_of_other_kinds() {
        let other = PKey::from_rsa(openssl::rsa::Rsa::generate(2048).unwrap()).unwrap();
        let pem = String::from_utf8(other.private_key_to_pem_pkcs8().unwrap()).unwrap();
        assert!(SigningKey::from_pem(&Secret::new(pem)).is_err());
        let pem = String::from_utf8(other.public_key_to_pem().unwrap()).unwrap();
        assert!(VerifyingKey::from_pem(&pem).is_err());
        assert!(VerifyingKey::from_pem(PEM).is_err() && VerifyingKey::from_pem("").is_err());
    }
}
