use std::{
    fs,
    os::unix::{fs::symlink, process::ExitStatusExt as _},
    process::Child,
};

use super::*;

fn dirs(root: &tempfile::TempDir) -> Dirs {
    let at = |name: &str| root.path().join(name);
    fs::create_dir_all(at("cache")).unwrap();
    Dirs { cache: at("cache"), state: at("state"), data: at("data") }
}

/// A ledger whose kiln is gone, with these lines after its first.
fn interrupted(dirs: &Dirs, build: &str, lines: &[serde_json::Value]) {
    let directory = dirs.build(build);
    fs::create_dir_all(&directory).unwrap();
    let opened = r#"{"record":"opened","format":1,"kiln":"0.1.0","build":"b","owner":{"pid":4000000,"start_time":1,"boot":"x"}}"#;
    let lines = lines.iter().fold(format!("{opened}\n"), |text, line| format!("{text}{line}\n"));
    fs::write(directory.join(FILE), lines).unwrap();
}

#[expect(clippy::disallowed_methods, reason = "a real process of another program")]
fn sleeper(marker: &str) -> Child {
    use std::process::{Command, Stdio};
    // It waits without a child of its own, for an end of input that comes with the end of the test at the latest.
    Command::new("sh").args(["-c", "read line", marker]).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap()
}

fn process(marker: &str, identity: Option<&Identity>) -> serde_json::Value {
    serde_json::json!({"record": "acquired", "id": "1", "what": "VM", "kind": "process", "marker": marker, "identity": identity})
}

#[test]
fn what_is_acquired_and_not_released_is_outstanding() {
    let root = tempfile::tempdir().unwrap();
    let dirs = dirs(&root);
    let ledger = Ledger::open(&dirs, "b-1").unwrap();
    let overlay = ledger.acquire_file("overlay", &ledger.directory().join("disk.qcow2")).unwrap();
    let vm = ledger.acquire("VM", Resource::Process { marker: "kiln-b-1".into(), identity: None }).unwrap();
    let own = Identity::of(std::process::id()).unwrap();
    ledger.started(&vm, &own).unwrap();
    ledger.release(&overlay).unwrap();
    let journal = read(ledger.directory()).unwrap();
    assert_eq!(journal.owner, own);
    let resource = Resource::Process { marker: "kiln-b-1".into(), identity: Some(own) };
    assert_eq!(journal.outstanding, [Outstanding { id: vm, what: "VM".into(), resource }]);
}

#[test]
fn reads_the_journal_of_every_released_format() {
    let text = include_bytes!("golden/format-1.jsonl");
    let journal = record::replay(Path::new("x"), text).unwrap();
    let names: Vec<_> = journal.outstanding.iter().map(|entry| entry.what.as_str()).collect();
    assert_eq!((journal.build.as_str(), journal.kept, names), ("b-655aa2c0-01020304", true, vec!["overlay", "VM"]));
    assert!(matches!(
        &journal.outstanding[1].resource,
        Resource::Process { identity: Some(Identity { pid: 4712, .. }), .. }
    ));
    let journal = record::replay(Path::new("x"), include_bytes!("golden/format-2.jsonl")).unwrap();
    let Resource::Remote(remote) = &journal.outstanding[0].resource else { panic!("{journal:?}") };
    assert_eq!((remote.region.as_str(), remote.intent.as_str()), ("eu-west-1", "9d1c0e5b7a3f4e21"));
}

#[test]
fn a_newer_format_is_refused_naming_the_version_that_wrote_it() {
    let text = b"{\"record\":\"opened\",\"format\":3,\"kiln\":\"9.1.0\",\"shape\":\"unknown\"}\n";
    let error = record::replay(Path::new("x"), text).unwrap_err().to_string();
    assert!(error.contains("format 3, written by kiln 9.1.0"), "{error}");
}

#[test]
fn a_torn_last_line_does_not_count_and_is_cut_off_by_the_next_writer() {
    let root = tempfile::tempdir().unwrap();
    let dirs = dirs(&root);
    drop(Ledger::open(&dirs, "b-1").unwrap());
    let path = dirs.build("b-1").join(FILE);
    let whole = fs::read(&path).unwrap();
    let second = br#"{"record":"acquired","id":"1","what":"overlay","kind":"file","path":"/x"}"#;
    for cut in 0..=second.len() {
        fs::write(&path, [whole.as_slice(), &second[..cut]].concat()).unwrap();
        assert!(read(&dirs.build("b-1")).unwrap().outstanding.is_empty());
        Ledger::join(&dirs, "b-1").unwrap().keep().unwrap();
        assert!(read(&dirs.build("b-1")).unwrap().kept);
    }
}

