//! Sealing, judged by the real `qemu-img` and the real `zstd`.
#![expect(clippy::disallowed_methods, reason = "the judges are programs, and tests have no other door to them")]
#![expect(clippy::unwrap_used, reason = "in a test a panic is the report")]

use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use kiln_disk::{
    CHUNK, DiskFile, Error, FileBytes, GuestDisk, ReadAt,
    qcow2::{header::Limits, image::Image},
    raw::{Watch, write_raw, write_raw_zst},
    seal::{Options, Sealed, Verified, seal},
};

const MIB: usize = 1 << 20;

/// Pseudo-random bytes: incompressible, and the same in every run.
fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// Text, noise, and a hole between them.
fn mixed(length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    let text = b"server { listen 80; root /var/www/html; }\n".repeat(MIB / 40);
    bytes[..text.len()].copy_from_slice(&text);
    let noise = noise(3 * MIB + 77, 7);
    bytes[length - noise.len()..].copy_from_slice(&noise);
    bytes
}

fn sparse(path: &Path, bytes: &[u8]) {
    let file = File::create(path).unwrap();
    file.set_len(bytes.len() as u64).unwrap();
    for (number, chunk) in bytes.chunks(4096).enumerate().filter(|(_, chunk)| chunk.iter().any(|byte| *byte != 0)) {
        file.write_all_at(chunk, number as u64 * 4096).unwrap();
    }
}

