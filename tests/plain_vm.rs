//! A virtual machine as a user of the image starts it: stock `qemu-system-x86_64`, a `NoCloud` seed, the stock `ssh` client.
//! Nothing of kiln takes part.

use std::{
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

/// A running machine; it is killed when dropped.
#[derive(Debug)]
pub struct PlainVm {
    child: Child,
    work: PathBuf,
    ssh: u16,
    http: u16,
}

/// How the machine's firmware starts the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Firmware {
    Bios,
    Uefi,
}

impl PlainVm {
    /// Boots a throw-away overlay of `disk` with a fresh instance id and login key, all its files beneath `work`.
    pub fn boot(disk: &Path, work: &Path, instance: &str, firmware: Firmware) -> Self {
        let vm = Self::start(disk, work, instance, firmware);
        vm.wait("no login", || vm.ssh("true").status.success());
        vm
    }

    fn start(disk: &Path, work: &Path, instance: &str, firmware: Firmware) -> Self {
        fs::create_dir_all(work).expect("make the machine's directory");
        let overlay = work.join("overlay.qcow2");
        must(
            Command::new("qemu-img").args(["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b"]).arg(disk).arg(&overlay),
        );
        must(Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(work.join("key")));
        let seed = seed(work, instance);
        let (ssh, http) = (free_port(), free_port());
        let mut command = Command::new("qemu-system-x86_64");
        command
            .args([
                "-accel",
                "tcg,thread=multi",
                "-cpu",
                "max,la57=off",
                "-smp",
                "2",
                "-m",
                "1024",
                "-nographic",
                "-no-reboot",
            ])
            .args(["-drive", &format!("file={},format=qcow2,if=virtio,cache=unsafe", overlay.display())])
            .args(["-drive", &format!("file={},format=raw,if=virtio,readonly=on", seed.display())])
            .args([
                "-nic",
                &format!("user,model=virtio-net-pci,hostfwd=tcp:127.0.0.1:{ssh}-:22,hostfwd=tcp:127.0.0.1:{http}-:80"),
            ]);
        if firmware == Firmware::Uefi {
            command.args(["-bios", "/usr/share/ovmf/OVMF.fd"]);
        }
        let console = fs::File::create(work.join("console.log")).expect("make the console log");
        let child = command
            .stdin(Stdio::null())
            .stdout(console.try_clone().expect("share the console log"))
            .stderr(console)
            .spawn()
            .expect("start qemu-system-x86_64");
        Self { child, work: work.to_owned(), ssh, http }
    }

    /// Runs `script` as root through the stock `ssh` client.
    pub fn ssh(&self, script: &str) -> Output {
        self.ssh_with(&self.work.join("key"), script)
    }

    /// The same with another key than the machine's owner has.
    pub fn ssh_with(&self, key: &Path, script: &str) -> Output {
        Command::new("ssh")
            .args(["-o", "IdentitiesOnly=yes", "-i"])
            .arg(key)
            .args(["-p", &self.ssh.to_string(), "-o", "StrictHostKeyChecking=no", "-o", "BatchMode=yes"])
            .args(["-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR", "-o", "ConnectTimeout=10"])
            .args(["root@127.0.0.1", script])
            .stdin(Stdio::null())
            .output()
            .expect("run ssh")
    }

    /// The output of a script that must succeed.
    pub fn read(&self, script: &str) -> String {
        let output = self.ssh(script);
        assert!(output.status.success(), "`{script}` failed in the machine: {output:?}");
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// The address of the machine's port 80 on this one.
    pub fn web(&self) -> String {
        format!("http://127.0.0.1:{}/", self.http)
    }

    /// What the machine wrote to its serial console.
    pub fn console(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.work.join("console.log")).unwrap_or_default()).into_owned()
    }

    fn wait(&self, missing: &str, there: impl Fn() -> bool) {
        // Generous on purpose: an emulated machine with cloud-init takes about a minute on an idle host.
        let deadline = Instant::now() + Duration::from_mins(15);
        while !there() {
            assert!(
                Instant::now() < deadline,
                "{missing} within 15 minutes; the console ends with:\n{}",
                tail(&self.console())
            );
            pause(Duration::from_secs(1));
        }
    }
}

impl Drop for PlainVm {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A FAT volume labelled `CIDATA`, made with stock tools.
fn seed(work: &Path, instance: &str) -> PathBuf {
    let key = fs::read_to_string(work.join("key.pub")).expect("read the public key");
    let user_data =
        format!("#cloud-config\ndisable_root: false\nusers:\n  - name: root\n    ssh_authorized_keys:\n      - {key}");
    fs::write(work.join("user-data"), user_data).expect("write user-data");
    fs::write(work.join("meta-data"), format!("instance-id: {instance}\nlocal-hostname: {instance}\n"))
        .expect("write meta-data");
    let path = work.join("seed.img");
    must(Command::new("mkfs.vfat").args(["-C", "-n", "CIDATA"]).arg(&path).arg("512"));
    must(Command::new("mcopy").arg("-i").arg(&path).arg(work.join("user-data")).arg(work.join("meta-data")).arg("::"));
    path
}

/// A port nobody listens on. It may be taken before it is used; the machine then fails to start and says so.
fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind a free port");
    listener.local_addr().expect("ask for the port").port()
}

fn must(command: &mut Command) {
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("cannot run {command:?}: {error}; run `tests/run` once, it installs it"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn tail(text: &str) -> String {
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(40)..].join("\n")
}

#[expect(clippy::disallowed_methods, reason = "tests wait for a machine they did not build")]
fn pause(duration: Duration) {
    thread::sleep(duration);
}