#[test]
fn a_damaged_line_in_the_middle_is_named_and_nothing_is_touched() {
    let root = tempfile::tempdir().unwrap();
    let dirs = dirs(&root);
    let victim = dirs.build("b").join("file");
    let file = serde_json::json!({"record": "acquired", "id": "1", "what": "overlay", "kind": "file", "path": victim});
    interrupted(&dirs, "b", &[file, serde_json::json!({"record": "what?"})]);
    fs::write(&victim, "x").unwrap();
    let reports = reap(&dirs, &Choice::default()).unwrap();
    assert!(
        matches!(&reports[0].condition, Condition::Unreadable(why) if why.contains("damaged at line 3")),
        "{reports:?}"
    );
    assert!(victim.exists());
}

#[test]
fn an_interrupted_build_is_released_newest_first_and_again_without_harm() {
    let root = tempfile::tempdir().unwrap();
    let dirs = dirs(&root);
    let ledger = Ledger::open(&dirs, "b").unwrap();
    let directory = ledger.directory().join("work");
    ledger.acquire_directory("work directory", &directory).unwrap();
    ledger.acquire_file("overlay", &directory.join("disk")).unwrap();
    ledger.acquire_file("overlay", &dirs.cache.join("x.part")).unwrap();
    fs::create_dir(&directory).unwrap();
    fs::write(directory.join("disk"), "x").unwrap();
    assert_eq!(reap(&dirs, &Choice::default()).unwrap()[0].condition, Condition::Alive);
    assert!(directory.join("disk").exists());
    let text = fs::read_to_string(ledger.directory().join(FILE)).unwrap();
    let dead = text.replace(&format!("\"pid\":{}", std::process::id()), "\"pid\":4000000");
    fs::write(ledger.directory().join(FILE), dead).unwrap();
    drop(ledger);
    let reports = reap(&dirs, &Choice::default()).unwrap();
    assert_eq!(reports[0].summary(), "2 overlays, 1 work directory");
    assert_eq!((reports[0].released, reports[0].failed.len()), (3, 0));
    assert!(!directory.exists());
    assert_eq!(reap(&dirs, &Choice::default()).unwrap(), []);
}

#[test]
fn what_a_person_keeps_is_released_only_on_demand() {
    let root = tempfile::tempdir().unwrap();
    let dirs = dirs(&root);
    let path = dirs.build("b").join("kept");
    let file = serde_json::json!({"record": "acquired", "id": "1", "what": "overlay", "kind": "file", "path": path});
    interrupted(&dirs, "b", &[file, serde_json::json!({"record": "kept"})]);
    fs::write(&path, "x").unwrap();
    assert_eq!(reap(&dirs, &Choice::default()).unwrap()[0].condition, Condition::Kept);
    assert!(path.exists());
    reap(&dirs, &Choice { kept: true, build: Some("other".into()) }).unwrap();
    assert!(path.exists());
    reap(&dirs, &Choice { kept: true, build: None }).unwrap();
    assert!(!path.exists());
}

#[test]
fn kills_the_process_it_recorded_and_waits_until_it_is_gone() {
    let root = tempfile::tempdir().unwrap();
    let dirs = dirs(&root);
    let mut child = sleeper("kiln-test-recorded");
    let identity = Identity::of(child.id()).unwrap();
    interrupted(&dirs, "b", &[process("kiln-test-recorded", Some(&identity))]);
    assert_eq!(reap(&dirs, &Choice::default()).unwrap()[0].released, 1);
    assert_eq!(child.try_wait().unwrap().unwrap().signal(), Some(9));
}

#[test]
fn finds_by_its_marker_a_process_whose_start_was_never_recorded() {
    let root = tempfile::tempdir().unwrap();
    let dirs = dirs(&root);
    let marker = format!("kiln-test-{}", crate::random::nonce());
    let (mut child, mut other) = (sleeper(&marker), sleeper(&format!("{marker}-other")));
    interrupted(&dirs, "b", &[process(&marker, None)]);
    assert_eq!(reap(&dirs, &Choice::default()).unwrap()[0].released, 1);
    assert_eq!(child.try_wait().unwrap().unwrap().signal(), Some(9));
    assert!(other.try_wait().unwrap().is_none());
    other.kill().unwrap();
    other.wait().unwrap();
}

