//! The file tree of an ext4 root, listed once, with bounded reads. The file system may be hostile.

use std::{collections::BTreeMap, sync::Arc};

use ext4_view::{Ext4, Ext4Error, Ext4Read, FileType};

use crate::ReadAt;

/// A directory that contains itself would be walked for ever.
const MAX_DEPTH: usize = 64;
const MAX_ENTRIES: usize = 4 << 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Directory,
    File,
    Link,
    Other,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Node {
    pub(super) kind: Kind,
    pub(super) size: u64,
    /// Permission bits.
    pub(super) mode: u16,
}

/// Every path of the file system.
#[derive(Debug)]
pub(super) struct Tree {
    file_system: Ext4,
    nodes: BTreeMap<String, Node>,
}

struct Volume(Arc<dyn ReadAt>);

impl Ext4Read for Volume {
    fn read(&mut self, start: u64, buffer: &mut [u8]) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        self.0.read_at(start, buffer).map_err(Into::into)
    }
}

impl Tree {
    /// `Err` names what cannot be read.
    pub(super) fn read(volume: Arc<dyn ReadAt>) -> Result<Self, String> {
        let file_system = Ext4::load(Box::new(Volume(volume))).map_err(|error| error.to_string())?;
        let mut nodes = BTreeMap::new();
        let mut waiting = vec![(String::new(), 0)];
        while let Some((directory, depth)) = waiting.pop() {
            let failed = |error: Ext4Error| format!("`{directory}/`: {error}");
            let path = if directory.is_empty() { "/" } else { &directory };
            for entry in file_system.read_dir(path).map_err(failed)? {
                let entry = entry.map_err(failed)?;
                let name = entry.file_name();
                if matches!(name.as_ref(), b"." | b"..") {
                    continue;
                }
                let path = format!("{directory}/{}", String::from_utf8_lossy(name.as_ref()));
                let metadata = entry.metadata().map_err(|error| format!("`{path}`: {error}"))?;
                let kind = match metadata.file_type() {
                    FileType::Directory => Kind::Directory,
                    FileType::Regular => Kind::File,
                    FileType::Symlink => Kind::Link,
                    _ => Kind::Other,
                };
                if kind == Kind::Directory {
                    if depth >= MAX_DEPTH {
                        return Err(format!("`{path}`: directories more than {MAX_DEPTH} deep"));
                    }
                    // A name that is not UTF-8 cannot be asked for again by its shown form; the bytes can.
                    if name.as_str().is_ok() {
                        waiting.push((path.clone(), depth + 1));
                    }
                }
                nodes.insert(path, Node { kind, size: metadata.len(), mode: metadata.mode() & 0o7777 });
                if nodes.len() > MAX_ENTRIES {
                    return Err(format!("more than {MAX_ENTRIES} files"));
                }
            }
        }
        Ok(Self { file_system, nodes })
    }

    pub(super) fn node(&self, path: &str) -> Option<Node> {
        self.nodes.get(path).copied()
    }

    pub(super) fn exists(&self, path: &str) -> bool {
        self.nodes.contains_key(path)
    }

    /// Every path with its node, in byte order.
    pub(super) fn all(&self) -> impl Iterator<Item = (&str, Node)> {
        self.nodes.iter().map(|(path, node)| (path.as_str(), *node))
    }

    /// Everything beneath a directory, directories left out.
    pub(super) fn beneath(&self, directory: &str) -> impl Iterator<Item = (&str, Node)> {
        // `0` follows `/`.
        self.nodes
            .range(format!("{directory}/")..format!("{directory}0"))
            .filter(|(_, node)| node.kind != Kind::Directory)
            .map(|(path, node)| (path.as_str(), *node))
    }

    /// The first `limit` bytes of a file, symbolic links followed; empty if it cannot be read.
    pub(super) fn head(&self, path: &str, limit: usize) -> Vec<u8> {
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
    pub(super) fn text(&self, path: &str) -> String {
        String::from_utf8_lossy(&self.head(path, 1 << 20)).into_owned()
    }
}
