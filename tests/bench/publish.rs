//! What a further version costs: bytes stored and seconds to publish, on the disk of the version before and from scratch, with
//! and without its files laid out on the places of the version before.

use std::{fs, path::Path, process::Command};

use crate::{
    bake,
    measure::{Timed, timed},
    place::{Place, events},
    seal,
};

pub(crate) fn run() {
    tokio::runtime::Runtime::new().expect("a runtime").block_on(seal::debian());
    let place = Place::new();
    let text = bake::TEMPLATE.replace("version = \"1\"", "version = \"auto\"");
    let more = format!("{text}\n[[provision]]\nuse = \"packages\"\ninstall = [\"tree\"]\n");
    let template = place.template("web.toml", &text);
    let first = place.build(&template, &["--no-boot-test"]);
    let whole = stored(&place);
    told("the first version", &first, whole, whole);

    let began = place.work.path().join("began");
    timed(Command::new("cp").arg("-a").arg(place.work.path().join("data")).arg(&began));
    let scratch = ["--no-boot-test", "--fresh", "--checkpoints", "off"];
    let unplaced = format!("{text}\n[publish.registry]\nplacement = false\n");
    let unplaced_more = format!("{more}\n[publish.registry]\nplacement = false\n");
    for (what, text, options) in [
        ("one package more, on the disk before", &more, &scratch[..1]),
        ("one package more, from scratch", &more, &scratch[..]),
        ("the same, files where they fell", &unplaced_more, &scratch[..]),
        ("nothing changed, from scratch", &text, &scratch[..]),
        ("the same, files where they fell", &unplaced, &scratch[..]),
    ] {
        let data = place.work.path().join("data");
        fs::remove_dir_all(&data).expect("remove the registry");
        timed(Command::new("cp").arg("-a").arg(&began).arg(&data));
        place.template("web.toml", text);
        let built = place.build(&template, &[options, &["--force"]].concat());
        told(what, &built, stored(&place) - whole, whole);
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

fn told(what: &str, built: &Timed, bytes: u64, whole: u64) {
    let seconds = |phase: &str| {
        let finished = events(built).find(|event| event["event"] == "phase-finished" && event["phase"] == phase);
        finished.and_then(|event| event["milliseconds"].as_f64()).map_or(0.0, |milliseconds| milliseconds / 1000.0)
    };
    println!(
        "{what:<38} stored {:>7.1} MiB, {:>5.1} % of the first   placement {:>4.1} s   seal {:>4.1} s   publish {:>4.1} s",
        mib(bytes),
        share(bytes, whole),
        seconds("placement"),
        seconds("seal"),
        seconds("publish")
    );
}

#[expect(clippy::cast_precision_loss, reason = "for people")]
fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

fn share(part: u64, whole: u64) -> f64 {
    100.0 * mib(part) / mib(whole).max(f64::MIN_POSITIVE)
}
