//! The file tree of a tar archive, sorted, with owners, modes, times, extended attributes, links of both kinds.

use std::{
    collections::BTreeMap,
    io::{Read, Seek},
};

use mkext4::{FsBuilder, InodeHandle, Meta, ROOT, SpecialKind};
use tar::{Archive, Entry, EntryType};

use super::{Ext4Error, laid_out};

/// The nodes by path; the root is the empty path.
#[derive(Debug, Default)]
pub struct Tree {
    /// Keys are path components, so that a directory comes right before what it holds.
    nodes: BTreeMap<Vec<String>, Node>,
}

#[derive(Debug, Clone)]
pub struct Node {
    pub kind: Kind,
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    /// Seconds since 1970.
    pub time: i64,
    pub attributes: Vec<(String, Vec<u8>)>,
    /// Where the content stands in the archive, and how long it is.
    pub position: u64,
    pub bytes: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    File,
    Directory,
    Symlink(String),
    HardLink(String),
    Fifo,
    /// A device node: not ours to make, the kernel's devtmpfs has them all.
    Device,
}

impl Tree {
    /// Reads the whole table of an archive, contents left where they are.
    pub fn read(archive: impl Read + Seek) -> Result<Self, Ext4Error> {
        let mut archive = Archive::new(archive);
        let mut nodes = BTreeMap::new();
        for entry in archive.entries_with_seek().map_err(Ext4Error::Archive)? {
            let mut entry = entry.map_err(Ext4Error::Archive)?;
            let path = text(&entry.path_bytes(), "its name")?;
            let node = node(&mut entry, &path)?;
            nodes.insert(components(&path), node);
        }
        Ok(Self { nodes })
    }

    pub fn find(&self, path: &str) -> Option<&Node> {
        self.nodes.get(&components(path))
    }

    /// Takes `path` and all beneath it out of the tree.
    #[must_use]
    pub fn take(&mut self, path: &str) -> Self {
        let path = components(path);
        let (taken, kept) = std::mem::take(&mut self.nodes).into_iter().partition(|(name, _)| name.starts_with(&path));
        self.nodes = kept;
        Self { nodes: taken }
    }

    /// Takes out all beneath `path`, and leaves the directory itself.
    pub fn empty(&mut self, path: &str) {
        let path = components(path);
        self.nodes.retain(|name, _| name.len() <= path.len() || !name.starts_with(&path));
    }

    /// Bytes of all files, each rounded up to whole blocks.
    pub fn bytes(&self) -> u64 {
        self.nodes.values().map(|node| node.bytes.next_multiple_of(4096)).sum()
    }

    /// Declares everything to `builder`; gives the files whose contents are still to be filled in.
    pub(super) fn declare(&self, builder: &mut FsBuilder, time: i64) -> Result<Vec<(InodeHandle, &Node)>, Ext4Error> {
        let mut handles: BTreeMap<&[String], InodeHandle> = BTreeMap::from([(&[][..], ROOT)]);
        let mut files = Vec::new();
        let root = Meta::new(0o755, 0, 0, (time, 0));
        builder.set_meta(ROOT, root).map_err(laid_out)?;
        // The names of hard links come last: the file they point at may sort behind them.
        let (links, others): (Vec<_>, Vec<_>) =
            self.nodes.iter().partition(|(_, node)| matches!(node.kind, Kind::HardLink(_)));
        for (path, node) in others.into_iter().chain(links) {
            let meta = Meta::new(node.mode, node.uid, node.gid, (node.time, 0));
            let Some((name, parent)) = path.split_last() else {
                builder.set_meta(ROOT, meta).map_err(laid_out)?;
                attributes(builder, ROOT, node)?;
                continue;
            };
            let orphan = || refused(path, "its directory is not in the archive");
            let parent = *handles.get(parent).ok_or_else(orphan)?;
            let handle = match &node.kind {
                Kind::Directory => builder.mkdir(parent, name, meta),
                Kind::File => builder.file(parent, name, meta, node.bytes),
                Kind::Symlink(target) => builder.symlink(parent, name, target, meta),
                Kind::Fifo => builder.mknod(parent, name, meta, SpecialKind::Fifo),
                Kind::Device => continue,
                Kind::HardLink(target) => {
                    let missing = || refused(path, "the file it is a link to is not in the archive");
                    let file = *handles.get(components(target).as_slice()).ok_or_else(missing)?;
                    builder.hardlink(parent, name, file).map_err(laid_out)?;
                    continue;
                }
            };
            let handle = handle.map_err(|error| refused(path, &error.to_string()))?;
            attributes(builder, handle, node)?;
            handles.insert(path, handle);
            if node.kind == Kind::File {
                files.push((handle, node));
            }
        }
        Ok(files)
    }
}