fn run(program: &str, arguments: &[&str]) -> Vec<u8> {
    let output = Command::new(program).args(arguments).output().unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(output.status.success(), "{program} {arguments:?}: {output:?}");
    output.stdout
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn seal_with(layers: &[DiskFile], out: &Path, threads: usize) -> Sealed {
    let disk = GuestDisk::open(layers).unwrap();
    seal(&disk, out, &Options { threads: Some(threads), ..Options::default() }).unwrap()
}

/// Seals `bytes` and lets `qemu-img` judge the result.
fn judged(bytes: &[u8]) -> (tempfile::TempDir, PathBuf, Sealed) {
    let place = tempfile::tempdir().unwrap();
    let (raw, out) = (place.path().join("disk.raw"), place.path().join("disk.qcow2"));
    sparse(&raw, bytes);
    let sealed = seal_with(&[DiskFile::raw(&raw)], &out, 2);
    run("qemu-img", &["check", "-f", "qcow2", text(&out)]);
    run("qemu-img", &["compare", "-f", "raw", "-F", "qcow2", text(&raw), text(&out)]);
    assert_eq!(fs::metadata(&out).unwrap().len(), sealed.bytes);
    assert_eq!(kiln_disk::seal::digest_of(&mut File::open(&out).unwrap()).unwrap(), sealed.qcow2);
    (place, out, sealed)
}

fn image(path: &Path) -> Image {
    let file = FileBytes::new(File::open(path).unwrap()).unwrap();
    Image::open(Arc::new(file), Limits::default()).unwrap()
}

#[test]
fn qemu_img_agrees_on_disks_of_every_kind() {
    for (what, bytes, stored) in [
        ("all zeros", vec![0; 5 * MIB], 0),
        ("incompressible", noise(5 * MIB, 1), 80),
        ("incompressible, odd size", noise(5 * MIB + 512, 2), 81),
        ("mixed", mixed(16 * MIB), 17 + 49),
        ("size not a multiple of a chunk", mixed(16 * MIB + 4096), 17 + 49),
        ("one sector", noise(512, 3), 1),
    ] {
        let (_place, out, sealed) = judged(&bytes);
        assert_eq!(sealed.stored_chunks(), stored, "{what}");
        assert_eq!(sealed.chunks.len(), bytes.len().div_ceil(CHUNK), "{what}");
        let mut read = vec![0; bytes.len()];
        image(&out).read_at(0, &mut read).unwrap();
        assert!(read == bytes, "{what}: kiln reads other bytes than it was given");
    }
}

#[test]
fn fills_up_a_raw_disk_of_odd_length_to_whole_sectors() {
    let (_place, out, sealed) = judged(&noise(MIB + 100, 4));
    assert_eq!(sealed.size, (MIB + 512) as u64);
    let mut last = [1; 412];
    image(&out).read_at((MIB + 100) as u64, &mut last).unwrap();
    assert_eq!(last, [0; 412]);
}

#[test]
fn spans_several_tables_with_holes_between() {
    let place = tempfile::tempdir().unwrap();
    let (raw, out) = (place.path().join("disk.raw"), place.path().join("disk.qcow2"));
    let file = File::create(&raw).unwrap();
    file.set_len(3 << 30).unwrap();
    file.write_all_at(&noise(MIB, 5), 0).unwrap();
    file.write_all_at(&noise(MIB, 6), (512 << 20) - 4096).unwrap();
    file.write_all_at(b"end", (3 << 30) - 3).unwrap();
    seal_with(&[DiskFile::raw(&raw)], &out, 2);
    run("qemu-img", &["check", "-f", "qcow2", text(&out)]);
    run("qemu-img", &["compare", "-f", "raw", "-F", "qcow2", text(&raw), text(&out)]);
}

#[test]
fn the_same_guest_bytes_give_the_same_file_however_the_source_is_laid_out() {
    let place = tempfile::tempdir().unwrap();
    let at = |name: &str| place.path().join(name);
    let bytes = mixed(16 * MIB);
    sparse(&at("sparse.raw"), &bytes);
    fs::write(at("full.raw"), &bytes).unwrap();
    for (name, options) in [
        ("plain.qcow2", &["-o", "cluster_size=4k"][..]),
        ("zlib.qcow2", &["-c"]),
        ("zstd.qcow2", &["-c", "-o", "compression_type=zstd"]),
        ("v2.qcow2", &["-o", "compat=0.10"]),
    ] {
        let (from, to) = (at("full.raw"), at(name));
        run("qemu-img", &[&["convert", "-f", "raw", "-O", "qcow2"], options, &[text(&from), text(&to)]].concat());
    }
    // An overlay whose base holds other bytes in two places, one of them zero in the overlay.
    let mut base = bytes.clone();
    base[2 * MIB..2 * MIB + 9].copy_from_slice(b"old bytes");
    base[15 * MIB..16 * MIB].fill(9);
    fs::write(at("base.raw"), &base[..15 * MIB + MIB / 2]).unwrap();
    run(
        "qemu-img",
        &[
            "convert",
            "-c",
            "-f",
            "raw",
            "-O",
            "qcow2",
            "-o",
            "compression_type=zstd",
            text(&at("base.raw")),
            text(&at("base.qcow2")),
        ],
    );
    for (name, base, format) in [("on-raw.qcow2", "base.raw", "raw"), ("on-zstd.qcow2", "base.qcow2", "qcow2")] {
        let overlay = at(name);
        run("qemu-img", &["create", "-q", "-f", "qcow2", "-F", format, "-b", text(&at(base)), text(&overlay), "16M"]);
        fs::write(at("tail"), &bytes[15 * MIB..]).unwrap();
        let write = format!("write -q -s {} 15M 1M", text(&at("tail")));
        run("qemu-io", &["-f", "qcow2", "-c", "write -q -z 2M 64k", "-c", &write, text(&overlay)]);
    }
    let first = seal_with(&[DiskFile::raw(at("sparse.raw"))], &at("first.out"), 1);
    for (name, layers) in [
        ("full.raw", vec![DiskFile::raw(at("full.raw"))]),
        ("plain.qcow2", vec![DiskFile::qcow2(at("plain.qcow2"))]),
        ("zlib.qcow2", vec![DiskFile::qcow2(at("zlib.qcow2"))]),
        ("zstd.qcow2", vec![DiskFile::qcow2(at("zstd.qcow2"))]),
        ("v2.qcow2", vec![DiskFile::qcow2(at("v2.qcow2"))]),
        ("on-raw.qcow2", vec![DiskFile::qcow2(at("on-raw.qcow2")), DiskFile::raw(at("base.raw"))]),
        ("on-zstd.qcow2", vec![DiskFile::qcow2(at("on-zstd.qcow2")), DiskFile::qcow2(at("base.qcow2"))]),
        ("its own result", vec![DiskFile::qcow2(at("first.out"))]),
    ] {
        let again = seal_with(&layers, &at("again.out"), 3);
        assert_eq!(again, first, "{name}");
        fs::remove_file(at("again.out")).unwrap();
    }
}

#[test]
fn refuses_a_base_whose_header_names_another_file() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("evil.qcow2");
    run("qemu-img", &["create", "-q", "-f", "qcow2", "-F", "raw", "-b", "/etc/passwd", "-u", text(&path), "1M"]);
    let refused = GuestDisk::open(&[DiskFile::qcow2(&path)]).unwrap_err();
    assert!(
        matches!(&refused, Error::Refused { source, .. } if source.field() == Some("backing_file_offset")),
        "{refused:?}"
    );
}

