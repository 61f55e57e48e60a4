//! Versions by parts: any byte of their files by its offset, and versions that arrive blob by blob.

use std::fs;

use crate::support::{Scratch, artifact, disk, fixed, sealed, select};
use kiln_core::Digest;
use kiln_io::guest::Quiet;
use kiln_registry::{Offer, Pieces, Record, Registry, RegistryError};

/// `web` 1.0.0 in the registry of `scratch`.
fn published(scratch: &Scratch) -> (Registry, Record) {
    let registry = scratch.registry();
    let artifact = artifact(&scratch.0.join("baked"), "b-1", "one");
    registry.publish(&artifact, &scratch.0.join("baked"), &fixed("1.0.0"), &Quiet).unwrap();
    let record = registry.record(&select("web@1.0.0")).unwrap();
    (registry, record)
}

#[test]
fn every_byte_of_every_form_is_found_by_its_offset() {
    let scratch = Scratch::new("offsets");
    let registry = scratch.registry();
    // A disk of whole chunks, and one that ends in the middle of a chunk.
    let uneven = [disk("two"), vec![9; 512]].concat();
    for (number, bytes) in [disk("one"), uneven].iter().enumerate() {
        let directory = scratch.0.join(format!("baked{number}"));
        let artifact = sealed(&directory, &format!("b-{number}"), bytes, kiln_disk::seal::LEVEL);
        registry.publish(&artifact, &directory, &fixed(&format!("{number}.0")), &Quiet).unwrap();
        let record = registry.record(&select(&format!("web@{number}.0"))).unwrap();
        for form in ["qcow2", "raw", "raw.zst"] {
            let file = scratch.0.join(format!("{number}.{form}"));
            registry.export(&record, form, &file, &|_| true).unwrap();
            let expected = fs::read(&file).unwrap();
            let view = registry.view(&record, form).unwrap();
            assert_eq!(view.size(), expected.len() as u64, "{form}");
            let (ahead, mut at) = (Pieces::new(64 << 20), Some(0));
            while let Some(piece) = at {
                view.prepare(piece, &ahead);
                let bytes = view.read(piece, 100, &ahead).unwrap();
                assert!(!bytes.is_empty() && expected[usize::try_from(piece).unwrap()..].starts_with(&bytes), "{form}");
                at = view.next_piece(piece);
                assert!(at.is_none_or(|next| next > piece && next < view.size()), "{form}: {at:?} after {piece}");
            }
            // With room for everything and with room for nothing.
            for (pieces, step) in [(Pieces::new(64 << 20), 9_973), (Pieces::new(0), 1 << 20)] {
                let mut offset = 0;
                while offset < expected.len() {
                    let bytes = view.read(offset as u64, step, &pieces).unwrap();
                    assert!(!bytes.is_empty() && bytes.len() <= step, "{form} at {offset}");
                    assert!(expected[offset..].starts_with(&bytes), "{form} at {offset}");
                    offset += bytes.len();
                }
                assert!(view.read(offset as u64, step, &pieces).unwrap().is_empty(), "{form}");
                assert!(view.read(u64::MAX, step, &pieces).unwrap().is_empty(), "{form}");
            }
        }
        assert!(matches!(registry.view(&record, "vmdk"), Err(RegistryError::UnknownFormat { .. })));
    }
}

#[test]
fn a_bad_blob_gives_no_bytes_and_is_set_aside() {
    let scratch = Scratch::new("rotten");
    let (registry, record) = published(&scratch);
    let view = registry.view(&record, "qcow2").unwrap();
    let blob = registry.blob(&view.content().segments[0].blob.digest);
    let mut bytes = fs::read(&blob).unwrap();
    bytes[1000] ^= 1;
    fs::remove_file(&blob).unwrap();
    fs::write(&blob, bytes).unwrap();
    let read = view.read(65_536, 100, &Pieces::new(0));
    assert!(matches!(read, Err(RegistryError::Damaged { .. })), "{read:?}");
    assert!(!blob.exists());
}

/// Every blob of `record`, with its bytes.
fn blobs(registry: &Registry, record: &Record) -> Vec<(Digest, Vec<u8>)> {
    let manifest = fs::read(registry.blob(&record.manifest.digest)).unwrap();
    let mut blobs: Vec<_> = registry.blobs_of(&manifest).unwrap().into_iter().map(|(digest, _)| digest).collect();
    blobs.push(record.manifest.digest);
    blobs.into_iter().map(|digest| (digest, fs::read(registry.blob(&digest)).unwrap())).collect()
}

