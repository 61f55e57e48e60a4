//! Finding one path on a FAT file system (Microsoft's "FAT: General Overview", 1.03): enough for the EFI system
//! partition. Reads only; every chain is bounded, the file system may be hostile.

use std::io;

use super::little_endian::{u16_at, u32_at};
use crate::ReadAt;

/// Clusters of one directory; 65,536 entries of 32 bytes are the format's limit.
const MAX_DIRECTORY_BYTES: u64 = 2 << 20;
const DIRECTORY: u8 = 0x10;
const VOLUME_LABEL: u8 = 0x08;
const LONG_NAME: u8 = 0x0f;

/// The geometry of a FAT file system.
#[derive(Debug)]
struct Fat<'a> {
    volume: &'a dyn ReadAt,
    kind: Kind,
    table: u64,
    root: u64,
    root_bytes: u64,
    root_cluster: u32,
    data: u64,
    cluster_bytes: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Fat12,
    Fat16,
    Fat32,
}

/// Whether `path` (its parts, compared without regard to ASCII case) exists. `None` if this is not a FAT file system.
pub(super) fn exists(volume: &dyn ReadAt, path: &[&str]) -> io::Result<Option<bool>> {
    let Some(fat) = Fat::open(volume)? else { return Ok(None) };
    let mut directory = fat.root_directory()?;
    for (number, part) in path.iter().enumerate() {
        let Some(entry) = entries(&directory).into_iter().find(|entry| entry.name.eq_ignore_ascii_case(part)) else {
            return Ok(Some(false));
        };
        if number + 1 < path.len() {
            if !entry.directory {
                return Ok(Some(false));
            }
            directory = fat.chain(entry.cluster)?;
        }
    }
    Ok(Some(true))
}

impl<'a> Fat<'a> {
    fn open(volume: &'a dyn ReadAt) -> io::Result<Option<Self>> {
        let mut boot = [0; 512];
        if volume.size() < 512 {
            return Ok(None);
        }
        volume.read_at(0, &mut boot)?;
        let sector = u64::from(u16_at(&boot, 11));
        let per_cluster = u64::from(boot[13]);
        let fats = u64::from(boot[16]);
        if boot[510..] != [0x55, 0xaa]
            || !matches!(sector, 512 | 1024 | 2048 | 4096)
            || !per_cluster.is_power_of_two()
            || !matches!(fats, 1 | 2)
        {
            return Ok(None);
        }
        let either = |short: u64, long: u64| if short == 0 { long } else { short };
        let table_sectors = either(u64::from(u16_at(&boot, 22)), u64::from(u32_at(&boot, 36)));
        let sectors = either(u64::from(u16_at(&boot, 19)), u64::from(u32_at(&boot, 32)));
        let table = u64::from(u16_at(&boot, 14)) * sector;
        let root = table + fats * table_sectors * sector;
        let root_bytes = u64::from(u16_at(&boot, 17)) * 32;
        let data = root + root_bytes.next_multiple_of(sector);
        let kind = match (sectors * sector).saturating_sub(data) / (per_cluster * sector) {
            0..4085 => Kind::Fat12,
            4085..65525 => Kind::Fat16,
            _ => Kind::Fat32,
        };
        let (root_cluster, cluster_bytes) = (u32_at(&boot, 44), per_cluster * sector);
        Ok(Some(Self { volume, kind, table, root, root_bytes, root_cluster, data, cluster_bytes }))
    }

    fn root_directory(&self) -> io::Result<Vec<u8>> {
        if self.kind == Kind::Fat32 {
            return self.chain(self.root_cluster);
        }
        let mut bytes = vec![0; usize::try_from(self.root_bytes).unwrap_or(0)];
        self.volume.read_at(self.root, &mut bytes)?;
        Ok(bytes)
    }

    /// The bytes of a chain of clusters, as far as a directory can go.
    fn chain(&self, first: u32) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let mut cluster = first;
        while cluster >= 2 && cluster < self.end() && (bytes.len() as u64) < MAX_DIRECTORY_BYTES {
            let start = bytes.len();
            bytes.resize(start + usize::try_from(self.cluster_bytes).unwrap_or(0), 0);
            let offset = self.data + u64::from(cluster - 2) * self.cluster_bytes;
            self.volume.read_at(offset, &mut bytes[start..])?;
            cluster = self.next(cluster)?;
        }
        Ok(bytes)
    }

    /// The first value that means "no further cluster".
    fn end(&self) -> u32 {
        match self.kind {
            Kind::Fat12 => 0xff7,
            Kind::Fat16 => 0xfff7,
            Kind::Fat32 => 0x0fff_fff7,
        }
    }

    fn next(&self, cluster: u32) -> io::Result<u32> {
        let cluster = u64::from(cluster);
        let mut entry = [0; 4];
        Ok(match self.kind {
            Kind::Fat12 => {
                self.volume.read_at(self.table + cluster * 3 / 2, &mut entry[..2])?;
                let pair = u32::from(u16_at(&entry, 0));
                if cluster % 2 == 0 { pair & 0xfff } else { pair >> 4 }
            }
            Kind::Fat16 => {
                self.volume.read_at(self.table + cluster * 2, &mut entry[..2])?;
                u32::from(u16_at(&entry, 0))
            }
            Kind::Fat32 => {
                self.volume.read_at(self.table + cluster * 4, &mut entry)?;
                u32_at(&entry, 0) & 0x0fff_ffff
            }
        })
    }
}

struct Entry {
    name: String,
    directory: bool,
    cluster: u32,
}

fn entries(directory: &[u8]) -> Vec<Entry> {
    let mut found = Vec::new();
    let mut long: Vec<u16> = Vec::new();
    for entry in directory.chunks_exact(32) {
        match (entry[0], entry[11]) {
            (0, _) => break,
            (0xe5, _) => long.clear(),
            (_, LONG_NAME) => {
                let part = [1..11, 14..26, 28..32].into_iter().flat_map(|range| entry[range].chunks_exact(2));
                let part: Vec<u16> = part.map(|pair| u16_at(pair, 0)).take_while(|unit| *unit != 0).collect();
                long.splice(0..0, part);
            }
            (_, attributes) if attributes & VOLUME_LABEL != 0 => long.clear(),
            (_, attributes) => {
                let name = if long.is_empty() { short_name(entry) } else { String::from_utf16_lossy(&long) };
                let cluster = u32::from(u16_at(entry, 20)) << 16 | u32::from(u16_at(entry, 26));
                found.push(Entry { name, directory: attributes & DIRECTORY != 0, cluster });
                long.clear();
            }
        }
    }
    found
}

fn short_name(entry: &[u8]) -> String {
    let part = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end().to_owned();
    let (name, extension) = (part(&entry[..8]), part(&entry[8..11]));
    if extension.is_empty() { name } else { format!("{name}.{extension}") }
}
