//! Finds provisioners: in the template's directory, in the project's, in the built-in set.

mod built_in;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use kiln_core::{
    Digest,
    manifest::{self, Manifest},
};
use kiln_io::{
    error::FsError,
    guest::{Content, Entry},
    tree::{self, Kind},
};
use sha2::{Digest as _, Sha256};

use crate::error::LibraryError;

/// The directory of provisioners, beside a template or above it.
const DIRECTORY: &str = "provisioners";
const MANIFEST: &str = "provisioner.toml";
/// Tests of a provisioner: they never reach a guest and are no part of its digest.
const CASES: &str = "cases";
/// Files up to this size are held in memory, so that they can travel with the script of the step.
const SMALL: u64 = 64 << 10;
/// How far above a template its project's provisioners are looked for outside a git repository.
const LEVELS: usize = 2;

/// The search path of one template.
#[derive(Debug, Clone)]
pub struct Library {
    roots: Vec<PathBuf>,
}

/// A provisioner with all its files.
#[derive(Debug, Clone)]
pub struct Provisioner {
    pub manifest: Manifest,
    /// Over path, executable bit and content of every file, cases left out. The same wherever the directory lies.
    pub digest: Digest,
    /// A path, or `built in`.
    pub origin: String,
    /// The files as they lie in a step's directory, `run` executable, the manifest left out.
    pub entries: Vec<Entry>,
}

impl Library {
    /// The search path of the template in `directory`: its own `provisioners/`, then those of the directories above up to
    /// the root of the git repository (two levels where there is none), then the built-in set.
    pub fn for_template(directory: &Path) -> Self {
        let start = directory.canonicalize().unwrap_or_else(|_| directory.to_owned());
        let above: Vec<&Path> = start.ancestors().collect();
        let levels = above.iter().position(|path| path.join(".git").exists()).unwrap_or(LEVELS);
        let roots =
            above.iter().take(levels + 1).map(|path| path.join(DIRECTORY)).filter(|path| path.is_dir()).collect();
        Self { roots }
    }

    /// These directories of provisioners, then the built-in set.
    pub const fn at(roots: Vec<PathBuf>) -> Self {
        Self { roots }
    }

    /// The built-in set alone.
    pub const fn built_in() -> Self {
        Self { roots: Vec::new() }
    }

    /// The provisioner called `name`.
    pub fn find(&self, name: &str) -> Result<Provisioner, LibraryError> {
        if !sound(name) {
            return Err(LibraryError::Name { name: name.to_owned() });
        }
        for root in &self.roots {
            let directory = root.join(name);
            if directory.join(MANIFEST).exists() {
                return read(name, &directory);
            }
        }
        let files = built_in::files(name);
        if files.is_empty() {
            return Err(LibraryError::Unknown { name: name.to_owned() });
        }
        assemble(name, "built in".to_owned(), &format!("built in: {name}/{MANIFEST}"), files)
    }

    /// Every name that can be found, sorted.
    pub fn names(&self) -> Vec<String> {
        let mut names: BTreeSet<String> = built_in::names().map(str::to_owned).collect();
        for root in &self.roots {
            let found = fs::read_dir(root).into_iter().flatten().flatten();
            names.extend(
                found
                    .filter(|entry| entry.path().join(MANIFEST).exists())
                    .filter_map(|entry| entry.file_name().into_string().ok())
                    .filter(|name| sound(name)),
            );
        }
        names.into_iter().collect()
    }
}

/// Reads the provisioner in `directory`, whose name must be that of the directory.
pub fn read(name: &str, directory: &Path) -> Result<Provisioner, LibraryError> {
    let unreadable = |source| LibraryError::Read { name: name.to_owned(), source };
    let mut files = BTreeMap::new();
    for node in tree::walk(directory).map_err(unreadable)? {
        if node.path.starts_with(CASES) {
            continue;
        }
        let full = directory.join(&node.path);
        let entry = match node.kind {
            Kind::Directory => continue,
            Kind::Link(target) => Entry { path: node.path.clone(), mode: 0o777, content: Content::Link(target) },
            Kind::File { bytes, executable } => {
                let content = if bytes <= SMALL {
                    let source = |source| FsError::Io { operation: "read", path: full.clone(), source };
                    Content::Bytes(fs::read(&full).map_err(source).map_err(unreadable)?)
                } else {
                    Content::File { path: full.clone(), bytes }
                };
                Entry { path: node.path.clone(), mode: if executable { 0o755 } else { 0o644 }, content }
            }
        };
        files.insert(node.path, entry);
    }
    let shown = directory.join(MANIFEST).display().to_string();
    assemble(name, directory.display().to_string(), &shown, files)
}

fn assemble(
    name: &str,
    origin: String,
    shown: &str,
    mut files: BTreeMap<PathBuf, Entry>,
) -> Result<Provisioner, LibraryError> {
    let digest = digest(&files).map_err(|source| LibraryError::Read { name: name.to_owned(), source })?;
    let text = match files.remove(Path::new(MANIFEST)).map(|entry| entry.content) {
        Some(Content::Bytes(bytes)) => String::from_utf8_lossy(&bytes).into_owned(),
        _ => String::new(),
    };
    let manifest = manifest::parse(shown, &text)
        .map_err(|mistakes| LibraryError::Manifest { file: shown.to_owned(), mistakes })?;
    if manifest.name != name {
        return Err(LibraryError::OtherName { name: name.to_owned(), origin, found: manifest.name });
    }
    let mut entries: Vec<Entry> = files.into_values().collect();
    match entries.iter_mut().find(|entry| entry.path == Path::new(&manifest.run)) {
        // A checkout or an archive may have lost the bit; what the manifest names is meant to be run.
        Some(entry) => entry.mode = 0o755,
        None => return Err(LibraryError::NoRun { name: name.to_owned(), origin, run: manifest.run }),
    }
    Ok(Provisioner { manifest, digest, origin, entries })
}

fn digest(files: &BTreeMap<PathBuf, Entry>) -> Result<Digest, FsError> {
    use std::{io::Read as _, os::unix::ffi::OsStrExt as _};
    let mut hash = Sha256::new();
    hash.update(b"provisioner\0");
    let sized = |hash: &mut Sha256, bytes: &[u8]| {
        hash.update((bytes.len() as u64).to_be_bytes());
        hash.update(bytes);
    };
    for (path, entry) in files {
        sized(&mut hash, path.as_os_str().as_bytes());
        hash.update([u8::from(entry.mode & 0o111 != 0)]);
        match &entry.content {
            Content::Bytes(bytes) => {
                hash.update(b"f");
                sized(&mut hash, bytes);
            }
            Content::Link(target) => {
                hash.update(b"l");
                sized(&mut hash, target.as_os_str().as_bytes());
            }
            Content::Directory => {}
            Content::File { path, bytes } => {
                hash.update(b"f");
                hash.update(bytes.to_be_bytes());
                let failed = |source| FsError::Io { operation: "read", path: path.clone(), source };
                let mut file = fs::File::open(path).map_err(failed)?;
                let mut buffer = vec![0; 256 << 10];
                loop {
                    match file.read(&mut buffer).map_err(failed)? {
                        0 => break,
                        count => hash.update(&buffer[..count]),
                    }
                }
            }
        }
    }
    Ok(Digest::from_bytes(hash.finalize().into()))
}

fn sound(name: &str) -> bool {
    name.len() <= 64
        && name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '_')
}
