//! Headers of qcow2 images that come from outside, approved field by field before any other tool sees the file.
//!
//! The format is QEMU's `docs/interop/qcow2.txt`. A backing file or an external data file would make whoever opens
//! the image read another file of this host (CVE-2024-32498, CVE-2024-4467), absurd sizes would make it allocate
//! without bound. [`inspect`] refuses all of that and says which field, which value and what to do instead.

use std::io;

use crate::ReadAt;

pub const MAGIC: [u8; 4] = *b"QFI\xfb";

const DIRTY: u64 = 1;
const CORRUPT: u64 = 1 << 1;
const EXTERNAL_DATA: u64 = 1 << 2;
const COMPRESSION_TYPE: u64 = 1 << 3;
const EXTENDED_L2: u64 = 1 << 4;

const EXTENSION_DATA_FILE: u32 = 0x4441_5441;
const EXTENSION_CRYPTO: u32 = 0x0537_be77;
/// No known writer uses more than five.
const MAX_EXTENSIONS: usize = 32;

const FLATTEN: &str = "have whoever made it flatten it (`qemu-img convert -O qcow2 IN OUT`) and give kiln the result";
const REMAKE: &str = "the file is damaged or hostile; fetch or build it again";

/// What is still acceptable. The defaults are far above any machine image and far below what hurts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Largest virtual size in bytes.
    pub virtual_size: u64,
    /// Largest L1 table in bytes (QEMU: 32 MiB).
    pub l1_bytes: u64,
    /// Largest refcount table in bytes (QEMU: 8 MiB).
    pub refcount_table_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { virtual_size: 2 << 40, l1_bytes: 32 << 20, refcount_table_bytes: 8 << 20 }
    }
}

/// A header that was approved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// 2 or 3.
    pub version: u32,
    pub cluster_bits: u32,
    /// Virtual size in bytes.
    pub size: u64,
    pub l1_entries: u32,
    pub l1_offset: u64,
    pub refcount_table_offset: u64,
    pub refcount_table_clusters: u32,
    pub refcount_order: u32,
    pub compression: Compression,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    Zlib,
    Zstd,
}

/// Why a file is not accepted as a qcow2 image.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    #[error("the qcow2 header cannot be read")]
    Unreadable(#[source] io::Error),
    #[error("refused as a qcow2 image: `{field}` is {value}: {reason}; {advice}")]
    Field {
        /// The field's name in the specification.
        field: &'static str,
        value: String,
        reason: &'static str,
        advice: &'static str,
    },
}

impl Refusal {
    /// The refused field's name; `None` if the file could not be read.
    pub fn field(&self) -> Option<&'static str> {
        match self {
            Self::Unreadable(_) => None,
            Self::Field { field, .. } => Some(field),
        }
    }
}

fn refuse<T>(
    field: &'static str,
    value: impl std::fmt::Display,
    reason: &'static str,
    advice: &'static str,
) -> Result<T, Refusal> {
    Err(Refusal::Field { field, value: value.to_string(), reason, advice })
}