fn attributes(builder: &mut FsBuilder, handle: InodeHandle, node: &Node) -> Result<(), Ext4Error> {
    node.attributes.iter().try_for_each(|(name, value)| builder.set_xattr(handle, name, value)).map_err(laid_out)
}

fn node(entry: &mut Entry<'_, impl Read>, path: &str) -> Result<Node, Ext4Error> {
    let mut attributes = Vec::new();
    let mut time = None;
    if let Some(extensions) = entry.pax_extensions().map_err(Ext4Error::Archive)? {
        for extension in extensions {
            let extension = extension.map_err(Ext4Error::Archive)?;
            let key = String::from_utf8_lossy(extension.key_bytes()).into_owned();
            if let Some(name) = key.strip_prefix("SCHILY.xattr.") {
                attributes.push((name.to_owned(), extension.value_bytes().to_vec()));
            } else if key == "mtime" {
                let seconds = String::from_utf8_lossy(extension.value_bytes()).into_owned();
                time = seconds.split('.').next().and_then(|whole| whole.parse().ok());
            }
        }
    }
    let refused = |reason: &str| Ext4Error::Entry { path: path.to_owned(), reason: reason.to_owned() };
    let target = |entry: &Entry<'_, _>| {
        let name = entry.link_name_bytes().ok_or_else(|| refused("the link has no target"))?;
        text(&name, "its target")
    };
    let kind = match entry.header().entry_type() {
        EntryType::Regular | EntryType::Continuous => Kind::File,
        EntryType::Directory => Kind::Directory,
        EntryType::Symlink => Kind::Symlink(target(entry)?),
        EntryType::Link => Kind::HardLink(target(entry)?),
        EntryType::Fifo => Kind::Fifo,
        EntryType::Char | EntryType::Block => Kind::Device,
        other => return Err(refused(&format!("entries of type {other:?} are not known"))),
    };
    let header = entry.header();
    let small =
        |number: u64, what: &str| u32::try_from(number).map_err(|_| refused(&format!("its {what} is too large")));
    let mode = header.mode().map_err(Ext4Error::Archive)? & 0o7777;
    Ok(Node {
        mode: u16::try_from(mode).unwrap_or_default(),
        uid: small(header.uid().map_err(Ext4Error::Archive)?, "owner")?,
        gid: small(header.gid().map_err(Ext4Error::Archive)?, "group")?,
        time: match time {
            Some(time) => time,
            None => i64::try_from(header.mtime().map_err(Ext4Error::Archive)?).unwrap_or_default(),
        },
        attributes,
        position: entry.raw_file_position(),
        bytes: if kind == Kind::File { entry.size() } else { 0 },
        kind,
    })
}

/// `./usr/bin/` and `usr/bin` are the same.
fn components(path: &str) -> Vec<String> {
    path.split('/').filter(|part| !part.is_empty() && *part != ".").map(str::to_owned).collect()
}

fn text(bytes: &[u8], what: &str) -> Result<String, Ext4Error> {
    String::from_utf8(bytes.to_vec()).map_err(|_| Ext4Error::Entry {
        path: String::from_utf8_lossy(bytes).into_owned(),
        reason: format!("{what} is not UTF-8"),
    })
}

fn refused(path: &[String], reason: &str) -> Ext4Error {
    Ext4Error::Entry { path: path.join("/"), reason: reason.to_owned() }
}
