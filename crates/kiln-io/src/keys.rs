//! Ed25519 key pairs in OpenSSH's formats, made without any other program.
//!
//! Formats: the public line and the fingerprint of RFC 4253/4648, the private file of OpenSSH's `PROTOCOL.key`.

use kiln_core::Secret;
use openssl::{base64, hash::MessageDigest, pkey::PKey};

use crate::{error::KeyError, random};

const ALGORITHM: &str = "ssh-ed25519";

/// A key pair for a login or a host.
#[derive(Debug, Clone)]
pub struct KeyPair {
    /// The file `ssh -i` reads, unencrypted.
    pub private: Secret,
    pub public: PublicKey,
}

/// The public half.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicKey {
    /// As on the wire: what [`crate::ssh`] compares with.
    pub blob: Vec<u8>,
}

impl KeyPair {
    /// A new pair from the operating system's randomness. `comment` ends up in the private file.
    pub fn generate(comment: &str) -> Result<Self, KeyError> {
        let pair = PKey::generate_ed25519().map_err(|error| KeyError(error.to_string()))?;
        let raw =
            |part: Result<Vec<u8>, _>| part.map_err(|error: openssl::error::ErrorStack| KeyError(error.to_string()));
        let public = raw(pair.raw_public_key())?;
        let mut seed = raw(pair.raw_private_key())?;
        let blob = wire(&[ALGORITHM.as_bytes(), &public]);
        let private = private_file(&public, &seed, &blob, comment);
        seed.fill(0);
        Ok(Self { private, public: PublicKey { blob } })
    }

    /// A pair that was stored: the private file, and what [`PublicKey::line`] gave.
    pub fn restore(private: Secret, line: &str) -> Result<Self, KeyError> {
        let encoded = line.trim().strip_prefix(ALGORITHM).map(str::trim);
        let encoded = encoded.ok_or_else(|| KeyError(format!("it does not begin with `{ALGORITHM}`")))?;
        let blob = base64::decode_block(encoded).map_err(|error| KeyError(error.to_string()))?;
        Ok(Self { private, public: PublicKey { blob } })
    }
}

impl PublicKey {
    /// `ssh-ed25519 AAAA...`, without a comment and without a line end.
    pub fn line(&self) -> String {
        format!("{ALGORITHM} {}", base64::encode_block(&self.blob))
    }

    /// `SHA256:...`, as `ssh-keygen -l` prints it.
    pub fn fingerprint(&self) -> String {
        fingerprint(&self.blob)
    }

    /// A line for a `known_hosts` file.
    pub fn known_hosts(&self, host: &str, port: u16) -> String {
        format!("[{host}]:{port} {}\n", self.line())
    }
}

/// The fingerprint of any host key, given as on the wire.
pub fn fingerprint(blob: &[u8]) -> String {
    let digest = openssl::hash::hash(MessageDigest::sha256(), blob).map(|digest| base64::encode_block(&digest));
    format!("SHA256:{}", digest.unwrap_or_default().trim_end_matches('='))
}

/// `PROTOCOL.key`: magic, cipher, kdf, kdf options, one key, public blob, private section padded to 8 bytes.
fn private_file(public: &[u8], seed: &[u8], blob: &[u8], comment: &str) -> Secret {
    let check = random::bytes::<4>();
    let mut section = [check, check].concat();
    section.extend(wire(&[ALGORITHM.as_bytes(), public, &[seed, public].concat(), comment.as_bytes()]));
    for padding in 1.. {
        if section.len() % 8 == 0 {
            break;
        }
        section.push(padding);
    }
    let mut file = b"openssh-key-v1\0".to_vec();
    file.extend(wire(&[b"none", b"none", b""]));
    file.extend(1_u32.to_be_bytes());
    file.extend(wire(&[blob, &section]));
    let mut text = String::from("-----BEGIN OPENSSH PRIVATE KEY-----\n");
    let encoded = base64::encode_block(&file);
    for start in (0..encoded.len()).step_by(70) {
        text.push_str(&encoded[start..encoded.len().min(start + 70)]);
        text.push('\n');
    }
    text.push_str("-----END OPENSSH PRIVATE KEY-----\n");
    Secret::new(text)
}

/// Each part with its length before it, as SSH strings.
fn wire(parts: &[&[u8]]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for part in parts {
        bytes.extend(u32::try_from(part.len()).unwrap_or(u32::MAX).to_be_bytes());
        bytes.extend_from_slice(part);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::{Limits, Spec, run};

    #[test]
    fn a_stored_pair_comes_back_as_it_was() {
        let pair = KeyPair::generate("kiln").unwrap();
        let back = KeyPair::restore(pair.private.clone(), &format!("{}\n", pair.public.line())).unwrap();
        assert_eq!(back.public, pair.public);
        assert!(KeyPair::restore(pair.private, "ssh-rsa AAAA").is_err());
    }

    /// OpenSSH's own program is the judge of the format.
    #[tokio::test]
    async fn ssh_keygen_reads_the_private_file_and_agrees_on_key_and_fingerprint() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        for length in 0..9 {
            let pair = KeyPair::generate(&"c".repeat(length)).unwrap();
            crate::fs::write_private(&path, pair.private.reveal().as_bytes()).unwrap();
            let spec = Spec::new("ssh-keygen").args(["-y", "-f"]).arg(&path);
            let shown = run(&spec, &Limits::default(), &mut |_, _| {}).await.unwrap();
            assert!(String::from_utf8_lossy(&shown.stdout).starts_with(&pair.public.line()));
            let spec = Spec::new("ssh-keygen").args(["-l", "-f"]).arg(&path);
            let shown = run(&spec, &Limits::default(), &mut |_, _| {}).await.unwrap();
            assert!(String::from_utf8_lossy(&shown.stdout).contains(&pair.public.fingerprint()));
        }
    }
}
