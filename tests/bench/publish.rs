//! What a further version costs: bytes stored and sent, blocks of 512 KiB that an EBS snapshot would get, and seconds to publish, on the
//! disk of the version before and from scratch, with and without its files laid out on the places of the version before.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use kiln_core::Digest;
use kiln_disk::seal::zero_chunk;
use kiln_registry::{Registry, Selector};
use kiln_tests::home;

use crate::{
    bake,
    measure::{Timed, timed},
    place::{Place, events},
    seal,
    serve::{sent, serve},
};

/// Chunks in a block of an EBS snapshot.
const BLOCK: usize = 8;
/// Programs that are in the image in an older and in a newer version.
const PROGRAMS: [&str; 2] = ["tree", "less"];

pub(crate) fn run() {
    tokio::runtime::Runtime::new().expect("a runtime").block_on(seal::debian());
    let place = Place::new();
    let own = format!("{}{INSTALLED}", bake::TEMPLATE.replace("version = \"1\"", "version = \"auto\""));
    let text = own.replace("AGE", "older");
    let more = format!("{text}\n[[provision]]\nuse = \"packages\"\ninstall = [\"jq\"]\n");
    for program in PROGRAMS {
        packages(place.work.path(), program);
    }
    let template = place.template("web.toml", &text);
    let first = place.build(&template, &["--no-boot-test"]);
    let whole = stored(&place);
    println!(
        "the first version: {:.1} MiB, seal {:.1} s, publish {:.1} s",
        mib(whole),
        seconds(&first, "seal"),
        seconds(&first, "publish")
    );

    let began = place.work.path().join("began");
    timed(Command::new("cp").arg("-a").arg(place.work.path().join("data")).arg(&began));
    let scratch = ["--no-boot-test", "--fresh", "--checkpoints", "off"];
    let newer = own.replace("AGE", "newer");
    let apart = |text: &str| format!("{text}\n[publish.registry]\nplacement = false\n");
    for (what, text, options) in [
        ("one package more, on the disk before", &more, &scratch[..1]),
        ("two packages newer, from scratch", &newer, &scratch[..]),
        ("the same, files where they fell", &apart(&newer), &scratch[..]),
        ("nothing changed, from scratch", &text, &scratch[..]),
        ("the same, files where they fell", &apart(&text), &scratch[..]),
    ] {
        let data = place.work.path().join("data");
        fs::remove_dir_all(&data).expect("remove the registry");
        timed(Command::new("cp").arg("-a").arg(&began).arg(&data));
        place.template("web.toml", text);
        let built = place.build(&template, &[options, &["--force"]].concat());
        told(what, &built, &place, &began, whole);
    }
    let exported = place.work.path().join("web.qcow2");
    let export = place.kiln(&["export", "bench", "--to", exported.to_str().expect("a UTF-8 path")]);
    let copied = timed(Command::new("cp").arg(&exported).arg(place.work.path().join("copy.qcow2")));
    let bytes = exported.metadata().expect("the exported file").len();
    println!("a plain copy of the qcow2: {:.1} MiB in {:.2} s", mib(bytes), copied.elapsed.as_secs_f64());
    println!("kiln export of the same:   {:.1} MiB in {:.2} s, verified", mib(bytes), export.elapsed.as_secs_f64());
}

/// Bytes of all blobs of the registry.
fn stored(place: &Place) -> u64 {
    let blobs = place.work.path().join("data/registry/blobs/sha256");
    let blobs = fs::read_dir::<&Path>(&blobs).expect("list the blobs");
    blobs.map(|blob| blob.and_then(|blob| blob.metadata()).expect("a blob").len()).sum()
}

fn told(what: &str, built: &Timed, place: &Place, began: &Path, whole: u64) {
    let bytes = stored(place) - whole;
    let sent = pulled(place, began);
    let (changed, blocks) = changed(place);
    println!(
        "{what:<38} stored {:>5.1} MiB, {:>4.1} %   sent {:>5.1} MiB, {:>4.1} %   {changed} of {blocks} blocks, {:>4.1} %   \
         placement {:>4.1} s   seal {:>4.1} s   publish {:>4.1} s",
        mib(bytes),
        share(bytes, whole),
        mib(sent),
        share(sent, whole),
        share(changed << 20, blocks << 20),
        seconds(built, "placement"),
        seconds(built, "seal"),
        seconds(built, "publish")
    );
}

