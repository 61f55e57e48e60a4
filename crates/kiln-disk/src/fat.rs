//! Writes a FAT16 file system with a few files: no clock, the same files give the same bytes.
//!
//! Format: Microsoft's FAT specification 1.03. Good for an EFI system partition and for a `NoCloud` seed: from 16 MiB up to
//! 128 MiB. Names that are not of the short form get a long name beside a short one.

use std::collections::BTreeMap;

const SECTOR: usize = 512;
const SECTORS_PER_CLUSTER: usize = 4;
const CLUSTER: usize = SECTOR * SECTORS_PER_CLUSTER;
const ROOT_ENTRIES: usize = 512;
/// 1 January 1980: the first day FAT knows.
const DAY: u16 = 0x21;

/// What to write.
#[derive(Debug, Clone)]
pub struct NewFat {
    /// At most eleven characters, upper case.
    pub label: String,
    /// Volume serial number: `1234-ABCD` is 0x1234ABCD.
    pub serial: u32,
    pub bytes: u64,
    /// Hidden sectors: where the partition starts on its disk.
    pub start: u32,
    /// Path (`EFI/BOOT/BOOTX64.EFI`) to content.
    pub files: BTreeMap<String, Vec<u8>>,
}

/// Why no file system could be written.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum FatError {
    #[error("FAT16 cannot be {bytes} bytes large; between 16 MiB and 128 MiB it can")]
    Size { bytes: u64 },
    #[error("`{path}` cannot be a file name on FAT")]
    Name { path: String },
    #[error("`{path}` does not fit any more")]
    Full { path: String },
}

#[derive(Debug, Default)]
struct Directory<'a> {
    directories: BTreeMap<&'a str, Directory<'a>>,
    files: BTreeMap<&'a str, &'a [u8]>,
}

/// The front of the file system; what follows up to `bytes` is zero.
pub fn write(new: &NewFat) -> Result<Vec<u8>, FatError> {
    if !(16 << 20..=128 << 20).contains(&new.bytes) || !new.bytes.is_multiple_of(SECTOR as u64) {
        return Err(FatError::Size { bytes: new.bytes });
    }
    let sectors = usize::try_from(new.bytes).map_err(|_| FatError::Size { bytes: new.bytes })? / SECTOR;
    let mut root = Directory::default();
    for (path, content) in &new.files {
        insert(&mut root, path, path, content)?;
    }
    let mut fat = Fat::new(sectors);
    let mut entries = vec![entry(&padded(&new.label), 0x08, 0, 0)];
    entries.extend(fat.directory(&root, 0)?);
    let entries = entries.concat();
    if entries.len() > ROOT_ENTRIES * 32 {
        return Err(FatError::Full { path: new.label.clone() });
    }
    let mut image = boot_sector(new, sectors, fat.sectors);
    let mut table: Vec<u8> = fat.chain.iter().flat_map(|next| next.to_le_bytes()).collect();
    table.resize(fat.sectors * SECTOR, 0);
    image.extend(&table);
    image.extend(&table);
    image.extend(&entries);
    image.resize(image.len() + ROOT_ENTRIES * 32 - entries.len(), 0);
    image.extend(&fat.data);
    Ok(image)
}

fn insert<'a>(directory: &mut Directory<'a>, whole: &str, path: &'a str, content: &'a [u8]) -> Result<(), FatError> {
    let (name, rest) = path.split_once('/').map_or((path, None), |(name, rest)| (name, Some(rest)));
    let plain = |c: char| (' '..='~').contains(&c) && !"\\/:*?\"<>|".contains(c);
    if name.is_empty()
        || name.len() > 255
        || name.starts_with('.')
        || name.ends_with(['.', ' '])
        || !name.chars().all(plain)
    {
        return Err(FatError::Name { path: whole.to_owned() });
    }
    match rest {
        None => {
            directory.files.insert(name, content);
            Ok(())
        }
        Some(rest) => insert(directory.directories.entry(name).or_default(), whole, rest, content),
    }
}

struct Fat {
    /// The table: each cluster's successor.
    chain: Vec<u16>,
    data: Vec<u8>,
    /// Sectors of one copy of the table.
    sectors: usize,
    clusters: usize,
}

impl Fat {
    fn new(sectors: usize) -> Self {
        // The table must have an entry for every cluster that it leaves room for; a sector too many does no harm.
        let table = (sectors / SECTORS_PER_CLUSTER + 2).div_ceil(SECTOR / 2);
        let clusters = (sectors - 1 - 2 * table - ROOT_ENTRIES * 32 / SECTOR) / SECTORS_PER_CLUSTER;
        Self { chain: vec![0xfff8, 0xffff], data: Vec::new(), sectors: table, clusters }
    }

    /// Places for `bytes`, filled with zeros; gives the first cluster.
    fn allocate(&mut self, bytes: usize, path: &str) -> Result<u16, FatError> {
        let full = || FatError::Full { path: path.to_owned() };
        let count = bytes.div_ceil(CLUSTER);
        if count == 0 {
            return Ok(0);
        }
        let first = self.chain.len();
        if first - 2 + count > self.clusters {
            return Err(full());
        }
        for index in 1..count {
            self.chain.push(u16::try_from(first + index).map_err(|_| full())?);
        }
        self.chain.push(0xffff);
        self.data.resize(self.data.len() + count * CLUSTER, 0);
        u16::try_from(first).map_err(|_| full())
    }

