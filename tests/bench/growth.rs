//! How a registry grows: what is asked for often, at 100, 1,000 and 10,000 versions.
//!
//! Half of the versions are of an image `base`, half of `web`, each baked on one of `base`, as nightly builds are. The first of
//! each is published; the others are copies of its objects under other names, written beside it: publishing them all would take hours.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use kiln_core::{Digest, artifact::Artifact};
use kiln_io::guest::Quiet;
use kiln_registry::{Intent, Parent, Registry, Rules, Selector};
use serde_json::{Value, json};

use crate::serve::{Asked, fixed, sealed, serve};

const SIZES: [usize; 3] = [100, 1_000, 10_000];
/// Each question is asked so often; the quickest answer counts, since others use the machine too.
const TIMES: usize = 3;

pub(crate) fn run() {
    let mut rows: Vec<(String, Vec<String>)> = Vec::new();
    for (column, size) in SIZES.into_iter().enumerate() {
        let work = tempfile::tempdir().expect("a directory to work in");
        for (number, (what, figure)) in measured(work.path(), size).into_iter().enumerate() {
            match rows.get_mut(number) {
                Some((known, figures)) if *known == what => figures.push(figure),
                _ if column == 0 => rows.push((what, vec![figure])),
                _ => panic!("`{what}` was not measured for every size"),
            }
        }
    }
    println!("{:<46}{}", "", SIZES.map(|size| format!("{size:>14}")).concat());
    for (what, figures) in rows {
        let figures: Vec<_> = figures.iter().map(|figure| format!("{figure:>14}")).collect();
        println!("{what:<46}{}", figures.concat());
    }
}

fn measured(work: &Path, size: usize) -> Vec<(String, String)> {
    let (root, [base, web]) = made(work, size);
    let open = || Registry::open(&root).expect("the registry");
    let mut rows = Vec::new();
    let mut timed = |what: &str, ask: &dyn Fn()| {
        let took = (0..TIMES).map(|_| {
            let begun = Instant::now();
            ask();
            begun.elapsed()
        });
        rows.push((what.to_owned(), milliseconds(took.min().unwrap_or_default())));
    };
    let newest: Selector = "web".parse().expect("a selector");
    timed("resolve the newest, a new process", &|| drop(open().usable(&newest, 1, false).expect("resolves")));
    let kept = open();
    timed("resolve the newest, the same process", &|| drop(kept.usable(&newest, 1, false).expect("resolves")));
    timed("list the images, a new process", &|| drop(open().images().expect("lists")));
    timed("list the versions of an image, a new process", &|| {
        drop(open().listing(&web.image, 1).expect("lists"));
    });
    timed("what was baked on a version, a new process", &|| {
        let parent = Parent { image: base.image.clone(), version: "1.0.1".parse().expect("a version") };
        assert_eq!(open().descendants(&parent).expect("lists").len(), 1);
    });
    timed("outdated, a new process", &|| drop(open().outdated(None, 1).expect("lists")));
    timed("history of a channel, a new process", &|| drop(open().history(&web.image, None).expect("lists")));
    let rules = Rules { newest: Some(10), days: None, now: 1 };
    timed("what a collection would remove", &|| drop(open().prune_dry(&rules).expect("decides")));

    let (mut child, address) = serve(&root);
    let mut asked = Asked::new(&address);
    let middle = format!("/images/web/1.0.{}", size / 4);
    for (what, path) in [
        ("dashboard: images", "/"),
        ("dashboard: an image", "/images/web"),
        ("dashboard: a version", &middle),
        ("dashboard: a channel", "/channels/web/stable"),
        ("API: a page of versions", "/api/v1/images/web?limit=100"),
        ("API: resolve", "/api/v1/images/web/resolve/latest"),
    ] {
        let begun = Instant::now();
        asked.whole(path);
        rows.push((format!("{what}, first"), milliseconds(begun.elapsed())));
        let again = (0..TIMES).map(|_| {
            let begun = Instant::now();
            asked.whole(path);
            begun.elapsed()
        });
        rows.push((format!("{what}, again"), milliseconds(again.min().unwrap_or_default())));
    }
    let _ = child.kill();
    let _ = child.wait();

    let bytes = |path: &Path| {
        let entries = fs::read_dir(path).expect("list").map(|entry| entry.and_then(|entry| entry.metadata()));
        entries.map(|metadata| metadata.expect("a file").len()).sum::<u64>()
    };
    let image = root.join("images/web");
    rows.push(("head.json of web, KiB".to_owned(), kib(fs::metadata(image.join("head.json")).expect("a head").len())));
    rows.push(("records of web, KiB".to_owned(), kib(bytes(&image.join("v")))));
    rows.push(("log of web, KiB".to_owned(), kib(bytes(&image.join("log")))));
    let publishing = (0..TIMES).map(|time| {
        let begun = Instant::now();
        let publication = fixed(&format!("2.0.{time}"));
        open().publish(&web, work, &publication, &Quiet).expect("publishes");
        begun.elapsed()
    });
    rows.push(("publish one more".to_owned(), milliseconds(publishing.min().unwrap_or_default())));
    rows
}

