//! What turns one tree into another, touching nothing that is the same in both.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    io,
};

use super::{
    PlacementError,
    inode::{Body, Extent, Inode, Kind, Time},
    listing::Listing,
};

/// One change of the older tree. Paths have no leading slash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Edit {
    Remove(Vec<u8>),
    RemoveDirectory(Vec<u8>),
    MakeDirectory(Vec<u8>),
    /// A file with the content of this inode of the newer tree.
    Write(Vec<u8>, u32),
    /// The content of this inode of the newer tree into the blocks of a file that had other content.
    Rewrite(Vec<Extent>, u32),
    Link {
        path: Vec<u8>,
        to: Vec<u8>,
    },
    SymbolicLink(Vec<u8>, Vec<u8>),
    Node {
        path: Vec<u8>,
        kind: Kind,
        major: u32,
        minor: u32,
    },
    Set {
        path: Vec<u8>,
        field: &'static str,
        value: Value,
    },
    SetXattr {
        path: Vec<u8>,
        name: Vec<u8>,
        value: Vec<u8>,
    },
    RemoveXattr {
        path: Vec<u8>,
        name: Vec<u8>,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Value {
    Number(u32),
    Octal(u16),
    /// Seconds since 1970.
    Seconds(u32),
}

/// Two files, of one tree and of another.
pub(super) type Pair<'a> = (&'a Inode, &'a Inode);

/// Says of each pair whether both hold the same bytes.
pub(super) trait SameContents: FnOnce(&[Pair<'_>]) -> io::Result<Vec<bool>> {}
impl<F: FnOnce(&[Pair<'_>]) -> io::Result<Vec<bool>>> SameContents for F {}

/// What becomes of an inode that has the same names in both trees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Kept,
    /// It stays, with other content in its blocks: a new place would change two parts of the disk.
    Rewritten,
    Replaced,
}

/// The edits in an order in which they can be made. `block` is the size of a block in bytes.
pub(super) fn edits(
    old: &Listing,
    new: &Listing,
    block: u64,
    same_contents: impl SameContents,
) -> Result<Vec<Edit>, PlacementError> {
    let fates = fates(old, new, block, same_contents)?;
    let stays = |path: &[u8], number| old.paths.contains_key(path) && fates.get(number) != Some(&Fate::Replaced);
    let kept: BTreeSet<Vec<u8>> =
        new.paths.iter().filter(|(path, number)| stays(path, number)).map(|(path, _)| path.clone()).collect();
    let mut edits = Vec::new();
    let mut touched = BTreeSet::new();
    // What is deeper comes later in byte order.
    for (path, number) in old.paths.iter().rev().filter(|(path, _)| !kept.contains(*path)) {
        let directory = old.inodes[number].kind == Kind::Directory;
        touched.insert(parent(path));
        edits.push(if directory { Edit::RemoveDirectory(path.clone()) } else { Edit::Remove(path.clone()) });
    }
    let mut made: HashMap<u32, &Vec<u8>> = HashMap::new();
    for (path, number) in new.paths.iter().filter(|(path, _)| !kept.contains(*path)) {
        touched.insert(parent(path));
        edits.push(match made.get(number) {
            Some(first) => Edit::Link { path: path.clone(), to: (*first).clone() },
            None => create(path, *number, &new.inodes[number])?,
        });
        made.entry(*number).or_insert(path);
    }
    let mut told = BTreeSet::new();
    for (path, number) in &new.paths {
        let wanted = &new.inodes[number];
        let before = kept.contains(path).then(|| old.at(path)).flatten().map(|(_, inode)| inode);
        // Once for all names of an inode.
        if told.insert(*number) {
            let restless = wanted.kind == Kind::Directory && touched.contains(path.as_slice());
            attributes(path, before, wanted, restless, &mut edits);
            if let Some(before) = before.filter(|_| fates.get(number) == Some(&Fate::Rewritten)) {
                rewrite(path, before, *number, wanted, &mut edits);
            }
        }
    }
    Ok(edits)
}

/// What becomes of the inodes of the newer tree that the older one has at the same path.
fn fates(
    old: &Listing,
    new: &Listing,
    block: u64,
    same_contents: impl SameContents,
) -> Result<HashMap<u32, Fate>, PlacementError> {
    let mut undecided: BTreeMap<u32, Pair<'_>> = BTreeMap::new();
    let mut fates: HashMap<u32, Fate> = HashMap::new();
    let changed =
        |(before, wanted): Pair<'_>| if fits(before, wanted, block) { Fate::Rewritten } else { Fate::Replaced };
    for (path, number) in &new.paths {
        if fates.contains_key(number) || undecided.contains_key(number) {
            continue;
        }
        let Some((old_number, before)) = old.at(path) else { continue };
        let wanted = &new.inodes[number];
        let fate = if before.kind != wanted.kind || before.attributes != wanted.attributes {
            Some(Fate::Replaced)
        } else if wanted.kind == Kind::Directory {
            Some(Fate::Kept)
        } else if old.names[&old_number] != new.names[number] {
            // All names of an inode stay together or go together.
            Some(Fate::Replaced)
        } else {
            same_body(before, wanted).map(|same| if same { Fate::Kept } else { changed((before, wanted)) })
        };
        match fate {
            Some(fate) => fates.insert(*number, fate).is_some(),
            None => undecided.insert(*number, (before, wanted)).is_some(),
        };
    }
    let pairs: Vec<Pair<'_>> = undecided.values().copied().collect();
    let same = same_contents(&pairs)?;
    for ((number, pair), same) in undecided.into_iter().zip(same) {
        fates.insert(number, if same { Fate::Kept } else { changed(pair) });
    }
    Ok(fates)
}

/// Whether the newer content takes exactly the blocks that the older file has.
fn fits(old: &Inode, new: &Inode, block: u64) -> bool {
    let Body::Extents(extents) = &old.body else { return false };
    let mut end = 0;
    let whole = extents.iter().all(|extent| {
        let follows = extent.file.start == end;
        end = extent.file.end;
        follows
    });
    let blocks = |inode: &Inode| inode.size.div_ceil(block) * block;
    // A size that `debugfs` can set.
    let sized = new.size > 0 && u32::try_from(new.size.max(old.size)).is_ok();
    old.kind == Kind::File && whole && sized && (blocks(old), blocks(new)) == (end, end)
}

fn rewrite(path: &[u8], before: &Inode, number: u32, wanted: &Inode, edits: &mut Vec<Edit>) {
    let Body::Extents(extents) = &before.body else { return };
    edits.push(Edit::Rewrite(extents.clone(), number));
    if let Ok(size) = u32::try_from(wanted.size)
        && before.size != wanted.size
    {
        edits.push(Edit::Set { path: path.to_owned(), field: "size", value: Value::Number(size) });
    }
}

/// Whether the inodes hold the same; `None` when their bytes must tell.
fn same_body(old: &Inode, new: &Inode) -> Option<bool> {
    match (&old.body, &new.body) {
        (Body::Extents(_) | Body::Nothing, Body::Extents(_) | Body::Nothing) if old.size != new.size => Some(false),
        (Body::Extents(_) | Body::Nothing, Body::Extents(_) | Body::Nothing) if old.size == 0 => Some(true),
        (Body::Extents(_) | Body::Nothing, Body::Extents(_) | Body::Nothing) => None,
        (old, new) => Some(old == new),
    }
}

fn create(path: &[u8], number: u32, inode: &Inode) -> Result<Edit, PlacementError> {
    if inode.attributes != 0 {
        return Err(PlacementError::Unsupported("new files with attributes of chattr"));
    }
    let path = path.to_owned();
    Ok(match (inode.kind, &inode.body) {
        (Kind::Directory, _) => Edit::MakeDirectory(path),
        (Kind::File, _) => Edit::Write(path, number),
        (Kind::Link, Body::Target(target)) => Edit::SymbolicLink(path, target.clone()),
        (kind @ (Kind::Character | Kind::Block), Body::Device { major, minor }) => {
            Edit::Node { path, kind, major: *major, minor: *minor }
        }
        (kind @ Kind::Fifo, _) => Edit::Node { path, kind, major: 0, minor: 0 },
        (Kind::Socket, _) => return Err(PlacementError::Unsupported("new sockets")),
        _ => return Err(PlacementError::Unsupported("new symbolic links of 60 bytes or more")),
    })
}

/// Brings mode, owner, times, links and extended attributes to what they are in the newer tree.
fn attributes(path: &[u8], before: Option<&Inode>, wanted: &Inode, restless: bool, edits: &mut Vec<Edit>) {
    let mut set = |field, value| edits.push(Edit::Set { path: path.to_owned(), field, value });
    let differs = |of: fn(&Inode) -> u32| before.is_none_or(|before| of(before) != of(wanted));
    if differs(|inode| inode.mode.into()) {
        set("mode", Value::Octal(wanted.mode));
    }
    if differs(|inode| inode.uid) {
        set("uid", Value::Number(wanted.uid));
    }
    if differs(|inode| inode.gid) {
        set("gid", Value::Number(wanted.gid));
    }
    if before.is_none() && wanted.kind != Kind::Directory {
        set("links_count", Value::Number(wanted.links.into()));
    }
    if restless || before.is_none_or(|before| before.modified != wanted.modified) {
        let times: [(&str, &str, Time); 3] = [
            ("mtime", "mtime_extra", wanted.modified),
            ("ctime", "ctime_extra", wanted.changed),
            ("atime", "atime_extra", wanted.accessed),
        ];
        let created = before.is_none().then_some(("crtime", "crtime_extra", wanted.created));
        for (field, extra, (seconds, more)) in times.into_iter().chain(created) {
            set(field, Value::Seconds(seconds));
            set(extra, Value::Number(more));
        }
    }
    let none = std::collections::BTreeMap::new();
    let had = before.map_or(&none, |before| &before.xattrs);
    for name in had.keys().filter(|name| !wanted.xattrs.contains_key(*name)) {
        edits.push(Edit::RemoveXattr { path: path.to_owned(), name: name.clone() });
    }
    for (name, value) in wanted.xattrs.iter().filter(|(name, value)| had.get(*name) != Some(value)) {
        edits.push(Edit::SetXattr { path: path.to_owned(), name: name.clone(), value: value.clone() });
    }
}

pub(super) fn parent(path: &[u8]) -> &[u8] {
    path.iter().rposition(|byte| *byte == b'/').map_or(b"", |slash| &path[..slash])
}

/// The first path that is not the same in both trees, and what differs; directories' sizes and all times but that of the
/// last modification are nobody's business.
pub(super) fn difference(
    one: &Listing,
    other: &Listing,
    same_contents: impl SameContents,
) -> Result<Option<(Vec<u8>, &'static str)>, PlacementError> {
    if let Some(path) = one.paths.keys().find(|path| !other.paths.contains_key(*path)) {
        return Ok(Some((path.clone(), "it should not be there")));
    }
    let mut compared = BTreeSet::new();
    let (mut paths, mut pairs) = (Vec::new(), Vec::new());
    for (path, number) in &other.paths {
        let Some((one_number, a)) = one.at(path) else { return Ok(Some((path.clone(), "it is missing"))) };
        if !compared.insert(*number) {
            continue;
        }
        let b = &other.inodes[number];
        let what = if a.kind != b.kind || a.mode != b.mode {
            "type or mode"
        } else if (a.uid, a.gid) != (b.uid, b.gid) {
            "owner"
        } else if a.modified != b.modified {
            "time of modification"
        } else if a.xattrs != b.xattrs || a.attributes != b.attributes {
            "attributes"
        } else if one.names[&one_number] != other.names[number] || (a.kind != Kind::Directory && a.links != b.links) {
            "names of the file"
        } else if a.kind == Kind::Directory {
            continue;
        } else {
            match same_body(a, b) {
                Some(true) => continue,
                Some(false) => "content",
                None => {
                    paths.push(path);
                    pairs.push((a, b));
                    continue;
                }
            }
        };
        return Ok(Some((path.clone(), what)));
    }
    let same = same_contents(&pairs)?;
    Ok(paths.into_iter().zip(same).find(|(_, same)| !same).map(|(path, _)| (path.clone(), "content")))
}
