//! The files of an ext4 root: path by path, or listed once as a tree; with bounded reads. The file system may be hostile.

use std::{
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use ext4_view::{Ext4, Ext4Error, Ext4Read, File, FileType, Metadata};

use crate::{ReadAt, hygiene};

/// A symbolic link that is longer than the kernel takes.
const LONGEST_LINK: usize = 4096;
/// What is compared at a time.
const PIECE: usize = 64 << 10;
/// A directory that contains itself would be walked for ever.
const MAX_DEPTH: usize = 64;
const MAX_ENTRIES: usize = 4 << 20;

/// What a path is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Directory,
    File,
    Link,
    Other,
}

/// What stands at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Node {
    pub kind: Kind,
    pub size: u64,
    /// Permission bits, set-uid and its kin among them.
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
}

/// A file system that is asked for single paths.
#[derive(Debug)]
pub struct Files {
    file_system: Ext4,
}

/// Every path of the file system.
#[derive(Debug)]
pub struct Tree {
    files: Files,
    nodes: BTreeMap<String, Node>,
}

struct Volume(Arc<dyn ReadAt>);

impl Ext4Read for Volume {
    fn read(&mut self, start: u64, buffer: &mut [u8]) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        self.0.read_at(start, buffer).map_err(Into::into)
    }
}

impl Node {
    fn new(metadata: &Metadata) -> Self {
        let kind = match metadata.file_type() {
            FileType::Directory => Kind::Directory,
            FileType::Regular => Kind::File,
            FileType::Symlink => Kind::Link,
            _ => Kind::Other,
        };
        let (uid, gid) = (metadata.uid(), metadata.gid());
        Self { kind, size: metadata.len(), mode: metadata.mode(), uid, gid }
    }
}

/// The first of the disk's ext4 volumes that `open` takes for the root. The error says what cannot be read.
fn root<T>(disk: &Arc<dyn ReadAt>, open: impl Fn(Files) -> Result<T, String>) -> Result<T, String> {
    // A reader that panics on a hostile file system must not end the process here.
    let read = catch_unwind(AssertUnwindSafe(|| {
        let mut fault = "there is no ext4 root file system".to_owned();
        for volume in hygiene::ext4_volumes(disk).map_err(|error| error.to_string())? {
            match Files::open(volume) {
                Ok(files) if files.exists("/etc/passwd") || files.exists("/etc/os-release") => return open(files),
                Ok(_) => {}
                Err(error) => fault = error,
            }
        }
        Err(fault)
    }));
    read.unwrap_or_else(|_| Err("a file system of the disk is damaged beyond reading".to_owned()))
}

impl Files {
    fn open(volume: Arc<dyn ReadAt>) -> Result<Self, String> {
        let file_system = Ext4::load(Box::new(Volume(volume))).map_err(|error| error.to_string())?;
        Ok(Self { file_system })
    }

    /// Asks the root file system of a disk, the ext4 that has `/etc/passwd` or `/etc/os-release`. The error says what cannot be
    /// read.
    pub fn with_root<T>(disk: &Arc<dyn ReadAt>, ask: impl Fn(&Self) -> T) -> Result<T, String> {
        root(disk, |files| Ok(ask(&files)))
    }

    /// What stands at a path. Links on the way are followed, at its end they are not.
    pub fn node(&self, path: &str) -> Option<Node> {
        self.file_system.symlink_metadata(path).ok().map(|metadata| Node::new(&metadata))
    }

    pub fn exists(&self, path: &str) -> bool {
        self.node(path).is_some()
    }

    /// The names in a directory, in byte order; those that can be read.
    pub fn list(&self, directory: &str) -> Vec<String> {
        let entries = self.file_system.read_dir(directory).into_iter().flatten().map_while(Result::ok);
        let names = entries.filter_map(|entry| Some(entry.file_name().as_str().ok()?.to_owned()));
        let mut names: Vec<_> = names.filter(|name| name != "." && name != "..").take(MAX_ENTRIES).collect();
        names.sort_unstable();
        names
    }

    /// The first `limit` bytes of a file, symbolic links followed; empty if it cannot be read.
    pub fn head(&self, path: &str, limit: usize) -> Vec<u8> {
        let mut bytes = vec![0; limit];
        let mut filled = 0;
        if let Ok(mut file) = self.file_system.open(path) {
            while filled < limit {
                match file.read_bytes(&mut bytes[filled..]) {
                    Ok(length) if length > 0 => filled += length,
                    _ => break,
                }
            }
        }
        bytes.truncate(filled);
        bytes
    }

