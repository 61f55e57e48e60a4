//! The peer: Packer, driven through templates written here.

use std::{fs, path::Path, process::Command};

use serde_json::{Value, json};

use crate::measure::{Timed, timed};

/// SSH details of the machine Packer shall talk to.
pub(crate) struct Target<'a> {
    pub(crate) port: u16,
    pub(crate) user: &'a str,
    pub(crate) key: &'a Path,
}

/// Runs `provisioners` against a machine that is already there.
pub(crate) fn provision(work: &Path, target: &Target<'_>, provisioners: &[Value]) -> Timed {
    build(
        work,
        &json!({
            "type": "null",
            "ssh_host": "127.0.0.1",
            "ssh_port": target.port,
            "ssh_username": target.user,
            "ssh_private_key_file": target.key,
        }),
        provisioners,
    )
}

/// A whole bake from `disk` (qcow2) with `seed` as its `NoCloud` drive. Packer's defaults, but for the accelerator
/// (it would take a `/dev/kvm` that hangs) and a shutdown that unmounts the file system.
pub(crate) fn bake(work: &Path, disk: &Path, seed: &Path, key: &Path, memory: u64, provisioners: &[Value]) -> Timed {
    let output = work.join("packer-output");
    let drive = format!("file={}/bench.qcow2,if=virtio,cache=writeback,discard=unmap,format=qcow2", output.display());
    let seed = format!("file={},if=virtio,format=raw,readonly=on", seed.display());
    build(
        work,
        &json!({
            "type": "qemu",
            "accelerator": "tcg",
            "iso_url": disk,
            "iso_checksum": "none",
            "disk_image": true,
            "disk_size": "4096M",
            "format": "qcow2",
            "disk_compression": true,
            "memory": memory,
            "cpus": 2,
            "headless": true,
            "output_directory": output,
            "vm_name": "bench.qcow2",
            "qemuargs": [["-cpu", "max"], ["-drive", drive], ["-drive", seed]],
            "ssh_username": "root",
            "ssh_private_key_file": key,
            "ssh_timeout": "15m",
            "ssh_handshake_attempts": 1000,
            "shutdown_command": "poweroff",
        }),
        provisioners,
    )
}

fn build(work: &Path, builder: &Value, provisioners: &[Value]) -> Timed {
    let template = work.join("packer.json");
    let text = json!({ "builders": [builder], "provisioners": provisioners });
    fs::write(&template, text.to_string()).expect("write the Packer template");
    timed(
        Command::new("packer")
            .arg("build")
            .arg("-color=false")
            .arg(&template)
            .env("CHECKPOINT_DISABLE", "1")
            .env("PACKER_CACHE_DIR", work.join("packer-cache"))
            .env("HOME", work),
    )
}
