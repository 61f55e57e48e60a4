//! GUID partition tables as bytes (UEFI specification 2.10, section 5), and the two places where GRUB boots from under a BIOS.

use std::ops::Range;

/// Bytes in a sector.
pub const SECTOR: u64 = 512;
/// Sectors that the table takes at either end of the disk: protective MBR (front only), header, 128 entries.
pub const FRONT: u64 = 34;
pub const BACK: u64 = 33;

/// `21686148-6449-6E6F-744E-656564454649`: where GRUB's core image stands.
pub const BIOS_BOOT: Guid = Guid(*b"Hah!IdontNeedEFI");
pub const EFI_SYSTEM: Guid = Guid::new("c12a7328-f81f-11d2-ba4b-00a0c93ec93b");
/// Root of an x86-64 Linux system, as systemd's discoverable partitions name it.
pub const LINUX_ROOT: Guid = Guid::new("4f68bce3-e8cd-4db1-96e7-fbcaf984b709");

/// In the mixed byte order of the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Guid(pub [u8; 16]);

impl Guid {
    /// From the 36 characters of the usual form, for constants.
    ///
    /// # Panics
    /// On any other text, which in a constant means that it does not compile. At run time use [`Guid::parse`].
    pub const fn new(text: &str) -> Self {
        match Self::parse(text) {
            Some(guid) => guid,
            None => panic!("not a GUID"),
        }
    }

    pub const fn parse(text: &str) -> Option<Self> {
        // Where the digits of each byte on the disk stand in the text: three little-endian fields, then bytes in order.
        const PLACES: [usize; 16] = [6, 4, 2, 0, 11, 9, 16, 14, 19, 21, 24, 26, 28, 30, 32, 34];
        let text = text.as_bytes();
        if text.len() != 36 || text[8] != b'-' || text[13] != b'-' || text[18] != b'-' || text[23] != b'-' {
            return None;
        }
        let mut bytes = [0; 16];
        let mut index = 0;
        while index < 16 {
            let place = PLACES[index];
            match (digit(text[place]), digit(text[place + 1])) {
                (Some(high), Some(low)) => bytes[index] = high << 4 | low,
                _ => return None,
            }
            index += 1;
        }
        Some(Self(bytes))
    }
}

const fn digit(character: u8) -> Option<u8> {
    match character {
        b'0'..=b'9' => Some(character - b'0'),
        b'a'..=b'f' => Some(character - b'a' + 10),
        b'A'..=b'F' => Some(character - b'A' + 10),
        _ => None,
    }
}

/// One partition.
#[derive(Debug, Clone)]
pub struct Partition {
    /// From 1 to 128: the place in the table.
    pub number: usize,
    pub kind: Guid,
    pub id: Guid,
    /// At most 36 UTF-16 units.
    pub name: String,
    /// In bytes, whole sectors.
    pub range: Range<u64>,
}

/// Why a table cannot be written.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum GptError {
    #[error("the disk of {bytes} bytes is too small for a partition table or not a whole number of sectors")]
    Disk { bytes: u64 },
    #[error("partition {number} does not lie in the disk's usable part on whole sectors, or has no free place")]
    Partition { number: usize },
    #[error("partitions {first} and {second} overlap")]
    Overlap { first: usize, second: usize },
}

/// The two ends of a partitioned disk.
#[derive(Debug, PartialEq, Eq)]
pub struct Table {
    /// From the first byte of the disk. Its first 440 bytes are the BIOS's to run, zero here.
    pub front: Vec<u8>,
    /// Up to the last byte of the disk.
    pub back: Vec<u8>,
}

