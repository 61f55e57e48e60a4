//! Versions of a disk beside what else keeps versions of files: casync, restic, a `qemu-img` overlay, and plain copies.
//!
//! The disk is a Debian base; the next version is the same disk with the package `tree` put into its file system, where there is room, with
//! `debugfs`. Everybody gets the raw disk from the page cache and ends with a raw disk that is compared.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use kiln_core::artifact::Artifact;
use kiln_disk::seal::StoredFrames;
use kiln_io::guest::Quiet;
use kiln_registry::Registry;
use kiln_tests::home::kiln;

use crate::{
    measure::timed,
    seal::debian,
    serve::{fixed, sealed, sent, serve},
};

/// What one of them needs: for the first version, for the next, and to have the next where the first is.
struct Costs {
    who: &'static str,
    first: (Duration, u64),
    next: (Duration, u64),
    pull: (Duration, u64),
}

pub(crate) async fn run() {
    let work = tempfile::tempdir().expect("a directory to work in");
    let base = debian().await;
    let disks = [work.path().join("first.raw"), work.path().join("next.raw")];
    for disk in &disks {
        timed(Command::new("cp").arg("--sparse=always").arg(&base.disk).arg(disk));
    }
    add_a_package(work.path(), &disks[1]);
    // Once unmeasured, so that everybody reads from the page cache.
    for disk in &disks {
        fs::read(disk).expect("read a disk");
    }

    let place = |name: &str| {
        let place = work.path().join(name);
        fs::create_dir(&place).expect("make a directory");
        place
    };
    let all = [
        ours(&place("kiln"), &disks),
        casync(&place("casync"), &disks),
        restic(&place("restic"), &disks),
        overlay(&place("overlay"), &disks),
        copies(&place("copies"), &disks),
    ];
    println!("disk: {} MiB, of which {} MiB have data", size(&disks[0]) >> 20, on_disk(&disks[0]) >> 20);
    println!("{:<34}{:>20}{:>20}{:>20}", "", "the first", "a package more", "to who has the first");
    for Costs { who, first, next, pull } in &all {
        let cell = |(time, bytes): &(Duration, u64)| format!("{:.2} s {:>7.1} MiB", time.as_secs_f64(), mib(*bytes));
        println!("{who:<34}{:>20}{:>20}{:>20}", cell(first), cell(next), cell(pull));
    }
    for peer in &all[1..] {
        let ratio = |ours: &(Duration, u64), theirs: &(Duration, u64)| {
            format!("{:.2}, {:.2}", ours.0.as_secs_f64() / theirs.0.as_secs_f64(), mib(ours.1) / mib(theirs.1))
        };
        let Costs { who, first, next, pull } = peer;
        let [first, next, pull] = [ratio(&all[0].first, first), ratio(&all[0].next, next), ratio(&all[0].pull, pull)];
        println!("{:<34}{first:>20}{next:>20}{pull:>20}", format!("kiln to {who}: time, bytes"));
    }
}

/// Puts the files of the package `tree` into the root file system of `disk`, and a line about it into the database of dpkg.
fn add_a_package(work: &Path, disk: &Path) {
    let root = work.join("tree");
    timed(Command::new("sh").current_dir(work).args(["-c", "apt-get download tree && dpkg-deb -x tree_*.deb tree"]));
    let listed = timed(Command::new("sfdisk").arg("--json").arg(disk)).output;
    let table: serde_json::Value = serde_json::from_str(&listed).expect("a partition table");
    let partitions = table["partitiontable"]["partitions"].as_array().expect("partitions");
    let largest = partitions.iter().max_by_key(|partition| partition["size"].as_u64()).expect("a partition");
    let offset = largest["start"].as_u64().expect("a start") * 512;
    let files = timed(Command::new("find").arg(&root).args(["-type", "f", "-printf", "%P\\n"])).output;
    let write = |file: &str| format!("write {} /{file}\n", root.join(file).display());
    let files = files.lines().map(write).collect::<Vec<_>>().concat();
    let status = work.join("status");
    let filesystem = format!("{}?offset={offset}", disk.display());
    let dump = format!("dump /var/lib/dpkg/status {}", status.display());
    timed(Command::new("debugfs").args(["-R", &dump, &filesystem]));
    let text = fs::read_to_string(&status).expect("the database of dpkg");
    fs::write(&status, text + "\nPackage: tree\nStatus: install ok installed\nVersion: 2.1.0-1\n").expect("write");
    let script = work.join("commands");
    let status = format!("rm /var/lib/dpkg/status\nwrite {} /var/lib/dpkg/status\n", status.display());
    fs::write(&script, format!("mkdir /usr/share/doc/tree\n{files}{status}")).expect("write the commands");
    let wrote = timed(Command::new("debugfs").args(["-w", "-f"]).arg(&script).arg(&filesystem));
    assert!(!wrote.output.contains("No free space"), "{}", wrote.output);
}