/// Reads and approves the header of `file`. Reads at most the first cluster; allocates at most 2 MiB.
pub fn inspect(file: &dyn ReadAt, limits: Limits) -> Result<Header, Refusal> {
    let mut bytes = [0; 112];
    let known = usize::try_from(file.size().min(112)).unwrap_or(112);
    if known < 72 {
        return refuse("file size", format!("{} bytes", file.size()), "a header has at least 72 bytes", REMAKE);
    }
    file.read_at(0, &mut bytes[..known]).map_err(Refusal::Unreadable)?;
    let raw = Raw(&bytes);
    if bytes[..4] != MAGIC {
        return refuse(
            "magic",
            format!("{:02x?}", &bytes[..4]),
            "a qcow2 image begins with `QFI\\xfb`",
            "say what the file really is, or convert it with `qemu-img convert -f FORMAT -O qcow2`",
        );
    }
    let version = raw.u32(4);
    if !matches!(version, 2 | 3) {
        return refuse("version", version, "kiln knows versions 2 and 3", FLATTEN);
    }
    if version == 3 && known < 104 {
        return refuse("file size", format!("{known} bytes"), "a version 3 header has at least 104 bytes", REMAKE);
    }
    approve_references(&raw)?;
    let cluster_bits = raw.u32(20);
    if !(9..=21).contains(&cluster_bits) {
        return refuse("cluster_bits", cluster_bits, "clusters have 512 bytes to 2 MiB (9 to 21)", REMAKE);
    }
    let (header_length, refcount_order, compression) =
        if version == 3 { approve_version_3(&raw, cluster_bits)? } else { (72, 4, Compression::Zlib) };
    approve_extensions(file, header_length, cluster_bits)?;
    let header = Header {
        version,
        cluster_bits,
        size: raw.u64(24),
        l1_entries: raw.u32(36),
        l1_offset: raw.u64(40),
        refcount_table_offset: raw.u64(48),
        refcount_table_clusters: raw.u32(56),
        refcount_order,
        compression,
    };
    approve_tables(&header, file.size(), limits)?;
    Ok(header)
}

/// Nothing the image says may name another file, another layer or a key.
fn approve_references(raw: &Raw<'_>) -> Result<(), Refusal> {
    let (backing_offset, backing_size) = (raw.u64(8), raw.u32(16));
    if backing_offset != 0 {
        return refuse(
            "backing_file_offset",
            backing_offset,
            "the image stands on another file, which kiln would read from this host",
            FLATTEN,
        );
    }
    if backing_size != 0 {
        return refuse("backing_file_size", backing_size, "there is no backing file to name", REMAKE);
    }
    if raw.u32(32) != 0 {
        return refuse("crypt_method", raw.u32(32), "encrypted images are not supported", "decrypt it first");
    }
    if raw.u32(60) != 0 {
        return refuse(
            "nb_snapshots",
            raw.u32(60),
            "internal snapshots would travel along unseen",
            "delete them (`qemu-img snapshot -d NAME FILE`) or flatten the image with `qemu-img convert`",
        );
    }
    Ok(())
}

/// The version 3 fields: header length, refcount order, compression type.
fn approve_version_3(raw: &Raw<'_>, cluster_bits: u32) -> Result<(u32, u32, Compression), Refusal> {
    let features = raw.u64(72);
    let shown = format!("{features:#x}");
    for (bit, reason, advice) in [
        (DIRTY, "the dirty bit is set: the image was not closed", "run `qemu-img check -r all` where it was made"),
        (CORRUPT, "the corrupt bit is set", REMAKE),
        (EXTERNAL_DATA, "the data lie in another file, which kiln would read from this host", FLATTEN),
        (EXTENDED_L2, "extended L2 entries are not supported", "convert it with `-o extended_l2=off`"),
    ] {
        if features & bit != 0 {
            return refuse("incompatible_features", shown, reason, advice);
        }
    }
    if features & !COMPRESSION_TYPE != 0 {
        return refuse("incompatible_features", shown, "a bit is set whose meaning is unknown", FLATTEN);
    }
    let header_length = raw.u32(100);
    if header_length < 104 || !header_length.is_multiple_of(8) || u64::from(header_length) > 1 << cluster_bits {
        return refuse(
            "header_length",
            header_length,
            "it is 104 or more, a multiple of 8, within one cluster",
            REMAKE,
        );
    }
    let refcount_order = raw.u32(96);
    if refcount_order > 6 {
        return refuse("refcount_order", refcount_order, "refcounts have at most 64 bits (order 6)", REMAKE);
    }
    let compression = if header_length > 104 { raw.0[104] } else { 0 };
    let announced = features & COMPRESSION_TYPE != 0;
    match (compression, announced) {
        (0, false) => Ok((header_length, refcount_order, Compression::Zlib)),
        (1, true) => Ok((header_length, refcount_order, Compression::Zstd)),
        (0 | 1, _) => {
            refuse("compression_type", compression, "it contradicts the bit in incompatible_features", REMAKE)
        }
        _ => refuse("compression_type", compression, "known are 0 (zlib) and 1 (zstd)", FLATTEN),
    }
}

