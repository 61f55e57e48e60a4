//! What kind of firmware a disk can be booted by.

use std::io;

use super::partitions;
use crate::ReadAt;

/// What a disk has for each kind of firmware.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Firmware {
    /// There is code in the boot sector.
    pub bios: bool,
    /// There is an EFI system partition.
    pub uefi: bool,
}

/// Reads the boot sector and the partition table of `disk`.
pub fn firmware(disk: &dyn ReadAt) -> io::Result<Firmware> {
    let mut code = [0; 440];
    disk.read_at(0, &mut code)?;
    let table = partitions::read(disk)?;
    let uefi = table.partitions.iter().any(|partition| partition.efi_system);
    Ok(Firmware { bios: code.iter().any(|byte| *byte != 0), uefi })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpt::{EFI_SYSTEM, Guid, LINUX_ROOT, Partition, table};

    fn disk(kind: Guid, code: u8) -> Vec<u8> {
        let bytes = 4 << 20;
        let partition = Partition { number: 1, kind, id: Guid([7; 16]), name: String::new(), range: 1 << 20..3 << 20 };
        let table = table(bytes, Guid([1; 16]), &[partition]).unwrap();
        let mut disk = table.front;
        disk.resize(usize::try_from(bytes).unwrap() - table.back.len(), 0);
        disk.extend(table.back);
        disk[..440].fill(code);
        disk
    }

    #[test]
    fn tells_what_boots_a_disk_by_its_boot_sector_and_its_partitions() {
        for (kind, code) in [(EFI_SYSTEM, 0), (EFI_SYSTEM, 0x90), (LINUX_ROOT, 0x90), (LINUX_ROOT, 0)] {
            let expected = Firmware { bios: code != 0, uefi: kind == EFI_SYSTEM };
            assert_eq!(firmware(&disk(kind, code)).unwrap(), expected);
        }
    }
}