fn ours(work: &Path, disks: &[PathBuf; 2]) -> Costs {
    let (registry, mirror) = (work.join("registry"), work.join("data/registry"));
    let open = |root: &Path| Registry::open(root).expect("a registry");
    let mut stored = [0; 2];
    let mut took = [Duration::ZERO; 2];
    for (number, disk) in disks.iter().enumerate() {
        let begun = Instant::now();
        // As a bake does: on the frames of the version before.
        let newest = "web".parse().expect("a selector");
        let before = open(&registry).usable(&newest, 1, false).ok();
        let before = before.and_then(|record| open(&registry).frames(&record).expect("its frames"));
        let before = before.as_ref().map(|frames| frames as &dyn StoredFrames);
        let artifact: Artifact = sealed(work, disk, before);
        let sealing = begun.elapsed();
        let artifact = Artifact { build: format!("b-{number}"), ..artifact };
        let publication = fixed(&format!("1.{number}.0"));
        let published = open(&registry).publish(&artifact, work, &publication, &Quiet).expect("publish");
        (took[number], stored[number]) = (begun.elapsed(), published.new_bytes);
        println!(
            "kiln: sealed after {:.2} s, published after {:.2} s",
            sealing.as_secs_f64(),
            took[number].as_secs_f64()
        );
        fs::remove_file(work.join("web.qcow2")).expect("remove the sealed file");
    }
    fs::create_dir_all(work.join("data")).expect("make a directory");
    let pull = |version: &str, url: &str, to: Option<&Path>| {
        let image = format!("web@{version}");
        let mut command = Command::new(kiln());
        match to {
            None => command.args(["pull", &image, "--registry", url]),
            Some(to) => command.args(["export", &image, "--registry", url, "--format", "raw", "--to"]).arg(to),
        };
        let home = [("KILN_DATA_DIR", "data"), ("KILN_CACHE_DIR", "cache"), ("KILN_STATE_DIR", "state")];
        timed(command.envs(home.map(|(name, directory)| (name, work.join(directory)))))
    };
    let (mut child, address) = serve(&registry);
    let url = format!("http://{address}");
    pull("1.0.0", &url, None);
    let before = sent(&address);
    let out = work.join("out.raw");
    let pulled = pull("1.1.0", &url, Some(&out)).elapsed;
    let bytes = sent(&address) - before;
    let _ = child.kill();
    let _ = child.wait();
    assert!(mirror.is_dir(), "it was pulled somewhere else");
    same(&disks[1], &out);
    Costs { who: "kiln", first: (took[0], stored[0]), next: (took[1], stored[1]), pull: (pulled, bytes) }
}

fn casync(work: &Path, disks: &[PathBuf; 2]) -> Costs {
    let store = work.join("store.castr");
    let make = |name: &str, disk: &Path| {
        let index = work.join(name);
        let store = format!("--store={}", store.display());
        let took = timed(Command::new("casync").args(["make", &store]).arg(&index).arg(disk)).elapsed;
        (took, lengths(work), index)
    };
    let (first, whole, _) = make("first.caibx", &disks[0]);
    let (next, both, index) = make("next.caibx", &disks[1]);
    let out = work.join("out.raw");
    let arguments = [format!("--store={}", store.display()), format!("--seed={}", disks[0].display())];
    let pull = timed(Command::new("casync").arg("extract").args(arguments).arg(&index).arg(&out)).elapsed;
    same(&disks[1], &out);
    // It fetches the index and those chunks that the disk at hand does not have.
    Costs { who: "casync", first: (first, whole), next: (next, both - whole), pull: (pull, both - whole) }
}

