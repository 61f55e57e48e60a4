//! Power cuts. What a publisher wrote and did not sync may be on the disk, be missing, or be there in part, in any combination. All
//! calls of a traced run are replayed; after each of them disks are made up that could be found then, and looked at as after the
//! next start of the machine.
//!
//! The model promises less than ext4 or XFS do: names, bytes and directories that were not synced themselves are lost one by one.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsStr,
    fs,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use crate::processes::{Before, collected, prepared, promoted, published, under_strace};

/// Disks that are made up after each call, beside the one that lost nothing and the one that lost all that it may.
const RANDOM: u64 = 3;

#[test]
fn a_publish_whose_machine_loses_power_leaves_the_version_absent_or_complete() {
    for before in [Before::Nothing, Before::Older] {
        cut_everywhere("publish", before, &published);
    }
}

#[test]
fn a_promote_whose_machine_loses_power_leaves_the_channel_where_it_was_or_moved() {
    cut_everywhere("promote", Before::Channel, &promoted);
}

#[test]
fn a_collection_whose_machine_loses_power_loses_nothing_that_is_listed() {
    cut_everywhere("prune", Before::Channel, &collected);
}

fn cut_everywhere(action: &str, before: Before, judge: &(dyn Fn(&Path, Before, &str) + Sync)) {
    let scratch = prepared(&format!("power-{action}-{before:?}"), before);
    let mut run = Run::from(&scratch.join("registry"));
    let output = under_strace(&scratch, action, &["-y", "-xx", "-s", "16777216"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    run.trace(&fs::read_to_string(scratch.join("trace")).unwrap());
    fs::remove_dir_all(&scratch).unwrap();
    let next = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                loop {
                    let calls = next.fetch_add(1, Ordering::Relaxed);
                    if calls > run.operations.len() {
                        return;
                    }
                    for disk in 0..RANDOM + 2 {
                        let found = scratch.with_file_name(format!("{}-{calls}-{disk}", name(&scratch)));
                        fs::create_dir_all(&found).unwrap();
                        run.lay_down(calls, disk, &found.join("registry"));
                        if calls == run.operations.len() {
                            fs::write(found.join("acknowledged"), "").unwrap();
                        }
                        let last = calls.checked_sub(1).map(|last| &run.operations[last]);
                        judge(
                            &found,
                            before,
                            &format!("{action}, power cut after call {calls} ({last:?}), disk {disk}"),
                        );
                        fs::remove_dir_all(&found).unwrap();
                    }
                }
            });
        }
    });
}

fn name(path: &Path) -> String {
    path.file_name().unwrap().to_string_lossy().into_owned()
}

/// A change of the file system, with paths beneath the registry.
#[derive(Clone, PartialEq)]
enum Operation {
    Name { path: PathBuf, file: usize },
    Unname { path: PathBuf },
    Directory { path: PathBuf },
    Write { file: usize, bytes: Vec<u8> },
    SyncFile { file: usize },
    SyncDirectory { path: PathBuf },
}

impl std::fmt::Debug for Operation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Name { path, file } => write!(f, "name {} for {file}", path.display()),
            Self::Unname { path } => write!(f, "unname {}", path.display()),
            Self::Directory { path } => write!(f, "directory {}", path.display()),
            Self::Write { file, bytes } => write!(f, "write {} bytes to {file}", bytes.len()),
            Self::SyncFile { file } => write!(f, "sync {file}"),
            Self::SyncDirectory { path } => write!(f, "sync {}", path.display()),
        }
    }
}

/// A registry, and everything that one run did to it.
struct Run {
    root: PathBuf,
    /// What was there before, on the disk for certain.
    files: Vec<Vec<u8>>,
    names: BTreeMap<PathBuf, usize>,
    directories: BTreeSet<PathBuf>,
    operations: Vec<Operation>,
}

impl Run {
    fn from(root: &Path) -> Self {
        let mut run = Self {
            root: root.to_owned(),
            files: Vec::new(),
            names: BTreeMap::new(),
            // The registry's own directory is there from the start.
            directories: BTreeSet::from([PathBuf::new()]),
            operations: Vec::new(),
        };
        let mut waiting = vec![root.to_owned()];
        while let Some(directory) = waiting.pop() {
            let Ok(entries) = fs::read_dir(&directory) else { continue };
            run.directories.insert(directory.strip_prefix(root).unwrap().to_owned());
            for path in entries.map(|entry| entry.unwrap().path()) {
                if path.is_dir() {
                    waiting.push(path);
                } else {
                    run.names.insert(path.strip_prefix(root).unwrap().to_owned(), run.files.len());
                    run.files.push(fs::read(path).unwrap());
                }
            }
        }
        run
    }

