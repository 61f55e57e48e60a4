//! Hygiene on real ext4 file systems made by `mke2fs -d`: each dirt is caught under its id, a clean disk has none.
#![expect(clippy::disallowed_methods, reason = "mke2fs and debugfs are programs, and tests have no other door to them")]
#![expect(clippy::unwrap_used, reason = "in a test a panic is the report")]

use std::{
    fs::{self, File, Permissions},
    os::unix::fs::{FileExt, PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use kiln_core::plan::Waiver;
use kiln_disk::{
    DiskFile, FileBytes, GuestDisk, ReadAt,
    hygiene::{Asked, Finding, Level, free_space, unclean_file_systems, verify, verify_disk, waive},
    residue::{Needle, Scan},
    seal::{Options, seal},
};

const PEM: &str = "-----BEGIN OPENSSH PRIVATE KEY-----\n\
    b3BlbnNzaC1rZXktdjEAAAAABG5vbmUAAAAEbm9uZQAAAAAAAAABAAAAMwAAAAtzc2gtZW\n\
    QyNTUxOQAAACB0aGlzIGlzIG5vIGtleSBhdCBhbGwgYnV0IGxvb2tzIGxpa2Ugb25lAA==\n\
    -----END OPENSSH PRIVATE KEY-----\n";

/// A small root file system in a directory, and the disk made of it.
struct Disk {
    place: tempfile::TempDir,
}

impl Disk {
    /// A system that `clean` would leave behind.
    fn clean() -> Self {
        let disk = Self { place: tempfile::tempdir().unwrap() };
        for (path, text) in [
            ("etc/passwd", "root:x:0:0:root:/root:/bin/bash\nwww-data:x:33:33::/var/www:/usr/sbin/nologin\n"),
            ("etc/shadow", "root:*:20000:0:99999:7:::\nwww-data:!*:20000::::::\n"),
            ("etc/machine-id", ""),
            ("etc/hosts", "127.0.0.1 localhost\n"),
            ("etc/fstab", "UUID=1 / ext4 defaults 0 1\n"),
            ("etc/ssh/sshd_config", "PasswordAuthentication no\n"),
            ("etc/ssl/certs/ca.crt", "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"),
            (
                "usr/bin/ssh-keygen",
                "#!/bin/sh\n# -----BEGIN OPENSSH PRIVATE KEY----- is what a key starts with, and more text\n",
            ),
            ("var/log/nginx/error.log", ""),
            ("var/log/faillog", ""),
            ("var/lib/apt/lists/lock", ""),
            ("var/cache/apt/archives/lock", ""),
            ("var/lib/dhcp/dhclient.leases", ""),
            ("var/lib/cloud/scripts/per-boot/mine.sh", "#!/bin/sh\n"),
        ] {
            disk.write(path, text);
        }
        for path in ["root", "home", "tmp", "var/tmp", "var/lib/dbus", "var/lib/systemd", "var/lib/cloud/seed"] {
            fs::create_dir_all(disk.path(path)).unwrap();
        }
        symlink("/etc/machine-id", disk.path("var/lib/dbus/machine-id")).unwrap();
        for path in ["tmp", "var/tmp"] {
            fs::set_permissions(disk.path(path), Permissions::from_mode(0o1777)).unwrap();
        }
        disk
    }

    fn path(&self, path: &str) -> PathBuf {
        self.place.path().join("root").join(path)
    }

    fn write(&self, path: &str, text: &str) {
        fs::create_dir_all(self.path(path).parent().unwrap()).unwrap();
        fs::write(self.path(path), text).unwrap();
    }

    /// The raw disk: one ext4 file system, 32 MiB.
    fn raw(&self) -> PathBuf {
        let raw = self.place.path().join("disk.raw");
        let _ = fs::remove_file(&raw);
        File::create(&raw).unwrap().set_len(32 << 20).unwrap();
        let root = self.place.path().join("root");
        run("mke2fs", &["-q", "-t", "ext4", "-F", "-d", root.to_str().unwrap(), raw.to_str().unwrap()]);
        raw
    }
}

fn run(program: &str, arguments: &[&str]) {
    // File system tools stand in /sbin, which not everybody has on the path.
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let output = Command::new(program).args(arguments).env("PATH", path).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(output.status.success(), "{program} {arguments:?}: {output:?}");
}

fn open(raw: &Path) -> Arc<dyn ReadAt> {
    Arc::new(FileBytes::new(File::open(raw).unwrap()).unwrap())
}

fn verified(raw: &Path) -> Vec<Finding> {
    let scan = Scan::new(&[]);
    let asked = Asked { scan: Some(&scan), build_host_name: Some("kiln-build"), build_users: &["packer"] };
    verify_disk(&open(raw), &asked)
}

#[test]
fn finds_nothing_on_a_clean_disk() {
    assert_eq!(verified(&Disk::clean().raw()), []);
}

#[test]
fn catches_each_dirt_under_its_id_and_nothing_else() {
    let key_line = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIA someone\n";
    let dirt: [(&str, &str, &str, Level); 42] = [
        ("H01", "etc/machine-id", "0123456789abcdef0123456789abcdef\n", Level::Fail),
        ("H02", "etc/ssh/ssh_host_ed25519_key", PEM, Level::Fail),
        ("H02", "etc/ssh/ssh_host_rsa_key.pub", "ssh-rsa AAAA\n", Level::Fail),
        ("H03", "root/.ssh/authorized_keys", key_line, Level::Fail),
        ("H03", "home/debian/.ssh/authorized_keys", key_line, Level::Fail),
        ("H03", "root/.ssh/known_hosts", "host ssh-rsa AAAA\n", Level::Fail),
        ("H04", "srv/app/server.key", PEM, Level::Fail),
        ("H04", "root/.aws/credentials", "[default]\n", Level::Fail),
        ("H04", "usr/share/doc/example/key.pem", PEM, Level::Warn),
        ("H05", "etc/shadow", "root::20000:0:99999:7:::\n", Level::Fail),
        ("H05", "etc/shadow", "root:$y$j9T$abc:20000:0:99999:7:::\n", Level::Fail),
        ("H08", "etc/passwd", "root:x:0:0::/root:/bin/sh\ntoor:x:0:0::/root:/bin/sh\n", Level::Fail),
        ("H09", "etc/sudoers.d/90-cloud-init-users", "debian ALL=(ALL) NOPASSWD:ALL\n", Level::Fail),
        ("H09", "etc/passwd", "root:x:0:0::/root:/bin/sh\npacker:x:1000:1000::/home/p:/bin/sh\n", Level::Fail),
        ("H10", "root/.bash_history", "mysql -psecret\n", Level::Fail),
        ("H10", "var/lib/postgresql/.psql_history", "\\password\n", Level::Fail),
        ("H11", "var/lib/cloud/instances/i-1/user-data.txt", "#cloud-config\n", Level::Fail),
        ("H11", "var/lib/cloud/seed/nocloud/meta-data", "instance-id: 1\n", Level::Fail),
        ("H12", "var/log/cloud-init-output.log", "", Level::Fail),
        ("H12", "etc/ssh/sshd_config.d/50-cloud-init.conf", "PasswordAuthentication yes\n", Level::Fail),
        ("H12", "etc/fstab", "/dev/sdb none swap sw,comment=cloudconfig 0 0\n", Level::Fail),
        ("H13", "etc/cloud/cloud-init.disabled", "", Level::Fail),
        ("H14", "var/lib/systemd/random-seed", "seed", Level::Fail),
        ("H15", "var/lib/systemd/credential.secret", "secret", Level::Fail),
        ("H16", "etc/hostname", "kiln-build\n", Level::Warn),
        ("H16", "etc/hosts", "127.0.1.1 kiln-build\n", Level::Warn),
        ("H18", "var/log/wtmp", "x", Level::Fail),
        ("H18", "var/log/dpkg.log.1", "", Level::Fail),
        ("H18", "var/log/journal/0123/system.journal", "LPKSHHRH", Level::Fail),
        ("H18", "var/log/app.log", "a line that is longer than fifty bytes, so that it tells\n", Level::Warn),
        ("H19", "etc/udev/rules.d/70-persistent-net.rules", "", Level::Fail),
        ("H20", "var/lib/dhcp/dhclient.eth0.leases", "lease {}\n", Level::Fail),
        ("H20", "var/lib/NetworkManager/internal-1-eth0.lease", "ADDRESS=10.0.2.15\n", Level::Fail),
        ("H21", "var/cache/apt/archives/nginx_1_amd64.deb", "!<arch>\n", Level::Fail),
        ("H21", "var/lib/apt/lists/mirror_dists_stable_InRelease", "Origin: Debian\n", Level::Fail),
        ("H21", "etc/apt/apt.conf.d/90proxy", "Acquire::http::Proxy \"http://10.0.2.2\";\n", Level::Fail),
        ("H23", "swapfile", "", Level::Warn),
        ("H24", "tmp/script.sh", "", Level::Fail),
        ("H24", "var/tmp/deep/er/file", "", Level::Fail),
        ("H25", "var/crash/vmlinuz.core", "core", Level::Fail),
        ("H26", "etc/shadow-", "root:*:::::::\n", Level::Warn),
        ("H27", "var/mail/root", "From cron\n", Level::Warn),
    ];
    for (id, path, text, level) in dirt {
        let disk = Disk::clean();
        disk.write(path, text);
        let found: Vec<_> = verified(&disk.raw()).into_iter().map(|finding| (finding.id, finding.level)).collect();
        assert_eq!(found, [(id, level)], "{path}");
    }
}

#[test]
fn catches_a_temporary_directory_that_anybody_may_empty() {
    let disk = Disk::clean();
    fs::set_permissions(disk.path("tmp"), Permissions::from_mode(0o777)).unwrap();
    let found = verified(&disk.raw());
    assert_eq!((found.len(), found[0].id, found[0].path.as_str()), (1, "H24", "/tmp"));
}

#[test]
fn catches_file_systems_that_were_not_left_clean() {
    for (field, value, expected) in [
        ("state", "0", "not unmounted"),
        ("state", "3", "found errors"),
        ("feature_incompat", "0x2c6", "journal was not replayed"),
        ("last_orphan", "12", "deleted while open"),
    ] {
        let disk = Disk::clean();
        let raw = disk.raw();
        let request = format!("set_super_value {field} {value}");
        run("debugfs", &["-w", "-R", &request, raw.to_str().unwrap()]);
        let found = verified(&raw);
        assert!(
            found.iter().any(|finding| finding.id == "H38" && finding.detail.contains(expected)),
            "{field}: {found:?}"
        );
        let faults = unclean_file_systems(&open(&raw)).unwrap();
        assert!(faults.iter().any(|fault| fault.contains(expected)), "{faults:?}");
        assert!(free_space(&open(&raw)).unwrap().is_empty(), "its bitmaps are not to be believed");
    }
}

#[test]
fn a_clean_file_system_has_no_faults() {
    assert!(unclean_file_systems(&open(&Disk::clean().raw())).unwrap().is_empty());
}

#[test]
fn catches_a_deleted_file_in_free_space_that_was_not_trimmed() {
    let disk = Disk::clean();
    disk.write("srv/big", &"deleted but still here\n".repeat(20_000));
    let raw = disk.raw();
    run("debugfs", &["-w", "-R", "kill_file /srv/big", raw.to_str().unwrap()]);
    run("debugfs", &["-w", "-R", "rm /srv/big", raw.to_str().unwrap()]);
    let found = verified(&raw);
    assert!(found.iter().any(|finding| finding.id == "H38" && finding.detail.contains("not trimmed")), "{found:?}");
}

#[test]
fn sealing_leaves_out_what_deleted_files_were_and_keeps_every_other_byte() {
    let disk = Disk::clean();
    disk.write("srv/big", &"deleted but still here\n".repeat(20_000));
    disk.write("srv/kept", &"kept as it is\n".repeat(20_000));
    let raw = disk.raw();
    run("debugfs", &["-w", "-R", "rm /srv/big", raw.to_str().unwrap()]);
    let free = free_space(&open(&raw)).unwrap();
    let guest = GuestDisk::open(&[DiskFile::raw(&raw)]).unwrap().blanked(free.clone());
    let scan = Scan::new(&[Needle::new("deleted", *b"deleted but still here")]);
    let out = disk.place.path().join("out.qcow2");
    seal(&guest, &out, &Options { tap: Some(&scan), ..Options::default() }).unwrap();
    assert!(scan.hits().is_empty(), "{:?}", scan.hits());
    assert!(verify(open(&out), &Asked { scan: Some(&scan), ..Asked::default() }).is_empty());

    let sealed = disk.place.path().join("sealed.raw");
    run("qemu-img", &["convert", "-O", "raw", out.to_str().unwrap(), sealed.to_str().unwrap()]);
    run("e2fsck", &["-f", "-n", sealed.to_str().unwrap()]);
    let (before, after) = (fs::read(&raw).unwrap(), fs::read(&sealed).unwrap());
    let in_use = |at: usize| !free.iter().any(|range| range.contains(&(at as u64)));
    let differ = (0..before.len()).filter(|at| before[*at] != after[*at]).collect::<Vec<_>>();
    assert!(!differ.is_empty() && !differ.into_iter().any(in_use));
}

#[test]
fn finds_secrets_in_free_space_while_sealing_and_verifies_the_sealed_file() {
    let disk = Disk::clean();
    let raw = disk.raw();
    // Far behind all files, across the border of two segments of 4 MiB.
    let file = File::options().write(true).open(&raw).unwrap();
    file.write_all_at(b"password=tr0ub4dor&3", (20 << 20) - 7).unwrap();
    file.write_all_at(b"dHIwdWI0ZG9yJjM=", 25 << 20).unwrap();
    let scan = Scan::new(&[Needle::new("db_password", *b"tr0ub4dor&3"), Needle::new("pin", *b"1234")]);
    let out = disk.place.path().join("out.qcow2");
    let guest = GuestDisk::open(&[DiskFile::raw(&raw)]).unwrap();
    seal(&guest, &out, &Options { tap: Some(&scan), ..Options::default() }).unwrap();
    let found = verify(open(&out), &Asked { scan: Some(&scan), ..Asked::default() });
    let residue: Vec<_> = found.iter().filter(|finding| finding.id == "H39").collect();
    assert_eq!(residue.len(), 3, "{found:?}");
    let plain = format!("byte {} (plain)", (20 << 20) + 2);
    assert!(
        residue.iter().any(|finding| finding.level == Level::Fail && finding.detail.contains(&plain)),
        "{residue:?}"
    );
    assert!(residue.iter().any(|finding| finding.detail.contains("(base64)")), "{residue:?}");
    assert!(
        residue.iter().any(|finding| finding.level == Level::Warn && finding.detail.contains("pin has fewer than")),
        "{residue:?}"
    );
    assert!(residue.iter().all(|finding| !finding.detail.contains("tr0ub4dor")));
    assert!(found.iter().all(|finding| matches!(finding.id, "H38" | "H39")), "{found:?}");
}

#[test]
fn a_disk_that_was_not_searched_fails() {
    let found = verify_disk(&open(&Disk::clean().raw()), &Asked::default());
    assert_eq!(found.iter().map(|finding| finding.id).collect::<Vec<_>>(), ["H39"]);
}

#[test]
fn refuses_a_finished_file_that_is_not_what_sealing_writes() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("evil.qcow2");
    run(
        "qemu-img",
        &["create", "-q", "-f", "qcow2", "-F", "raw", "-b", "/etc/passwd", "-u", path.to_str().unwrap(), "1M"],
    );
    let found = verify(open(&path), &Asked::default());
    assert!(found[0].id == "H40" && found[0].detail.contains("backing_file_offset"), "{found:?}");
}

/// No damage may crash or hang the verifier. The damage is the same in every run.
#[test]
fn survives_damaged_file_systems() {
    let pristine = fs::read(Disk::clean().raw()).unwrap();
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state % below as u64).unwrap()
    };
    let scan = Scan::new(&[]);
    for round in 0..60 {
        let mut bytes = pristine.clone();
        for _ in 0..=round % 20 {
            // Superblock, group descriptors and inodes, where a byte changes most.
            let at = if round % 3 == 0 { 1024 + random(1024) } else { random(3 << 20) };
            bytes[at] = u8::try_from(random(256)).unwrap();
        }
        let found =
            verify_disk(&(Arc::new(bytes) as Arc<dyn ReadAt>), &Asked { scan: Some(&scan), ..Asked::default() });
        // Whatever it finds, it comes back, in order.
        assert!(found.is_sorted());
    }
}

