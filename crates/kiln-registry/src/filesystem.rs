//! Refuses file systems on which a lock or a rename does not mean what the registry needs it to mean.

use std::path::Path;

use crate::{durable::failed, error::RegistryError};

/// Fails when `path` lies on a network file system.
pub(crate) fn check(path: &Path) -> Result<(), RegistryError> {
    let kind = rustix::fs::statfs(path).map_err(|error| failed("examine", path)(error.into()))?.f_type;
    // The kernel's numbers are 32 bits wide; the field is wider on some architectures and signed on others.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the lower 32 bits are what is meant")]
    let kind = kind as u32;
    match remote(kind) {
        Some(filesystem) => Err(RegistryError::RemoteFilesystem { path: path.to_owned(), filesystem }),
        None => Ok(()),
    }
}

/// The name of the network file system with this `statfs` type (`linux/magic.h`).
const fn remote(kind: u32) -> Option<&'static str> {
    match kind {
        0x6969 => Some("NFS"),
        0x517B | 0xFE53_4D42 | 0xFF53_4D42 => Some("SMB"),
        0x5346_414F | 0x6B41_4653 => Some("AFS"),
        0x7375_7245 => Some("Coda"),
        0x0102_1997 => Some("9p"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_network_file_systems_and_takes_local_ones() {
        for kind in [0x6969, 0x517B, 0xFF53_4D42, 0xFE53_4D42] {
            assert!(remote(kind).is_some(), "{kind:x}");
        }
        // ext4, XFS, btrfs, tmpfs, overlayfs
        for kind in [0xEF53, 0x5846_5342, 0x9123_683E, 0x0102_1994, 0x794C_7630] {
            assert!(remote(kind).is_none(), "{kind:x}");
        }
        assert!(check(&std::env::temp_dir()).is_ok());
    }
}
