//! Disks with a small Debian on them: one real ext4 file system, made by `mke2fs -d`.

#![allow(dead_code, reason = "each test program uses a part of it")]

use std::{
    fs::{self, File, Permissions},
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    process::Command,
};

use kiln_core::{Digest, artifact::Artifact};
use kiln_io::guest::Quiet;
use kiln_registry::{Record, Registry};

use super::support::{fixed, sealed, select};

/// A root file system in a directory.
pub(crate) struct System(PathBuf);

/// The databases and texts of two packages of one source, one of another, and one that was removed.
pub(crate) const STATUS: &str = "Package: libgcc-s1
Status: install ok installed
Maintainer: Debian GCC Maintainers <debian-gcc@lists.debian.org>
Architecture: amd64
Source: gcc-12
Version: 12.2.0-14+deb12u1
Description: GCC support library
 Shared version of the support library.
Homepage: http://gcc.gnu.org/

Package: libattr1
Status: install ok installed
Maintainer: Guillem Jover <guillem@debian.org>
Architecture: amd64
Source: attr (1:2.5.1-4)
Version: 1:2.5.1-4+b1
Description: extended attribute handling - shared library
Homepage: not a \"url\"

Package: nginx-light
Status: deinstall ok config-files
Architecture: amd64
Version: 1.22.1-9

Package: tzdata
Status: install ok installed
Maintainer: GNU Libc Maintainers <debian-glibc@lists.debian.org>
Architecture: all
Version: 2024a-0+deb12u1
Description: time zone and daylight-saving time data
";

impl System {
    /// A Debian 12 of three packages.
    pub(crate) fn debian(place: &Path) -> Self {
        let system = Self(place.join("root"));
        system.write("etc/passwd", "root:x:0:0:root:/root:/bin/bash\n");
        let release = "PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nVERSION_ID=\"12\"\nID=debian\n";
        system.write("usr/lib/os-release", release);
        symlink("../usr/lib/os-release", system.0.join("etc/os-release")).unwrap();
        system.write("var/lib/dpkg/status", STATUS);
        let copyright = "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\n\n\
             Files: *\nLicense: LGPL-2.1+\n\nFiles: tools/*\nLicense: GPL-2+\n\nFiles: x\nLicense: public-domain\n";
        system.write("usr/share/doc/libattr1/copyright", copyright);
        system.write(
            "usr/share/doc/tzdata/copyright",
            "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\n\nFiles: *\nLicense: Expat\n",
        );
        system
    }

    pub(crate) fn path(&self, path: &str) -> PathBuf {
        self.0.join(path)
    }

    pub(crate) fn write(&self, path: &str, text: &str) {
        fs::create_dir_all(self.path(path).parent().unwrap()).unwrap();
        fs::write(self.path(path), text).unwrap();
    }

    pub(crate) fn mode(&self, path: &str, mode: u32) {
        fs::set_permissions(self.path(path), Permissions::from_mode(mode)).unwrap();
    }

    /// The disk: 24 MiB, the same places for the same files.
    #[expect(
        clippy::disallowed_methods,
        reason = "the file system is made by the program that everybody makes them with"
    )]
    pub(crate) fn disk(&self) -> Vec<u8> {
        let raw = self.0.with_extension("raw");
        let _ = fs::remove_file(&raw);
        File::create(&raw).unwrap().set_len(24 << 20).unwrap();
        // File system tools stand in /sbin, which not everybody has on the path.
        let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
        let mut command = Command::new("mke2fs");
        command.args(["-q", "-t", "ext4", "-F", "-U", "6b696c6e-0000-4000-8000-000000000001", "-d"]);
        command.arg(&self.0).arg(&raw).env("PATH", path).env("E2FSPROGS_FAKE_TIME", "1700000000");
        let output = command.output().unwrap_or_else(|error| panic!("mke2fs: {error}"));
        assert!(output.status.success(), "{output:?}");
        fs::read(raw).unwrap()
    }

    /// Publishes the disk as a version of `web`.
    pub(crate) fn publish(&self, registry: &Registry, version: &str) -> Record {
        self.publish_as(registry, version, |_| {})
    }

    /// The same after `change` was made to the artifact.
    pub(crate) fn publish_as(&self, registry: &Registry, version: &str, change: impl Fn(&mut Artifact)) -> Record {
        let source = self.0.with_file_name(format!("baked-{version}"));
        let mut artifact = sealed(&source, version, &self.disk(), kiln_disk::seal::LEVEL);
        artifact.recipe = Digest::of(b"recipe");
        change(&mut artifact);
        registry.publish(&artifact, &source, &fixed(version), &Quiet).unwrap();
        registry.record(&select(&format!("web@{version}"))).unwrap()
    }
}
