//! Two real ext4 file systems compared, and the kernel of one found.
#![expect(clippy::disallowed_methods, reason = "mke2fs is a program, and tests have no other door to it")]
#![expect(clippy::unwrap_used, reason = "in a test a panic is the report")]

use std::{
    fs::{self, File, Permissions},
    os::unix::fs::{PermissionsExt, symlink},
    path::Path,
    process::Command,
    sync::Arc,
};

use kiln_disk::{FileBytes, ReadAt, agreement::Agreement, hygiene, tree::Tree};

/// A file system of what `fill` puts into a directory.
fn disk(fill: impl Fn(&Path)) -> Arc<dyn ReadAt> {
    let place = tempfile::tempdir().unwrap();
    let (root, raw) = (place.path().join("root"), place.path().join("disk.raw"));
    for directory in ["etc", "boot", "usr/bin"] {
        fs::create_dir_all(root.join(directory)).unwrap();
    }
    fs::write(root.join("etc/passwd"), "root:x:0:0::/root:/bin/sh\n").unwrap();
    fs::write(root.join("usr/bin/tool"), vec![7; 200_000]).unwrap();
    fill(&root);
    File::create(&raw).unwrap().set_len(32 << 20).unwrap();
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let mut mke2fs = Command::new("mke2fs");
    mke2fs.args(["-q", "-t", "ext4", "-F", "-d"]).arg(&root).arg(&raw).env("PATH", path);
    let made = mke2fs.output().unwrap();
    assert!(made.status.success(), "{made:?}");
    // The open file outlives its name.
    Arc::new(FileBytes::new(File::open(&raw).unwrap()).unwrap())
}

fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

#[test]
fn names_every_path_that_differs_and_how() {
    let one = disk(|root| {
        fs::write(root.join("etc/mode"), "x").unwrap();
        mode(&root.join("etc/mode"), 0o644);
        fs::write(root.join("etc/kind"), "x").unwrap();
        fs::write(root.join("etc/long"), vec![1; 100_000]).unwrap();
        fs::write(root.join("etc/gone"), "").unwrap();
        symlink("passwd", root.join("etc/link")).unwrap();
        symlink("passwd", root.join("etc/same")).unwrap();
    });
    let two = disk(|root| {
        fs::write(root.join("etc/mode"), "x").unwrap();
        mode(&root.join("etc/mode"), 0o4755);
        fs::create_dir(root.join("etc/kind")).unwrap();
        let mut long = vec![1; 100_000];
        long[99_999] = 2;
        fs::write(root.join("etc/long"), long).unwrap();
        fs::write(root.join("etc/new"), "").unwrap();
        symlink("shadow", root.join("etc/link")).unwrap();
        symlink("passwd", root.join("etc/same")).unwrap();
    });
    let tree = |disk| Tree::of_root(disk).unwrap();
    let found = Agreement::of(&tree(&one), &tree(&two)).unwrap();
    let said: Vec<_> = found.differing.iter().map(|one| format!("{} {}", one.path, one.how)).collect();
    assert_eq!(
        said,
        [
            "/etc/gone only in the first",
            "/etc/kind kind file -> directory",
            "/etc/link content",
            "/etc/long content",
            "/etc/mode mode 0644 -> 4755",
            "/etc/new only in the second",
        ]
    );
    assert_eq!(found.paths, found.same + 6);
    let same = Agreement::of(&tree(&one), &tree(&one)).unwrap();
    assert!(same.differing.is_empty() && same.same == same.paths && same.paths > 8);
}

#[test]
fn finds_the_kernel_that_a_disk_would_boot() {
    let mut kernel = vec![0; 4096];
    kernel[0x202..0x206].copy_from_slice(b"HdrS");
    let with = |kernel: &[u8]| {
        disk(|root| {
            fs::write(root.join("boot/vmlinuz-6.1"), kernel).unwrap();
            fs::write(root.join("boot/initrd.img-6.1"), "initrd").unwrap();
            symlink("boot/vmlinuz-6.1", root.join("vmlinuz")).unwrap();
            symlink("/boot/initrd.img-6.1", root.join("initrd.img")).unwrap();
        })
    };
    let found = hygiene::kernel(&with(&kernel)).unwrap().unwrap();
    assert!(found.kernel == kernel && found.initrd == b"initrd");
    assert_eq!(hygiene::kernel(&with(b"not a kernel")).unwrap(), None);
    assert_eq!(hygiene::kernel(&disk(|_| {})).unwrap(), None);
    assert_eq!(hygiene::kernel(&(Arc::new(vec![0_u8; 1 << 20]) as Arc<dyn ReadAt>)).unwrap(), None);
}
