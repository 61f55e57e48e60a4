//! The kernel that a disk would boot, for a machine that is started without its boot loader.

use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use ext4_view::{Ext4, Ext4Read};

use super::{open_ext4, partitions};
use crate::ReadAt;

/// No kernel is longer; a hostile file system must not fill the memory.
const LONGEST_KERNEL: u64 = 64 << 20;
const LONGEST_INITRD: u64 = 512 << 20;

/// A kernel and what it loads first.
#[derive(Clone, PartialEq, Eq)]
pub struct Kernel {
    pub kernel: Vec<u8>,
    pub initrd: Vec<u8>,
}

impl std::fmt::Debug for Kernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Kernel({} and {} bytes)", self.kernel.len(), self.initrd.len())
    }
}

/// `/vmlinuz` and `/initrd.img` of the first file system that has both, links followed; `None` when no file system has them or
/// the first is not a Linux kernel for x86.
pub fn kernel(disk: &Arc<dyn ReadAt>) -> io::Result<Option<Kernel>> {
    let table = partitions::read(disk.as_ref())?;
    for partition in &table.partitions {
        let Ok((volume, _)) = open_ext4(disk, partition) else { continue };
        // A reader that panics on a hostile file system has found nothing.
        let found = catch_unwind(AssertUnwindSafe(|| in_file_system(volume))).ok().flatten();
        if found.is_some() {
            return Ok(found);
        }
    }
    Ok(None)
}

fn in_file_system(volume: Arc<dyn ReadAt>) -> Option<Kernel> {
    let file_system = Ext4::load(Box::new(Volume(volume))).ok()?;
    let read = |path: &str, longest: u64| {
        let length = file_system.metadata(path).ok()?.len();
        if length > longest { None } else { file_system.read(path).ok() }
    };
    let kernel = read("/vmlinuz", LONGEST_KERNEL)?;
    // Linux/x86 boot protocol: the magic number of the header.
    if kernel.get(0x202..0x206) != Some(b"HdrS") {
        return None;
    }
    Some(Kernel { kernel, initrd: read("/initrd.img", LONGEST_INITRD)? })
}

struct Volume(Arc<dyn ReadAt>);

impl Ext4Read for Volume {
    fn read(&mut self, start: u64, buffer: &mut [u8]) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        self.0.read_at(start, buffer).map_err(Into::into)
    }
}