fn restic(work: &Path, disks: &[PathBuf; 2]) -> Costs {
    let repository = work.join("repository");
    let restic = |arguments: &[&str]| {
        let mut command = Command::new("restic");
        command.args(arguments).env("RESTIC_REPOSITORY", &repository).env("RESTIC_PASSWORD", "bench");
        timed(command.env("RESTIC_CACHE_DIR", work.join("cache"))).elapsed
    };
    restic(&["init"]);
    let disk = work.join("disk.raw");
    let path = disk.to_str().expect("a UTF-8 path");
    let backup = |from: &Path| {
        fs::copy(from, &disk).expect("copy the disk");
        let before = lengths(&repository);
        let took = restic(&["backup", path]);
        (took, lengths(&repository) - before)
    };
    let (first, next) = (backup(&disks[0]), backup(&disks[1]));
    let out = work.join("out");
    let pull = restic(&["restore", "latest", "--target", out.to_str().expect("a UTF-8 path")]);
    same(&disks[1], &out.join(path.trim_start_matches('/')));
    // It restores whole files from the repository, whatever is there.
    Costs { who: "restic (restores the whole)", first, next, pull: (pull, lengths(&repository)) }
}

fn overlay(work: &Path, disks: &[PathBuf; 2]) -> Costs {
    let image = |arguments: &[&str]| timed(Command::new("qemu-img").args(arguments)).elapsed;
    let text = |path: &Path| path.to_str().expect("a UTF-8 path").to_owned();
    let (first, next, out) = (text(&work.join("first.qcow2")), text(&work.join("next.qcow2")), work.join("out.raw"));
    let (zstd, from) = ("compression_type=zstd", ["convert", "-f", "raw", "-O", "qcow2", "-c", "-m", "16", "-W", "-o"]);
    let made = image(&[&from[..], &[zstd, &text(&disks[0]), &first]].concat());
    let whole = size(Path::new(&first));
    let mut took = image(&["create", "-q", "-f", "qcow2", "-F", "raw", "-b", &text(&disks[1]), &next]);
    took += image(&["rebase", "-F", "qcow2", "-b", &first, &next]);
    let delta = size(Path::new(&next));
    let pull = image(&["convert", "-O", "raw", &next, &text(&out)]);
    same(&disks[1], &out);
    Costs { who: "qemu-img, zstd, then an overlay", first: (made, whole), next: (took, delta), pull: (pull, delta) }
}

fn copies(work: &Path, disks: &[PathBuf; 2]) -> Costs {
    let copy = |from: &Path, name: &str| {
        let to = work.join(name);
        let took = timed(Command::new("cp").arg("--sparse=always").arg(from).arg(&to)).elapsed;
        (took, on_disk(&to))
    };
    let (first, next) = (copy(&disks[0], "first"), copy(&disks[1], "next"));
    let pull = copy(&work.join("next"), "out");
    Costs { who: "plain copies, without holes", first, next, pull }
}

fn same(expected: &Path, found: &Path) {
    timed(Command::new("cmp").arg(expected).arg(found));
}

fn size(path: &Path) -> u64 {
    path.metadata().expect("its length").len()
}

/// What a disk takes without its holes.
fn on_disk(path: &Path) -> u64 {
    used(&["-s", "-B1"], path)
}

/// The lengths of all files under a directory.
fn lengths(path: &Path) -> u64 {
    used(&["-s", "--apparent-size", "-B1"], path)
}

fn used(options: &[&str], path: &Path) -> u64 {
    let output = timed(Command::new("du").args(options).arg(path)).output;
    output.split_whitespace().next().and_then(|bytes| bytes.parse().ok()).expect("bytes")
}

#[expect(clippy::cast_precision_loss, reason = "for people")]
fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
