//! Real guests for the fake's instances: an OpenSSH server in namespaces of its own, with the keys that its user data and its key
//! pair give it, and a disk of what was in it when it powered off. One of an AMI of ours has what is on that AMI's disk.

use std::{
    fs::{self, File},
    net::TcpListener,
    os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, Weak},
    thread,
};

use kiln_aws_tests::{Fake, Launch, Machines};
use kiln_io::time::done_within;

/// Every instance is the same guest; only one is up at a time.
#[derive(Debug)]
pub(crate) struct Guest {
    fake: Weak<Fake>,
    pub(crate) port: u16,
    directory: tempfile::TempDir,
    child: Arc<Mutex<Option<Child>>>,
    /// What was said to it at its start.
    pub(crate) launches: Mutex<Vec<Launch>>,
}

impl Guest {
    pub(crate) fn of(fake: &Arc<Fake>) -> Arc<Self> {
        let directory = tempfile::Builder::new().prefix("kiln-guest-").tempdir().unwrap();
        let port = TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port();
        fs::create_dir(directory.path().join("mnt")).unwrap();
        system(&directory.path().join("root"));
        let guest =
            Self { fake: Arc::downgrade(fake), port, directory, child: Arc::default(), launches: Mutex::default() };
        let guest = Arc::new(guest);
        fake.machines(guest.clone());
        guest
    }

    /// The guest's disk as it is now: its boot sector and one file system.
    pub(crate) fn image(&self) -> PathBuf {
        let disk = self.directory.path().join("disk.raw");
        let _ = fs::remove_file(&disk);
        File::create(&disk).unwrap().set_len(32 << 20).unwrap();
        let mut mke2fs = Command::new("mke2fs");
        // The file system of a base keeps its identity, and the time when it was made.
        mke2fs.env("E2FSPROGS_FAKE_TIME", "1750000000");
        let (id, seed) = ("6b696c6e-0000-4000-8000-000000000001", "hash_seed=6b696c6e-0000-4000-8000-000000000002");
        mke2fs.args(["-q", "-F", "-t", "ext4", "-U", id, "-E", seed, "-d"]);
        let made = mke2fs.arg(self.directory.path().join("root")).arg(&disk).status().unwrap();
        assert!(made.success());
        // Something that a BIOS would start.
        File::options().write(true).open(&disk).unwrap().write_all_at(&[0xeb], 0).unwrap();
        disk
    }

    /// Where a file of its `/srv` is.
    pub(crate) fn written(&self, name: &str) -> PathBuf {
        self.directory.path().join("root/srv").join(name)
    }

    /// The same of one that started from an AMI of ours.
    pub(crate) fn of_instance(&self, instance: &str, name: &str) -> PathBuf {
        self.directory.path().join(instance).join("srv").join(name)
    }

    /// What the guest has as its `/srv`: a directory that its disk is made of later, or, where it starts from an AMI of ours, what is there
    /// on the snapshot.
    fn srv(&self, launch: &Launch) -> PathBuf {
        let fake = self.fake.upgrade().unwrap();
        let Some(snapshot) = fake.root_snapshot(&launch.region, Fake::ACCOUNT, &launch.image) else {
            return self.directory.path().join("root/srv");
        };
        let (disk, to) = (self.directory.path().join("ami.raw"), self.directory.path().join(&launch.instance));
        let file = File::create(&disk).unwrap();
        fake.write_disk(&launch.region, Fake::ACCOUNT, &snapshot, &file).unwrap();
        file.set_len(file.metadata().unwrap().len().next_multiple_of(1 << 20)).unwrap();
        fs::create_dir(&to).unwrap();
        let request = format!("rdump /srv {}", to.display());
        let read = Command::new("debugfs").args(["-R", &request]).arg(&disk).output().unwrap();
        assert!(to.join("srv").is_dir(), "the AMI has no file system: {read:?}");
        to.join("srv")
    }

    fn end(&self) {
        if let Some(child) = self.child.lock().unwrap().as_mut() {
            let _ = child.kill();
        }
    }
}

impl Machines for Guest {
    fn start(&self, launch: &Launch) -> Option<String> {
        self.launches.lock().unwrap().push(launch.clone());
        let at = |name: &str| self.directory.path().join(name);
        let told = String::from_utf8(launch.user_data.clone()).unwrap();
        fs::write(at("host_key"), host_key(&told)).unwrap();
        fs::set_permissions(at("host_key"), fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(at("authorized_keys"), format!("{}\n", launch.public_key.as_deref().unwrap())).unwrap();
        let mut unshare = Command::new("unshare");
        if at("mnt").metadata().unwrap().uid() != 0 {
            unshare.args(["--map-root-user", "--map-auto"]);
        }
        unshare.args(["--mount", "--pid", "--fork", "--kill-child", "--uts", "--ipc", "sh"]);
        unshare.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/flows/guest/guest.sh"));
        unshare.arg(self.directory.path()).arg(self.port.to_string()).arg(self.srv(launch));
        let log = File::create(at("log")).unwrap();
        let child = unshare.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap();
        *self.child.lock().unwrap() = Some(child);
        // EC2 notices by itself when a guest powers off.
        let (fake, child) = (self.fake.clone(), self.child.clone());
        let (region, instance) = (launch.region.clone(), launch.instance.clone());
        thread::spawn(move || {
            let over =
                || Ok::<_, ()>(child.lock().unwrap().as_mut().is_none_or(|child| child.try_wait().unwrap().is_some()));
            let ended = done_within(std::time::Duration::from_mins(10), over);
            if let (Ok(true), Some(fake)) = (ended, fake.upgrade()) {
                fake.power_off(Fake::ACCOUNT, &region, &instance);
            }
        });
        Some("127.0.0.1".to_owned())
    }

    fn stop(&self, _: &str) {
        self.end();
    }

    fn terminate(&self, _: &str) {
        self.end();
    }

    fn console(&self, _: &str) -> String {
        fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }

    fn disk(&self, _: &str) -> Option<PathBuf> {
        Some(self.image())
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.end();
    }
}

/// The private host key in the user data, as cloud-init would find it.
fn host_key(told: &str) -> String {
    let after = told.split("ed25519_private: |\n").nth(1).expect("a host key in the user data");
    let lines = after.lines().take_while(|line| line.starts_with("    "));
    lines.flat_map(|line| [line.trim_start(), "\n"]).collect()
}

/// A system that is as clean as a bake leaves it.
fn system(root: &Path) {
    let files = [
        ("etc/passwd", "root:x:0:0:root:/root:/bin/bash\n"),
        ("etc/shadow", "root:*:20000:0:99999:7:::\n"),
        ("etc/machine-id", ""),
        ("etc/hosts", "127.0.0.1 localhost\n"),
        ("etc/fstab", "UUID=1 / ext4 defaults 0 1\n"),
        ("etc/ssh/sshd_config", "PasswordAuthentication no\n"),
    ];
    for (path, text) in files {
        fs::create_dir_all(root.join(path).parent().unwrap()).unwrap();
        fs::write(root.join(path), text).unwrap();
    }
    for path in ["root", "home", "tmp", "var/tmp", "var/lib/dbus", "var/lib/systemd", "srv"] {
        fs::create_dir_all(root.join(path)).unwrap();
    }
    symlink("/etc/machine-id", root.join("var/lib/dbus/machine-id")).unwrap();
    for path in ["tmp", "var/tmp"] {
        fs::set_permissions(root.join(path), fs::Permissions::from_mode(0o1777)).unwrap();
    }
}