/// A registry with `size` versions, and what the first of each image was published from.
fn made(work: &Path, size: usize) -> (PathBuf, [Artifact; 2]) {
    let disk = work.join("disk.raw");
    let text = b"server { listen 80; root /var/www/html; }\n".repeat(100_000);
    fs::write(&disk, [text, vec![0; 4 << 20]].concat()).expect("write a disk");
    let mut artifact = sealed(work, &disk, None);
    artifact.image = "base".parse().expect("a name");
    let root = work.join("registry");
    let base = artifact.clone();
    let web = Artifact { image: "web".parse().expect("a name"), ..artifact };
    let registry = Registry::open(&root).expect("a registry");
    for artifact in [&base, &web] {
        let first = Artifact { build: "b-0".to_owned(), ..artifact.clone() };
        registry.publish(&first, work, &fixed("1.0.0"), &Quiet).expect("publish the first");
    }
    let intent = Intent { by: "bench".to_owned(), now: 1, reason: None, allow_revoked: false };
    let selector = "web@1.0.0".parse().expect("a selector");
    registry.promote(&selector, &"stable".parse().expect("a name"), None, &intent).expect("promote");
    for (image, parent) in [("base", false), ("web", true)] {
        multiply(&root, image, size / 2, parent);
    }
    (root, [base, web])
}

/// Copies the objects of 1.0.0 of `image` until there are `count` versions.
fn multiply(root: &Path, image: &str, count: usize, parent: bool) {
    let directory = root.join("images").join(image);
    let read = |path: &Path| -> Value { serde_json::from_slice(&fs::read(path).expect("read")).expect("JSON") };
    let write = |path: &Path, value: &Value| fs::write(path, value.to_string()).expect("write an object");
    let blob = |digest: &str| root.join("blobs/sha256").join(digest.trim_start_matches("sha256:"));
    let mut head = read(&directory.join("head.json"));
    let (record, listed) = (read(&directory.join("v/1.0.0.json")), head["versions"][0].clone());
    let (log, revisions) = (read(&directory.join("log/1.json")), head["rev"].as_u64().expect("a revision"));
    let manifest = fs::read_to_string(blob(record["manifest"]["digest"].as_str().expect("a digest"))).expect("read");
    let mut versions = vec![listed.clone()];
    for number in 1..count {
        let (version, build) = (format!("1.0.{number}"), format!("b-{number}"));
        let disk = Digest::of(format!("{image} {number}").as_bytes()).to_string();
        // The same manifest in other bytes.
        let own = manifest.clone() + &format!("{number:020b}").replace('0', " ").replace('1', "\n");
        let digest = Digest::of(own.as_bytes()).to_string();
        fs::write(blob(&digest), &own).expect("write a manifest");
        let mut listed = listed.clone();
        for (name, value) in [("version", &version), ("build", &build), ("disk", &disk), ("qcow2", &disk)] {
            listed[name] = json!(value);
        }
        let mut record = record.clone();
        record["manifest"]["digest"] = json!(digest);
        record["manifest"]["size"] = json!(own.len());
        record["artifact"]["disk"]["digest"] = json!(disk);
        record["artifact"]["version"] = json!(version);
        record["artifact"]["build"] = json!(build);
        if parent {
            let parent = json!({ "image": "base", "version": version });
            record["parent"] = parent.clone();
            listed["parent"] = parent;
        }
        write(&directory.join(format!("v/{version}.json")), &record);
        let rev = revisions + number as u64;
        let mut change = log.clone();
        (change["rev"], change["versions"], change["state"]) = (json!(rev), json!([version]), json!({}));
        change["state"]["channels"] = head["channels"].clone();
        write(&directory.join(format!("log/{rev}.json")), &change);
        versions.push(listed);
    }
    versions.reverse();
    head["versions"] = json!(versions);
    head["rev"] = json!(revisions + count as u64 - 1);
    let text = serde_json::to_string_pretty(&head).expect("JSON");
    fs::write(directory.join("head.json"), text + "\n").expect("write the head");
}

fn milliseconds(time: Duration) -> String {
    format!("{:.2} ms", time.as_secs_f64() * 1000.0)
}

fn kib(bytes: u64) -> String {
    format!("{}", bytes >> 10)
}
