//! The bytes of snapshots: one file for all of them, each different block in it once.

use std::{collections::HashMap, fs::File, io, os::unix::fs::FileExt as _};

use sha2::{Digest as _, Sha256};

/// The only block size of EBS direct, in bytes.
pub const BLOCK: usize = 524_288;
/// Blocks in a GiB.
pub(crate) const PER_GIB: u64 = (1 << 30) / BLOCK as u64;

pub(crate) type Sha = [u8; 32];

/// A block of one snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Block {
    pub(crate) digest: Sha,
    /// Different after each write, whatever was written.
    pub(crate) written: u64,
}

#[derive(Debug)]
pub(crate) struct Blocks {
    file: File,
    at: HashMap<Sha, u64>,
}

impl Blocks {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self { file: tempfile::tempfile()?, at: HashMap::new() })
    }

    /// Stores a block whose digest is known to be this one.
    pub(crate) fn keep(&mut self, digest: Sha, bytes: &[u8]) -> io::Result<()> {
        if !self.at.contains_key(&digest) {
            let offset = (self.at.len() * BLOCK) as u64;
            self.file.write_all_at(bytes, offset)?;
            self.at.insert(digest, offset);
        }
        Ok(())
    }

    pub(crate) fn read(&self, digest: &Sha) -> io::Result<Vec<u8>> {
        let offset = self.at.get(digest).ok_or(io::ErrorKind::NotFound)?;
        let mut bytes = vec![0; BLOCK];
        self.file.read_exact_at(&mut bytes, *offset)?;
        Ok(bytes)
    }
}

/// What an encrypted snapshot holds where nothing was written: the same noise each time, and never zeros.
pub(crate) fn noise(snapshot: &str, index: u32) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(BLOCK);
    let seed = Sha256::digest(format!("{snapshot} {index}"));
    while bytes.len() < BLOCK {
        bytes.extend_from_slice(&seed);
    }
    bytes
}