    fn place(&mut self, first: u16, bytes: &[u8]) {
        let at = (usize::from(first).max(2) - 2) * CLUSTER;
        self.data[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// The entries of a directory, its children written.
    fn directory(&mut self, directory: &Directory<'_>, own: u16) -> Result<Vec<[u8; 32]>, FatError> {
        let mut entries = Vec::new();
        let mut short = Vec::new();
        for (name, child) in &directory.directories {
            // `.` and `..` and every child with its long name: the place must be known before the children are written.
            let names = child.directories.keys().chain(child.files.keys());
            let count = 2 + names.map(|name| 1 + name.len().div_ceil(13)).sum::<usize>();
            let first = self.allocate(count * 32, name)?;
            let mut inside = vec![entry(b".          ", 0x10, first, 0), entry(b"..         ", 0x10, own, 0)];
            inside.extend(self.directory(child, first)?);
            self.place(first, &inside.concat());
            named(&mut entries, &mut short, name, 0x10, first, 0);
        }
        for (name, content) in &directory.files {
            let first = self.allocate(content.len(), name)?;
            self.place(first, content);
            let bytes = u32::try_from(content.len()).map_err(|_| FatError::Full { path: (*name).to_owned() })?;
            named(&mut entries, &mut short, name, 0x20, first, bytes);
        }
        Ok(entries)
    }
}

fn entry(name: &[u8; 11], attributes: u8, first: u16, bytes: u32) -> [u8; 32] {
    let mut entry = [0; 32];
    entry[..11].copy_from_slice(name);
    entry[11] = attributes;
    for field in [16, 18, 24] {
        entry[field..field + 2].copy_from_slice(&DAY.to_le_bytes());
    }
    entry[26..28].copy_from_slice(&first.to_le_bytes());
    entry[28..].copy_from_slice(&bytes.to_le_bytes());
    entry
}

fn padded(name: &str) -> [u8; 11] {
    let mut padded = [b' '; 11];
    padded.iter_mut().zip(name.bytes()).for_each(|(place, byte)| *place = byte);
    padded
}

/// The short name, if `name` is of that form as it stands.
fn short_name(name: &str) -> Option<[u8; 11]> {
    let (stem, extension) = name.split_once('.').unwrap_or((name, ""));
    let plain = |part: &str| part.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b"-_~$".contains(&b));
    let fits = (1..=8).contains(&stem.len()) && extension.len() <= 3 && plain(stem) && plain(extension);
    fits.then(|| padded(&format!("{stem:8}{extension}")))
}

/// Pushes the entries of one child: the long name, in pieces of thirteen from the last, and the short one.
fn named(entries: &mut Vec<[u8; 32]>, taken: &mut Vec<[u8; 11]>, name: &str, attributes: u8, first: u16, bytes: u32) {
    let short = short_name(name).unwrap_or_else(|| {
        let clean = |part: &str| part.to_ascii_uppercase().replace(|c: char| !c.is_ascii_alphanumeric(), "");
        let (stem, extension) =
            name.rsplit_once('.').map_or((clean(name), String::new()), |(s, e)| (clean(s), clean(e)));
        let stem: String = stem.chars().take(5).collect();
        let extension: String = extension.chars().take(3).collect();
        let candidates = (1..).map(|n| padded(&format!("{:8}{extension}", format!("{stem}~{n}"))));
        candidates.into_iter().find(|short| !taken.contains(short)).unwrap_or_default()
    });
    taken.push(short);
    if short_name(name).is_none() {
        let sum = short.iter().fold(0u8, |sum, byte| sum.rotate_right(1).wrapping_add(*byte));
        let mut units: Vec<u16> = name.encode_utf16().collect();
        if !units.len().is_multiple_of(13) {
            units.push(0);
            units.resize(units.len().next_multiple_of(13), 0xffff);
        }
        let pieces = units.len() / 13;
        for (index, piece) in units.chunks(13).enumerate().rev() {
            let mut long = [0; 32];
            long[0] = u8::try_from(index + 1).unwrap_or(0x3f) | if index + 1 == pieces { 0x40 } else { 0 };
            long[11] = 0x0f;
            long[13] = sum;
            let places = (1..11).step_by(2).chain((14..26).step_by(2)).chain((28..32).step_by(2));
            places.zip(piece).for_each(|(at, unit)| long[at..at + 2].copy_from_slice(&unit.to_le_bytes()));
            entries.push(long);
        }
    }
    entries.push(entry(&short, attributes, first, bytes));
}

fn boot_sector(new: &NewFat, sectors: usize, table: usize) -> Vec<u8> {
    let half = |number: usize| u16::try_from(number).unwrap_or(0).to_le_bytes();
    let mut sector = vec![0; SECTOR];
    sector[..3].copy_from_slice(&[0xeb, 0x3c, 0x90]);
    sector[3..11].copy_from_slice(b"MSWIN4.1");
    sector[11..13].copy_from_slice(&half(SECTOR));
    sector[13] = u8::try_from(SECTORS_PER_CLUSTER).unwrap_or(4);
    sector[14..16].copy_from_slice(&half(1));
    sector[16] = 2;
    sector[17..19].copy_from_slice(&half(ROOT_ENTRIES));
    sector[19..21].copy_from_slice(&half(sectors));
    sector[21] = 0xf8;
    sector[22..24].copy_from_slice(&half(table));
    sector[24..26].copy_from_slice(&half(63));
    sector[26..28].copy_from_slice(&half(255));
    sector[28..32].copy_from_slice(&new.start.to_le_bytes());
    if sectors > usize::from(u16::MAX) {
        sector[32..36].copy_from_slice(&u32::try_from(sectors).unwrap_or(0).to_le_bytes());
    }
    sector[36] = 0x80;
    sector[38] = 0x29;
    sector[39..43].copy_from_slice(&new.serial.to_le_bytes());
    sector[43..54].copy_from_slice(&padded(&new.label));
    sector[54..62].copy_from_slice(b"FAT16   ");
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    sector
}
