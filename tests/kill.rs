//! Ctrl-C and `kill -9` in every phase of a real bake, the making of its base included: nothing is left running, no file but logs
//! is left, nothing half published is visible.

#![expect(clippy::disallowed_methods, reason = "tests drive programs as a user would")]

use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead as _, BufReader},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use kiln_tests::home::Home;
use serde_json::Value;

/// What stays of a build on purpose: what it said, and what its machines said.
const LOGS: [&str; 4] = ["jsonl", "log", "console", ""];
/// The limit for a Ctrl-C, and what a loaded machine may take on top.
const CLEANED_WITHIN: Duration = Duration::from_secs(10 * 3);

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

#[test]
fn ctrl_c_in_any_phase_cleans_and_exits_with_130() {
    for (event, what) in MOMENTS {
        let home = Home::new(&format!("interrupt-{what}"));
        let mut build = Build::start(&home);
        build.wait_for(event, what);
        let start = Instant::now();
        signal(&build.child, "INT");
        let status = build.child.wait().expect("wait for kiln");
        let took = start.elapsed();
        // A build that was publishing already may finish first: what is published is whole.
        let finished = what == "publish" && status.success();
        assert!(status.code() == Some(130) || finished, "{what}: {status:?}");
        assert!(took < CLEANED_WITHIN, "{what}: cleaning took {took:?}");
        gone(&home, what);
        nothing_but_logs(&home, what);
        whole_or_absent(&home, what);
    }
}

#[test]
fn kill_9_in_any_phase_leaves_nothing() {
    for (event, what) in MOMENTS {
        let home = Home::new(&format!("kill-{what}"));
        let mut build = Build::start(&home);
        build.wait_for(event, what);
        signal(&build.child, "KILL");
        build.child.wait().expect("wait for kiln");
        gone(&home, what);
        // What the guard released itself is no longer listed; whatever it could not, this releases.
        home.kiln(&["clean"]).succeeds();
        nothing_but_logs(&home, what);
        whole_or_absent(&home, what);
    }
}

/// Killed while the base is made, in a cache of its own: no process stays, and the next build makes it anew.
#[test]
fn kill_9_while_the_base_is_made_leaves_no_process() {
    let home = Home::new("kill-base");
    let cache = home.path("cache");
    let mut command = home.command(&["build", "tests/templates/tiny", "--json"]);
    command.env("KILN_CACHE_DIR", &cache);
    let mut build = Build::spawn(command);
    build.wait_for("progress", "base");
    signal(&build.child, "KILL");
    build.child.wait().expect("wait for kiln");
    gone(&home, "base");
    home.kiln(&["clean"]).succeeds();
    nothing_but_logs(&home, "base");
}

struct Build {
    child: Child,
    events: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Build {
    fn start(home: &Home) -> Self {
        Self::spawn(home.command(&["build", "tests/templates/tiny", "--json"]))
    }

    fn spawn(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("start kiln");
        let events = BufReader::new(child.stdout.take().expect("its stdout")).lines();
        Self { child, events }
    }

    /// Reads events until one of this kind is about `what`.
    fn wait_for(&mut self, event: &str, what: &str) {
        let mut seen = Vec::new();
        for line in self.events.by_ref() {
            let line = line.expect("read an event");
            let value: Value = serde_json::from_str(&line).expect("events are JSON");
            let about = ["phase", "provisioner"].iter().any(|key| value[key] == what);
            if value["event"] == event && about {
                return;
            }
            seen.push(line);
        }
        let last = seen.len().saturating_sub(10);
        panic!("the build ended before `{event}` of `{what}`:\n{}", seen[last..].join("\n"));
    }
}

fn signal(child: &Child, name: &str) {
    let status: ExitStatus =
        Command::new("kill").args(["-s", name, &child.id().to_string()]).status().expect("run kill");
    assert!(status.success());
}

/// Processes that work in this home or name it.
fn processes(home: &Home) -> BTreeSet<String> {
    let place = home.path("").display().to_string();
    let of_home = |entry: fs::DirEntry| {
        let pid = entry.file_name().into_string().ok().filter(|name| name.bytes().all(|byte| byte.is_ascii_digit()))?;
        let read = |what: &str| fs::read(entry.path().join(what)).unwrap_or_default();
        let command = String::from_utf8_lossy(&read("cmdline")).replace('\0', " ");
        let works_in = fs::read_link(entry.path().join("cwd")).unwrap_or_default();
        let environment = String::from_utf8_lossy(&read("environ")).into_owned();
        let named = [command.as_str(), environment.as_str(), &works_in.display().to_string()]
            .iter()
            .any(|text| text.contains(&place));
        // A process that has ended and waits for its parent has no command line.
        (named && !command.is_empty()).then(|| format!("{pid} {command}"))
    };
    fs::read_dir("/proc").expect("list processes").flatten().filter_map(of_home).collect()
}

/// Waits until nothing of this home runs; with the processes, their ports are gone.
fn gone(home: &Home, what: &str) {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let left = processes(home);
        if left.is_empty() {
            return;
        }
        assert!(Instant::now() < deadline, "hit in `{what}`, still running: {left:#?}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn nothing_but_logs(home: &Home, what: &str) {
    let mut left = Vec::new();
    let mut directories = vec![home.path("state")];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                directories.push(path);
            } else if !LOGS.contains(&path.extension().and_then(|name| name.to_str()).unwrap_or("")) {
                left.push(path);
            }
        }
    }
    assert!(left.is_empty(), "hit in `{what}`, left behind: {left:#?}");
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
