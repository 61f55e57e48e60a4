//! Paths written in a template stay beneath its directory.

use std::path::{Component, Path, PathBuf};

use super::canonical;
use crate::error::FsError;

/// The real path of `path`, which must be relative, free of `..` and `~`, exist, and stay beneath `root` also through
/// every symbolic link on the way.
pub fn resolve_beneath(root: &Path, path: &str) -> Result<PathBuf, FsError> {
    let refused = |reason: &str| FsError::Refused { path: path.into(), reason: reason.to_owned() };
    if let Some(reason) = leaves(path) {
        return Err(refused(&reason));
    }
    let root = canonical(root)?;
    let found = canonical(&root.join(path))?;
    if found.starts_with(&root) {
        Ok(found)
    } else {
        let reason = format!("is a link that leaves `{}`, to `{}`", root.display(), found.display());
        Err(refused(&reason))
    }
}

/// Like [`resolve_beneath`], but a path may also lie in one of the `allowed` directories (absolute, or relative to `root`),
/// however it is written.
pub fn resolve_within(root: &Path, path: &str, allowed: &[impl AsRef<Path>]) -> Result<PathBuf, FsError> {
    let refusal = match resolve_beneath(root, path) {
        Err(refusal @ FsError::Refused { .. }) if !allowed.is_empty() && sound(path) => refusal,
        other => return other,
    };
    let found = canonical(&root.join(path))?;
    let beneath =
        |directory: &Path| canonical(&root.join(directory)).is_ok_and(|directory| found.starts_with(directory));
    if allowed.iter().any(|directory| beneath(directory.as_ref())) { Ok(found) } else { Err(refusal) }
}

fn sound(path: &str) -> bool {
    !path.is_empty() && !path.contains('\0') && !path.starts_with('~')
}

/// Why the path as written cannot stay beneath any root.
fn leaves(path: &str) -> Option<String> {
    if path.is_empty() || path.contains('\0') {
        return Some("is not a path".to_owned());
    }
    if path.starts_with('~') {
        return Some("begins with `~`, which is not expanded; write a path relative to the template".to_owned());
    }
    Path::new(path).components().find_map(|part| match part {
        Component::RootDir | Component::Prefix(_) => {
            Some("is absolute; write it relative to the template, or list its directory in `allow_paths`".to_owned())
        }
        Component::ParentDir => {
            Some("leaves the template's directory with `..`; list the directory it means in `allow_paths`".to_owned())
        }
        Component::CurDir | Component::Normal(_) => None,
    })
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    fn world() -> tempfile::TempDir {
        let world = tempfile::tempdir().unwrap();
        let at = |path: &str| world.path().join(path);
        fs::create_dir_all(at("root/sub")).unwrap();
        fs::create_dir_all(at("root-other")).unwrap();
        for file in ["root/sub/a", "root/~x", "root/..a", "outside", "root-other/b"] {
            fs::write(at(file), "x").unwrap();
        }
        symlink("sub/a", at("root/inner")).unwrap();
        symlink("../outside", at("root/escape")).unwrap();
        symlink("..", at("root/up")).unwrap();
        symlink("/etc/passwd", at("root/absolute")).unwrap();
        symlink("../root-other", at("root/sibling")).unwrap();
        symlink("loop", at("root/loop")).unwrap();
        world
    }

    #[test]
    fn what_stays_beneath_is_found() {
        let world = world();
        let root = world.path().join("root");
        for path in ["sub/a", "./sub/a", "inner", "sub//a", "..a", "sub", "."] {
            let found = resolve_beneath(&root, path).unwrap_or_else(|error| panic!("{path}: {error}"));
            assert!(found.starts_with(root.canonicalize().unwrap()));
        }
    }

    #[test]
    fn whatever_leaves_the_root_is_refused() {
        let world = world();
        let root = world.path().join("root");
        let corpus = [
            "",
            "..",
            "../outside",
            "sub/../../outside",
            "sub/../sub/a",
            "/etc/passwd",
            "/",
            "~",
            "~/x",
            "~root/x",
            "~x",
            "escape",
            "up/outside",
            "absolute",
            "sibling/b",
            "sub/./../../root/sub/a",
            "a\0b",
            "//etc/passwd",
        ];
        for path in corpus {
            let result = resolve_beneath(&root, path);
            assert!(matches!(result, Err(FsError::Refused { .. })), "{path:?}: {result:?}");
        }
        for path in ["loop", "none", "sub/a/x"] {
            assert!(matches!(resolve_beneath(&root, path), Err(FsError::Io { .. })), "{path:?}");
        }
    }

    #[test]
    fn an_allowed_directory_opens_only_itself() {
        let world = world();
        let root = world.path().join("root");
        let allowed = ["../root-other"];
        for path in ["../root-other/b", "sibling/b", "sub/a"] {
            resolve_within(&root, path, &allowed).unwrap_or_else(|error| panic!("{path}: {error}"));
        }
        for path in ["../outside", "escape", "absolute", "/etc/passwd", "~/x"] {
            assert!(matches!(resolve_within(&root, path, &allowed), Err(FsError::Refused { .. })), "{path:?}");
        }
    }
}
