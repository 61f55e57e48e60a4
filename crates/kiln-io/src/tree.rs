//! Walks an input file or directory in a fixed order and digests it, refusing what must not travel.
//!
//! Digest of a file: SHA-256 over `file\0`, `x` or `-`, the size (8 bytes, big endian) and the bytes. Of a directory:
//! over `tree\0` and one record an entry in the byte order of the paths: kind (`f`, `x` for an executable file, `d`,
//! `l`), path length and path, then for a file its size and bytes, for a link the length and bytes of its target.

use std::{
    ffi::OsStr,
    fs::{self, File, Metadata},
    io::Read as _,
    os::unix::{
        ffi::OsStrExt as _,
        fs::{FileTypeExt as _, PermissionsExt as _},
    },
    path::{Component, Path, PathBuf},
};

use kiln_core::{Digest, facts::InputFact};
use sha2::{Digest as _, Sha256};

use crate::{
    error::FsError,
    fs::failed,
    guest::{Content, Entry},
};

/// One path beneath a walked directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Relative to the directory.
    pub path: PathBuf,
    pub kind: Kind,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    Directory,
    File { bytes: u64, executable: bool },
    Link(PathBuf),
}

/// Everything beneath `root`, in the byte order of the paths. Refuses devices, sockets, pipes, set-id files and links
/// that leave `root`.
pub fn walk(root: &Path) -> Result<Vec<Node>, FsError> {
    let mut nodes = Vec::new();
    let mut open = vec![PathBuf::new()];
    while let Some(directory) = open.pop() {
        let full = root.join(&directory);
        for entry in fs::read_dir(&full).map_err(failed("list", &full, 0))? {
            let entry = entry.map_err(failed("list", &full, 0))?;
            let path = directory.join(entry.file_name());
            let kind = classify(root, &path)?;
            if kind == Kind::Directory {
                open.push(path.clone());
            }
            nodes.push(Node { path, kind });
        }
    }
    nodes.sort_by(|a, b| a.path.as_os_str().as_bytes().cmp(b.path.as_os_str().as_bytes()));
    Ok(nodes)
}

/// Digest, kind and size of an input. `path` is absolute and resolved.
pub fn input(path: &Path) -> Result<InputFact, FsError> {
    let meta = fs::metadata(path).map_err(failed("read", path, 0))?;
    let mut hash = Sha256::new();
    let mut total = 0;
    if meta.is_dir() {
        hash.update(b"tree\0");
        for node in walk(path)? {
            total += record(&mut hash, path, &node)?;
        }
    } else {
        sound(path, &meta)?;
        hash.update(b"file\0");
        hash.update(if executable(&meta) { b"x" } else { b"-" });
        hash.update(meta.len().to_be_bytes());
        total = content(&mut hash, path, meta.len())?;
    }
    let shown = path.to_str().ok_or_else(|| refused(path, "is not UTF-8; rename it"))?;
    Ok(InputFact {
        path: shown.to_owned(),
        directory: meta.is_dir(),
        digest: Digest::from_bytes(hash.finalize().into()),
        bytes: total,
    })
}

/// What to upload for an input: its entries beneath `target`, a relative path. Files are 0644 or 0755, directories 0755.
pub fn entries(path: &Path, target: &Path) -> Result<Vec<Entry>, FsError> {
    let meta = fs::metadata(path).map_err(failed("read", path, 0))?;
    if !meta.is_dir() {
        sound(path, &meta)?;
        return Ok(vec![file(path, target.to_owned(), meta.len(), executable(&meta))]);
    }
    let mut entries = vec![Entry { path: target.to_owned(), mode: 0o755, content: Content::Directory }];
    for Node { path: inside, kind } in walk(path)? {
        let place = target.join(&inside);
        entries.push(match kind {
            Kind::Directory => Entry { path: place, mode: 0o755, content: Content::Directory },
            Kind::File { bytes, executable } => file(&path.join(&inside), place, bytes, executable),
            Kind::Link(to) => Entry { path: place, mode: 0o777, content: Content::Link(to) },
        });
    }
    Ok(entries)
}

fn file(from: &Path, to: PathBuf, bytes: u64, executable: bool) -> Entry {
    let mode = if executable { 0o755 } else { 0o644 };
    Entry { path: to, mode, content: Content::File { path: from.to_owned(), bytes } }
}

fn classify(root: &Path, path: &Path) -> Result<Kind, FsError> {
    let full = root.join(path);
    let meta = fs::symlink_metadata(&full).map_err(failed("read", &full, 0))?;
    if meta.is_symlink() {
        let target = fs::read_link(&full).map_err(failed("read the link", &full, 0))?;
        return if stays(path, &target) { Ok(Kind::Link(target)) } else { Err(refused(&full, &leaving(&target))) };
    }
    if meta.is_dir() {
        return Ok(Kind::Directory);
    }
    sound(&full, &meta)?;
    Ok(Kind::File { bytes: meta.len(), executable: executable(&meta) })
}

fn leaving(target: &Path) -> String {
    format!("is a link to `{}`, which lies outside the directory; copy the file or remove the link", target.display())
}

/// Whether a link at `path` stays in the root by its text alone.
fn stays(path: &Path, target: &Path) -> bool {
    let mut depth = path.components().count() - 1;
    target.components().all(|part| match part {
        Component::RootDir | Component::Prefix(_) => false,
        Component::CurDir => true,
        Component::Normal(_) => {
            depth += 1;
            true
        }
        Component::ParentDir => {
            let inside = depth > 0;
            depth = depth.saturating_sub(1);
            inside
        }
    })
}

