//! Whether a place keeps its word: writers race for one key, over many rounds and from several connections, and of each round
//! exactly one may be told that it won.
//!
//! A store that takes `If-None-Match` and `If-Match` and checks them before it writes, instead of while it does, answers
//! every single request rightly. Only a race shows it, and in a registry it would show as a version that is lost.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::{Arc, Barrier},
    thread,
};

use kiln_io::random::nonce;

use crate::{
    RegistryError,
    durable::{self, failed},
    objects::{Condition, Objects, Tag},
};

const WRITERS: usize = 16;
const ROUNDS: usize = 20;
/// Each writer counts a number in one object up so often.
const INCREMENTS: usize = 4;

/// Fails unless the store behind `connections` writes on a condition as one step. Removes what it wrote.
pub(crate) fn bucket(connections: &[Arc<dyn Objects>]) -> Result<(), RegistryError> {
    let Some(objects) = connections.first() else { return Ok(()) };
    let root = PathBuf::from(objects.location());
    let folder = format!("probe-{}", nonce());
    let probed = Probe { connections, folder: &folder }.run();
    for (name, _) in objects.list(&folder).map_err(failed("list", &root.join(&folder)))?.objects {
        // What stays is an object of a few bytes that nobody reads.
        let _ = objects.remove(&format!("{folder}/{name}"));
    }
    match probed.map_err(failed("race in", &root.join(&folder)))? {
        Some(problem) => Err(RegistryError::Unsound { path: root, problem }),
        None => Ok(()),
    }
}

struct Probe<'a> {
    connections: &'a [Arc<dyn Objects>],
    folder: &'a str,
}

impl Probe<'_> {
    /// What is wrong with the store, if something is.
    fn run(&self) -> io::Result<Option<String>> {
        for round in 0..ROUNDS {
            let key = format!("{}/create-{round}", self.folder);
            let won = self.race(|objects, writer| objects.write(&key, writer.as_bytes(), Condition::Absent))?;
            if let Some(problem) = self.judge(&key, &won, "created", round)? {
                return Ok(Some(problem));
            }
        }
        for round in 0..ROUNDS {
            let key = format!("{}/replace-{round}", self.folder);
            let Some(before) = self.connections[0].write(&key, b"before", Condition::Always)? else {
                return Ok(Some("it did not write an object without a condition".to_owned()));
            };
            let won =
                self.race(|objects, writer| objects.write(&key, writer.as_bytes(), Condition::Unchanged(&before)))?;
            if let Some(problem) = self.judge(&key, &won, "replaced", round)? {
                return Ok(Some(problem));
            }
            if self.connections[0].write(&key, b"late", Condition::Unchanged(&before))?.is_some() {
                return Ok(Some("an object was replaced by somebody who had read an older one".to_owned()));
            }
        }
        self.count()
    }

    /// Lets all writers begin at once; the names of those who were told that they wrote.
    fn race(&self, write: impl Fn(&dyn Objects, &str) -> io::Result<Option<Tag>> + Sync) -> io::Result<Vec<String>> {
        let start = &Barrier::new(WRITERS);
        let write = &write;
        let outcomes = thread::scope(|scope| {
            let begin = |number: usize| {
                let objects = &*self.connections[number % self.connections.len()];
                scope.spawn(move || {
                    let writer = format!("writer {number}");
                    start.wait();
                    write(objects, &writer).map(|tag| tag.map(|_| writer))
                })
            };
            let writers: Vec<_> = (0..WRITERS).map(begin).collect();
            let ended = writers.into_iter().map(|writer| writer.join().map_err(|_| io::Error::other("a writer ended")));
            ended.collect::<Vec<_>>()
        });
        let mut won = Vec::new();
        for outcome in outcomes {
            won.extend(outcome??);
        }
        Ok(won)
    }

    fn judge(&self, key: &str, won: &[String], what: &str, round: usize) -> io::Result<Option<String>> {
        if won.len() != 1 {
            let (won, round) = (won.len(), round + 1);
            let said = format!("of {WRITERS} writers at once, {won} were told that they {what} the same object");
            return Ok(Some(format!("{said} (round {round} of {ROUNDS})")));
        }
        let found = self.connections[0].read(key, 4096)?.map(|(bytes, _)| bytes);
        Ok((found.as_deref() != Some(won[0].as_bytes()))
            .then(|| format!("an object that one writer {what} had the bytes of another")))
    }

    /// All writers count one number up, each from what it read: none may be lost.
    fn count(&self) -> io::Result<Option<String>> {
        let key = format!("{}/count", self.folder);
        self.connections[0].write(&key, b"0", Condition::Always)?;
        self.race(|objects, _| {
            let mut done = 0;
            while done < INCREMENTS {
                let Some((bytes, meta)) = objects.read(&key, 4096)? else { return Ok(None) };
                let number = number(&bytes) + 1;
                let written = objects.write(&key, number.to_string().as_bytes(), Condition::Unchanged(&meta.tag))?;
                done += usize::from(written.is_some());
            }
            Ok(None)
        })?;
        let counted = self.connections[0].read(&key, 4096)?.map_or(0, |(bytes, _)| number(&bytes));
        let expected = WRITERS * INCREMENTS;
        Ok((counted != expected)
            .then(|| format!("{expected} changes of one object, each made from the last, left {counted}")))
    }
}

fn number(bytes: &[u8]) -> usize {
    std::str::from_utf8(bytes).ok().and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// Fails unless a name in `root` can be taken only once and a lock keeps others away.
pub(crate) fn directory(root: &Path) -> Result<(), RegistryError> {
    let unsound = |problem: String| RegistryError::Unsound { path: root.to_owned(), problem };
    let temporary = root.join("tmp");
    for round in 0..ROUNDS {
        let target = temporary.join(format!("probe-{}", nonce()));
        let start = &Barrier::new(WRITERS);
        let outcomes: Vec<_> = thread::scope(|scope| {
            let write = || {
                scope.spawn(|| {
                    let temporary = durable::write(&temporary, b"probe");
                    start.wait();
                    temporary?.create(&target)
                })
            };
            let writers: Vec<_> = (0..WRITERS).map(|_| write()).collect();
            writers.into_iter().filter_map(|writer| writer.join().ok()).collect()
        });
        let won = outcomes.into_iter().collect::<Result<Vec<bool>, _>>();
        let _ = fs::remove_file(&target);
        let won = won?.into_iter().filter(|won| *won).count();
        if won != 1 {
            let said = format!("of {WRITERS} writers at once, {won} were told that they created the same file");
            return Err(unsound(format!("{said} (round {} of {ROUNDS})", round + 1)));
        }
    }
    let path = temporary.join(format!("probe-{}", nonce()));
    let open = || File::options().create(true).truncate(false).write(true).open(&path).map_err(failed("open", &path));
    let (ours, theirs) = (open()?, open()?);
    let _ = fs::remove_file(&path);
    ours.lock().map_err(failed("lock", &path))?;
    match theirs.try_lock() {
        Err(_) => Ok(()),
        Ok(()) => Err(unsound("two could lock the same file".to_owned())),
    }
}