/// Walks the header extensions, which end before the first cluster does.
fn approve_extensions(file: &dyn ReadAt, header_length: u32, cluster_bits: u32) -> Result<(), Refusal> {
    let end = (1_u64 << cluster_bits).min(file.size());
    let mut at = u64::from(header_length);
    for _ in 0..MAX_EXTENSIONS {
        if at + 8 > end {
            // QEMU takes the end of the cluster for the end of the list.
            return Ok(());
        }
        let mut entry = [0; 8];
        file.read_at(at, &mut entry).map_err(Refusal::Unreadable)?;
        let (kind, length) = (Raw(&entry).u32(0), Raw(&entry).u32(4));
        match kind {
            0 => return Ok(()),
            EXTENSION_DATA_FILE => {
                return refuse(
                    "external data file name",
                    format!("{length} bytes"),
                    "no other file may be named",
                    FLATTEN,
                );
            }
            EXTENSION_CRYPTO => {
                return refuse(
                    "full disk encryption header",
                    format!("{length} bytes"),
                    "encryption is not supported",
                    FLATTEN,
                );
            }
            _ => {}
        }
        at += 8 + u64::from(length).next_multiple_of(8);
        if at > end {
            return refuse("header extension length", length, "it reaches beyond the first cluster", REMAKE);
        }
    }
    refuse("header extensions", format!("more than {MAX_EXTENSIONS}"), "no writer makes so many", REMAKE)
}

/// Sizes within the limits, tables aligned and inside the file.
fn approve_tables(header: &Header, file_size: u64, limits: Limits) -> Result<(), Refusal> {
    let cluster = 1_u64 << header.cluster_bits;
    if header.size == 0 || header.size > limits.virtual_size {
        return refuse(
            "size",
            format!("{} bytes", header.size),
            "the virtual size is zero or above the limit",
            "make the disk smaller",
        );
    }
    let covered_by_entry = u128::from(cluster) * u128::from(cluster / 8);
    let needed = u128::from(header.size).div_ceil(covered_by_entry);
    if u128::from(header.l1_entries) < needed {
        return refuse("l1_size", header.l1_entries, "the L1 table is too short for the virtual size", REMAKE);
    }
    let l1_bytes = u64::from(header.l1_entries) * 8;
    if l1_bytes > limits.l1_bytes {
        return refuse("l1_size", header.l1_entries, "the L1 table is absurdly large", REMAKE);
    }
    let inside = |offset: u64, bytes: u64| {
        offset >= cluster
            && offset.is_multiple_of(cluster)
            && offset.checked_add(bytes).is_some_and(|end| end <= file_size)
    };
    if !inside(header.l1_offset, l1_bytes) {
        return refuse(
            "l1_table_offset",
            header.l1_offset,
            "the L1 table is not aligned or not inside the file",
            REMAKE,
        );
    }
    let refcount_bytes = u64::from(header.refcount_table_clusters) * cluster;
    if refcount_bytes == 0 || refcount_bytes > limits.refcount_table_bytes {
        return refuse(
            "refcount_table_clusters",
            header.refcount_table_clusters,
            "the refcount table is missing or absurdly large",
            REMAKE,
        );
    }
    if !inside(header.refcount_table_offset, refcount_bytes) {
        return refuse(
            "refcount_table_offset",
            header.refcount_table_offset,
            "the refcount table is not aligned or not inside the file",
            REMAKE,
        );
    }
    Ok(())
}

/// Big-endian fields of a buffer that is long enough.
struct Raw<'a>(&'a [u8]);

impl Raw<'_> {
    fn u32(&self, at: usize) -> u32 {
        let mut bytes = [0; 4];
        bytes.copy_from_slice(&self.0[at..at + 4]);
        u32::from_be_bytes(bytes)
    }

    fn u64(&self, at: usize) -> u64 {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&self.0[at..at + 8]);
        u64::from_be_bytes(bytes)
    }
}

#[cfg(test)]
#[path = "header_tests.rs"]
mod tests;