/// The table of a disk of `bytes`.
pub fn table(bytes: u64, disk: Guid, partitions: &[Partition]) -> Result<Table, GptError> {
    let sectors = bytes / SECTOR;
    if !bytes.is_multiple_of(SECTOR) || sectors < FRONT + BACK + 1 {
        return Err(GptError::Disk { bytes });
    }
    check(sectors, partitions)?;
    let mut entries = vec![0; 128 * 128];
    for partition in partitions {
        let entry = &mut entries[(partition.number - 1) * 128..][..128];
        entry[..16].copy_from_slice(&partition.kind.0);
        entry[16..32].copy_from_slice(&partition.id.0);
        entry[32..40].copy_from_slice(&(partition.range.start / SECTOR).to_le_bytes());
        entry[40..48].copy_from_slice(&(partition.range.end / SECTOR - 1).to_le_bytes());
        for (index, unit) in partition.name.encode_utf16().take(36).enumerate() {
            entry[56 + 2 * index..][..2].copy_from_slice(&unit.to_le_bytes());
        }
    }
    let last = sectors - 1;
    let mut front = protective(sectors);
    front.extend(header(&Place { own: 1, other: last, entries: 2 }, sectors, disk, &entries));
    front.extend(&entries);
    let mut back = entries.clone();
    back.extend(header(&Place { own: last, other: 1, entries: last - 32 }, sectors, disk, &entries));
    Ok(Table { front, back })
}

fn check(sectors: u64, partitions: &[Partition]) -> Result<(), GptError> {
    let usable = FRONT * SECTOR..(sectors - BACK) * SECTOR;
    for (index, partition) in partitions.iter().enumerate() {
        let Range { start, end } = partition.range;
        let whole = start.is_multiple_of(SECTOR) && end.is_multiple_of(SECTOR);
        let inside = usable.start <= start && start < end && end <= usable.end;
        let taken = partitions[..index].iter().any(|other| other.number == partition.number);
        if !whole || !inside || taken || !(1..=128).contains(&partition.number) {
            return Err(GptError::Partition { number: partition.number });
        }
        let overlapping = partitions[..index].iter().find(|other| other.range.start < end && start < other.range.end);
        if let Some(other) = overlapping {
            return Err(GptError::Overlap { first: other.number, second: partition.number });
        }
    }
    Ok(())
}

/// One partition of type EE over the whole disk keeps tools that know no GPT away.
fn protective(sectors: u64) -> Vec<u8> {
    let mut sector = vec![0; 512];
    let covered = u32::try_from(sectors - 1).unwrap_or(u32::MAX);
    sector[446..454].copy_from_slice(&[0, 0, 2, 0, 0xee, 0xff, 0xff, 0xff]);
    sector[454..458].copy_from_slice(&1u32.to_le_bytes());
    sector[458..462].copy_from_slice(&covered.to_le_bytes());
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    sector
}

struct Place {
    own: u64,
    other: u64,
    entries: u64,
}

fn header(place: &Place, sectors: u64, disk: Guid, entries: &[u8]) -> Vec<u8> {
    let mut header = Vec::with_capacity(512);
    header.extend(b"EFI PART");
    header.extend([0, 0, 1, 0]);
    header.extend(92u32.to_le_bytes());
    header.extend([0; 8]);
    for number in [place.own, place.other, FRONT, sectors - 1 - BACK] {
        header.extend(number.to_le_bytes());
    }
    header.extend(disk.0);
    header.extend(place.entries.to_le_bytes());
    for number in [128, 128, crc32(entries)] {
        header.extend(number.to_le_bytes());
    }
    let sum = crc32(&header);
    header[16..20].copy_from_slice(&sum.to_le_bytes());
    header.resize(512, 0);
    header
}

/// CRC-32 (IEEE 802.3), bit by bit: the tables are 16 KiB.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum: u32, _| if sum & 1 == 1 { sum >> 1 ^ 0xedb8_8320 } else { sum >> 1 })
    })
}

