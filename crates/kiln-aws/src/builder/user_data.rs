//! What the guest is told at its first boot: kiln's keys, the dead man's timer, and what the template adds.

use std::fmt::Write as _;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use kiln_core::plan::Ec2Machine;
use kiln_io::keys::{KeyPair, PublicKey};

/// Separates the parts; random enough not to stand in any of them.
const BOUNDARY: &str = "==kiln-6f1d0c7a2b9e4583==";

/// As `RunInstances` wants it.
pub(super) fn encoded(machine: &Ec2Machine, host: &KeyPair, login: &PublicKey) -> String {
    STANDARD.encode(text(machine, host, login))
}

/// Several parts for cloud-init, the template's first: what comes later wins.
fn text(machine: &Ec2Machine, host: &KeyPair, login: &PublicKey) -> String {
    let mut text = format!("Content-Type: multipart/mixed; boundary=\"{BOUNDARY}\"\nMIME-Version: 1.0\n\n");
    let parts = machine.user_data.iter().cloned().chain([ours(machine, host, login)]);
    for part in parts {
        // cloud-init goes by the first line, so one type serves for all.
        let _ =
            write!(text, "--{BOUNDARY}\nContent-Type: text/plain; charset=\"utf-8\"\nMIME-Version: 1.0\n\n{part}\n");
    }
    text + &format!("--{BOUNDARY}--\n")
}

/// Only what lets kiln in, room on the disk, and the end: no account, package source or locale of the image is touched.
///
/// The timer is set at every boot and lives in memory, so it is nowhere in the image.
fn ours(machine: &Ec2Machine, host: &KeyPair, login: &PublicKey) -> String {
    let private = host.private.reveal().lines().fold(String::new(), |text, line| format!("{text}    {line}\n"));
    format!(
        r#"#cloud-config
disable_root: false
ssh_authorized_keys:
- {login}
ssh_deletekeys: true
ssh_keys:
  ed25519_private: |
{private}  ed25519_public: {host}
bootcmd:
- [systemd-run, --unit=kiln-dead-man, --on-active={seconds}, systemctl, poweroff]
growpart:
  mode: auto
  devices: ["/"]
resize_rootfs: true
"#,
        login = login.line(),
        host = host.public.line(),
        seconds = machine.lifetime.as_secs(),
    )
}
