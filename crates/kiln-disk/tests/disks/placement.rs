//! Placement on real ext4 file systems: `mke2fs` makes two disks, `debugfs` runs the script, `e2fsck` and kiln's own reading
//! judge what came out.
#![expect(clippy::disallowed_methods, reason = "e2fsprogs are programs, and tests have no other door to them")]
#![expect(clippy::unwrap_used, reason = "in a test a panic is the report")]

use std::{
    collections::BTreeMap,
    fs::{self, File, Permissions},
    os::unix::fs::{FileExt, PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::Arc,
};

use kiln_disk::{
    CHUNK, FileBytes, ReadAt,
    placement::{PlacementError, Plan, SCRIPT},
};
use proptest::prelude::*;

/// The disks of one test.
struct Bench {
    place: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        Self { place: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.place.path().join(name)
    }

    /// A disk of 32 MiB whose tree is what `fill` puts into an empty directory; `after` are commands for `debugfs`.
    fn disk(&self, name: &str, fill: impl FnOnce(&Path), after: &str) -> PathBuf {
        let (root, raw) = (self.path(&format!("{name}-tree")), self.path(&format!("{name}.raw")));
        fs::create_dir(&root).unwrap();
        fill(&root);
        File::create(&raw).unwrap().set_len(32 << 20).unwrap();
        let fixed =
            ["-U", "6f9d4a9e-0000-4000-8000-000000000001", "-E", "hash_seed=6f9d4a9e-0000-4000-8000-000000000002"];
        let made = run("mke2fs", &[&fixed[..], &["-q", "-t", "ext4", "-F", "-d", text(&root), text(&raw)]].concat());
        assert!(made.status.success(), "{made:?}");
        if !after.is_empty() {
            let script = self.path("after");
            fs::write(&script, after).unwrap();
            run("debugfs", &["-w", "-f", text(&script), text(&raw)]);
        }
        raw
    }

    /// Brings the tree of `new` to the places of `old`; the plan, and the disk that came out.
    fn placed(&self, old: &Path, new: &Path) -> (Plan, PathBuf) {
        let plan = Plan::new(&open(old), &open(new)).unwrap();
        let (directory, placed) = (self.path("work"), self.path("placed.raw"));
        let _ = fs::remove_dir_all(&directory);
        fs::create_dir(&directory).unwrap();
        fs::copy(old, &placed).unwrap();
        plan.write(&directory).unwrap();
        plan.rewrite(&File::options().write(true).open(&placed).unwrap()).unwrap();
        let mut command = Command::new("debugfs");
        command.args(["-w", "-f", SCRIPT, text(&placed)]).current_dir(&directory).env("PATH", search_path());
        let ran = command.output().unwrap();
        assert!(ran.status.success(), "{ran:?}");
        let check = run("e2fsck", &["-f", "-n", text(&placed)]);
        let script = fs::read_to_string(directory.join(SCRIPT)).unwrap_or_default();
        assert!(check.status.success(), "{}\n{script}\n{ran:?}", String::from_utf8_lossy(&check.stdout));
        (plan, placed)
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn search_path() -> String {
    format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default())
}

fn run(program: &str, arguments: &[&str]) -> Output {
    let output = Command::new(program).args(arguments).env("PATH", search_path()).output();
    output.unwrap_or_else(|error| panic!("{program}: {error}"))
}

fn open(raw: &Path) -> Arc<dyn ReadAt> {
    Arc::new(FileBytes::new(File::open(raw).unwrap()).unwrap())
}

/// Chunks of the two disks that are not the same.
fn different_chunks(one: &Path, other: &Path) -> usize {
    let (one, other) = (fs::read(one).unwrap(), fs::read(other).unwrap());
    assert_eq!(one.len(), other.len());
    one.chunks(CHUNK).zip(other.chunks(CHUNK)).filter(|(a, b)| a != b).count()
}

fn noise(seed: u8, bytes: usize) -> Vec<u8> {
    let mut state = u32::from(seed) + 1;
    let step = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_le_bytes()[3]
    };
    (0..bytes).map(step).collect()
}

fn write(root: &Path, path: &str, bytes: &[u8]) {
    let path = root.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
}

/// Sixteen files of 512 KiB, made in this order.
fn packages(root: &Path, order: impl Iterator<Item = u8>) {
    for number in order {
        write(root, &format!("usr/lib/library-{number}"), &noise(number, 512 << 10));
    }
}

#[test]
fn a_rebuild_keeps_every_unchanged_file_where_it_was() {
    let bench = Bench::new();
    // Two files are newer, one is gone, one is new.
    let old = bench.disk("old", |root| packages(root, 0..16), "");
    let newer = |root: &Path| {
        packages(root, 2..16);
        write(root, "usr/lib/library-1", &noise(101, 600 << 10));
        write(root, "usr/lib/library-20", &noise(20, 300 << 10));
    };
    let new = bench.disk("new", newer, "");
    let (plan, placed) = bench.placed(&old, &new);
    plan.prove(&open(&placed)).unwrap();
    assert!(plan.changed);
    assert_eq!(plan.written, 2);
    let (moved, apart) = (different_chunks(&old, &placed), different_chunks(&old, &new));
    assert!(moved * 3 < apart, "{moved} chunks differ after placement, {apart} without it");
    // The same once more gives the same bytes.
    let again = Bench::new();
    assert_eq!(fs::read(again.placed(&old, &new).1).unwrap(), fs::read(&placed).unwrap());
}

#[test]
fn content_that_changes_within_its_blocks_stays_in_them() {
    let bench = Bench::new();
    let old = bench.disk("old", |root| packages(root, 0..16), "");
    let newer = |root: &Path| {
        packages(root, 0..16);
        write(root, "usr/lib/library-3", &noise(103, 512 << 10));
        // Shorter, to the same number of blocks.
        write(root, "usr/lib/library-5", &noise(105, (512 << 10) - 100));
    };
    let new = bench.disk("new", newer, "");
    let (plan, placed) = bench.placed(&old, &new);
    plan.prove(&open(&placed)).unwrap();
    assert!(plan.changed);
    assert_eq!(plan.written, 2);
    let begins = |disk: &Path, content: &[u8]| {
        let bytes = fs::read(disk).unwrap();
        bytes.chunks(1024).position(|block| block == &content[..1024])
    };
    for (number, newer) in [(3, 103), (5, 105)] {
        let before = begins(&old, &noise(number, 1024));
        assert!(before.is_some());
        assert_eq!(begins(&placed, &noise(newer, 1024)), before, "library-{number} moved");
        assert_eq!(begins(&placed, &noise(number, 1024)), None, "library-{number} left its content");
    }
}

#[test]
fn every_kind_of_change_comes_out_as_it_is_in_the_new_tree() {
    let bench = Bench::new();
    let before = |root: &Path| {
        write(root, "etc/a file with spaces", b"one");
        write(root, "etc/mode", b"mode");
        write(root, "etc/linked", b"linked");
        fs::hard_link(root.join("etc/linked"), root.join("etc/linked-too")).unwrap();
        write(root, "etc/was-a-directory/inside", b"x");
        write(root, "etc/was-a-file", b"x");
        write(root, "gone/deep/deeper/file", &noise(1, 100_000));
        symlink("a file with spaces", root.join("etc/link")).unwrap();
        symlink(format!("/{}", "long/".repeat(20)), root.join("etc/long-link")).unwrap();
        for number in 0..300 {
            write(root, &format!("many/{number:03}-a-name-that-takes-some-room"), b"");
        }
    };
    let after = |root: &Path| {
        before(root);
        fs::remove_dir_all(root.join("gone")).unwrap();
        write(root, "etc/a file with spaces", b"two");
        fs::set_permissions(root.join("etc/mode"), Permissions::from_mode(0o4750)).unwrap();
        fs::remove_file(root.join("etc/linked-too")).unwrap();
        fs::hard_link(root.join("etc/mode"), root.join("etc/mode-too")).unwrap();
        fs::remove_dir_all(root.join("etc/was-a-directory")).unwrap();
        write(root, "etc/was-a-directory", b"now a file");
        fs::remove_file(root.join("etc/was-a-file")).unwrap();
        write(root, "etc/was-a-file/inside", b"y");
        fs::remove_file(root.join("etc/link")).unwrap();
        symlink("mode", root.join("etc/link")).unwrap();
        fs::remove_dir_all(root.join("many")).unwrap();
        for number in 0..200 {
            write(root, &format!("new/{number:03}-a-name-that-takes-some-room"), b"");
        }
        // Holes in the middle and at the end.
        let sparse = File::create(root.join("sparse")).unwrap();
        sparse.write_all_at(b"middle", 3 << 20).unwrap();
        sparse.set_len(9 << 20).unwrap();
    };
    let value = "ea_set /etc/mode user.kept old\nea_set /etc/mode user.gone old\n";
    let old = bench.disk("old", before, value);
    let devices = "mknod console c 5 1\nmknod disk b 259 300\nmknod pipe p\n\
        ea_set /etc/mode user.kept new\nea_set /etc/linked security.capability added\n\
        sif /etc/linked uid 100000\nsif /etc/linked gid 70000\nsif /etc/linked mtime @1700000000\nsif /etc/linked mtime_extra 123456788\n";
    let new = bench.disk("new", after, devices);
    let (plan, placed) = bench.placed(&old, &new);
    plan.prove(&open(&placed)).unwrap();
    // An independent reader agrees.
    let stat = String::from_utf8(run("debugfs", &["-R", "stat /etc/linked", text(&placed)]).stdout).unwrap();
    for part in [
        "User: 100000",
        "Group: 70000",
        "Links: 1",
        "mtime: 0x6553f100:075bcd14",
        "security.capability (5) = \"added\"",
    ] {
        assert!(stat.contains(part), "`{part}` in:\n{stat}");
    }
    let console = String::from_utf8(run("debugfs", &["-R", "stat /disk", text(&placed)]).stdout).unwrap();
    assert!(console.contains("Device major/minor number: 259:300"), "{console}");
    // And a tree that differs is not proven.
    let other = Plan::new(&open(&placed), &open(&old)).unwrap();
    assert!(matches!(other.prove(&open(&placed)), Err(PlacementError::Differs { .. })));
}

#[test]
fn the_same_tree_changes_nothing_whatever_its_times() {
    let bench = Bench::new();
    let old = bench.disk("old", |root| packages(root, 0..3), "");
    let new = bench.disk("new", |root| packages(root, 0..3), "sif /usr/lib/library-1 mtime @1\n");
    let (plan, placed) = bench.placed(&old, &new);
    plan.prove(&open(&placed)).unwrap();
    assert!(!plan.changed);
    assert_eq!(plan.written, 0);
}

#[test]
fn what_cannot_be_placed_is_refused_with_its_reason() {
    let bench = Bench::new();
    let old = bench.disk("old", |root| write(root, "a", b"x"), "");
    let quote = bench.disk("quote", |root| write(root, "a\"b", b"x"), "");
    let refused = |new: &Path| Plan::new(&open(&old), &open(new)).unwrap_err().to_string();
    assert_eq!(refused(&quote), "the name `/a\"b` cannot be written".replace("/a", "a"));
    let large = bench.path("large.raw");
    fs::copy(&old, &large).unwrap();
    File::options().write(true).open(&large).unwrap().set_len(64 << 20).unwrap();
    assert_eq!(refused(&large), "the disks have different sizes or partitions");
    let other = bench.path("other.raw");
    fs::copy(&old, &other).unwrap();
    run("tune2fs", &["-U", "random", text(&other)]);
    assert_eq!(refused(&other), "the file systems differ in their identities");
    fs::write(bench.path("empty.raw"), vec![0; 32 << 20]).unwrap();
    assert_eq!(refused(&bench.path("empty.raw")), "a disk has not exactly one ext4 file system");
}

/// A tree as a value: small files by path, in a few directories.
fn trees() -> impl Strategy<Value = BTreeMap<String, (u8, usize, u32)>> {
    let path = prop::sample::select(vec![
        "a/b/one",
        "a/b/two",
        "a/three",
        "b/four",
        "b/c/five",
        "six",
        "a/b/c/d/seven",
        "eight",
    ]);
    let mode = prop::sample::select(vec![0o644, 0o755, 0o4755, 0o600]);
    prop::collection::btree_map(path.prop_map(str::to_owned), (0_u8..3, 0_usize..70_000, mode), 0..8)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// Any tree becomes any other, and both programs that know ext4 agree that it did.
    #[test]
    fn any_tree_becomes_any_other(before in trees(), after in trees()) {
        let bench = Bench::new();
        let fill = |tree: &BTreeMap<String, (u8, usize, u32)>, root: &Path| {
            for (path, (seed, bytes, mode)) in tree {
                write(root, path, &noise(*seed, *bytes));
                fs::set_permissions(root.join(path), Permissions::from_mode(*mode)).unwrap();
            }
        };
        let old = bench.disk("old", |root| fill(&before, root), "");
        let new = bench.disk("new", |root| fill(&after, root), "");
        let (plan, placed) = bench.placed(&old, &new);
        prop_assert!(plan.prove(&open(&placed)).is_ok());
        prop_assert_eq!(plan.changed, before != after);
    }

    /// A damaged file system is refused or read, in bounded time and memory; nothing panics.
    #[test]
    fn a_damaged_file_system_is_no_danger(damage in prop::collection::vec((0_usize..3 << 20, any::<u8>()), 1..60)) {
        let bench = Bench::new();
        let old = bench.disk("old", |root| packages(root, 0..2), "");
        let mut bytes = fs::read(&old).unwrap();
        for (at, byte) in damage {
            bytes[1024 + at % (1 << 20)] = byte;
        }
        let _ = Plan::new(&open(&old), &(Arc::new(bytes) as Arc<dyn ReadAt>));
    }
}