    /// Takes what a trace says between its marks.
    fn trace(&mut self, trace: &str) {
        let (mut names, mut directories) = (self.names.clone(), self.directories.clone());
        let mut files = self.files.len();
        let mut unfinished = BTreeMap::<&str, &str>::new();
        let mut publishing = false;
        for line in trace.lines() {
            let Some((thread, line)) = line.split_once(' ') else { continue };
            let line = line.trim_start();
            if let Some(begun) = line.strip_suffix("<unfinished ...>") {
                unfinished.insert(thread, begun);
                continue;
            }
            let line = match line.split_once(" resumed>") {
                Some((_, rest)) => format!("{}{rest}", unfinished.remove(thread).unwrap()),
                None => line.to_owned(),
            };
            let Some((call, _)) = line.split_once('(') else { continue };
            let strings: Vec<_> = line.split('"').skip(1).step_by(2).map(decoded).collect();
            let marked = |mark: &str| strings.first().is_some_and(|text| text == mark.as_bytes());
            publishing = (publishing || marked("/publish/begins")) && !marked("/publish/ends");
            if !publishing || line.contains(") = -1 ") || line.contains(") = ?") {
                continue;
            }
            let beneath =
                |bytes: &[u8]| Path::new(OsStr::from_bytes(bytes)).strip_prefix(&self.root).map(Path::to_owned);
            let opened = || {
                let path = line.split_once('<')?.1.split_once('>')?.0;
                beneath(&decoded(path)).ok()
            };
            let named = |number: usize| strings.get(number).and_then(|path| beneath(path).ok());
            let mut done = Vec::new();
            match call {
                "openat" if line.contains("O_CREAT") => {
                    let Some(path) = named(0).filter(|path| !names.contains_key(path)) else { continue };
                    names.insert(path.clone(), files);
                    done.push(Operation::Name { path, file: files });
                    files += 1;
                }
                "mkdir" => {
                    let Some(path) = named(0) else { continue };
                    directories.insert(path.clone());
                    done.push(Operation::Directory { path });
                }
                "write" => {
                    let Some(path) = opened() else { continue };
                    done.push(Operation::Write { file: names[&path], bytes: strings[0].clone() });
                }
                "fsync" => {
                    let Some(path) = opened() else { continue };
                    done.push(match names.get(&path) {
                        Some(file) => Operation::SyncFile { file: *file },
                        None => Operation::SyncDirectory { path },
                    });
                }
                "link" | "linkat" | "rename" => {
                    let (Some(from), Some(to)) = (named(0), named(1)) else { continue };
                    let file = names[&from];
                    names.insert(to.clone(), file);
                    done.push(Operation::Name { path: to, file });
                    if call == "rename" {
                        names.remove(&from);
                        done.push(Operation::Unname { path: from });
                    }
                }
                "unlink" => {
                    let Some(path) = named(0) else { continue };
                    names.remove(&path);
                    done.push(Operation::Unname { path });
                }
                _ => {}
            }
            self.operations.append(&mut done);
        }
        assert!(self.operations.len() > 10, "{:?}", self.operations);
    }

    /// Whether `operation` is on the disk for certain when the first `calls` were made.
    fn is_certain(&self, operation: usize, calls: usize) -> bool {
        let later = &self.operations[operation..calls];
        let synced = |path: &Path| {
            later
                .iter()
                .any(|later| matches!(later, Operation::SyncDirectory { path: of } if Some(&**of) == path.parent()))
        };
        match &self.operations[operation] {
            Operation::Name { path, .. } | Operation::Unname { path } | Operation::Directory { path } => synced(path),
            Operation::Write { file, .. } => later.contains(&Operation::SyncFile { file: *file }),
            Operation::SyncFile { .. } | Operation::SyncDirectory { .. } => true,
        }
    }

    /// Makes the registry that is found after a power cut when the first `calls` were made. `disk` says which of those that are
    /// possible: 0 lost everything that it may, 1 nothing, the others what the dice say.
    fn lay_down(&self, calls: usize, disk: u64, root: &Path) {
        let mut dice = 0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(calls as u64 * (RANDOM + 2) + disk + 1);
        let mut fate = |operation: usize| {
            dice ^= dice << 13;
            dice ^= dice >> 7;
            dice ^= dice << 17;
            match disk {
                _ if self.is_certain(operation, calls) => Fate::Kept,
                0 => Fate::Lost,
                1 => Fate::Kept,
                _ => [Fate::Kept, Fate::Lost, Fate::Torn][usize::try_from(dice % 3).unwrap()],
            }
        };
        let (mut names, mut directories, mut files) =
            (self.names.clone(), self.directories.clone(), self.files.clone());
        for (number, operation) in self.operations[..calls].iter().enumerate() {
            let fate = fate(number);
            match operation {
                Operation::Write { file, bytes } => {
                    files.resize(files.len().max(file + 1), Vec::new());
                    let (kept, zeros) = match fate {
                        Fate::Kept => (bytes.len(), 0),
                        Fate::Torn => (bytes.len() / 2, bytes.len() - bytes.len() / 2),
                        Fate::Lost => (0, 0),
                    };
                    files[*file].extend_from_slice(&bytes[..kept]);
                    let length = files[*file].len() + zeros;
                    files[*file].resize(length, 0);
                }
                _ if fate != Fate::Kept => {}
                Operation::Name { path, file } => {
                    names.insert(path.clone(), *file);
                }
                Operation::Unname { path } => {
                    names.remove(path);
                }
                Operation::Directory { path } => {
                    directories.insert(path.clone());
                }
                Operation::SyncFile { .. } | Operation::SyncDirectory { .. } => {}
            }
        }
        // What lies in a directory that is lost is lost with it.
        let reached = |path: &Path| path.ancestors().skip(1).all(|above| directories.contains(above));
        for directory in directories.iter().filter(|directory| reached(directory)) {
            fs::create_dir_all(root.join(directory)).unwrap();
        }
        for (path, file) in names.iter().filter(|(path, _)| reached(path)) {
            fs::write(root.join(path), files.get(*file).map_or(&[][..], |bytes| bytes)).unwrap();
        }
    }
}

/// What became of a change that was not synced.
#[derive(Clone, Copy, PartialEq)]
enum Fate {
    Kept,
    Lost,
    /// Bytes: the first half, and zeros.
    Torn,
}

/// `\x2f\x61`, or `/a`, as strace prints bytes.
fn decoded(text: &str) -> Vec<u8> {
    if !text.contains("\\x") {
        return text.as_bytes().to_vec();
    }
    text.split("\\x").skip(1).map(|byte| u8::from_str_radix(&byte[..2], 16).unwrap()).collect()
}
