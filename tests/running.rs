//! A build of the binary while it runs: its events, signals to it, and what is left of it afterwards.

use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead as _, BufReader, Read as _},
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::home::Home;

/// What stays of a build on purpose: what it said, and what its machines said.
const LOGS: [&str; 4] = ["jsonl", "log", "console", ""];

/// A `kiln build --json` that runs.
#[derive(Debug)]
pub struct Build {
    pub child: Child,
    events: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Build {
    /// Builds `template` in `home`.
    pub fn start(home: &Home, template: &str) -> Self {
        Self::spawn(home.command(&["build", template, "--json"]))
    }

    pub fn spawn(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("start kiln");
        let events = BufReader::new(child.stdout.take().expect("its stdout")).lines();
        Self { child, events }
    }

    /// Reads events until one of this kind is about `what`: a phase or a provisioner.
    pub fn wait_for(&mut self, event: &str, what: &str) {
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

    /// Reads events until a step has written something.
    pub fn wait_for_output(&mut self, step: u64) {
        for line in self.events.by_ref() {
            let value: Value = serde_json::from_str(&line.expect("read an event")).expect("events are JSON");
            if value["event"] == "output" && value["number"] == step {
                return;
            }
        }
        panic!("the build ended before step {step} wrote anything");
    }

    /// Sends a signal: `INT`, `KILL`.
    pub fn signal(&self, name: &str) {
        let status = Command::new("kill").args(["-s", name, &self.child.id().to_string()]).status();
        assert!(status.expect("run kill").success());
    }

    /// Waits for the end; how it ended, and what it said on stderr.
    pub fn end(mut self) -> (ExitStatus, String) {
        // Whoever writes to a pipe that nobody reads would stop there.
        self.events.by_ref().for_each(drop);
        let mut said = String::new();
        let mut stderr = self.child.stderr.take().expect("its stderr");
        stderr.read_to_string(&mut said).expect("read what kiln said");
        (self.child.wait().expect("wait for kiln"), said)
    }
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
pub fn gone(home: &Home, what: &str) {
    let deadline = Instant::now() + Duration::from_mins(1);
    loop {
        let left = processes(home);
        if left.is_empty() {
            return;
        }
        assert!(Instant::now() < deadline, "hit in `{what}`, still running: {left:#?}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Nothing of any build stays in the home but what it said.
pub fn nothing_but_logs(home: &Home, what: &str) {
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
    // A layer of a disk that is neither part of a whole checkpoint nor set aside for a look.
    let layers = fs::read_dir(home.path("cache/checkpoints")).into_iter().flatten().flatten().map(|entry| entry.path());
    let kept = |layer: &Path| ["checkpoint.json", "damaged.json"].iter().any(|record| layer.join(record).exists());
    left.extend(layers.filter(|layer| layer.is_dir() && !kept(layer)));
    assert!(left.is_empty(), "hit in `{what}`, left behind: {left:#?}");
}

/// One machine at a time: two emulated guests on two processors only slow each other down.
pub fn alone() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}
