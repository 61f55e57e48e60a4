//! The provisioners inside the binary: the repository's `provisioners/` as it was when the binary was built.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use kiln_io::guest::{Content, Entry};

use super::CASES;

/// Path beneath `provisioners/`, executable bit, bytes.
static FILES: &[(&str, bool, &[u8])] = include!(concat!(env!("OUT_DIR"), "/built_in.rs"));

pub(super) fn names() -> impl Iterator<Item = &'static str> {
    FILES
        .iter()
        .filter_map(|(path, ..)| path.split_once('/'))
        .map(|(name, _)| name)
        .collect::<BTreeSet<_>>()
        .into_iter()
}

/// The files of one provisioner by their path beneath its directory; empty if there is none of that name.
pub(super) fn files(name: &str) -> BTreeMap<PathBuf, Entry> {
    FILES
        .iter()
        .filter_map(|(path, executable, bytes)| {
            let inside = path.strip_prefix(name)?.strip_prefix('/')?;
            let entry = Entry {
                path: PathBuf::from(inside),
                mode: if *executable { 0o755 } else { 0o644 },
                content: Content::Bytes(bytes.to_vec()),
            };
            (!Path::new(inside).starts_with(CASES)).then(|| (entry.path.clone(), entry))
        })
        .collect()
}