#[test]
fn a_version_arrives_blob_by_blob_and_is_the_same() {
    let scratch = Scratch::new("arrives");
    let (from, record) = published(&scratch);
    let to = Registry::open(&scratch.0.join("other")).unwrap();
    let offer =
        Offer { manifest: record.manifest.clone(), artifact: record.artifact.clone(), attestations: Vec::new() };
    let refused = to.enter_offer(&offer, &fixed("1.0.0"));
    assert!(matches!(&refused, Err(RegistryError::Incomplete { missing, .. }) if missing.len() == 1), "{refused:?}");
    for (digest, bytes) in blobs(&from, &record) {
        assert_eq!(to.missing([&(digest, bytes.len() as u64)]), [digest]);
        to.receive_bytes(digest, &bytes).unwrap();
        assert!(to.missing([&(digest, bytes.len() as u64)]).is_empty());
    }
    assert!(!to.enter_offer(&offer, &fixed("1.0.0")).unwrap().already);
    assert!(to.enter_offer(&offer, &fixed("1.0.0")).unwrap().already);
    let file = scratch.0.join("again.qcow2");
    to.export(&to.record(&select("web@1.0.0")).unwrap(), "qcow2", &file, &|_| true).unwrap();
    assert_eq!(Digest::of(&fs::read(file).unwrap()), record.file("qcow2").unwrap().sha256);
    assert!(fs::read_dir(scratch.0.join("other/tmp")).unwrap().all(|entry| entry.unwrap().file_name() == "lock"));
}

#[test]
fn bytes_that_are_not_what_their_name_says_are_not_taken() {
    let scratch = Scratch::new("liar");
    let registry = Registry::open(&scratch.0.join("other")).unwrap();
    let digest = Digest::of(b"what was promised");
    for (size, bytes) in [(17, &b"what was sent ..."[..]), (17, b"short"), (5, b"what was promised")] {
        let mut incoming = registry.receive(digest, size).unwrap();
        let taken = incoming.write(bytes).and_then(|()| incoming.finish());
        assert!(matches!(taken, Err(RegistryError::Altered { .. })), "{taken:?}");
        assert!(!registry.blob(&digest).exists());
    }
    drop(registry.receive(digest, 1 << 20).unwrap());
    let endless = registry.receive(digest, 1 << 60);
    assert!(matches!(endless, Err(RegistryError::Full { .. })), "{endless:?}");
    assert!(fs::read_dir(scratch.0.join("other/tmp")).unwrap().all(|entry| entry.unwrap().file_name() == "lock"));
}

#[test]
fn an_offer_that_contradicts_itself_is_refused() {
    let scratch = Scratch::new("contradicts");
    let (from, record) = published(&scratch);
    let to = Registry::open(&scratch.0.join("other")).unwrap();
    for (digest, bytes) in blobs(&from, &record) {
        to.receive_bytes(digest, &bytes).unwrap();
    }
    let good = Offer { manifest: record.manifest.clone(), artifact: record.artifact.clone(), attestations: Vec::new() };
    let mut cases = vec![good.clone(); 4];
    cases[0].artifact.disk.digest = Digest::of(b"another disk");
    cases[1].artifact.files[0].sha256 = Digest::of(b"another qcow2");
    cases[2].manifest.media_type = "text/plain".to_owned();
    cases[3].artifact.files.clear();
    for (number, case) in cases.iter().enumerate() {
        assert!(to.enter_offer(case, &fixed("1.0.0")).is_err(), "case {number}");
        assert!(to.images().unwrap().is_empty(), "case {number}");
    }
    // A config that lies about a chunk: its own digests agree, the frames do not.
    let manifest = fs::read(from.blob(&record.manifest.digest)).unwrap();
    let text = String::from_utf8(manifest).unwrap();
    let content = from.content(&record).unwrap();
    let swapped =
        text.replacen(&content.segments[0].blob.digest.to_string(), &Digest::of(b"no frames at all").to_string(), 1);
    let blob = vec![0_u8; usize::try_from(content.segments[0].blob.size).unwrap()];
    let swapped = swapped.replace(&Digest::of(b"no frames at all").to_string(), &Digest::of(&blob).to_string());
    to.receive_bytes(Digest::of(&blob), &blob).unwrap();
    to.receive_bytes(Digest::of(swapped.as_bytes()), swapped.as_bytes()).unwrap();
    let mut offer = good.clone();
    offer.manifest.digest = Digest::of(swapped.as_bytes());
    offer.manifest.size = swapped.len() as u64;
    let refused = to.enter_offer(&offer, &fixed("1.0.0"));
    assert!(matches!(refused, Err(RegistryError::Damaged { .. })), "{refused:?}");
    to.enter_offer(&good, &fixed("1.0.0")).unwrap();
}
