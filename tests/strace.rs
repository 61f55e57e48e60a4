//! Programs under `strace`: the calls by which they change a directory, and what becomes of them when one of these kills or fails.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    process::{Child, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

/// Every call by which a program changes a file system, makes a change last, or keeps others away.
const CALLS: [&str; 17] = [
    "openat",
    "mkdir",
    "mkdirat",
    "write",
    "pwrite64",
    "ftruncate",
    "copy_file_range",
    "fchmod",
    "fsync",
    "fdatasync",
    "link",
    "linkat",
    "rename",
    "renameat2",
    "unlink",
    "unlinkat",
    "flock",
];

/// A call of a program, by its number among the calls of its name on one thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Point {
    pub call: &'static str,
    pub number: usize,
}

/// Runs `program` to its end: how it ended, and the calls by which it changed something beneath `directory`, in order.
pub fn traced(program: &Command, directory: &Path) -> (Output, Vec<Point>) {
    let trace = tempfile::NamedTempFile::new().expect("make a file for the trace");
    let calls = CALLS.map(|call| format!("?{call}")).join(",");
    let mut command = strace(program, &["-y", "-s", "0", "-e", &format!("trace={calls}")], trace.path());
    let output = command.output().expect("run strace");
    let trace = fs::read_to_string(trace.path()).expect("read the trace");
    let beneath = directory.to_str().expect("a UTF-8 path");
    let mut counts = BTreeMap::<(&str, &str), usize>::new();
    let (mut seen, mut points) = (BTreeSet::new(), Vec::new());
    for line in trace.lines() {
        let Some((thread, line)) = line.split_once(' ') else { continue };
        let line = line.trim_start();
        let Some(call) =
            CALLS.into_iter().find(|call| line.strip_prefix(call).is_some_and(|rest| rest.starts_with('(')))
        else {
            continue;
        };
        let count = counts.entry((thread, call)).or_default();
        *count += 1;
        let point = Point { call, number: *count };
        // What is only read cannot be left half done.
        let changes =
            line.contains(beneath) && (call != "openat" || line.contains("O_CREAT") || line.contains("O_TMPFILE"));
        // The same number on two threads is one point: whoever comes first is hit.
        if changes && seen.insert(point) {
            points.push(point);
        }
    }
    (output, points)
}

/// Runs `program` with `fault` (`signal=KILL`, `error=EIO`) before, or instead of, the call at `point`.
pub fn with_fault(program: &Command, point: Point, fault: &str) -> Output {
    let arguments = faulty(point, fault);
    strace(program, &["-e", &arguments[0], "-e", &arguments[1]], Path::new("/dev/null")).output().expect("run strace")
}

fn faulty(Point { call, number }: Point, fault: &str) -> [String; 2] {
    [format!("trace={call}"), format!("inject={call}:{fault}:when={number}")]
}

/// A program that stands still at a point.
#[derive(Debug)]
pub struct Stopped {
    strace: Child,
}

impl Stopped {
    /// Starts `program` and returns when it has come to `point`.
    pub fn at(program: &Command, point: Point) -> Self {
        let trace = tempfile::NamedTempFile::new().expect("make a file for the trace");
        let arguments = faulty(point, "signal=STOP");
        let mut command = strace(program, &["-e", &arguments[0], "-e", &arguments[1]], trace.path());
        let strace = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("run strace");
        let deadline = Instant::now() + Duration::from_mins(2);
        while !fs::read_to_string(trace.path()).is_ok_and(|text| text.contains("stopped by SIGSTOP")) {
            assert!(Instant::now() < deadline, "{point:?} was not reached");
            thread::sleep(Duration::from_millis(2));
        }
        Self { strace }
    }

    /// Lets it go on; how it ended.
    pub fn wake(self) -> Output {
        let strace = self.strace.id();
        let children = fs::read_to_string(format!("/proc/{strace}/task/{strace}/children")).expect("it is there still");
        let woken = Command::new("kill").arg("-CONT").args(children.split_whitespace()).status();
        assert!(woken.is_ok_and(|status| status.success()), "cannot wake {children}");
        self.strace.wait_with_output().expect("it ends")
    }
}

/// `program` with its directory and environment, under `strace`. Not with `--seccomp-bpf`: it passes over injected signals.
fn strace(program: &Command, arguments: &[&str], trace: &Path) -> Command {
    let mut command = Command::new("strace");
    command.args(["-f", "-qq", "-o"]).arg(trace).args(arguments);
    command.arg(program.get_program()).args(program.get_args()).stdin(Stdio::null());
    if let Some(directory) = program.get_current_dir() {
        command.current_dir(directory);
    }
    command.env_clear().envs(program.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command
}