#[test]
fn waivers_apply_by_name_and_unused_ones_are_told() {
    let disk = Disk::clean();
    disk.write("root/.bash_history", "ls\n");
    disk.write("tmp/left", "");
    let findings = verified(&disk.raw());
    let waiver = |finding: &str| Waiver { finding: finding.to_owned(), reason: "known".to_owned() };
    let verdict = waive(&findings, &[waiver("H24"), waiver("H99")]);
    assert_eq!(verdict.blocking.iter().map(|finding| finding.id).collect::<Vec<_>>(), ["H10"]);
    assert_eq!(verdict.unused, ["H99"]);
    let applied: Vec<_> = verdict.records.iter().map(|record| (record.id.as_str(), record.waived.as_deref())).collect();
    assert_eq!(applied, [("H10", None), ("H24", Some("known"))]);
}

/// The list that templates and readers go by is that of the rules.
#[test]
fn every_finding_is_known_by_its_name() {
    let sources = [include_str!("../../src/hygiene.rs"), include_str!("../../src/hygiene/rules.rs")].concat();
    let named = |text: &str| text.len() == 3 && text.starts_with('H') && text[1..].bytes().all(|b| b.is_ascii_digit());
    let mut found: Vec<_> = sources.split('"').filter(|text| named(text)).collect();
    found.sort_unstable();
    found.dedup();
    assert_eq!(found, kiln_core::finding::FINDINGS.map(|(name, _)| name));
}