fn seconds(built: &Timed, phase: &str) -> f64 {
    let finished = events(built).find(|event| event["event"] == "phase-finished" && event["phase"] == phase);
    finished.and_then(|event| event["milliseconds"].as_f64()).map_or(0.0, |milliseconds| milliseconds / 1000.0)
}

/// What a server sends to a machine that has the version before.
fn pulled(place: &Place, began: &Path) -> u64 {
    let theirs = place.work.path().join("theirs");
    let _ = fs::remove_dir_all(&theirs);
    timed(Command::new("cp").arg("-a").arg(began).arg(&theirs));
    let (mut child, address) = serve(&place.work.path().join("data/registry"));
    let before = sent(&address);
    let url = format!("http://{address}");
    let mut pull = Command::new(home::kiln());
    timed(pull.args(["pull", "bench", "--registry", &url]).env("KILN_DATA_DIR", &theirs));
    let after = sent(&address);
    let _ = child.kill();
    let _ = child.wait();
    after - before
}

/// Blocks of the newest version that differ from the one before, and those that hold anything.
fn changed(place: &Place) -> (u64, u64) {
    let registry = Registry::open(&place.work.path().join("data/registry")).expect("the registry");
    let versions = registry.versions(&"bench".parse().expect("a name")).expect("its versions");
    let blocks = |number: usize| -> Vec<Vec<Digest>> {
        let name = format!("bench@{}", versions[number.min(versions.len() - 1)].version);
        let record = registry.record(&name.parse::<Selector>().expect("a selector")).expect("a record");
        let content = registry.content(&record).expect("its content");
        let chunks: Vec<_> = content.chunks().map(|chunk| chunk.digest).collect();
        chunks.chunks(BLOCK).map(<[Digest]>::to_vec).collect()
    };
    let (newest, before, zero) = (blocks(0), blocks(1), zero_chunk());
    let changed = newest.iter().zip(&before).filter(|(new, old)| new != old).count();
    let full = newest.iter().filter(|block| block.iter().any(|chunk| *chunk != zero)).count();
    (changed as u64, full as u64)
}

/// The template's step that installs what [`packages`] made.
const INSTALLED: &str = r#"
[[provision]]
use = "files"
files = [{ path = "/root/packages", source = "AGE" }]

[[provision]]
use = "shell"
script = "dpkg --install /root/packages/*.deb && rm -r /root/packages"
"#;

/// A package of Debian in the version that is there and in a newer one, whose programs are other bytes throughout, as after another compilation.
fn packages(work: &Path, name: &str) {
    let made = |age: &str| -> PathBuf {
        let directory = work.join(age);
        fs::create_dir_all(&directory).expect("make a directory");
        directory
    };
    let (older, newer) = (made("older"), made("newer"));
    timed(Command::new("apt-get").args(["download", name]).current_dir(&older));
    let tree = work.join(name);
    let of_it = format!("{name}_*.deb");
    let unpack = format!("dpkg-deb -R {of_it} {}", tree.display());
    timed(Command::new("sh").args(["-c", &unpack]).current_dir(&older));
    let control = tree.join("DEBIAN/control");
    let text = fs::read_to_string(&control).expect("its control file");
    let line = text.lines().find(|line| line.starts_with("Version: ")).expect("a version");
    fs::write(&control, text.replace(line, &format!("{line}+newer"))).expect("write the control file");
    for program in fs::read_dir(tree.join("usr/bin")).expect("its programs") {
        let path = program.expect("a program").path();
        if !path.is_symlink() {
            let mut bytes = fs::read(&path).expect("a program");
            bytes.iter_mut().skip(64).step_by(48).for_each(|byte| *byte = byte.wrapping_add(1));
            fs::write(&path, bytes).expect("write the program");
        }
    }
    timed(Command::new("dpkg-deb").args(["--root-owner-group", "-b"]).arg(&tree).arg(&newer));
}

#[expect(clippy::cast_precision_loss, reason = "for people")]
fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

fn share(part: u64, whole: u64) -> f64 {
    100.0 * mib(part) / mib(whole).max(f64::MIN_POSITIVE)
}