    /// A configuration file as text, at most 1 MiB.
    pub fn text(&self, path: &str) -> String {
        String::from_utf8_lossy(&self.head(path, 1 << 20)).into_owned()
    }

    /// Where a symbolic link points, as it is written.
    pub fn link(&self, path: &str) -> Option<String> {
        let target = self.file_system.read_link(path).ok()?;
        let target = String::from_utf8_lossy(target.as_ref());
        Some(target.chars().take(LONGEST_LINK).collect())
    }

    /// Whether a file has the same bytes in both; compared piece by piece and no further than the first difference. The error
    /// says what cannot be read.
    pub fn same_content(&self, other: &Self, path: &str) -> Result<bool, String> {
        let failed = |error: Ext4Error| format!("`{path}`: {error}");
        let mut files = (self.file_system.open(path).map_err(failed)?, other.file_system.open(path).map_err(failed)?);
        let mut pieces = (vec![0; PIECE], vec![0; PIECE]);
        loop {
            let read = (fill(&mut files.0, &mut pieces.0), fill(&mut files.1, &mut pieces.1));
            let lengths = (read.0.map_err(failed)?, read.1.map_err(failed)?);
            if pieces.0[..lengths.0] != pieces.1[..lengths.1] {
                return Ok(false);
            }
            if lengths.0 == 0 {
                return Ok(true);
            }
        }
    }
}

impl Tree {
    /// The tree of a disk's root file system, as of [`Files::with_root`].
    pub fn of_root(disk: &Arc<dyn ReadAt>) -> Result<Self, String> {
        root(disk, Self::of)
    }

    /// `Err` names what cannot be read.
    pub fn read(volume: Arc<dyn ReadAt>) -> Result<Self, String> {
        Self::of(Files::open(volume)?)
    }

    fn of(files: Files) -> Result<Self, String> {
        let mut nodes = BTreeMap::new();
        let mut waiting = vec![(String::new(), 0)];
        while let Some((directory, depth)) = waiting.pop() {
            let failed = |error: Ext4Error| format!("`{directory}/`: {error}");
            let path = if directory.is_empty() { "/" } else { &directory };
            for entry in files.file_system.read_dir(path).map_err(failed)? {
                let entry = entry.map_err(failed)?;
                let name = entry.file_name();
                if matches!(name.as_ref(), b"." | b"..") {
                    continue;
                }
                let path = format!("{directory}/{}", String::from_utf8_lossy(name.as_ref()));
                let metadata = entry.metadata().map_err(|error| format!("`{path}`: {error}"))?;
                let node = Node::new(&metadata);
                if node.kind == Kind::Directory {
                    if depth >= MAX_DEPTH {
                        return Err(format!("`{path}`: directories more than {MAX_DEPTH} deep"));
                    }
                    // A name that is not UTF-8 cannot be asked for again by its shown form; the bytes can.
                    if name.as_str().is_ok() {
                        waiting.push((path.clone(), depth + 1));
                    }
                }
                nodes.insert(path, node);
                if nodes.len() > MAX_ENTRIES {
                    return Err(format!("more than {MAX_ENTRIES} files"));
                }
            }
        }
        Ok(Self { files, nodes })
    }

    /// The same file system path by path.
    pub const fn files(&self) -> &Files {
        &self.files
    }

    pub fn node(&self, path: &str) -> Option<Node> {
        self.nodes.get(path).copied()
    }

    pub fn exists(&self, path: &str) -> bool {
        self.nodes.contains_key(path)
    }

    /// Every path with its node, in byte order.
    pub fn all(&self) -> impl Iterator<Item = (&str, Node)> {
        self.nodes.iter().map(|(path, node)| (path.as_str(), *node))
    }

    /// Everything beneath a directory, directories left out.
    pub fn beneath(&self, directory: &str) -> impl Iterator<Item = (&str, Node)> {
        // `0` follows `/`.
        self.nodes
            .range(format!("{directory}/")..format!("{directory}0"))
            .filter(|(_, node)| node.kind != Kind::Directory)
            .map(|(path, node)| (path.as_str(), *node))
    }
}

/// Reads until `piece` is full or the file ends; how much.
fn fill(file: &mut File, piece: &mut [u8]) -> Result<usize, Ext4Error> {
    let mut filled = 0;
    while filled < piece.len() {
        match file.read_bytes(&mut piece[filled..])? {
            0 => break,
            length => filled += length,
        }
    }
    Ok(filled)
}
