//! A store of objects in memory that keeps what S3 promises; and stores that do not, or die.

#![allow(dead_code, reason = "each test program uses a part of it")]

use std::{
    collections::BTreeMap,
    fmt,
    fs::File,
    io,
    ops::Range,
    os::unix::fs::FileExt as _,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    thread,
};

use kiln_core::Digest;
use kiln_registry::{Condition, Folder, Meta, Objects, Tag};

/// What is wrong with a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    None,
    /// It takes conditions and does not look at them.
    IgnoresConditions,
    /// It looks at a condition first and writes later, as s3s-fs does.
    LooksThenWrites,
}

/// What happens right before an object is read for the first time.
type Before = (String, Box<dyn FnOnce() + Send>);

pub(crate) struct Memory {
    fault: Fault,
    objects: Mutex<BTreeMap<String, (Vec<u8>, Meta)>>,
    /// Its clock, in seconds.
    pub(crate) clock: AtomicU64,
    /// Calls that it still answers: none after that, as to a process that was killed.
    pub(crate) left: AtomicUsize,
    before: Mutex<Option<Before>>,
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Memory").field("fault", &self.fault).finish_non_exhaustive()
    }
}

impl Memory {
    pub(crate) fn new() -> Arc<Self> {
        Self::with(Fault::None)
    }

    pub(crate) fn with(fault: Fault) -> Arc<Self> {
        let objects = Mutex::default();
        let (clock, left) = (AtomicU64::new(1_000_000), AtomicUsize::new(usize::MAX));
        Arc::new(Self { fault, objects, clock, left, before: Mutex::default() })
    }

    /// Lets `others` act once, right before `key` is read.
    pub(crate) fn before_reading(&self, key: &str, others: impl FnOnce() + Send + 'static) {
        *self.before.lock().unwrap() = Some((key.to_owned(), Box::new(others)));
    }

    pub(crate) fn keys(&self) -> Vec<String> {
        self.objects.lock().unwrap().keys().cloned().collect()
    }

    /// Changes the bytes of an object behind everybody's back.
    pub(crate) fn alter(&self, key: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let mut objects = self.objects.lock().unwrap();
        let (bytes, meta) = objects.get_mut(key).unwrap();
        change(bytes);
        meta.size = bytes.len() as u64;
        meta.tag = tag(bytes);
    }

    pub(crate) fn lose(&self, key: &str) {
        self.objects.lock().unwrap().remove(key).unwrap();
    }

    /// Everything as it is now, in a store of its own.
    pub(crate) fn copy(&self) -> Arc<Self> {
        let copy = Self::new();
        copy.objects.lock().unwrap().clone_from(&self.objects.lock().unwrap());
        copy
    }

    fn called(&self) -> io::Result<()> {
        let left = self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        left.map(drop).map_err(|_| io::Error::other("the process is dead"))
    }

    fn holds(found: Option<&(Vec<u8>, Meta)>, condition: Condition<'_>) -> bool {
        match condition {
            Condition::Always => true,
            Condition::Absent => found.is_none(),
            Condition::Unchanged(tag) => found.is_some_and(|(_, meta)| meta.tag == *tag),
        }
    }
}

fn tag(bytes: &[u8]) -> Tag {
    Tag(format!("\"{}\"", &Digest::of(bytes).hex()[..32]))
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("s3://memory")
    }
}

impl Objects for Memory {
    fn location(&self) -> String {
        self.to_string()
    }

    fn stat(&self, key: &str) -> io::Result<Option<Meta>> {
        self.called()?;
        Ok(self.objects.lock().unwrap().get(key).map(|(_, meta)| meta.clone()))
    }

    fn read(&self, key: &str, longest: u64) -> io::Result<Option<(Vec<u8>, Meta)>> {
        self.called()?;
        let others = self.before.lock().unwrap().take_if(|(watched, _)| watched == key);
        if let Some((_, others)) = others {
            others();
        }
        let found = self.objects.lock().unwrap().get(key).cloned();
        match found {
            Some((_, meta)) if meta.size > longest => Err(io::ErrorKind::FileTooLarge.into()),
            found => Ok(found),
        }
    }

    fn read_part(&self, key: &str, part: Range<u64>, tag: &Tag) -> io::Result<Vec<u8>> {
        self.called()?;
        let objects = self.objects.lock().unwrap();
        let (bytes, _) = objects.get(key).filter(|(_, meta)| meta.tag == *tag).ok_or(io::ErrorKind::NotFound)?;
        let (start, end) = (usize::try_from(part.start).unwrap(), usize::try_from(part.end).unwrap());
        Ok(bytes[start.min(bytes.len())..end.min(bytes.len())].to_vec())
    }

    fn list(&self, folder: &str) -> io::Result<Folder> {
        self.called()?;
        let mut found = Folder::default();
        for (key, (_, meta)) in &*self.objects.lock().unwrap() {
            let Some(name) = key.strip_prefix(folder).and_then(|rest| rest.strip_prefix('/')) else { continue };
            match name.split_once('/') {
                None => found.objects.push((name.to_owned(), meta.clone())),
                Some((below, _)) if found.folders.last().is_some_and(|last| last == below) => {}
                Some((below, _)) => found.folders.push(below.to_owned()),
            }
        }
        Ok(found)
    }

    fn write(&self, key: &str, bytes: &[u8], condition: Condition<'_>) -> io::Result<Option<Tag>> {
        self.called()?;
        let condition = if self.fault == Fault::IgnoresConditions { Condition::Always } else { condition };
        let mut objects = self.objects.lock().unwrap();
        if !Self::holds(objects.get(key), condition) {
            return Ok(None);
        }
        if self.fault == Fault::LooksThenWrites {
            drop(objects);
            thread::yield_now();
            objects = self.objects.lock().unwrap();
        }
        let modified = self.clock.load(Ordering::SeqCst);
        let meta = Meta { size: bytes.len() as u64, tag: tag(bytes), modified };
        objects.insert(key.to_owned(), (bytes.to_vec(), meta.clone()));
        Ok(Some(meta.tag))
    }

    fn upload(&self, key: &str, source: &File, size: u64) -> io::Result<()> {
        let mut bytes = vec![0; usize::try_from(size).unwrap()];
        source.read_exact_at(&mut bytes, 0)?;
        self.write(key, &bytes, Condition::Always).map(drop)
    }

    fn remove(&self, key: &str) -> io::Result<()> {
        self.called()?;
        self.objects.lock().unwrap().remove(key);
        Ok(())
    }
}
