//! Bakes that fail on real machines: what is said, what stays for a look, and that nothing else does.

#![expect(clippy::disallowed_methods, reason = "tests drive stock programs as a user would")]

use std::{
    fs,
    io::Write as _,
    path::Path,
    process::{Command, Stdio},
};

use kiln_tests::{
    home::{Home, Ran, repository},
    running::{Build, alone, gone, nothing_but_logs},
};

/// The guest's disk is full: the step's own words, what `df` says, and a machine to look into until it is released.
#[test]
fn a_failed_step_leaves_its_machine_for_a_look_when_asked_to() {
    let _turn = alone();
    let home = Home::new("keep");
    let built = home.kiln(&["build", "tests/templates/full", "--on-error", "keep"]);
    assert_eq!(built.code, Some(1), "{built:?}");
    for words in ["No space left on device", "`/` is full", "kiln ssh b-", "kiln clean b-", "kept: "] {
        assert!(built.stderr.contains(words), "`{words}` is not in {built:?}");
    }
    // Of an ordinary clean-up the machine is no part.
    home.kiln(&["clean"]).succeeds();
    let seen = home.kiln(&["ssh", "full", "--", "cat", "/root/evidence"]).succeeds();
    assert_eq!(seen.stdout, "found by a person\n");
    assert!(home.kiln(&["logs", "full"]).succeeds().stdout.contains("No space left on device"));
    home.kiln(&["clean", "full"]).succeeds();
    gone(&home, "a kept machine");
    nothing_but_logs(&home, "a kept machine");
    assert_eq!(home.kiln(&["ssh", "full"]).code, Some(2));
    assert!(!home.kiln(&["images", "--json"]).succeeds().stdout.contains("\"full\""));
}

/// The disk of this machine fills up under a running step: the bake stops and names it, and nothing stays.
#[test]
fn a_host_disk_that_fills_up_stops_the_bake_and_is_named() {
    /// Room for what a bake is refused without, and a little more.
    const STATE: &str = "size=1200m";
    const SCRIPT: &str = r#"
        mount -t tmpfs -o "$STATE_SIZE" tmpfs "$KILN_STATE_DIR"
        exec 3<&0
        (read -r go <&3; head -c 4G /dev/zero >"$KILN_STATE_DIR/filler" 2>/dev/null) &
        "$@" </dev/null
        ended=$?
        rm -f "$KILN_STATE_DIR/filler"
        (cd "$KILN_STATE_DIR" && find . -type f ! -name '*.log' ! -name '*.jsonl' ! -name log ! -name '*.console') >&2
        exit "$ended"
    "#;
    let _turn = alone();
    let home = Home::new("host-full");
    fs::create_dir_all(home.path("state")).expect("make the state directory");
    let kiln = home.command(&["build", "tests/templates/writing", "--json", "--checkpoints", "off"]);
    let mut command = Command::new("unshare");
    command.args(["--map-root-user", "--mount", "sh", "-c", SCRIPT, "sh"]).arg(kiln.get_program());
    command.args(kiln.get_args()).current_dir(kiln.get_current_dir().expect("the repository")).env_clear();
    command.envs(kiln.get_envs().filter_map(|(name, value)| Some((name, value?)))).env("STATE_SIZE", STATE);
    command.stdin(Stdio::piped());
    let mut build = Build::spawn(command);
    build.wait_for("step-started", "shell");
    build.child.stdin.take().expect("its stdin").write_all(b"go\n").expect("fill the disk");
    let (status, said) = build.end();
    assert_eq!(status.code(), Some(1), "{said}");
    assert!(said.contains("disk is full"), "{said}");
    let left: Vec<&str> = said.lines().filter(|line| line.starts_with("./")).collect();
    assert!(left.is_empty(), "{left:#?}");
    gone(&home, "a full disk");
    assert!(!home.kiln(&["images", "--json"]).succeeds().stdout.contains("\"writing\""));
}