#[test]
fn never_follows_the_backing_file_of_an_overlay() {
    let place = tempfile::tempdir().unwrap();
    let (path, base) = (place.path().join("overlay.qcow2"), place.path().join("base.raw"));
    File::create(&base).unwrap().set_len(MIB as u64).unwrap();
    run("qemu-img", &["create", "-q", "-f", "qcow2", "-F", "raw", "-b", "/etc/passwd", "-u", text(&path), "1M"]);
    let disk = GuestDisk::open(&[DiskFile::qcow2(&path), DiskFile::raw(&base)]).unwrap();
    let mut bytes = vec![1; MIB];
    disk.read_at(0, &mut bytes).unwrap();
    assert!(bytes.iter().all(|byte| *byte == 0));
}

#[test]
fn takes_a_raw_disk_with_a_qcow2_header_for_what_it_was_said_to_be() {
    let mut bytes = mixed(8 * MIB);
    bytes[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
    judged(&bytes);
}

#[test]
fn writes_raw_files_that_hold_the_same_bytes() {
    let bytes = mixed(16 * MIB + 4096);
    let (place, out, sealed) = judged(&bytes);
    let watch = Watch { progress: &|_, _| {}, cancelled: &|| false };
    let raw = place.path().join("out.raw");
    let record = write_raw(&image(&out), &raw, &watch).unwrap();
    assert!(fs::read(&raw).unwrap() == bytes);
    assert_eq!(record.sha256, kiln_core::Digest::of(&bytes));
    let compressed = place.path().join("out.raw.zst");
    let file = FileBytes::new(File::open(&out).unwrap()).unwrap();
    let record = write_raw_zst(&file, &sealed, &compressed, &watch).unwrap();
    assert_eq!(record.bytes, fs::metadata(&compressed).unwrap().len());
    assert!(run("zstd", &["-dc", text(&compressed)]) == bytes);
    assert!(matches!(write_raw(&image(&out), &raw, &watch), Err(Error::Exists { .. })));
}

#[test]
fn a_verified_reader_notices_one_altered_byte() {
    let bytes = noise(2 * MIB, 8);
    let (_place, out, sealed) = judged(&bytes);
    let verified = Verified::new(image(&out), &sealed.chunks);
    let mut read = vec![0; MIB];
    verified.read_at(1000, &mut read).unwrap();
    assert!(read == bytes[1000..1000 + MIB]);
    // In the stored bytes of the frame of chunk 5, which are not compressed as they cannot be.
    let (_, offset, _) = sealed.frames().nth(5).unwrap();
    let file = File::options().write(true).open(&out).unwrap();
    file.write_all_at(&[!bytes[5 * CHUNK + 90]], offset + 100).unwrap();
    let verified = Verified::new(image(&out), &sealed.chunks);
    assert!(verified.read_at(4 * CHUNK as u64, &mut read[..CHUNK]).is_ok());
    assert!(verified.read_at(5 * CHUNK as u64, &mut read[..1]).is_err());
}

#[test]
fn stops_when_cancelled_and_leaves_nothing() {
    let place = tempfile::tempdir().unwrap();
    let raw = place.path().join("disk.raw");
    fs::write(&raw, noise(16 * MIB, 9)).unwrap();
    let disk = GuestDisk::open(&[DiskFile::raw(&raw)]).unwrap();
    let seen = std::sync::atomic::AtomicU64::new(0);
    let options = Options {
        progress: &|done, _| seen.store(done, std::sync::atomic::Ordering::Relaxed),
        cancelled: &|| seen.load(std::sync::atomic::Ordering::Relaxed) > 0,
        ..Options::default()
    };
    assert!(matches!(seal(&disk, &place.path().join("out.qcow2"), &options), Err(Error::Cancelled)));
    let left: Vec<_> = fs::read_dir(place.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["disk.raw"]);
}

#[test]
fn never_overwrites_an_image() {
    let place = tempfile::tempdir().unwrap();
    let raw = place.path().join("disk.raw");
    fs::write(&raw, noise(MIB, 10)).unwrap();
    let disk = GuestDisk::open(&[DiskFile::raw(&raw)]).unwrap();
    assert!(matches!(seal(&disk, &raw, &Options::default()), Err(Error::Exists { .. })));
}

/// 10 GiB of zeros are a qcow2 of 200 kB; sealing must look at the map, not at the bytes.
#[test]
fn does_not_expand_a_bomb_of_zeros() {
    let place = tempfile::tempdir().unwrap();
    let (bomb, out) = (place.path().join("bomb.qcow2"), place.path().join("out.qcow2"));
    run("qemu-img", &["create", "-q", "-f", "qcow2", text(&bomb), "10G"]);
    let sealed = seal_with(&[DiskFile::qcow2(&bomb)], &out, 1);
    assert_eq!((sealed.size, sealed.stored_chunks()), (10 << 30, 0));
    assert!(sealed.bytes < MIB as u64);
    run("qemu-img", &["check", "-f", "qcow2", text(&out)]);
}

/// A petabyte in a small file.
#[test]
fn refuses_a_virtual_size_beyond_reason() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("petabyte.qcow2");
    run("qemu-img", &["create", "-q", "-f", "qcow2", "-o", "cluster_size=2M", text(&path), "1P"]);
    let refused = GuestDisk::open(&[DiskFile::qcow2(&path)]).unwrap_err();
    assert!(matches!(&refused, Error::Refused { source, .. } if source.field() == Some("size")), "{refused:?}");
}

#[test]
fn refuses_internal_snapshots_and_encryption() {
    let place = tempfile::tempdir().unwrap();
    let (snapshots, encrypted) = (place.path().join("snapshots.qcow2"), place.path().join("encrypted.qcow2"));
    run("qemu-img", &["create", "-q", "-f", "qcow2", text(&snapshots), "1M"]);
    run("qemu-img", &["snapshot", "-c", "first", text(&snapshots)]);
    // LUKS would measure the processor first, and fail where that is busy.
    let secret = ["--object", "secret,id=key,data=secret", "-o", "encrypt.format=aes,encrypt.key-secret=key"];
    run("qemu-img", &[&["create", "-q", "-f", "qcow2"], &secret[..], &[text(&encrypted), "1M"]].concat());
    for (path, field) in [(snapshots, "nb_snapshots"), (encrypted, "crypt_method")] {
        let refused = GuestDisk::open(&[DiskFile::qcow2(&path)]).unwrap_err();
        assert!(matches!(&refused, Error::Refused { source, .. } if source.field() == Some(field)), "{refused:?}");
    }
}
