//! Any bytes as a disk: partition tables, FAT and ext4 are read without a panic and without end.
#![no_main]

use std::sync::Arc;

use kiln_disk::{
    ReadAt,
    hygiene::{Asked, unclean_file_systems, verify_disk},
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let disk: Arc<dyn ReadAt> = Arc::new(bytes.to_vec());
    let _ = unclean_file_systems(&disk);
    assert!(verify_disk(&disk, &Asked::default()).is_sorted());
});