/// Nothing is published, every format is the same disk, and the record tells each file's digest.
#[test]
fn an_image_can_be_put_into_a_directory_in_every_format() {
    let _turn = alone();
    let home = Home::new("formats");
    let to = home.path("out");
    let directory = to.to_str().expect("a UTF-8 path");
    home.kiln(&["build", "tests/templates/formats", "--no-publish", "--no-boot-test", "--output", directory])
        .succeeds();
    let place = only_directory_with(&to, "artifact.json");
    let record = fs::read(place.join("artifact.json")).expect("read the record");
    let record: serde_json::Value = serde_json::from_slice(&record).expect("the record is JSON");
    let files = record["files"].as_array().expect("files");
    assert_eq!(files.len(), 5, "{files:?}");
    for file in files {
        let name = file["name"].as_str().expect("a name");
        let sum = Command::new("sha256sum").arg(place.join(name)).output().expect("run sha256sum");
        let sum = format!("sha256:{}", &String::from_utf8_lossy(&sum.stdout)[..64]);
        assert_eq!(file["sha256"].as_str(), Some(sum.as_str()), "{name}");
    }
    let unpacked = place.join("unpacked.raw");
    let zstd = Command::new("zstd").args(["-d", "-q", "-o"]).arg(&unpacked).arg(place.join("disk.raw.zst")).status();
    assert!(zstd.expect("run zstd").success());
    for (format, name) in [("raw", "disk.raw"), ("raw", "unpacked.raw"), ("vmdk", "disk.vmdk"), ("vpc", "disk.vhd")] {
        let mut compare = Command::new("qemu-img");
        compare.args(["compare", "-f", "qcow2", "-F", format]).arg(place.join("disk.qcow2")).arg(place.join(name));
        let compare = compare.output().expect("run qemu-img");
        assert!(compare.status.success(), "{name}: {compare:?}");
    }
    assert!(!home.kiln(&["images", "--json"]).succeeds().stdout.contains("\"formats\""));
    nothing_but_logs(&home, "an output");
}

/// The directory at or beneath `root` that holds a file of this name.
fn only_directory_with(root: &Path, name: &str) -> std::path::PathBuf {
    let mut places = vec![root.to_owned()];
    while let Some(place) = places.pop() {
        if place.join(name).exists() {
            return place;
        }
        let inside = fs::read_dir(&place).expect("list the output").flatten().map(|entry| entry.path());
        places.extend(inside.filter(|path| path.is_dir()));
    }
    panic!("no `{name}` beneath {}", root.display());
}

/// What a step deleted is not on the disk any more; what one left behind stops the bake under the secret's name. The
/// value itself is nowhere: not in what is said, not in a log, not in an event.
#[test]
fn a_secret_that_stays_in_the_image_stops_the_bake_and_is_never_shown() {
    const VALUE: &str = "canary-7f3a91c25e-do-not-show";
    let _turn = alone();
    let home = Home::new("leaking");
    let mut command = home.command(&["build", "tests/templates/leaking", "--json"]);
    let output = command.env("KILN_VAR_token", VALUE).output().expect("run kiln");
    let built = Ran::new(&["build"], &output);
    assert_eq!(built.code, Some(1), "{built:?}");
    let findings: Vec<&str> = built.stderr.lines().filter(|line| line.contains("H39")).collect();
    assert!(
        findings.iter().any(|line| line.contains("the secret `token` stands") && line.contains("(base64)")),
        "{built:?}"
    );
    assert!(!built.stderr.contains("(plain)"), "the deleted file is still on the disk: {built:?}");
    let mut texts = vec![built.stdout, built.stderr];
    let mut places = vec![home.path("state")];
    while let Some(place) = places.pop() {
        for entry in fs::read_dir(&place).expect("list the state").flatten() {
            if entry.path().is_dir() {
                places.push(entry.path());
            } else {
                texts.push(String::from_utf8_lossy(&fs::read(entry.path()).expect("read a log")).into_owned());
            }
        }
    }
    assert!(texts.iter().any(|text| text.contains("the token is ")), "the step's words are in the log");
    let base64 = "Y2FuYXJ5LTdmM2E5MWMyNWUtZG8tbm90LXNob3";
    assert!(!texts.iter().any(|text| text.contains(VALUE) || text.contains(base64)));
    nothing_but_logs(&home, "a leak");
}

/// Two builds, or one greedy one, must not bring the machine into swapping: said before anything is begun.
#[test]
fn a_guest_that_the_machine_cannot_hold_is_refused_at_once() {
    let home = Home::new("greedy");
    let template = home.path("greedy.toml");
    let text = fs::read_to_string(repository().join("tests/templates/tiny/template.toml")).expect("read the template");
    fs::write(&template, text.replace("768 MiB", "4 TiB")).expect("write the template");
    let built = home.kiln(&["build", template.to_str().expect("a UTF-8 path")]);
    assert_eq!(built.code, Some(1), "{built:?}");
    assert!(built.stderr.contains("memory of 4 TiB does not fit"), "{built:?}");
    nothing_but_logs(&home, "a refusal");
}
