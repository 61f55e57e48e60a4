//! How kiln's key gets into the guest, and how the guest's host key is known before it first answers.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use kiln_core::{Secret, plan::Login};
use kiln_disk::fat::{self, NewFat};
use kiln_io::{fs, keys::KeyPair, ledger::Ledger};

use super::{BootError, LoginKeys};

/// The account kiln works as.
pub(super) const USER: &str = "root";
/// The smallest FAT16 that our writer makes.
const SEED_BYTES: u64 = 16 << 20;

/// Fresh keys for one machine, and the files that carry them.
#[derive(Debug)]
pub(super) struct LoginMaterial {
    pub(super) login: KeyPair,
    pub(super) host: KeyPair,
    pub(super) key_file: PathBuf,
    pub(super) known_hosts: PathBuf,
    /// Names within the build's directory.
    pub(super) credentials: Vec<String>,
    pub(super) seed: Option<String>,
}

/// Makes keys and files; each file stands in the ledger before it exists.
pub(super) fn prepare(ledger: &Ledger, name: &str, build: &str, login: Login) -> Result<LoginMaterial, BootError> {
    restore(ledger, name, build, login, LoginKeys::fresh()?)
}

/// The same files for keys that a guest knows already.
pub(super) fn restore(
    ledger: &Ledger,
    name: &str,
    build: &str,
    login: Login,
    keys: LoginKeys,
) -> Result<LoginMaterial, BootError> {
    let directory = ledger.directory();
    let material = LoginMaterial {
        login: keys.login,
        host: keys.host,
        key_file: directory.join(format!("{name}.key")),
        known_hosts: directory.join(format!("{name}.known_hosts")),
        credentials: Vec::new(),
        seed: None,
    };
    let write = |what: &str, path: &Path, bytes: &[u8]| -> Result<(), BootError> {
        ledger.acquire_file(what, path)?;
        Ok(fs::write_private(path, bytes)?)
    };
    write("key", &material.key_file, material.login.private.reveal().as_bytes())?;
    ledger.acquire_file("known hosts file", &material.known_hosts)?;
    match login {
        Login::Credentials => {
            let mut names = Vec::new();
            for (number, credential) in credentials(&material.login, &material.host).iter().enumerate() {
                let name = format!("{name}.credential-{number}");
                write("credential", &directory.join(&name), credential.reveal().as_bytes())?;
                names.push(name);
            }
            Ok(LoginMaterial { credentials: names, ..material })
        }
        Login::Nocloud => {
            let name = format!("{name}.seed");
            let image = seed(build, &material.login, &material.host)?;
            let path = directory.join(&name);
            write("seed", &path, &image)?;
            Ok(LoginMaterial { seed: Some(name), ..material })
        }
    }
}

/// systemd credentials as SMBIOS strings of type 11: our key for root, and a host key laid down by systemd-tmpfiles.
pub(super) fn credentials(login: &KeyPair, host: &KeyPair) -> [Secret; 2] {
    let line =
        format!("f+~ /etc/ssh/ssh_host_ed25519_key 0600 root root - {}\n", base64(host.private.reveal().as_bytes()));
    let key = base64(format!("{}\n", login.public.line()).as_bytes());
    [
        Secret::new(format!("io.systemd.credential.binary:ssh.authorized_keys.root={key}")),
        Secret::new(format!("io.systemd.credential.binary:tmpfiles.extra={}", base64(line.as_bytes()))),
    ]
}

/// A `NoCloud` seed: a FAT volume labelled CIDATA, made without any other program.
fn seed(build: &str, login: &KeyPair, host: &KeyPair) -> Result<Vec<u8>, BootError> {
    let files = BTreeMap::from([
        ("meta-data".to_owned(), format!("instance-id: kiln-{build}\n").into_bytes()),
        ("user-data".to_owned(), user_data(login, host).into_bytes()),
    ]);
    let new = NewFat { label: "CIDATA".into(), serial: 0x6b69_6c6e, bytes: SEED_BYTES, start: 0, files };
    let mut image = fat::write(&new).map_err(|error| BootError::Seed { reason: error.to_string() })?;
    image.resize(usize::try_from(SEED_BYTES).unwrap_or(usize::MAX), 0);
    Ok(image)
}

/// Only what lets kiln in, and room on the disk: no account, package source or locale of the image is touched.
fn user_data(login: &KeyPair, host: &KeyPair) -> String {
    let private = host.private.reveal().lines().fold(String::new(), |text, line| format!("{text}    {line}\n"));
    format!(
        r#"#cloud-config
users: []
disable_root: false
ssh_authorized_keys:
- {login}
ssh_deletekeys: true
ssh_keys:
  ed25519_private: |
{private}  ed25519_public: {host}
package_update: false
package_upgrade: false
apt:
  preserve_sources_list: true
locale: false
growpart:
  mode: auto
  devices: ["/"]
resize_rootfs: true
"#,
        login = login.public.line(),
        host = host.public.line(),
    )
}

/// RFC 4648, with padding.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let word = group.iter().fold(0_u32, |word, byte| word << 8 | u32::from(*byte)) << (8 * (3 - group.len()));
        for position in 0..4 {
            let index = (word >> (18 - 6 * position)) & 63;
            text.push(if position <= group.len() { char::from(ALPHABET[index as usize]) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encodes_the_vectors_of_the_standard() {
        let pairs = [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
        ];
        for (plain, encoded) in pairs {
            assert_eq!(base64(plain.as_bytes()), encoded);
        }
    }

    #[test]
    fn the_login_s_private_key_never_travels() {
        let (login, host) = (KeyPair::generate("kiln").unwrap(), KeyPair::generate("").unwrap());
        let private = base64(login.private.reveal().as_bytes());
        let sent = credentials(&login, &host).map(|credential| credential.reveal().to_owned()).concat();
        assert!(!sent.contains(&private[..60]) && sent.contains("tmpfiles.extra="));
        let user_data = user_data(&login, &host);
        assert!(!user_data.contains(login.private.reveal().lines().nth(2).unwrap()));
        assert!(user_data.contains(&format!("    {}\n", host.private.reveal().lines().nth(2).unwrap())), "{user_data}");
    }

    #[test]
    fn the_seed_is_a_volume_that_cloud_init_looks_for() {
        let (login, host) = (KeyPair::generate("kiln").unwrap(), KeyPair::generate("").unwrap());
        let image = seed("b-1", &login, &host).unwrap();
        assert_eq!(image.len(), 16 << 20);
        let find = |needle: &[u8]| image.windows(needle.len()).any(|window| window == needle);
        assert!(find(b"CIDATA     ") && find(b"#cloud-config\n") && find(b"instance-id: kiln-b-1\n"));
    }
}
