//! A new version on the places of the one before: it stores what changed, it boots, and the same tree is not published again.

use std::fs;

use kiln_tests::{
    home::{Home, Ran},
    other_machine::OtherMachine,
    plain_vm::PlainVm,
    running::{Build, alone, gone, nothing_but_logs},
    served::Served,
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

    travels(&home, [&first, &second].map(|version| version["version"].as_str().expect("a version")));

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

/// Served to a second machine: the first version as a whole, the next as its difference; it boots there, and the channel goes back.
fn travels(home: &Home, [one, two]: [&str; 2]) {
    let (machine, consumer) = (OtherMachine::new(), Home::apart("placed-consumer"));
    let served = Served::new(home, &["--listen", &format!("{}:0", machine.address())]);
    let url = served.url.as_str();
    let pull = || machine.kiln(&consumer, &["pull", "placed@stable", "--registry", url]).succeeds().stderr;
    let promote = |version| drop(home.kiln(&["promote", "placed", version, "--to", "stable"]).succeeds());
    promote(one);
    assert!(pull().contains(&format!("placed@{one} is in")));
    let whole = stored(&consumer);
    promote(two);
    assert!(pull().contains(&format!("placed@{two} is in")));
    let added = stored(&consumer) - whole;
    assert!(added * 20 < whole, "{added} bytes more came for one package; the first version took {whole}");

    let difference = consumer.kiln(&["diff", "placed", one, two, "--json"]).succeeds();
    let difference: Value = serde_json::from_str(&difference.stdout).expect("kiln diff prints JSON");
    let changed = &difference["packages"][0];
    assert_eq!(
        (&changed["name"], &changed["from"], &changed["to"]),
        (&"text".into(), &"1+one".into(), &"1+two".into())
    );
    assert_eq!(difference["packages"].as_array().map(Vec::len), Some(1), "{difference:#}");

    let qcow2 = consumer.path("placed.qcow2");
    consumer.kiln(&["export", "placed", "--to", qcow2.to_str().expect("a UTF-8 path")]).succeeds();
    drop(PlainVm::boot_until(&qcow2, &consumer.path("machine"), "this is two"));

    home.kiln(&["rollback", "placed", "stable", "--reason", "a drill"]).succeeds();
    assert!(pull().contains(&format!("placed@{one} is in")), "it is here still, and nothing comes");
    let resolved = machine.kiln(&consumer, &["resolve", "placed@stable", "--registry", url]).succeeds();
    assert!(resolved.stdout.contains(&format!("\"placed@{one}\"")), "{resolved:?}");
}

fn events(ran: &Ran) -> Vec<Value> {
    ran.stdout.lines().map(|line| serde_json::from_str(line).expect("events are JSON")).collect()
}
