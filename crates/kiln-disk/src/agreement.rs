//! Whether two disks hold the same files: paths with their kind, mode, owner and content. Times are left aside.

use crate::tree::{Kind, Node, Tree};

/// How far two file trees agree.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Agreement {
    /// Paths that are in either.
    pub paths: usize,
    /// Those that are the same in both.
    pub same: usize,
    /// The others, in byte order.
    pub differing: Vec<Differing>,
}

/// A path that is not the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Differing {
    pub path: String,
    /// `content`, `mode 0644 -> 0600`, `only in the first`.
    pub how: String,
}

impl Agreement {
    /// Compares every path of the root file systems. The error says what cannot be read.
    pub fn of(one: &Tree, two: &Tree) -> Result<Self, String> {
        let mut agreement = Self::default();
        for (path, node) in one.all() {
            let how = match two.node(path) {
                None => Some("only in the first".to_owned()),
                Some(other) => differs(one, two, path, node, other)?,
            };
            agreement.note(path, how);
        }
        for (path, _) in two.all().filter(|(path, _)| !one.exists(path)) {
            agreement.note(path, Some("only in the second".to_owned()));
        }
        agreement.differing.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(agreement)
    }

    fn note(&mut self, path: &str, how: Option<String>) {
        self.paths += 1;
        match how {
            None => self.same += 1,
            Some(how) => self.differing.push(Differing { path: path.to_owned(), how }),
        }
    }
}

fn differs(one: &Tree, two: &Tree, path: &str, a: Node, b: Node) -> Result<Option<String>, String> {
    if a.kind != b.kind {
        return Ok(Some(format!("kind {:?} -> {:?}", a.kind, b.kind).to_lowercase()));
    }
    if a.mode != b.mode {
        return Ok(Some(format!("mode {:04o} -> {:04o}", a.mode & 0o7777, b.mode & 0o7777)));
    }
    if (a.uid, a.gid) != (b.uid, b.gid) {
        return Ok(Some(format!("owner {}:{} -> {}:{}", a.uid, a.gid, b.uid, b.gid)));
    }
    let same = match a.kind {
        Kind::File => a.size == b.size && one.files().same_content(two.files(), path)?,
        Kind::Link => one.files().link(path) == two.files().link(path),
        Kind::Directory | Kind::Other => true,
    };
    Ok((!same).then(|| "content".to_owned()))
}
