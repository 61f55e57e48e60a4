//! Which blocks of a snapshot have to be written: known from the chunk lists alone, before a byte is read.

use kiln_core::Digest;
use kiln_disk::{
    CHUNK,
    seal::{Chunk, Sealed, zero_chunk},
};
use kiln_registry::Content;

/// What EBS stores: 512 KiB.
pub const BLOCK: usize = 512 << 10;

const CHUNKS: usize = BLOCK / CHUNK;
const GIB: u64 = 1 << 30;

/// The chunks of a disk, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// Bytes.
    pub size: u64,
    pub disk: Digest,
    pub chunks: Vec<Chunk>,
}

impl From<&Content> for Layout {
    fn from(content: &Content) -> Self {
        Self { size: content.size, disk: content.disk, chunks: content.chunks().copied().collect() }
    }
}

impl From<&Sealed> for Layout {
    fn from(sealed: &Sealed) -> Self {
        Self { size: sealed.size, disk: sealed.disk_digest, chunks: sealed.chunks.clone() }
    }
}

/// The blocks of `new` that a snapshot on top of that of `parent` does not have yet, in order.
///
/// A block that became zero is among them, else it would keep the parent's bytes. Without a parent all are, zero or not: a block
/// that nobody wrote reads as zeros only as long as nobody starts an encrypted volume from the snapshot, which then holds what the key
/// makes of nothing.
pub fn to_write(new: &Layout, parent: Option<&Layout>) -> Vec<u32> {
    let zero = zero_chunk();
    let mut old = parent.into_iter().flat_map(|parent| &parent.chunks);
    // Beyond the parent's end nobody wrote anything. A chunk that the end cuts off is padded with zeros.
    let whole = parent.map_or(0, |parent| parent.size.div_ceil(CHUNK as u64).next_multiple_of(CHUNKS as u64));
    let mut number = 0_u64;
    let mut blocks = Vec::new();
    for (block, chunks) in (0_u32..).zip(new.chunks.chunks(CHUNKS)) {
        let mut differs = false;
        for chunk in chunks {
            let before = match old.next() {
                Some(old) => Some(old.digest),
                None => (number < whole).then_some(zero),
            };
            differs |= before != Some(chunk.digest);
            number += 1;
        }
        if differs {
            blocks.push(block);
        }
    }
    blocks
}

/// Whether `new` can stand on the snapshot of `parent`. A volume never shrinks, and behind the end of a shorter disk the
/// parent's bytes would stay.
pub const fn fits(new: &Layout, parent: &Layout) -> bool {
    parent.size <= new.size
}

/// The size of a volume for a disk of `bytes`, in GiB.
pub const fn volume(bytes: u64) -> u64 {
    bytes.div_ceil(GIB)
}

/// Whether `bytes`, as they came from the snapshot, are block `block` of the disk.
pub fn is_block(disk: &Layout, block: u32, bytes: &[u8]) -> bool {
    let zero = zero_chunk();
    let mut chunks = disk.chunks.iter().skip(block as usize * CHUNKS);
    let offset = u64::from(block) * BLOCK as u64;
    let within = disk.size.saturating_sub(offset).min(BLOCK as u64);
    let Ok(within) = usize::try_from(within) else { return false };
    if bytes.len() != BLOCK {
        return false;
    }
    let (inside, beyond) = bytes.split_at(within);
    beyond.iter().all(|byte| *byte == 0)
        && inside.chunks(CHUNK).all(|piece| {
            chunks.next().is_some_and(|chunk| {
                if chunk.digest == zero {
                    piece.iter().all(|byte| *byte == 0)
                } else {
                    chunk.digest == Digest::of(piece)
                }
            })
        })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A disk of so many chunks, each of one byte repeated.
    fn disk(fill: &[u8]) -> Layout {
        let chunk = |fill: u8| match fill {
            0 => Chunk { digest: zero_chunk(), frame: 0 },
            fill => Chunk { digest: Digest::of(&vec![fill; CHUNK]), frame: 1 },
        };
        let chunks = fill.iter().copied().map(chunk).collect();
        Layout { size: (fill.len() * CHUNK) as u64, disk: Digest::of(fill), chunks }
    }

    fn bytes(fill: &[u8], block: u32) -> Vec<u8> {
        let first = block as usize * CHUNKS;
        let mut bytes: Vec<u8> =
            (first..first + CHUNKS).flat_map(|number| vec![fill.get(number).copied().unwrap_or(0); CHUNK]).collect();
        bytes.truncate(BLOCK);
        bytes
    }

    #[test]
    fn what_nobody_wrote_is_written_though_it_is_zero() {
        assert_eq!(to_write(&disk(&[0; 17]), None), [0, 1, 2]);
        assert_eq!(to_write(&disk(&[0; 32]), Some(&disk(&[0; 16]))), [2, 3]);
    }

    #[test]
    fn a_block_that_became_zero_is_written() {
        let (mut old, new) = ([5; 24], [0; 24]);
        assert_eq!(to_write(&disk(&new), Some(&disk(&old))), [0, 1, 2]);
        old[8..].fill(0);
        assert_eq!(to_write(&disk(&new), Some(&disk(&old))), [0]);
    }

    #[test]
    fn a_disk_does_not_stand_on_a_larger_one() {
        let sized = |size| Layout { size, ..disk(&[0; 8]) };
        assert!(fits(&sized(4 << 30), &sized(4 << 30)));
        assert!(fits(&sized(5 << 30), &sized(4 << 30)));
        assert!(!fits(&sized(4 << 30), &sized((4 << 30) + 512)));
        assert!(!fits(&sized((4 << 30) - 512), &sized(4 << 30)));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// The parent's blocks with the written ones on top are the new disk, whatever the two are.
        #[test]
        fn what_is_written_on_the_parent_gives_the_new_disk(
            old in proptest::collection::vec(0..3_u8, 0..40),
            new in proptest::collection::vec(0..3_u8, 1..40),
        ) {
            let content = disk(&new);
            let parent = (!old.is_empty()).then(|| disk(&old)).filter(|parent| fits(&content, parent));
            let old = if parent.is_some() { old } else { Vec::new() };
            let written = to_write(&content, parent.as_ref());
            let covered = u32::try_from(old.len().div_ceil(CHUNKS)).unwrap();
            for block in 0..u32::try_from(new.len().div_ceil(CHUNKS)).unwrap() {
                let found = if written.contains(&block) {
                    bytes(&new, block)
                } else if block < covered {
                    bytes(&old, block)
                } else {
                    vec![0xa5; BLOCK]
                };
                prop_assert!(is_block(&content, block, &found), "block {block}");
            }
            // And no block is written that had the right bytes.
            for block in written {
                let same = block < covered && bytes(&old, block) == bytes(&new, block);
                prop_assert!(!same, "block {block} is written for nothing");
            }
        }
    }
}
