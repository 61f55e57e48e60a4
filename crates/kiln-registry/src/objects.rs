//! A store of objects with conditional writes, as S3 has it: what a registry in a bucket needs of the world outside.

use std::{fmt, fs::File, io, ops::Range};

/// Names one state of an object: an `ETag`, as the store gave it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tag(pub String);

/// What the store says of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Meta {
    pub size: u64,
    pub tag: Tag,
    /// Seconds since 1970, UTC, by the clock of the store.
    pub modified: u64,
}

/// What must hold for an object to be written. The store checks and writes in one step, or it is refused by the probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition<'a> {
    Always,
    /// There is no such object.
    Absent,
    /// It is still the one with this tag.
    Unchanged(&'a Tag),
}

/// What lies directly under a folder.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Folder {
    pub folders: Vec<String>,
    pub objects: Vec<(String, Meta)>,
}

/// A bucket, or a prefix in one. Keys are relative and have no `/` at either end. Every call waits for its answer.
pub trait Objects: fmt::Debug + Send + Sync {
    /// As people write it: `s3://bucket/prefix`.
    fn location(&self) -> String;

    fn stat(&self, key: &str) -> io::Result<Option<Meta>>;

    /// The whole object. One that is longer than `longest` is an error of the kind `FileTooLarge`.
    fn read(&self, key: &str, longest: u64) -> io::Result<Option<(Vec<u8>, Meta)>>;

    /// A part of the object that has `tag`; an error when it has another by now.
    fn read_part(&self, key: &str, part: Range<u64>, tag: &Tag) -> io::Result<Vec<u8>>;

    fn list(&self, folder: &str) -> io::Result<Folder>;

    /// The new tag; `None` when the condition does not hold.
    fn write(&self, key: &str, bytes: &[u8], condition: Condition<'_>) -> io::Result<Option<Tag>>;

    /// Writes `size` bytes from the beginning of a file, which may be larger than the memory.
    fn upload(&self, key: &str, source: &File, size: u64) -> io::Result<()>;

    /// Removes an object; one that is not there is no error.
    fn remove(&self, key: &str) -> io::Result<()>;
}
