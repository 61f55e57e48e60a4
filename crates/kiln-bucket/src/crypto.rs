//! Signatures of requests, made with the OpenSSL that TLS and SSH bring along.

use object_store::{
    Error, Result,
    client::{CryptoProvider, DigestAlgorithm, DigestContext, HmacContext, Signer, SigningAlgorithm},
};
use openssl::{
    hash::{Hasher, MessageDigest},
    pkey::PKey,
    sign,
};

#[derive(Debug)]
pub(crate) struct OpenSsl;

fn failed(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::Generic { store: "OpenSSL", source: Box::new(error) }
}

fn digest_of(algorithm: &DigestAlgorithm) -> Result<MessageDigest> {
    match algorithm {
        DigestAlgorithm::Sha256 => Ok(MessageDigest::sha256()),
        _ => Err(Error::NotSupported { source: "only SHA-256 is used".into() }),
    }
}

impl CryptoProvider for OpenSsl {
    fn digest(&self, algorithm: DigestAlgorithm) -> Result<Box<dyn DigestContext>> {
        let hasher = Hasher::new(digest_of(&algorithm)?).map_err(failed)?;
        Ok(Box::new(Sum { hasher, failed: None, value: Vec::new() }))
    }

    fn hmac(&self, algorithm: DigestAlgorithm, secret: &[u8]) -> Result<Box<dyn HmacContext>> {
        let key = PKey::hmac(secret).map_err(failed)?;
        Ok(Box::new(Mac { key, digest: digest_of(&algorithm)?, message: Vec::new(), sum: Vec::new() }))
    }

    fn sign(&self, _algorithm: SigningAlgorithm, _pem: &[u8]) -> Result<Box<dyn Signer>> {
        Err(Error::NotSupported { source: "S3 needs no RSA signatures".into() })
    }
}

struct Sum {
    hasher: Hasher,
    failed: Option<openssl::error::ErrorStack>,
    value: Vec<u8>,
}

impl DigestContext for Sum {
    fn update(&mut self, data: &[u8]) {
        if let Err(error) = self.hasher.update(data) {
            self.failed = Some(error);
        }
    }

    fn finish(&mut self) -> Result<&[u8]> {
        self.failed.take().map_or(Ok(()), |error| Err(failed(error)))?;
        self.value = self.hasher.finish().map_err(failed)?.to_vec();
        Ok(&self.value)
    }
}

/// What is signed is a line or a key: it is kept until the end.
struct Mac {
    key: PKey<openssl::pkey::Private>,
    digest: MessageDigest,
    message: Vec<u8>,
    sum: Vec<u8>,
}

impl HmacContext for Mac {
    fn update(&mut self, data: &[u8]) {
        self.message.extend_from_slice(data);
    }

    fn finish(&mut self) -> Result<&[u8]> {
        let mut signer = sign::Signer::new(self.digest, &self.key).map_err(failed)?;
        self.sum = signer.sign_oneshot_to_vec(&self.message).map_err(failed)?;
        Ok(&self.sum)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
    }

    /// The second test case of RFC 4231, and the SHA-256 of its message.
    #[test]
    fn makes_the_sums_of_the_standards() {
        let mut mac = OpenSsl.hmac(DigestAlgorithm::Sha256, b"Jefe").unwrap();
        mac.update(b"what do ya want ");
        mac.update(b"for nothing?");
        assert_eq!(hex(mac.finish().unwrap()), "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843");
        let mut sum = OpenSsl.digest(DigestAlgorithm::Sha256).unwrap();
        sum.update(b"abc");
        assert_eq!(hex(sum.finish().unwrap()), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }
}
