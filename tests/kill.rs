//! Signals and `kill -9` in every phase of a real bake, the making of its base included: nothing is left running, no
//! file but logs is left, nothing half published is visible.

#![expect(clippy::disallowed_methods, reason = "tests drive stock programs, and wait for a file without tokio")]

use std::{
    fs,
    os::unix::process::ExitStatusExt as _,
    process::Command,
    time::{Duration, Instant},
};

use kiln_tests::{
    home::{Home, Ran},
    running::{Build, alone, gone, nothing_but_logs},
};

const TINY: &str = "tests/templates/tiny";
/// The limit for a Ctrl-C, and what a loaded machine may take on top.
const CLEANED_WITHIN: Duration = Duration::from_secs(10 * 3);

/// The same for a second one.
const LEFT_WITHIN: Duration = Duration::from_secs(3);

/// The events after which the build is hit, in the order of the flow. A step is hit while it runs.
const MOMENTS: [(&str, &str); 7] = [
    ("phase-started", "boot"),
    ("step-started", "shell"),
    ("phase-started", "clean"),
    ("phase-started", "shutdown"),
    ("phase-started", "seal"),
    ("phase-started", "boot-test"),
    ("phase-started", "publish"),
];

/// Whoever asks a program to stop, with a key, a service manager or a closed terminal, is asking the same.
const WORDS: [&str; 3] = ["INT", "TERM", "HUP"];

/// Checkpoints of the boot and of the step, so that not every build that is hit has to boot first.
struct Seed(Home);

impl Seed {
    fn new(name: &str) -> Self {
        let home = Home::new(name);
        home.kiln(&["build", TINY, "--checkpoints", "every", "--until", "shell"]).succeeds();
        home.kiln(&["clean", "--kept"]).succeeds();
        Self(home)
    }

    /// A home that has them, too.
    fn home(&self, name: &str) -> Home {
        let home = Home::new(name);
        let checkpoints = |home: &Home| home.path("cache/checkpoints");
        let copied = Command::new("cp").arg("-a").args([checkpoints(&self.0), checkpoints(&home)]).status();
        assert!(copied.expect("run cp").success());
        home
    }
}

/// A build that comes to a moment by the shortest way.
fn on_the_way_to(what: &str, home: &Home) -> Build {
    let more: &[&str] = match what {
        "boot" => &["--fresh"],
        "shell" => &["--fresh-from", "shell"],
        "publish" => &["--no-boot-test"],
        _ => &[],
    };
    Build::spawn(home.command(&[&["build", TINY, "--json"], more].concat()))
}

#[test]
fn a_signal_in_any_phase_cleans_and_exits_with_130() {
    let _turn = alone();
    let seed = Seed::new("interrupt");
    for ((event, what), word) in MOMENTS.into_iter().zip(WORDS.into_iter().cycle()) {
        let home = seed.home(&format!("interrupt-{what}"));
        let mut build = on_the_way_to(what, &home);
        build.wait_for(event, what);
        let start = Instant::now();
        build.signal(word);
        let (status, said) = build.end();
        let took = start.elapsed();
        // A build that was publishing already may finish first: what is published is whole.
        let finished = what == "publish" && status.success();
        assert!(status.code() == Some(130) || finished, "{word} in `{what}`: {status:?}\n{said}");
        assert!(took < CLEANED_WITHIN, "{word} in `{what}`: cleaning took {took:?}");
        gone(&home, what);
        nothing_but_logs(&home, what);
        whole_or_absent(&home, what);
    }
}

#[test]
fn a_second_signal_leaves_at_once_and_says_what_remains() {
    let _turn = alone();
    let home = Home::new("impatient");
    let mut build = Build::start(&home, TINY);
    build.wait_for("step-started", "shell");
    build.signal("INT");
    build.signal("INT");
    let start = Instant::now();
    let status = build.child.wait().expect("wait for kiln");
    let took = start.elapsed();
    assert_eq!(status.code(), Some(130));
    assert!(took < LEFT_WITHIN, "leaving took {took:?}");
    let (_, said) = build.end();
    assert!(said.contains("left: "), "{said}");
    gone(&home, "a step");
    home.kiln(&["clean"]).succeeds();
    nothing_but_logs(&home, "a step");
}

/// Somebody's `kill -9` or the kernel's; and what a failed allocation or a full stack makes of a program.
const DEATHS: [&str; 2] = ["KILL", "ABRT"];

#[test]
fn a_sudden_death_in_any_phase_leaves_nothing() {
    let _turn = alone();
    let seed = Seed::new("kill");
    for ((event, what), death) in MOMENTS.into_iter().zip(DEATHS.into_iter().cycle()) {
        let home = seed.home(&format!("kill-{what}"));
        let mut build = on_the_way_to(what, &home);
        build.wait_for(event, what);
        build.signal(death);
        let (status, _) = build.end();
        assert!(status.signal().is_some() && !status.core_dumped(), "{death} in `{what}`: {status:?}");
        gone(&home, what);
        // What the guard released itself is no longer listed; whatever it could not, this releases.
        home.kiln(&["clean"]).succeeds();
        nothing_but_logs(&home, what);
        whole_or_absent(&home, what);
    }
}

/// Killed while the base is made, in a cache of its own: no process stays, and `kiln clean` removes the half-made tree.
#[test]
fn a_sudden_death_while_the_base_is_made_leaves_nothing() {
    let _turn = alone();
    let home = Home::new("kill-base");
    let mut command = home.command(&["build", TINY, "--json"]);
    let scratch = home.path("scratch");
    fs::create_dir_all(&scratch).expect("a place for temporary files");
    command.env("KILN_CACHE_DIR", home.path("own-cache")).env("TMPDIR", &scratch);
    let mut build = Build::spawn(command);
    build.wait_for("phase-started", "base");
    let half_made = || fs::read_dir(&scratch).expect("list the temporary files").count();
    let deadline = Instant::now() + Duration::from_mins(1);
    while half_made() == 0 {
        assert!(Instant::now() < deadline, "nothing is made");
        std::thread::sleep(Duration::from_millis(10));
    }
    build.signal("KILL");
    build.end();
    gone(&home, "base");
    assert_eq!(half_made(), 1);
    let clean = |more: &[&str]| {
        let mut command = home.command(&[&["clean"], more].concat());
        let output = command.env("KILN_CACHE_DIR", home.path("own-cache")).output().expect("run kiln clean");
        Ran::new(&["clean"], &output).succeeds().stderr
    };
    assert!(clean(&["--dry-run"]).contains("would release 1 half-made base"));
    assert_eq!(half_made(), 1);
    assert!(clean(&[]).contains("released 1 half-made base"));
    assert_eq!(half_made(), 0);
    let left = fs::read_dir(home.path("own-cache/bases")).expect("list the cache").flatten();
    let left: Vec<_> =
        left.map(|entry| entry.file_name()).filter(|name| name.to_string_lossy().contains("work")).collect();
    assert!(left.is_empty(), "{left:?}");
    nothing_but_logs(&home, "base");
}

/// Nothing is published before it is proven, and whatever the registry lists can be taken out of it, verified.
fn whole_or_absent(home: &Home, what: &str) {
    let listed = home.kiln(&["images", "--json"]).succeeds().stdout.contains("\"tiny\"");
    if what != "publish" {
        assert!(!listed, "hit in `{what}`, and yet it is published");
    }
    if listed {
        let file = home.path("tiny.qcow2");
        home.kiln(&["export", "tiny", "--to", file.to_str().expect("a UTF-8 path")]).succeeds();
    }
}
