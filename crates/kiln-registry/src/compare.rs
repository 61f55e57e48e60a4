//! What differs between two versions: packages, files, units, sizes, chunks. Read from the stored segments, in bounded memory.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::Arc,
};

use kiln_disk::{
    ReadAt,
    inventory::{Inventory, Package},
    tree::{Kind, Node, Tree},
};
use serde::Serialize;

use crate::{
    Content, Record, Registry, RegistryError,
    disk::{Chunks, StoredDisk},
    lineage::Parent,
};

/// Set-uid and set-gid.
const SET_ID: u16 = 0o6000;

/// What one version has and another has not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Difference {
    pub from: Parent,
    pub to: Parent,
    pub base: Pair<String>,
    /// The base's digests; the same name may stand for a newer one.
    pub base_digest: Pair<String>,
    pub sizes: Sizes,
    pub packages: Vec<PackageChange>,
    /// Enabled units, `nginx.service (multi-user.target)`, added and removed.
    pub units: Changes,
    /// Paths whose set-uid or set-gid file came, went, or changed in any way.
    pub set_id: Vec<FileChange>,
    pub files: Vec<FileChange>,
    /// What could not be compared, with the reason; empty when everything was.
    pub unread: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Pair<T> {
    pub from: T,
    pub to: T,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Sizes {
    /// Bytes of the qcow2 files.
    pub qcow2: Pair<u64>,
    /// Bytes of the guest's disks.
    pub disk: Pair<u64>,
    /// 64 KiB chunks with data of the newer disk, and how many of them the older one has too.
    pub chunks: u64,
    pub shared: u64,
    /// Compressed bytes of the chunks that it has not: what a machine with the older version fetches.
    pub new_bytes: u64,
}

/// A package that came (`from` is none), went, or has another version.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct PackageChange {
    pub name: String,
    pub architecture: String,
    /// The source package of the newer one, or of the one that went.
    pub source: String,
    pub from: Option<String>,
    pub to: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Changes {
    pub added: Vec<String>,
    pub removed: Vec<String>,
}

/// A path that came, went, or is something else now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FileChange {
    pub path: String,
    pub from: Option<FileFacts>,
    pub to: Option<FileFacts>,
    /// Whether the bytes of a file that is in both, or the target of a link, differ.
    pub content: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FileFacts {
    pub kind: &'static str,
    /// Permission bits in octal: `4755`.
    pub mode: String,
    pub uid: u32,
    pub gid: u32,
    pub size: u64,
}

/// One side of the comparison.
struct Side {
    record: Record,
    content: Content,
    root: Result<Tree, String>,
    inventory: Inventory,
}

impl Registry {
    /// Compares two versions. `watch` gets the files done and the files in all, and says whether to go on.
    pub fn compare(
        &self,
        from: &Record,
        to: &Record,
        watch: &dyn Fn(u64, u64) -> bool,
    ) -> Result<Difference, RegistryError> {
        let _leased = self.lease()?;
        let chunks = Arc::<Chunks>::default();
        let (from, to) = (self.side(from, &chunks)?, self.side(to, &chunks)?);
        let mut unread = Vec::new();
        for side in [&from, &to] {
            let name = side.name();
            unread.extend(side.root.as_ref().err().map(|problem| format!("{name}: {problem}")));
            unread.extend(side.inventory.unread.iter().map(|problem| format!("{name}: {problem}")));
        }
        let mut files = Vec::new();
        let mut units = Changes::default();
        if let (Ok(old), Ok(new)) = (&from.root, &to.root) {
            files = compare_trees(old, new, watch, &mut unread)
                .ok_or_else(|| RegistryError::Stopped { path: self.root().to_owned() })?;
            let (before, after) = (enabled(old), enabled(new));
            units.added = after.difference(&before).cloned().collect();
            units.removed = before.difference(&after).cloned().collect();
        }
        let has_bit = |change: &&FileChange| [&change.from, &change.to].into_iter().flatten().any(FileFacts::sets_id);
        Ok(Difference {
            base: Pair::of(&from, &to, |record| record.artifact.base.name.clone()),
            base_digest: Pair::of(&from, &to, |record| record.artifact.base.digest.to_string()),
            sizes: sizes(&from, &to),
            packages: compare_packages(&from.inventory, &to.inventory),
            units,
            set_id: files.iter().filter(has_bit).cloned().collect(),
            files,
            unread,
            from: from.name(),
            to: to.name(),
        })
    }

    fn side(&self, record: &Record, chunks: &Arc<Chunks>) -> Result<Side, RegistryError> {
        let disk: StoredDisk = self.disk_with(record, chunks)?;
        let content = disk.content().clone();
        let root = Tree::of_root(&(Arc::new(disk) as Arc<dyn ReadAt>));
        let inventory = root.as_ref().map(|root| Inventory::read(root.files())).unwrap_or_default();
        Ok(Side { record: record.clone(), content, root, inventory })
    }
}

impl Side {
    fn name(&self) -> Parent {
        Parent { image: self.record.artifact.image.clone(), version: self.record.artifact.version.clone() }
    }
}

impl<T> Pair<T> {
    fn of(from: &Side, to: &Side, value: impl Fn(&Record) -> T) -> Self {
        Self { from: value(&from.record), to: value(&to.record) }
    }
}

impl FileFacts {
    fn new(node: Node) -> Self {
        let kind = match node.kind {
            Kind::Directory => "directory",
            Kind::File => "file",
            Kind::Link => "link",
            Kind::Other => "special",
        };
        // What a directory's own table takes is nobody's change.
        let size = if node.kind == Kind::Directory { 0 } else { node.size };
        Self { kind, mode: format!("{:04o}", node.mode), uid: node.uid, gid: node.gid, size }
    }

    fn sets_id(&self) -> bool {
        self.kind == "file" && u16::from_str_radix(&self.mode, 8).is_ok_and(|mode| mode & SET_ID != 0)
    }
}

fn sizes(from: &Side, to: &Side) -> Sizes {
    let old: HashSet<_> = from.content.chunks().filter(|chunk| chunk.frame != 0).map(|chunk| chunk.digest).collect();
    let new = || to.content.chunks().filter(|chunk| chunk.frame != 0);
    let mut fetched = HashSet::new();
    let missing = new().filter(|chunk| !old.contains(&chunk.digest) && fetched.insert(chunk.digest));
    Sizes {
        qcow2: Pair::of(from, to, |record| record.file("qcow2").map_or(0, |file| file.bytes)),
        disk: Pair::of(from, to, |record| record.artifact.disk.size),
        new_bytes: missing.map(|chunk| u64::from(chunk.frame)).sum(),
        chunks: new().count() as u64,
        shared: new().filter(|chunk| old.contains(&chunk.digest)).count() as u64,
    }
}

/// The packages of one name and architecture. Several versions may be there at once, such as kernels.
type Versions<'a> = BTreeMap<(&'a str, &'a str), Vec<&'a Package>>;

fn by_name(inventory: &Inventory) -> Versions<'_> {
    let mut packages = Versions::new();
    for package in &inventory.packages {
        packages.entry((&package.name, &package.architecture)).or_default().push(package);
    }
    packages
}