/// GRUB's `boot.img` and `core.img`, patched as `grub-bios-setup` patches them for a core image that stands in one
/// piece at `sector`: the boot code for the first 440 bytes of the disk, and the core image.
/// `None`: these are not GRUB's images.
pub fn grub_boot_blocks(boot: &[u8], core: &[u8], sector: u64) -> Option<(Vec<u8>, Vec<u8>)> {
    let sectors = u16::try_from(core.len().div_ceil(512) - usize::from(!core.is_empty())).ok()?;
    if boot.len() != 512 || core.len() < 1024 || boot[510..] != [0x55, 0xaa] {
        return None;
    }
    let mut boot = boot[..440].to_vec();
    boot[0x5c..0x64].copy_from_slice(&sector.to_le_bytes());
    boot[0x64] = 0xff;
    // A jump over a check that only floppy disks need.
    boot[0x66..0x68].copy_from_slice(&[0x90, 0x90]);
    let mut core = core.to_vec();
    core.resize(core.len().next_multiple_of(512), 0);
    core[500..508].copy_from_slice(&(sector + 1).to_le_bytes());
    core[508..510].copy_from_slice(&sectors.to_le_bytes());
    core[510..512].copy_from_slice(&0x820u16.to_le_bytes());
    Some((boot, core))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn partition(number: usize, range: Range<u64>) -> Partition {
        Partition { number, kind: LINUX_ROOT, id: Guid([7; 16]), name: "root".into(), range }
    }

    #[test]
    fn guids_stand_on_the_disk_in_mixed_byte_order() {
        assert_eq!(Guid::new("21686148-6449-6E6F-744E-656564454649"), BIOS_BOOT);
        assert_eq!(EFI_SYSTEM.0[..8], [0x28, 0x73, 0x2a, 0xc1, 0x1f, 0xf8, 0xd2, 0x11]);
        for text in [
            "",
            "c12a7328-f81f-11d2-ba4b-00a0c93ec93",
            "c12a7328_f81f-11d2-ba4b-00a0c93ec93b",
            "é12a7328-f81f-11d2-ba4b-00a0c93ec9",
        ] {
            assert_eq!(Guid::parse(text), None, "{text}");
        }
    }

    #[test]
    fn the_checksum_is_the_one_of_ethernet() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    }

    #[test]
    fn headers_point_at_each_other_and_check() {
        let bytes = 64 << 20;
        let table = table(bytes, Guid([1; 16]), &[partition(1, 2 << 20..63 << 20)]).unwrap();
        assert_eq!((table.front.len(), table.back.len()), (34 * 512, 33 * 512));
        for (header, own, other) in [(&table.front[512..1024], 1, 131_071u64), (&table.back[32 * 512..], 131_071u64, 1)]
        {
            let number = |at: usize| u64::from_le_bytes(header[at..at + 8].try_into().unwrap());
            assert_eq!((number(24), number(32)), (own, other));
            let mut clear = header[..92].to_vec();
            clear[16..20].fill(0);
            assert_eq!(crc32(&clear).to_le_bytes(), header[16..20]);
        }
        assert_eq!(table.front[1024..], table.back[..32 * 512]);
    }

    #[test]
    fn refuses_partitions_that_overlap_or_lie_outside() {
        let of = |partitions: &[Partition]| table(64 << 20, Guid([1; 16]), partitions).unwrap_err();
        assert_eq!(of(&[partition(1, 0..1 << 20)]), GptError::Partition { number: 1 });
        assert_eq!(of(&[partition(1, 1 << 20..64 << 20)]), GptError::Partition { number: 1 });
        assert_eq!(of(&[partition(0, 1 << 20..2 << 20)]), GptError::Partition { number: 0 });
        assert_eq!(of(&[partition(2, 1 << 20..(2 << 20) + 1)]), GptError::Partition { number: 2 });
        let twice = [partition(1, 1 << 20..3 << 20), partition(2, 2 << 20..4 << 20)];
        assert_eq!(of(&twice), GptError::Overlap { first: 1, second: 2 });
        assert_eq!(table(1000, Guid([1; 16]), &[]), Err(GptError::Disk { bytes: 1000 }));
    }

    #[test]
    fn patches_grub_for_a_core_in_one_piece() {
        let mut boot = vec![1; 512];
        boot[510..].copy_from_slice(&[0x55, 0xaa]);
        let (code, image) = grub_boot_blocks(&boot, &[2; 1300], 2048).unwrap();
        assert_eq!(code[0x5c..0x64], 2048u64.to_le_bytes());
        assert_eq!((code.len(), image.len()), (440, 1536));
        assert_eq!(image[500..512], [1, 8, 0, 0, 0, 0, 0, 0, 2, 0, 0x20, 0x08]);
        assert_eq!(grub_boot_blocks(&[0; 512], &image, 2048), None);
    }
}
