//! The command line of a machine, as a pure function.

use std::{ffi::OsString, path::Path};

use kiln_core::{
    ByteSize,
    plan::{Login, QemuMachine},
};
use serde_json::{Value, json};

use super::{Accel, Calibration, VmSpec};
use crate::base::{DirectKernel, PreparedBase};

/// Names of a machine's files within the build's directory, which QEMU runs in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Files {
    pub overlay: String,
    pub console: String,
    pub qmp: String,
    /// One file a credential string.
    pub credentials: Vec<String>,
    pub seed: Option<String>,
}

/// Translated code of a whole system fits; QEMU's default drops and translates again.
const TRANSLATION_CACHE_MIB: u32 = 512;

/// The whole command line without the program. Secrets are not on it: they are in files named here.
pub fn qemu_args(spec: &VmSpec, files: &Files) -> Vec<OsString> {
    let mut args = Args(Vec::new());
    args.option("-name", marker(&spec.build, &spec.name));
    args.flags(&["-nodefaults", "-no-user-config"]);
    args.option("-display", "none");
    // No QEMU monitor, no shell, no new privileges, whatever a guest does to it.
    args.option("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny");
    args.option("-machine", "q35,usb=off,vmport=off,hpet=off,graphics=off");
    match spec.calibration.accelerator {
        Accel::Kvm => {
            args.option("-accel", "kvm");
            args.option("-cpu", "host");
        }
        Accel::Tcg => {
            args.option("-accel", format!("tcg,thread=multi,tb-size={TRANSLATION_CACHE_MIB}"));
            // Five-level page tables only make every look-up longer.
            args.option("-cpu", "max,la57=off");
        }
    }
    args.option("-smp", spec.machine.cpus.to_string());
    args.option("-m", format!("{}M", mebibytes(spec.machine.memory)));
    args.option("-object", "rng-random,id=rng0,filename=/dev/urandom");
    args.option("-device", "virtio-rng-pci,rng=rng0");
    args.option("-blockdev", disk(spec, &files.overlay).to_string());
    // A host disk that is full stops the machine; the guest never sees an error that did not happen to it.
    args.option("-device", "virtio-blk-pci,drive=disk,bootindex=1,werror=stop,rerror=stop");
    if let Some(seed) = &files.seed {
        let file = json!({"driver": "file", "filename": seed, "read-only": true});
        let seed = json!({"node-name": "seed", "driver": "raw", "read-only": true, "file": file});
        args.option("-blockdev", seed.to_string());
        args.option("-device", "virtio-blk-pci,drive=seed");
    }
    args.option("-netdev", "user,id=net0,ipv6=off,hostfwd=tcp:127.0.0.1:0-:22");
    args.option("-device", "virtio-net-pci,netdev=net0,romfile=");
    args.option("-chardev", format!("file,id=console,path={},append=on", files.console));
    args.option("-serial", "chardev:console");
    args.option("-chardev", format!("socket,id=qmp,path={},server=on,wait=off", files.qmp));
    args.option("-mon", "chardev=qmp,mode=control");
    for credential in &files.credentials {
        args.option("-smbios", format!("type=11,path={credential}"));
    }
    if let Some(kernel) = &spec.kernel {
        args.option("-kernel", &kernel.kernel);
        args.option("-initrd", &kernel.initrd);
        args.option("-append", format!("{} console=ttyS0 cloud-init=disabled", kernel.command_line));
    }
    args.0
}

impl VmSpec {
    /// The machine of a bake, on a base.
    pub fn on(base: &PreparedBase, machine: &QemuMachine, calibration: &Calibration, build: &str) -> Self {
        Self {
            name: "vm".to_owned(),
            build: build.to_owned(),
            disk: base.disk.clone(),
            format: base.format,
            layers: Vec::new(),
            overlay: None,
            size: machine.disk.bytes(),
            login: base.login,
            kernel: base.kernel.clone(),
            machine: machine.clone(),
            calibration: calibration.clone(),
        }
    }

    /// The machine as QEMU is told, without the places of its files: two machines of one shape can take over from each
    /// other.
    pub(crate) fn shape(&self) -> String {
        let credentials = self.login == Login::Credentials;
        let spec = Self {
            name: "vm".to_owned(),
            build: String::new(),
            disk: "base".into(),
            layers: Vec::new(),
            overlay: None,
            kernel: self.kernel.clone().map(|kernel| DirectKernel {
                kernel: "kernel".into(),
                initrd: "initrd".into(),
                ..kernel
            }),
            ..self.clone()
        };
        let files = Files {
            overlay: "overlay".into(),
            console: "console".into(),
            qmp: "qmp".into(),
            credentials: if credentials { vec!["0".into(), "1".into()] } else { Vec::new() },
            seed: (!credentials).then(|| "seed".into()),
        };
        let args = qemu_args(&spec, &files);
        args.iter().map(|arg| arg.to_string_lossy()).collect::<Vec<_>>().join("\n")
    }
}

/// The argument that no other process has.
pub(super) fn marker(build: &str, name: &str) -> String {
    format!("kiln-{build}-{name}")
}

/// The overlay on its base, every format said: a guest that writes a qcow2 header into a raw disk gains nothing.
fn disk(spec: &VmSpec, overlay: &str) -> Value {
    let file = |path: &Path, read_only: bool| json!({"driver": "file", "filename": path, "read-only": read_only});
    let mut backing = json!({
        "driver": spec.format.driver(),
        "read-only": true,
        "file": file(&spec.disk, true),
    });
    if spec.format == crate::base::DiskFormat::Qcow2 {
        backing["backing"] = Value::Null;
    }
    for layer in &spec.layers {
        backing = json!({"driver": "qcow2", "read-only": true, "file": file(layer, true), "backing": backing});
    }
    let mut disk = self::overlay("disk", overlay);
    disk["backing"] = backing;
    disk
}

/// What a machine writes to.
pub(super) fn overlay(name: &str, file: &str) -> Value {
    json!({
        "node-name": name,
        "driver": "qcow2",
        "discard": "unmap",
        "detect-zeroes": "unmap",
        // The overlay is worth nothing after a crash of the host, so nobody waits for its disk.
        "cache": {"direct": false, "no-flush": true},
        "file": {"driver": "file", "filename": file, "discard": "unmap", "cache": {"direct": false, "no-flush": true}},
    })
}

fn mebibytes(size: ByteSize) -> u64 {
    size.bytes().div_ceil(1 << 20)
}

struct Args(Vec<OsString>);

impl Args {
    fn option(&mut self, name: &str, value: impl Into<OsString>) {
        self.0.push(name.into());
        self.0.push(value.into());
    }

    fn flags(&mut self, names: &[&str]) {
        self.0.extend(names.iter().map(Into::into));
    }
}

#[cfg(test)]
mod tests;
