//! What is installed on a disk, by the package databases in its root file system; the guest is never asked.
//!
//! dpkg's and apk's databases are read. One of rpm is named and not read: it is a database of its own format, and a list with
//! holes must say so. The files may be hostile: every length and count is limited.

use crate::tree::Files;

mod apk;
mod dpkg;
pub mod licence;

/// No package database is longer; behind it nothing is read.
const LONGEST_DATABASE: usize = 64 << 20;
/// No system has more packages.
const MOST_PACKAGES: usize = 100_000;
/// All texts of a list together; a system of 2,000 packages has a tenth of it.
const MOST_BYTES: usize = 4 << 20;
/// No name, version or title is longer; what is longer is cut.
const LONGEST_FIELD: usize = 1024;

/// Databases that are known and not read.
const UNREAD: [&str; 4] = [
    "/usr/lib/sysimage/rpm/rpmdb.sqlite",
    "/usr/lib/sysimage/rpm/Packages.db",
    "/var/lib/rpm/rpmdb.sqlite",
    "/var/lib/rpm/Packages",
];

/// The packages of a root file system, in a fixed order: by kind, name, version, architecture.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Inventory {
    pub system: Option<System>,
    pub packages: Vec<Package>,
    /// Package databases that are there and could not be read, with the reason: the list is not complete then.
    pub unread: Vec<String>,
}

/// What `os-release` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct System {
    /// `debian`
    pub id: String,
    /// `12`; a rolling system has none.
    pub version: Option<String>,
    /// `Debian GNU/Linux 12 (bookworm)`
    pub name: String,
}

/// Who installed a package.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Deb,
    Apk,
}

/// An installed package.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Package {
    pub kind: Kind,
    pub name: String,
    pub version: String,
    pub architecture: String,
    /// The source package it was built from, and its version: what security advisories name.
    pub source: (String, String),
    /// As the package says, SPDX identifiers where there is one; empty where it is not said in a form that can be read.
    pub licences: Vec<String>,
    pub supplier: Option<String>,
    pub homepage: Option<String>,
    pub summary: Option<String>,
}

impl Inventory {
    /// Reads the databases of a root file system.
    pub fn read(root: &Files) -> Self {
        let mut inventory = Self { system: System::read(root), ..Self::default() };
        dpkg::read(root, &mut inventory);
        apk::read(root, &mut inventory);
        // One may lead to the other by a link.
        if let Some(path) = UNREAD.iter().find(|path| root.exists(path)) {
            inventory.unread.push(format!("{path}: kiln does not read the database of rpm"));
        }
        inventory.packages.sort();
        inventory.packages.dedup();
        inventory.limit();
        inventory
    }

    /// Leaves out what makes the list longer than that of any system.
    fn limit(&mut self) {
        let mut bytes = 0;
        let fits = |package: &&Package| {
            bytes += package.bytes();
            bytes <= MOST_BYTES
        };
        let fitting = self.packages.iter().take(MOST_PACKAGES).take_while(fits).count();
        if fitting < self.packages.len() {
            self.packages.truncate(fitting);
            self.unread.push(format!("only the first {fitting} packages are listed"));
        }
    }

    /// A database as text; what cannot be read is noted.
    fn database(&mut self, root: &Files, path: &str) -> Option<String> {
        let node = root.node(path)?;
        let bytes = root.head(path, LONGEST_DATABASE);
        if node.size > LONGEST_DATABASE as u64 {
            self.unread.push(format!("{path}: longer than any database of packages"));
        } else if (bytes.len() as u64) < node.size && node.kind == crate::tree::Kind::File {
            self.unread.push(format!("{path}: cannot be read to its end"));
        }
        Some(String::from_utf8_lossy(&bytes).into_owned())
    }
}

impl Package {
    fn bytes(&self) -> usize {
        let optional = [&self.supplier, &self.homepage, &self.summary];
        let optional: usize = optional.into_iter().flatten().map(String::len).sum();
        let licences: usize = self.licences.iter().map(String::len).sum();
        self.name.len() + self.version.len() + self.source.0.len() + self.source.1.len() + optional + licences
    }
}

impl System {
    fn read(root: &Files) -> Option<Self> {
        // The first is a link to the second where both are there.
        let text = ["/etc/os-release", "/usr/lib/os-release"].map(|path| root.text(path));
        let text = text.iter().find(|text| !text.trim().is_empty())?;
        let value = |name: &str| {
            let line = text.lines().find_map(|line| line.trim().strip_prefix(name)?.strip_prefix('='))?;
            let value = line.trim().trim_matches(['"', '\'']);
            (!value.is_empty()).then(|| field(value))
        };
        let id = value("ID").unwrap_or_else(|| "linux".to_owned());
        Some(Self { name: value("PRETTY_NAME").unwrap_or_else(|| id.clone()), version: value("VERSION_ID"), id })
    }
}

/// A value of a database: no longer than a value may be, and text only.
fn field(text: &str) -> String {
    text.trim().chars().filter(|c| !c.is_control()).take(LONGEST_FIELD).collect()
}
