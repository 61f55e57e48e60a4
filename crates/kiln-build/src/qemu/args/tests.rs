use std::time::Duration;

use kiln_core::plan::{Accelerator, CheckpointKind, Login, QemuMachine};

use super::*;
use crate::{
    base::{DirectKernel, DiskFormat},
    qemu::Calibration,
};

fn spec() -> VmSpec {
    VmSpec {
        name: "vm".into(),
        build: "b-655aa2c0-01020304".into(),
        disk: "/cache/bases/a, b/disk.raw".into(),
        format: DiskFormat::Raw,
        layers: Vec::new(),
        overlay: None,
        size: 4 << 30,
        login: Login::Credentials,
        kernel: Some(DirectKernel {
            kernel: "/cache/vmlinuz".into(),
            initrd: "/cache/initrd".into(),
            command_line: "root=UUID=1 ro".into(),
        }),
        machine: QemuMachine {
            memory: ByteSize::mib(1024),
            cpus: 2,
            disk: ByteSize::gib(4),
            accelerator: Accelerator::Auto,
            checkpoints: CheckpointKind::Memory,
            boot_timeout: Duration::from_mins(5),
            shutdown_timeout: Duration::from_mins(2),
        },
        calibration: Calibration { accelerator: Accel::Tcg, reason: String::new(), slowness: 1.0 },
    }
}

fn files() -> Files {
    Files {
        overlay: "vm.qcow2".into(),
        console: "vm.console".into(),
        qmp: "vm.qmp".into(),
        credentials: vec!["vm.credential-0".into(), "vm.credential-1".into()],
        seed: None,
    }
}

/// One option a line.
fn shown(spec: &VmSpec, files: &Files) -> String {
    let mut text = String::new();
    for arg in qemu_args(spec, files) {
        let arg = arg.into_string().unwrap();
        text.push_str(if arg.starts_with('-') { "\n" } else { " " });
        text.push_str(&arg);
    }
    text.trim_start().to_owned() + "\n"
}

/// Compares with a golden, or writes it when `KILN_UPDATE_GOLDENS` is set.
fn assert_golden(name: &str, shown: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/qemu/args/golden").join(name);
    if std::env::var_os("KILN_UPDATE_GOLDENS").is_some() {
        std::fs::write(&path, shown).unwrap();
    }
    assert_eq!(shown, std::fs::read_to_string(&path).unwrap());
}

#[test]
fn emulated_direct_kernel_with_credentials() {
    assert_golden("emulated.txt", &shown(&spec(), &files()));
}

#[test]
fn kvm_from_firmware_with_a_seed() {
    let mut spec = spec();
    spec.format = DiskFormat::Qcow2;
    spec.kernel = None;
    spec.calibration.accelerator = Accel::Kvm;
    let files = Files { credentials: Vec::new(), seed: Some("vm.seed".into()), ..files() };
    assert_golden("kvm-seed.txt", &shown(&spec, &files));
}

#[test]
fn only_loopback_is_listened_on_and_the_port_is_qemu_s_choice() {
    let shown = shown(&spec(), &files());
    let forwards: Vec<_> = shown.split(',').filter(|part| part.starts_with("hostfwd=")).collect();
    assert_eq!(forwards.len(), 1);
    assert!(forwards[0].starts_with("hostfwd=tcp:127.0.0.1:0-:22"), "{forwards:?}");
}