fn sound(path: &Path, meta: &Metadata) -> Result<(), FsError> {
    let kind = meta.file_type();
    let reason = if kind.is_block_device() || kind.is_char_device() {
        "is a device"
    } else if kind.is_socket() {
        "is a socket"
    } else if kind.is_fifo() {
        "is a pipe"
    } else if meta.permissions().mode() & 0o6000 != 0 {
        "is set-user-id or set-group-id; let a step set that bit in the guest"
    } else {
        return Ok(());
    };
    Err(refused(path, reason))
}

fn refused(path: &Path, reason: &str) -> FsError {
    FsError::Refused { path: path.to_owned(), reason: reason.to_owned() }
}

fn executable(meta: &Metadata) -> bool {
    meta.permissions().mode() & 0o111 != 0
}

fn record(hash: &mut Sha256, root: &Path, node: &Node) -> Result<u64, FsError> {
    let kind = match &node.kind {
        Kind::Directory => b"d",
        Kind::File { executable: false, .. } => b"f",
        Kind::File { executable: true, .. } => b"x",
        Kind::Link(_) => b"l",
    };
    hash.update(kind);
    sized(hash, node.path.as_os_str());
    match &node.kind {
        Kind::Directory => Ok(0),
        Kind::Link(target) => {
            sized(hash, target.as_os_str());
            Ok(0)
        }
        Kind::File { bytes, .. } => {
            hash.update(bytes.to_be_bytes());
            content(hash, &root.join(&node.path), *bytes)
        }
    }
}

fn sized(hash: &mut Sha256, text: &OsStr) {
    hash.update((text.len() as u64).to_be_bytes());
    hash.update(text.as_bytes());
}

fn content(hash: &mut Sha256, path: &Path, expected: u64) -> Result<u64, FsError> {
    let mut file = File::open(path).map_err(failed("open", path, 0))?;
    let mut buffer = vec![0; 256 << 10];
    let mut total = 0;
    loop {
        let count = file.read(&mut buffer).map_err(failed("read", path, 0))?;
        if count == 0 {
            break;
        }
        hash.update(&buffer[..count]);
        total += count as u64;
    }
    if total == expected { Ok(total) } else { Err(refused(path, "changed while it was read; run again")) }
}

#[cfg(test)]
mod tests {
    use std::os::unix::{fs::symlink, net::UnixListener};

    use super::*;

    fn sample() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("b/c")).unwrap();
        fs::write(root.path().join("b/file"), "text").unwrap();
        fs::write(root.path().join("a"), "").unwrap();
        symlink("../a", root.path().join("b/link")).unwrap();
        root
    }

    fn digest(root: &tempfile::TempDir) -> Digest {
        input(root.path()).unwrap().digest
    }

    #[test]
    fn the_same_tree_elsewhere_has_the_same_digest_and_every_change_another() {
        let (one, two) = (sample(), sample());
        let before = digest(&one);
        assert_eq!(before, digest(&two));
        let mut seen = vec![before];
        let root = one.path();
        let changes: [&dyn Fn(); 6] = [
            &|| fs::write(root.join("b/file"), "texT").unwrap(),
            &|| fs::set_permissions(root.join("b/file"), fs::Permissions::from_mode(0o755)).unwrap(),
            &|| fs::rename(root.join("a"), root.join("A")).unwrap(),
            &|| fs::create_dir(root.join("empty")).unwrap(),
            &|| fs::remove_file(root.join("b/link")).unwrap(),
            &|| symlink("file", root.join("b/link")).unwrap(),
        ];
        for change in changes {
            change();
            let now = digest(&one);
            assert!(!seen.contains(&now));
            seen.push(now);
        }
    }

    #[test]
    fn a_file_is_its_bytes_and_its_executable_bit() {
        let root = sample();
        let path = root.path().join("a");
        let before = input(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        assert_ne!(input(&path).unwrap().digest, before.digest);
        assert!(!before.directory);
    }

    #[test]
    fn refuses_links_that_leave_sockets_pipes_devices_and_set_id_files() {
        for target in ["/etc/passwd", "../../x", "..", "b/../../x"] {
            let root = sample();
            let at = root.path().join(if target == ".." { "up" } else { "b/out" });
            // `b/out -> ..` would be the root itself; from the root it leaves.
            symlink(target, at).unwrap();
            let stays_in = target == "b/../../x";
            assert_eq!(input(root.path()).is_err(), !stays_in, "{target}");
        }
        let root = sample();
        let _socket = UnixListener::bind(root.path().join("s")).unwrap();
        assert!(input(root.path()).unwrap_err().to_string().ends_with("is a socket"));
        let root = sample();
        fs::set_permissions(root.path().join("a"), fs::Permissions::from_mode(0o4755)).unwrap();
        assert!(walk(root.path()).is_err());
        assert!(input(Path::new("/dev/null")).unwrap_err().to_string().ends_with("is a device"));
    }

    #[test]
    fn lists_what_to_upload_under_its_target() {
        let root = sample();
        let entries = entries(root.path(), Path::new("inputs/0")).unwrap();
        let paths: Vec<_> = entries.iter().map(|entry| entry.path.to_str().unwrap()).collect();
        assert_eq!(
            paths,
            ["inputs/0", "inputs/0/a", "inputs/0/b", "inputs/0/b/c", "inputs/0/b/file", "inputs/0/b/link"]
        );
    }
}
