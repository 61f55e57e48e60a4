//! The Debian base on real parts: built twice it is the same bytes, outside judges find nothing wrong with it, and it boots from
//! its own boot blocks under a BIOS and under UEFI. Needs mmdebstrap, QEMU, OVMF, e2fsprogs, dosfstools, fdisk and ssh.

#![expect(clippy::unwrap_used, reason = "in a test a panic is the report")]

use std::{
    fs,
    net::TcpListener,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use kiln_build::base::{BaseContext, PreparedBase, grow_script, prepare};
use kiln_core::{
    event::{Event, Events},
    plan::{Base, DebianBase},
};
use kiln_io::{
    dirs::Dirs,
    process::{Limits, Spec, Stdin, run, run_to_end, spawn},
    time::{Attempt, Policy, SystemClock, poll_until},
};
use tokio_util::sync::CancellationToken;

#[derive(Debug)]
struct Silent;

impl Events for Silent {
    fn emit(&self, _: Event) {}
}

async fn base(suite: &str, root: &Path) -> PreparedBase {
    let context = BaseContext {
        dirs: Dirs { cache: root.join("cache"), state: root.join("state"), data: root.join("data") },
        events: Arc::new(Silent),
        clock: Arc::new(SystemClock::new()),
        images: None,
        cancel: CancellationToken::new(),
    };
    let base = Base::Debian(DebianBase { suite: suite.into(), mirror: None, packages: Vec::new() });
    prepare(&base, &context).await.unwrap()
}

/// Runs a program that must succeed; gives its stdout.
async fn sh(program: &str, args: &[&str]) -> String {
    let finished = run(&Spec::new(program).args(args), &Limits::default(), &mut |_, _| {}).await;
    String::from_utf8(finished.unwrap().stdout).unwrap()
}

/// A part of the disk as a file of its own, for tools that know no partitions.
fn cut(disk: &Path, from: u64, to: u64, path: &Path) {
    let (disk, part) = (fs::File::open(disk).unwrap(), fs::File::create(path).unwrap());
    part.set_len(to - from).unwrap();
    let mut block = vec![0; 1 << 20];
    for at in (from..to).step_by(1 << 20) {
        disk.read_exact_at(&mut block, at).unwrap();
        if block.iter().any(|byte| *byte != 0) {
            part.write_all_at(&block, at - from).unwrap();
        }
    }
}

#[derive(Debug, Clone, Copy)]
enum Firmware {
    Bios,
    Uefi,
}

/// Boots an overlay on the base from its own boot blocks and runs `script` as root over SSH.
async fn boot(base: &PreparedBase, firmware: Firmware, directory: &Path, script: &str) -> String {
    let at = |name: &str| directory.join(name);
    let text = |path: PathBuf| path.to_str().unwrap().to_owned();
    fs::create_dir_all(directory).unwrap();
    let disk = base.disk.to_str().unwrap();
    sh("qemu-img", &["create", "-q", "-f", "qcow2", "-b", disk, "-F", "raw", &text(at("disk")), "20G"]).await;
    for key in ["login", "host"] {
        sh("ssh-keygen", &["-q", "-t", "ed25519", "-N", "", "-C", "", "-f", &text(at(key))]).await;
    }
    let encoded = |text: String| async move {
        let spec = Spec::new("base64").arg("-w0").stdin(Stdin::Bytes(text.into_bytes()));
        String::from_utf8(run(&spec, &Limits::default(), &mut |_, _| {}).await.unwrap().stdout).unwrap()
    };
    let login = encoded(fs::read_to_string(at("login.pub")).unwrap()).await;
    let host = encoded(fs::read_to_string(at("host")).unwrap()).await;
    let host = encoded(format!("f+~ /etc/ssh/ssh_host_ed25519_key 0600 root root - {host}\n")).await;
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let public = fs::read_to_string(at("host.pub")).unwrap();
    fs::write(at("known"), format!("[127.0.0.1]:{port} {public}")).unwrap();

    let mut qemu = Spec::new("qemu-system-x86_64").args(["-accel", "tcg,thread=multi", "-smp", "2", "-m", "1024"]);
    qemu = qemu.args(["-display", "none", "-monitor", "none", "-serial", &format!("file:{}", text(at("serial")))]);
    qemu = qemu.args(["-netdev", &format!("user,id=n,hostfwd=tcp:127.0.0.1:{port}-:22")]);
    qemu = qemu.args(["-device", "virtio-net-pci,netdev=n,romfile=", "-device", "virtio-rng-pci"]);
    qemu = qemu.args(["-drive", &format!("file={},format=qcow2,if=virtio,cache=unsafe", text(at("disk")))]);
    for (name, value) in [("ssh.authorized_keys.root", login), ("tmpfiles.extra", host)] {
        qemu = qemu.args(["-smbios", &format!("type=11,value=io.systemd.credential.binary:{name}={value}")]);
    }
    if let Firmware::Uefi = firmware {
        fs::copy("/usr/share/OVMF/OVMF_VARS_4M.fd", at("vars")).unwrap();
        let code = "if=pflash,format=raw,readonly=on,file=/usr/share/OVMF/OVMF_CODE_4M.fd".to_owned();
        qemu = qemu.args(["-drive", &code, "-drive", &format!("if=pflash,format=raw,file={}", text(at("vars")))]);
    }
    let mut machine = spawn(&qemu).await.unwrap();
    let ssh = |command: &str| {
        Spec::new("ssh")
            .args(["-o", "BatchMode=yes", "-o", "ConnectTimeout=20", "-o", "StrictHostKeyChecking=yes"])
            .args(["-o", &format!("UserKnownHostsFile={}", text(at("known"))), "-i", &text(at("login"))])
            .args(["-p", &port.to_string(), "root@127.0.0.1", command])
    };
    let policy =
        Policy { first: Duration::from_millis(500), max: Duration::from_secs(2), deadline: Duration::from_mins(15) };
    let knock = || async {
        let knocked = run_to_end(&ssh("true"), &Limits::default(), &mut |_, _| {}).await.unwrap();
        if knocked.status.success() { Attempt::Done(()) } else { Attempt::Again(knocked.stderr) }
    };
    let reached = poll_until(&SystemClock::new(), policy, &CancellationToken::new(), knock).await;
    if let Err(reason) = reached {
        let serial = String::from_utf8_lossy(&fs::read(at("serial")).unwrap_or_default()).into_owned();
        let tail: Vec<_> = serial.lines().rev().take(20).collect();
        panic!("{firmware:?}: no SSH: {reason:?}; the console, last line first: {tail:#?}");
    }
    let script = ssh("sh -s").stdin(Stdin::Bytes(script.as_bytes().to_vec()));
    let finished = run(&script, &Limits::default(), &mut |_, _| {}).await.unwrap();
    machine.end().await;
    String::from_utf8(finished.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn built_twice_it_is_the_same_bytes_and_boots_from_either_firmware() {
    let directory = tempfile::tempdir().unwrap();
    let first = base("bookworm", &directory.path().join("first")).await;
    let second = base("bookworm", &directory.path().join("second")).await;
    assert_eq!(first.record, second.record, "two builds of the same packages differ");
    sh("cmp", &[first.disk.to_str().unwrap(), second.disk.to_str().unwrap()]).await;
    fs::remove_file(&second.disk).unwrap();

    sh("sfdisk", &["--verify", first.disk.to_str().unwrap()]).await;
    let mib = 1 << 20;
    let part = directory.path().join("part");
    cut(&first.disk, 2 * mib, 64 * mib, &part);
    sh("fsck.fat", &["-n", part.to_str().unwrap()]).await;
    cut(&first.disk, 64 * mib, first.size - mib, &part);
    sh("e2fsck", &["-fn", part.to_str().unwrap()]).await;

    let script = format!(
        "{}\necho failed: $(systemctl --failed --no-legend)\necho firmware: $(ls -d /sys/firmware/efi 2>/dev/null)\n\
         wc -c </etc/machine-id\nupdate-grub 2>/dev/null\ngrep -c root=UUID= /boot/grub/grub.cfg\n",
        // In a shell of its own: the script may end early.
        format_args!("(\n{}\n)", grow_script()),
    );
    let bios = boot(&first, Firmware::Bios, &directory.path().join("bios"), &script).await;
    assert_eq!(bios, "/ grew from 2048 MiB to 20415 MiB\nfailed:\nfirmware:\n33\n3\n");
    let uefi = boot(&first, Firmware::Uefi, &directory.path().join("uefi"), &script).await;
    assert_eq!(uefi, "/ grew from 2048 MiB to 20415 MiB\nfailed:\nfirmware: /sys/firmware/efi\n33\n3\n");
}
