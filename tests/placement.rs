//! A new version on the places of the one before: it stores what changed, it boots, and the same tree is not published again.

use std::fs;

use kiln_tests::{
    home::{Home, Ran},
    running::{Build, alone, gone, nothing_but_logs},
};
use serde_json::Value;

const TEMPLATE: &str = "tests/templates/placed";

fn build(home: &Home, text: &str) -> Ran {
    home.kiln(&["build", TEMPLATE, "--var", &format!("text={text}"), "--json", "--force"]).succeeds()
}

fn shown(home: &Home) -> Value {
    serde_json::from_str(&home.kiln(&["show", "placed", "--json"]).succeeds().stdout).expect("kiln show prints JSON")
}

/// Bytes of all blobs of the registry.
fn stored(home: &Home) -> u64 {
    let blobs = fs::read_dir(home.path("data/registry/blobs/sha256")).expect("list the blobs");
    blobs.map(|blob| blob.and_then(|blob| blob.metadata()).expect("a blob").len()).sum()
}

fn detail<'a>(events: &'a [Value], event: &str, phase: &str) -> Option<&'a str> {
    let found = events.iter().find(|value| value["event"] == event && value["phase"] == phase)?;
    found["detail"].as_str()
}

#[test]
fn a_version_stores_what_changed_and_the_same_tree_is_not_published_again() {
    let _turn = alone();
    let home = Home::new("placed");
    build(&home, "one");
    let (first, whole) = (shown(&home), stored(&home));
    assert_eq!(first["placement"], Value::Null);

    let events = events(&build(&home, "two"));
    let (second, both) = (shown(&home), stored(&home));
    assert_eq!(second["placement"]["on"], first["version"], "{second:#}");
    assert_eq!(second["placement"]["generation"], 1);
    let added = both - whole;
    assert!(added * 20 < whole, "{added} bytes more for a version that differs in one file; the first took {whole}");
    assert!(detail(&events, "phase-finished", "placement").is_some_and(|detail| detail.contains("stay where")));
    // What was placed is what was proven: read from outside, and booted.
    assert!(detail(&events, "phase-finished", "boot-test").is_some_and(|detail| detail.contains("it boots")));

    let again = build(&home, "two");
    assert!(again.stderr.contains("every file is as in placed"), "{again:?}");
    assert_eq!(shown(&home)["version"], second["version"]);
    assert_eq!(stored(&home), both);
    // And a build that nothing forces knows.
    let skipped = home.kiln(&["build", TEMPLATE, "--var", "text=two", "--json"]).succeeds();
    assert!(skipped.stdout.contains("build-skipped"), "{skipped:?}");

    let command = home.command(&["build", TEMPLATE, "--var", "text=three", "--json"]);
    let mut killed = Build::spawn(command);
    killed.wait_for("phase-started", "placement");
    killed.signal("KILL");
    killed.end();
    gone(&home, "placement");
    home.kiln(&["clean"]).succeeds();
    nothing_but_logs(&home, "placement");
    assert_eq!((shown(&home)["version"].clone(), stored(&home)), (second["version"].clone(), both));
}

fn events(ran: &Ran) -> Vec<Value> {
    ran.stdout.lines().map(|line| serde_json::from_str(line).expect("events are JSON")).collect()
}
