//! Any bytes as a qcow2 file: the header is refused or keeps within the limits, and an accepted image reads or fails,
//! without a panic and without more memory than the limits allow.
#![no_main]

use std::sync::Arc;

use kiln_disk::{
    ReadAt,
    qcow2::{
        header::{Limits, inspect},
        image::Image,
    },
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let file = bytes.to_vec();
    let limits = Limits { virtual_size: 1 << 30, l1_bytes: 1 << 20, refcount_table_bytes: 1 << 20 };
    let Ok(header) = inspect(&file, limits) else { return };
    assert!(header.size <= limits.virtual_size && (9..=21).contains(&header.cluster_bits));
    assert!(u64::from(header.l1_entries) * 8 <= limits.l1_bytes);
    let Ok(image) = Image::open(Arc::new(file), limits) else { return };
    let mut buffer = [0; 4096];
    for place in 0..8 {
        let offset = header.size / 8 * place;
        let _ = image.read_at(offset, &mut buffer);
        let _ = image.hole(offset);
    }
});
