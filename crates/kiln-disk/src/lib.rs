//! Disks as bytes: qcow2, raw, chunks, partition tables and what lies on a finished disk.
//!
//! This crate must not start processes, talk to a network or know what a template, a builder or a guest is. It opens
//! exactly the files it is handed, in the format it is told: a format is never guessed from content ([`detect`] only
//! refuses), because whoever wrote a disk also wrote its first bytes.

pub mod agreement;
pub mod detect;
pub mod error;
pub mod ext4;
pub mod fat;
pub mod gpt;
pub mod hygiene;
pub mod inventory;
pub mod ordered;
pub mod placement;
pub mod qcow2;
pub mod raw;
pub mod read_at;
pub mod residue;
pub mod seal;
pub mod segment;
pub mod source;
pub mod tree;

pub use error::{Error, Result};
pub use read_at::{FileBytes, ReadAt, Window};
pub use source::{DiskFile, DiskFormat, GuestDisk};

/// The unit of hashing and compression: 64 KiB of guest disk, also the cluster size of a canonical qcow2.
pub const CHUNK: usize = 64 << 10;

/// The unit of reading and of storage: 64 chunks.
pub const SEGMENT: usize = 64 * CHUNK;

static ZEROS: [u8; CHUNK] = [0; CHUNK];
