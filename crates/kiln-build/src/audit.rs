//! What checkpoints changed: the file trees of two sealed disks of one plan, one baked with hits and one without.

use std::{fs::File, path::Path, sync::Arc};

use kiln_core::event::AuditDifference;
use kiln_disk::{
    FileBytes, ReadAt,
    agreement::Agreement,
    qcow2::{header::Limits, image::Image},
    tree::Tree,
};

/// Where any two bakes of one plan differ, whatever they began from: the beginning of a path, and why.
const EXPECTED: &[(&str, &str)] = &[
    ("/var/log/", "a log"),
    ("/var/cache/", "a cache"),
    ("/var/lib/apt/", "what the package mirror said at that time"),
    ("/var/lib/cloud/", "a record of the boot"),
    ("/var/lib/dbus/", "an identity"),
    ("/var/lib/systemd/", "state of the system, written at each boot"),
    ("/var/lib/dhcp/", "a lease"),
    ("/var/tmp/", "temporary"),
    ("/tmp/", "temporary"),
    ("/etc/machine-id", "an identity"),
    ("/etc/.pwd.lock", "a lock"),
];

/// Compares two sealed qcow2 files: the first was baked with checkpoints, the second without. The error says what cannot be read.
pub fn compare(with: &Path, without: &Path) -> Result<(Agreement, Vec<AuditDifference>), String> {
    let agreement = Agreement::of(&tree(with)?, &tree(without)?)?;
    let differing = agreement.differing.iter().map(|one| AuditDifference {
        path: one.path.clone(),
        how: one.how.clone(),
        reason: reason(&one.path).to_owned(),
    });
    let differing = differing.collect();
    Ok((agreement, differing))
}

fn reason(path: &str) -> &'static str {
    EXPECTED.iter().find(|(beginning, _)| path.starts_with(beginning)).map_or("", |(_, reason)| reason)
}

fn tree(qcow2: &Path) -> Result<Tree, String> {
    let shown = |error: &dyn std::fmt::Display| format!("`{}`: {error}", qcow2.display());
    let file = File::open(qcow2).and_then(FileBytes::new).map_err(|error| shown(&error))?;
    let image = Image::open(Arc::new(file), Limits::default()).map_err(|error| shown(&error))?;
    Tree::of_root(&(Arc::new(image) as Arc<dyn ReadAt>)).map_err(|error| shown(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_every_boot_writes_has_a_reason_and_nothing_else() {
        assert_eq!(reason("/var/log/wtmp"), "a log");
        for path in ["/etc/passwd", "/usr/bin/env", "/var/lib/dpkg/status", "/root/.bashrc"] {
            assert_eq!(reason(path), "", "{path}");
        }
    }
}
