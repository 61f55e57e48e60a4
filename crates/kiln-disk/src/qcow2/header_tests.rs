//! Hand-made headers, one lie at a time.

use proptest::prelude::*;

use super::*;

const CLUSTER: usize = 65536;

/// A good version 3 image of 1 GiB: header, refcount table, L1 table.
fn image() -> Vec<u8> {
    let mut bytes = vec![0; 3 * CLUSTER];
    bytes[..4].copy_from_slice(&MAGIC);
    put32(&mut bytes, 4, 3);
    put32(&mut bytes, 20, 16);
    put64(&mut bytes, 24, 1 << 30);
    put32(&mut bytes, 36, 2);
    put64(&mut bytes, 40, 2 * CLUSTER as u64);
    put64(&mut bytes, 48, CLUSTER as u64);
    put32(&mut bytes, 56, 1);
    put32(&mut bytes, 96, 4);
    put32(&mut bytes, 100, 104);
    bytes
}

fn put32(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_be_bytes());
}

fn put64(bytes: &mut [u8], at: usize, value: u64) {
    bytes[at..at + 8].copy_from_slice(&value.to_be_bytes());
}

fn refused(change: impl FnOnce(&mut Vec<u8>)) -> &'static str {
    let mut bytes = image();
    change(&mut bytes);
    let refusal = inspect(&bytes, Limits::default()).expect_err("accepted");
    refusal.field().expect("a field")
}

#[test]
fn accepts_both_versions_and_zstd() {
    let header = inspect(&image(), Limits::default()).unwrap();
    assert_eq!((header.version, header.size, header.compression), (3, 1 << 30, Compression::Zlib));
    let mut old = image();
    put32(&mut old, 4, 2);
    old[72..104].fill(0);
    assert_eq!(inspect(&old, Limits::default()).unwrap().refcount_order, 4);
    let mut zstd = image();
    put64(&mut zstd, 72, 8);
    put32(&mut zstd, 100, 112);
    zstd[104] = 1;
    assert_eq!(inspect(&zstd, Limits::default()).unwrap().compression, Compression::Zstd);
}

#[test]
fn accepts_the_feature_names_that_qemu_writes() {
    let mut bytes = image();
    put32(&mut bytes, 104, 0x6803_f857);
    put32(&mut bytes, 108, 384);
    assert!(inspect(&bytes, Limits::default()).is_ok());
}

#[test]
fn refuses_whatever_names_another_file() {
    assert_eq!(refused(|bytes| put64(bytes, 8, 520)), "backing_file_offset");
    assert_eq!(refused(|bytes| put32(bytes, 16, 11)), "backing_file_size");
    assert_eq!(refused(|bytes| put64(bytes, 72, EXTERNAL_DATA)), "incompatible_features");
    let named = |bytes: &mut Vec<u8>| {
        put32(bytes, 104, EXTENSION_DATA_FILE);
        put32(bytes, 108, 11);
    };
    assert_eq!(refused(named), "external data file name");
}

#[test]
fn refuses_states_and_features_it_does_not_know() {
    for bit in [DIRTY, CORRUPT, EXTENDED_L2, 1 << 5, 1 << 63] {
        assert_eq!(refused(|bytes| put64(bytes, 72, bit)), "incompatible_features", "{bit:#x}");
    }
    assert_eq!(refused(|bytes| put32(bytes, 4, 1)), "version");
    assert_eq!(refused(|bytes| put32(bytes, 4, 4)), "version");
    assert_eq!(refused(|bytes| bytes[0] = b'q'), "magic");
    assert_eq!(refused(|bytes| put32(bytes, 32, 2)), "crypt_method");
    assert_eq!(refused(|bytes| put32(bytes, 104, EXTENSION_CRYPTO)), "full disk encryption header");
    assert_eq!(refused(|bytes| put32(bytes, 60, 1)), "nb_snapshots");
    let announced = |features, kind| {
        move |bytes: &mut Vec<u8>| {
            put64(bytes, 72, features);
            put32(bytes, 100, 112);
            bytes[104] = kind;
        }
    };
    assert_eq!(refused(announced(8, 0)), "compression_type");
    assert_eq!(refused(announced(0, 1)), "compression_type");
    assert_eq!(refused(announced(8, 2)), "compression_type");
}

#[test]
fn refuses_absurd_sizes_before_allocating() {
    for bits in [0, 8, 22, 63, u32::MAX] {
        assert_eq!(refused(|bytes| put32(bytes, 20, bits)), "cluster_bits");
    }
    for size in [0, (2 << 40) + 1, 1 << 50, u64::MAX] {
        assert_eq!(refused(|bytes| put64(bytes, 24, size)), "size");
    }
    assert_eq!(refused(|bytes| put32(bytes, 36, 1)), "l1_size");
    assert_eq!(refused(|bytes| put32(bytes, 36, u32::MAX)), "l1_size");
    assert_eq!(refused(|bytes| put32(bytes, 56, 0)), "refcount_table_clusters");
    assert_eq!(refused(|bytes| put32(bytes, 56, u32::MAX)), "refcount_table_clusters");
    assert_eq!(refused(|bytes| put32(bytes, 96, 7)), "refcount_order");
    for length in [0, 72, 103, 105, u32::MAX] {
        assert_eq!(refused(|bytes| put32(bytes, 100, length)), "header_length");
    }
}

#[test]
fn refuses_tables_that_are_not_in_the_file() {
    for offset in [0, 8, 3 * CLUSTER as u64, u64::MAX - 65535, 2 * CLUSTER as u64 + 8] {
        assert_eq!(refused(|bytes| put64(bytes, 40, offset)), "l1_table_offset");
        assert_eq!(refused(|bytes| put64(bytes, 48, offset)), "refcount_table_offset");
    }
    assert_eq!(refused(|bytes| bytes.truncate(2 * CLUSTER)), "l1_table_offset");
    assert_eq!(refused(|bytes| bytes.truncate(100)), "file size");
    assert_eq!(refused(|bytes| bytes.truncate(71)), "file size");
}

#[test]
fn refuses_extensions_without_end() {
    assert_eq!(
        refused(|bytes| {
            put32(bytes, 104, 1);
            put32(bytes, 108, u32::MAX);
        }),
        "header extension length"
    );
    let endless = |bytes: &mut Vec<u8>| {
        for entry in 0..100 {
            put32(bytes, 104 + entry * 8, 1);
        }
    };
    assert_eq!(refused(endless), "header extensions");
}

#[test]
fn says_the_field_the_value_and_what_to_do() {
    let mut bytes = image();
    put64(&mut bytes, 8, 520);
    let message = inspect(&bytes, Limits::default()).unwrap_err().to_string();
    for part in ["`backing_file_offset`", "520", "flatten"] {
        assert!(message.contains(part), "{message}");
    }
}

proptest! {
    /// Whatever is accepted keeps within the limits; nothing panics.
    #[test]
    fn any_header_is_refused_or_within_the_limits(
        start in proptest::collection::vec(any::<u8>(), 0..200),
        changes in proptest::collection::vec((0_usize..128, any::<u8>()), 0..12),
    ) {
        let limits = Limits::default();
        prop_assert!(inspect(&start, limits).is_err() || start.len() >= 72);
        let mut bytes = image();
        for (at, value) in changes {
            bytes[at] = value;
        }
        if let Ok(header) = inspect(&bytes, limits) {
            prop_assert!(header.size <= limits.virtual_size && (9..=21).contains(&header.cluster_bits));
            prop_assert!(header.l1_offset + u64::from(header.l1_entries) * 8 <= bytes.len() as u64);
        }
    }
}