/// The versions under `name` that `others` has not.
fn only<'a>(packages: &Versions<'a>, others: &Versions<'_>, name: &(&str, &str)) -> Vec<&'a Package> {
    let there = |package: &Package| {
        others.get(name).is_some_and(|others| others.iter().any(|other| other.version == package.version))
    };
    packages.get(name).into_iter().flatten().copied().filter(|package| !there(package)).collect()
}

fn compare_packages(from: &Inventory, to: &Inventory) -> Vec<PackageChange> {
    let (old, new) = (by_name(from), by_name(to));
    let names: BTreeSet<_> = old.keys().chain(new.keys()).copied().collect();
    let mut changes = Vec::new();
    for name in names {
        let (gone, came) = (only(&old, &new, &name), only(&new, &old, &name));
        for number in 0..gone.len().max(came.len()) {
            let (from, to) = (gone.get(number), came.get(number));
            let Some(package) = to.or(from) else { continue };
            changes.push(PackageChange {
                name: package.name.clone(),
                architecture: package.architecture.clone(),
                source: package.source.0.clone(),
                from: from.map(|package| package.version.clone()),
                to: to.map(|package| package.version.clone()),
            });
        }
    }
    changes
}

/// Every path that differs, in order. `None` when `watch` says to stop.
fn compare_trees(
    old: &Tree,
    new: &Tree,
    watch: &dyn Fn(u64, u64) -> bool,
    unread: &mut Vec<String>,
) -> Option<Vec<FileChange>> {
    let mut changes = Vec::new();
    let all = new.all().count() as u64;
    for (done, (path, after)) in new.all().enumerate() {
        if !watch(done as u64, all) {
            return None;
        }
        let before = old.node(path);
        let content = match before {
            Some(before) if before.kind == after.kind => {
                differs(old, new, path, before, after).unwrap_or_else(|problem| {
                    unread.push(problem);
                    true
                })
            }
            Some(_) => true,
            None => false,
        };
        let (from, to) = (before.map(FileFacts::new), Some(FileFacts::new(after)));
        if content || from != to {
            changes.push(FileChange { path: path.to_owned(), from, to, content });
        }
    }
    let gone = old.all().filter(|(path, _)| !new.exists(path));
    changes.extend(gone.map(|(path, node)| FileChange {
        path: path.to_owned(),
        from: Some(FileFacts::new(node)),
        to: None,
        content: false,
    }));
    changes.sort_by(|a, b| a.path.cmp(&b.path));
    Some(changes)
}

fn differs(old: &Tree, new: &Tree, path: &str, before: Node, after: Node) -> Result<bool, String> {
    match after.kind {
        Kind::File if before.size != after.size => Ok(true),
        Kind::File => old.files().same_content(new.files(), path).map(|same| !same),
        Kind::Link => Ok(old.files().link(path) != new.files().link(path)),
        Kind::Directory | Kind::Other => Ok(false),
    }
}

/// The units that systemd starts because somebody enabled them: links in `*.wants` and `*.requires`.
fn enabled(root: &Tree) -> BTreeSet<String> {
    let links = root.beneath("/etc/systemd/system");
    let units = links.filter_map(|(path, _)| {
        let (directory, unit) = path.strip_prefix("/etc/systemd/system/")?.split_once('/')?;
        let target = directory.strip_suffix(".wants").or_else(|| directory.strip_suffix(".requires"))?;
        (!unit.contains('/')).then(|| format!("{unit} ({target})"))
    });
    units.collect()
}
