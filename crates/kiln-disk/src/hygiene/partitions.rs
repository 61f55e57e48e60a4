//! Where the file systems of a disk lie: GPT, MBR, or one file system over the whole disk. Reads a hostile table safely.

use std::{io, ops::Range};

use super::little_endian::{u32_at, u64_at};
use crate::ReadAt;

const SECTOR: u64 = 512;
/// The EFI system partition `C12A7328-F81F-11D2-BA4B-00A0C93EC93B` as it stands on a disk.
const EFI_SYSTEM: [u8; 16] =
    [0x28, 0x73, 0x2a, 0xc1, 0x1f, 0xf8, 0xd2, 0x11, 0xba, 0x4b, 0x00, 0xa0, 0xc9, 0x3e, 0xc9, 0x3b];

/// A partition, or the whole disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Partition {
    /// `partition 1`, `the disk`.
    pub(crate) name: String,
    pub(crate) range: Range<u64>,
    pub(crate) efi_system: bool,
}

/// What was found, and what is wrong with the table.
#[derive(Debug, Default)]
pub(crate) struct Table {
    pub(crate) partitions: Vec<Partition>,
    pub(crate) faults: Vec<String>,
}

pub(crate) fn read(disk: &dyn ReadAt) -> io::Result<Table> {
    let mut first = [0; 512];
    if disk.size() < 2 * SECTOR {
        return Ok(whole(disk));
    }
    disk.read_at(0, &mut first)?;
    if first[510..] != [0x55, 0xaa] {
        return Ok(whole(disk));
    }
    let entries: Vec<&[u8]> = first[446..510].chunks_exact(16).collect();
    if entries.iter().any(|entry| entry[4] == 0xee) {
        return gpt(disk);
    }
    let mut table = Table::default();
    for (number, entry) in entries.iter().enumerate().filter(|(_, entry)| entry[4] != 0) {
        let start = u64::from(u32_at(entry, 8)) * SECTOR;
        let range = start..start + u64::from(u32_at(entry, 12)) * SECTOR;
        table.add(disk, number + 1, range, entry[4] == 0xef);
    }
    // A file system over the whole disk may begin with a boot sector too.
    Ok(if table.partitions.is_empty() && table.faults.is_empty() { whole(disk) } else { table })
}

fn whole(disk: &dyn ReadAt) -> Table {
    let disk = Partition { name: "the disk".to_owned(), range: 0..disk.size(), efi_system: false };
    Table { partitions: vec![disk], faults: Vec::new() }
}

fn gpt(disk: &dyn ReadAt) -> io::Result<Table> {
    let mut table = Table::default();
    let mut header = [0; 512];
    disk.read_at(SECTOR, &mut header)?;
    let length = u32_at(&header, 12) as usize;
    if header[..8] != *b"EFI PART" || !(92..=512).contains(&length) {
        table.faults.push("the GUID partition table has no valid header".to_owned());
        return Ok(table);
    }
    let expected = u32_at(&header, 16);
    header[16..20].fill(0);
    if crc32(&header[..length]) != expected {
        table.faults.push("the checksum of the GUID partition table's header is wrong".to_owned());
    }
    let (start, count, size) = (u64_at(&header, 72), u32_at(&header, 80), u32_at(&header, 84));
    let bytes = u64::from(count) * u64::from(size);
    // The specification's usual table has 16 KiB; more than 1 MiB is a trap.
    if size < 128 || bytes > 1 << 20 || start.checked_mul(SECTOR).is_none_or(|start| start > disk.size()) {
        table.faults.push(format!("the GUID partition table claims {count} entries of {size} bytes at sector {start}"));
        return Ok(table);
    }
    let mut entries = vec![0; usize::try_from(bytes).unwrap_or(0)];
    disk.read_at(start * SECTOR, &mut entries)?;
    if crc32(&entries) != u32_at(&header, 88) {
        table.faults.push("the checksum of the GUID partition table's entries is wrong".to_owned());
    }
    for (number, entry) in entries.chunks_exact(size as usize).enumerate() {
        if entry[..16] == [0; 16] {
            continue;
        }
        let sectors = u64_at(entry, 32)..u64_at(entry, 40).saturating_add(1);
        let range = sectors.start.saturating_mul(SECTOR)..sectors.end.saturating_mul(SECTOR);
        table.add(disk, number + 1, range, entry[..16] == EFI_SYSTEM);
    }
    Ok(table)
}

impl Table {
    fn add(&mut self, disk: &dyn ReadAt, number: usize, range: Range<u64>, efi_system: bool) {
        let name = format!("partition {number}");
        if range.start >= range.end || range.end > disk.size() {
            self.faults.push(format!("{name} lies outside the disk"));
        } else if self.partitions.iter().any(|other| range.start < other.range.end && other.range.start < range.end) {
            self.faults.push(format!("{name} overlaps another partition"));
        } else {
            self.partitions.push(Partition { name, range, efi_system });
        }
    }
}

/// The CRC of the UEFI specification (ISO 3309), bit by bit: the input is at most 1 MiB.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 0 { crc >> 1 } else { crc >> 1 ^ 0xedb8_8320 })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn computes_the_check_value_of_the_crc() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    }

    #[test]
    fn takes_a_disk_without_a_table_as_one_file_system() {
        let table = read(&vec![0; 4096]).unwrap();
        assert_eq!(table.partitions[0].range, 0..4096);
    }

    #[test]
    fn reports_partitions_outside_the_disk_and_damaged_headers() {
        let mut disk = vec![0; 4096];
        disk[510..512].copy_from_slice(&[0x55, 0xaa]);
        disk[446 + 4] = 0x83;
        disk[446 + 8] = 4;
        disk[446 + 12..446 + 16].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(read(&disk).unwrap().faults, ["partition 1 lies outside the disk"]);
        disk[446 + 4] = 0xee;
        assert_eq!(read(&disk).unwrap().faults, ["the GUID partition table has no valid header"]);
    }
}