#[test]
fn never_kills_a_process_that_got_the_number_of_a_dead_one() {
    let root = tempfile::tempdir().unwrap();
    let dirs = dirs(&root);
    let mut stranger = sleeper("kiln-test-stranger");
    let real = Identity::of(stranger.id()).unwrap();
    let earlier = Identity { start_time: real.start_time - 1, ..real.clone() };
    let other_boot = Identity { boot: "an earlier boot".into(), ..real.clone() };
    let records = [
        process("kiln-test-stranger", Some(&earlier)),
        process("kiln-test-stranger", Some(&other_boot)),
        process("another-marker", Some(&real)),
    ];
    for record in records {
        interrupted(&dirs, "b", &[record]);
        let reports = reap(&dirs, &Choice::default()).unwrap();
        assert_eq!((reports[0].released, reports[0].failed.len()), (1, 0));
        assert!(stranger.try_wait().unwrap().is_none());
    }
    stranger.kill().unwrap();
    stranger.wait().unwrap();
}

#[test]
fn never_deletes_outside_its_own_directories() {
    let root = tempfile::tempdir().unwrap();
    let dirs = dirs(&root);
    let outside = root.path().join("precious");
    fs::create_dir_all(&outside).unwrap();
    fs::write(outside.join("file"), "x").unwrap();
    fs::create_dir_all(dirs.build("b")).unwrap();
    symlink(&outside, dirs.build("b").join("link")).unwrap();
    let paths = [
        outside.join("file"),
        dirs.build("b").join("../../../precious/file"),
        dirs.build("b").join("link/file"),
        dirs.build("other").join("file"),
        dirs.build("b"),
        PathBuf::from("relative"),
    ];
    fs::create_dir_all(dirs.build("other")).unwrap();
    fs::write(dirs.build("other").join("file"), "x").unwrap();
    for path in &paths {
        for kind in ["file", "directory"] {
            let line = serde_json::json!({"record": "acquired", "id": "1", "what": "x", "kind": kind, "path": path});
            interrupted(&dirs, "b", &[line]);
            let report = &reap(&dirs, &Choice::default()).unwrap()[0];
            assert_eq!((report.released, report.failed.len()), (0, 1), "{}", path.display());
        }
    }
    assert!(outside.join("file").exists() && dirs.build("other").join("file").exists());
    let ledger = Ledger::open(&dirs, "c").unwrap();
    assert!(matches!(ledger.acquire_file("x", &outside), Err(LedgerError::Outside { .. })));
}

#[test]
fn a_link_is_removed_and_what_it_points_at_stays() {
    let root = tempfile::tempdir().unwrap();
    let dirs = dirs(&root);
    let target = root.path().join("target");
    fs::write(&target, "x").unwrap();
    let link = dirs.build("b").join("disk");
    interrupted(
        &dirs,
        "b",
        &[serde_json::json!({"record": "acquired", "id": "1", "what": "x", "kind": "file", "path": link})],
    );
    symlink(&target, &link).unwrap();
    assert_eq!(reap(&dirs, &Choice::default()).unwrap()[0].released, 1);
    assert!(target.exists() && !link.is_symlink());
}

#[test]
fn a_build_says_when_it_last_acted() {
    let root = tempfile::tempdir().unwrap();
    let dirs = dirs(&root);
    assert_eq!(last_activity(&dirs, "b"), None);
    let ledger = Ledger::open(&dirs, "b").unwrap();
    let then = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000);
    ledger.activity().note(then);
    assert_eq!(last_activity(&dirs, "b"), Some(then));
    // Writing to it is acting, too.
    ledger.keep().unwrap();
    assert!(last_activity(&dirs, "b").unwrap() > then);
    // What is noted of a build that is gone does not bring its ledger back.
    let activity = ledger.activity();
    fs::remove_dir_all(dirs.build("b")).unwrap();
    activity.note(then);
    assert_eq!(last_activity(&dirs, "b"), None);
}

/// As in another container: its process cannot be seen, or its number is somebody else's.
#[test]
fn a_build_whose_process_cannot_be_seen_is_alive_as_long_as_it_holds_its_directory() {
    let root = tempfile::tempdir().unwrap();
    let dirs = dirs(&root);
    let ledger = Ledger::open(&dirs, "b").unwrap();
    let file = dirs.build("b").join("disk");
    ledger.acquire_file("disk", &file).unwrap();
    fs::write(&file, "x").unwrap();
    let path = dirs.build("b").join(FILE);
    let text = fs::read_to_string(&path).unwrap();
    let mut first: serde_json::Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
    first["owner"]["pid"] = 4_000_000.into();
    fs::write(&path, format!("{text}{first}\n")).unwrap();
    assert_eq!(survey(&dirs).unwrap()[0].condition, Condition::Alive);
    reap(&dirs, &Choice::default()).unwrap();
    assert!(file.exists());
    drop(ledger);
    assert_eq!(survey(&dirs).unwrap()[0].condition, Condition::Interrupted);
    reap(&dirs, &Choice::default()).unwrap();
    assert!(!file.exists());
}
