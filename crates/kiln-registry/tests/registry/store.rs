//! What is stored of a version, judged by the real `qemu-img` and the real `zstd`; and what becomes of damage.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use kiln_core::Digest;
use kiln_disk::{
    DiskFile, GuestDisk,
    seal::{LEVEL, Options, seal},
};
use kiln_io::guest::Quiet;
use kiln_registry::{Record, Registry, RegistryError};

use crate::support::{Scratch, artifact, disk, fixed, sealed, sealed_file, select};

#[expect(clippy::disallowed_methods, reason = "the judges are programs")]
fn judge(program: &str, arguments: &[&str]) -> Vec<u8> {
    let output = Command::new(program).args(arguments).output().unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(output.status.success(), "{program} {arguments:?}: {output:?}");
    output.stdout
}

/// Publishes a disk as `version`, sealed with `level`.
fn publish(scratch: &Scratch, version: &str, bytes: &[u8], level: i32) -> (Record, u64) {
    let source = scratch.0.join(format!("baked-{version}"));
    let artifact = sealed(&source, version, bytes, level);
    let registry = scratch.registry();
    let published = registry.publish(&artifact, &source, &fixed(version), &Quiet).unwrap();
    (registry.record(&select(&format!("web@{version}"))).unwrap(), published.new_bytes)
}

fn exported(registry: &Registry, record: &Record, format: &str, to: &Path) -> Vec<u8> {
    let _ = fs::remove_file(to);
    let length = registry.export(record, format, to, &|_| true).unwrap();
    let bytes = fs::read(to).unwrap();
    assert_eq!(length, bytes.len() as u64, "{format}");
    if let Some(recorded) = record.file(format) {
        assert_eq!((recorded.bytes, recorded.sha256), (length, Digest::of(&bytes)), "{format}");
    }
    bytes
}

/// Bytes of the statements about a version, but for the empty config that all of them share.
fn said(registry: &Registry, record: &Record) -> u64 {
    let blobs = registry.statement_blobs(&record.attestations).unwrap();
    blobs.iter().filter(|(digest, _)| *digest != Digest::of(b"{}")).map(|(_, size)| size).sum()
}

/// The layers of a version, one behind the other, as a client that knows nothing of kiln sees them.
fn layers(registry: &Registry, record: &Record) -> Vec<u8> {
    let manifest = fs::read(registry.blob(&record.manifest.digest)).unwrap();
    let manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
    assert_eq!(manifest["mediaType"], "application/vnd.oci.image.manifest.v1+json");
    assert_eq!(manifest["artifactType"], "application/vnd.kiln.machine-image.v1");
    let layers = manifest["layers"].as_array().unwrap();
    layers
        .iter()
        .flat_map(|layer| fs::read(registry.blob(&layer["digest"].as_str().unwrap().parse().unwrap())).unwrap())
        .collect()
}

/// Everything that leaves the registry is the disk that went in.
fn same_disk(scratch: &Scratch, record: &Record, bytes: &[u8]) {
    let registry = scratch.registry();
    let (raw, qcow2) = (scratch.0.join("expected.raw"), scratch.0.join("out.qcow2"));
    fs::write(&raw, bytes).unwrap();
    let (raw, qcow2) = (raw.to_str().unwrap(), qcow2.to_str().unwrap());
    let first = exported(&registry, record, "qcow2", Path::new(qcow2));
    judge("qemu-img", &["check", "-f", "qcow2", qcow2]);
    judge("qemu-img", &["compare", "-f", "raw", "-F", "qcow2", raw, qcow2]);
    assert!(exported(&registry, record, "qcow2", &scratch.0.join("again.qcow2")) == first);
    assert!(exported(&registry, record, "raw", &scratch.0.join("out.raw")) == bytes);
    let compressed = scratch.0.join("out.raw.zst");
    exported(&registry, record, "raw.zst", &compressed);
    assert!(judge("zstd", &["-dc", compressed.to_str().unwrap()]) == bytes);
    let concatenated = scratch.0.join("layers.zst");
    fs::write(&concatenated, layers(&registry, record)).unwrap();
    let restored = judge("zstd", &["-dc", concatenated.to_str().unwrap()]);
    assert_eq!(restored.len(), bytes.len().next_multiple_of(1 << 16), "filled up to whole chunks");
    assert!(restored[..bytes.len()] == *bytes && restored[bytes.len()..].iter().all(|byte| *byte == 0));
}

#[test]
fn what_comes_out_is_the_disk_that_went_in_for_every_judge() {
    let odd = disk("odd")[..(8 << 20) + 4096 + 512].to_vec();
    for (number, bytes) in [disk("one"), odd, vec![0; 5 << 20], vec![7; 512]].iter().enumerate() {
        let scratch = Scratch::new(&format!("judged-{number}"));
        let (record, _) = publish(&scratch, "1.0.0", bytes, LEVEL);
        same_disk(&scratch, &record, bytes);
    }
}

#[test]
fn a_changed_file_stores_its_segment_and_nothing_else() {
    let scratch = Scratch::new("delta");
    let (first, all) = publish(&scratch, "1.0.0", &disk("one"), LEVEL);
    let (second, new) = publish(&scratch, "1.1.0", &disk("two"), LEVEL);
    let registry = scratch.registry();
    let (before, after) = (registry.content(&first).unwrap(), registry.content(&second).unwrap());
    let same: Vec<_> = before.segments.iter().zip(&after.segments).map(|(a, b)| a.blob == b.blob).collect();
    assert_eq!(same, [false, true, true]);
    let manifest = &second.manifest;
    let config = registry.blob(&manifest.digest);
    let config: serde_json::Value = serde_json::from_slice(&fs::read(config).unwrap()).unwrap();
    let records = manifest.size + config["config"]["size"].as_u64().unwrap();
    assert_eq!(new, after.segments[0].blob.size + records + said(&registry, &second), "of {all}");
    let (third, little) = publish(&scratch, "1.2.0", &disk("two"), LEVEL);
    assert_eq!(
        little,
        said(&registry, &third),
        "the same disk under another version costs a record and what is said about it"
    );
    same_disk(&scratch, &first, &disk("one"));
}

#[test]
fn frames_of_another_compressor_are_kept_and_the_qcow2_is_the_one_that_is_recorded() {
    let scratch = Scratch::new("reframed");
    let (first, _) = publish(&scratch, "1.0.0", &disk("one"), 9);
    let offered = sealed(&scratch.0.join("offered"), "b", &disk("two"), 1);
    let (second, _) = publish(&scratch, "1.1.0", &disk("two"), 1);
    let registry = scratch.registry();
    let (before, after) = (registry.content(&first).unwrap(), registry.content(&second).unwrap());
    assert_eq!(before.segments[2], after.segments[2]);
    let kept = before.chunks().zip(after.chunks()).filter(|(old, new)| old == new).count();
    assert_eq!(kept, before.chunks().count() - 1, "every chunk but the changed one has its old frame");
    assert_ne!(second.file("qcow2"), offered.files.first(), "other frames make another qcow2");
    assert_eq!(second.artifact.disk, offered.disk);
    same_disk(&scratch, &second, &disk("two"));
}

#[test]
fn what_the_version_before_has_is_sealed_with_its_frames_and_a_bad_blob_is_no_obstacle() {
    let scratch = Scratch::new("frames");
    // Frames of another level, so that it shows whose they are.
    let (first, _) = publish(&scratch, "1.0.0", &disk("one"), 9);
    let registry = scratch.registry();
    let raw = scratch.0.join("next.raw");
    fs::write(&raw, disk("two")).unwrap();
    let seal_next = |name: &str| {
        let before = registry.frames(&first).unwrap().unwrap();
        let disk = GuestDisk::open(&[DiskFile::raw(&raw)]).unwrap();
        let options = Options { before: Some(&before), ..Options::default() };
        seal(&disk, &scratch.0.join(name), &options).unwrap()
    };
    let plain = sealed(&scratch.0.join("plain"), "b-2", &disk("two"), LEVEL);
    let next = seal_next("next.qcow2");
    assert_eq!(next.disk_digest, plain.disk.digest);
    judge("qemu-img", &["check", "-f", "qcow2", scratch.0.join("next.qcow2").to_str().unwrap()]);
    let ends = [raw.to_str().unwrap(), scratch.0.join("next.qcow2").to_str().unwrap()].map(str::to_owned);
    judge("qemu-img", &["compare", "-f", "raw", "-F", "qcow2", &ends[0], &ends[1]]);
    let before = registry.content(&first).unwrap();
    let others = before.chunks().zip(&next.chunks).filter(|(old, new)| old != new).count();
    assert_eq!(others, 1, "only the changed chunk was compressed");

    // Published, it keeps those frames, and says whose they are.
    let source = scratch.0.join("baked-next");
    let mut artifact = sealed(&source, "b-3", &disk("two"), LEVEL);
    fs::rename(scratch.0.join("next.qcow2"), source.join("web.qcow2")).unwrap();
    (artifact.files[0].bytes, artifact.files[0].sha256) = (next.bytes, next.qcow2);
    registry.publish(&artifact, &source, &fixed("1.1.0"), &Quiet).unwrap();
    let second = registry.record(&select("web@1.1.0")).unwrap();
    assert_eq!(second.file("qcow2"), artifact.files.first());
    same_disk(&scratch, &second, &disk("two"));

    for segment in &before.segments {
        fs::write(registry.blob(&segment.blob.digest), vec![0; usize::try_from(segment.blob.size).unwrap()]).unwrap();
    }
    let alone = seal_next("alone.qcow2");
    assert_eq!(Some(alone.qcow2), plain.files.first().map(|file| file.sha256), "all of it was compressed anew");
}

#[test]
fn a_raw_disk_that_no_record_names_is_written_with_its_holes_and_not_from_a_bad_blob() {
    let scratch = Scratch::new("spread");
    let (source, to) = (scratch.0.join("baked"), scratch.0.join("out.raw"));
    let raw = scratch.0.join("any.raw");
    let mut bytes = disk("one");
    bytes.truncate(bytes.len() - 512);
    fs::write(&raw, &bytes).unwrap();
    let artifact = sealed_file(&source, "b-1", &raw, LEVEL);
    let registry = scratch.registry();
    registry.publish(&artifact, &source, &fixed("1.0.0"), &Quiet).unwrap();
    let record = registry.record(&select("web@1.0.0")).unwrap();
    assert!(exported(&registry, &record, "raw", &to) == bytes);
    let segment = &registry.content(&record).unwrap().segments[0];
    let blob = registry.blob(&segment.blob.digest);
    let mut damaged = fs::read(&blob).unwrap();
    damaged[10] ^= 1;
    fs::write(&blob, damaged).unwrap();
    let error = registry.export(&record, "raw", &to, &|_| true).unwrap_err();
    assert!(matches!(error, RegistryError::Damaged { .. }), "{error}");
}

#[test]
fn a_qcow2_that_kiln_did_not_seal_is_refused() {
    let scratch = Scratch::new("foreign-qcow2");
    let source = scratch.0.join("baked");
    let mut foreign = artifact(&source, "b-1", "one");
    let (raw, qcow2) = (source.join("web.raw"), source.join("web.qcow2"));
    for options in [&["-c", "-o", "compression_type=zstd"][..], &["-c"], &[]] {
        let ends = [raw.to_str().unwrap(), qcow2.to_str().unwrap()];
        judge("qemu-img", &[&["convert", "-f", "raw", "-O", "qcow2"], options, &ends].concat());
        let bytes = fs::read(&qcow2).unwrap();
        (foreign.files[0].bytes, foreign.files[0].sha256) = (bytes.len() as u64, Digest::of(&bytes));
        let error = scratch.registry().publish(&foreign, &source, &fixed("1.0.0"), &Quiet).unwrap_err();
        assert!(matches!(error, RegistryError::Disk(_)), "{error}");
    }
}

/// Two versions that share two segments; the path of the blob of segment `number` of the second.
fn two_versions(scratch: &Scratch, number: usize) -> (Record, Record, PathBuf) {
    let (first, _) = publish(scratch, "1.0.0", &disk("one"), LEVEL);
    let (second, _) = publish(scratch, "1.1.0", &disk("two"), LEVEL);
    let blob = scratch.registry().content(&second).unwrap().segments[number].blob.digest;
    let path = scratch.registry().blob(&blob);
    (first, second, path)
}

fn replace(blob: &Path, bytes: &[u8]) {
    fs::remove_file(blob).unwrap();
    fs::write(blob, bytes).unwrap();
}

#[test]
fn a_bad_blob_is_set_aside_named_with_the_versions_it_harms_and_brought_back_by_a_publish() {
    type Spoil = fn(Vec<u8>) -> Option<Vec<u8>>;
    let bad: [(&str, Spoil); 4] = [
        ("flipped", |mut bytes| {
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            Some(bytes)
        }),
        ("truncated", |bytes| Some(bytes[..bytes.len() - 1].to_vec())),
        ("longer", |bytes| Some([bytes, vec![0]].concat())),
        ("missing", |_| None),
    ];
    for (what, spoil) in bad {
        for (number, harms) in [(0, vec!["web@1.1.0"]), (2, vec!["web@1.1.0", "web@1.0.0"])] {
            let scratch = Scratch::new(&format!("bad-{what}-{number}"));
            let (first, second, blob) = two_versions(&scratch, number);
            match spoil(fs::read(&blob).unwrap()) {
                Some(bytes) => replace(&blob, &bytes),
                None => fs::remove_file(&blob).unwrap(),
            }
            let registry = scratch.registry();
            let to = scratch.0.join("out");
            for format in ["qcow2", "raw", "raw.zst"] {
                let error = registry.export(&second, format, &to, &|_| true).unwrap_err();
                let RegistryError::Damaged { harmed, .. } = &error else { panic!("{what}: {error}") };
                assert_eq!(*harmed, harms, "{what}");
                assert!(!to.exists() && !blob.exists(), "{what}: a bad blob is not used and not left");
            }
            let set_aside = fs::read_dir(scratch.0.join("registry/damaged")).into_iter().flatten().flatten();
            let set_aside = set_aside.filter(|entry| entry.file_name() != "lock").count();
            assert_eq!(set_aside, usize::from(what != "missing"), "{what}");
            let other = registry.export(&first, "qcow2", &to, &|_| true);
            assert_eq!(other.is_ok(), number == 0, "{what}: a version that does not need the blob is served");
            let report = registry.verify(&|_, _| true).unwrap();
            assert_eq!((report.versions, report.whole), (2, 2 - harms.len()), "{report:?}");
            publish(&scratch, "1.1.0", &disk("two"), LEVEL);
            assert_eq!(registry.verify(&|_, _| true).unwrap().findings, []);
            same_disk(&scratch, &second, &disk("two"));
        }
    }
}

#[test]
fn one_flipped_bit_in_any_file_of_a_registry_is_noticed() {
    let scratch = Scratch::new("flips");
    let (_, second, _) = two_versions(&scratch, 0);
    let registry = scratch.registry();
    let manifest = registry.blob(&second.manifest.digest);
    let mut blobs: Vec<_> =
        fs::read_dir(manifest.parent().unwrap()).unwrap().map(|entry| entry.unwrap().path()).collect();
    blobs.sort();
    assert!(blobs.len() >= 8, "{blobs:?}");
    for blob in blobs {
        let sound = fs::read(&blob).unwrap();
        for place in [0, sound.len() / 3, sound.len() - 1] {
            let mut bytes = sound.clone();
            bytes[place] ^= 0x10;
            replace(&blob, &bytes);
            let report = registry.verify(&|_, _| true).unwrap();
            assert_eq!(report.findings.len(), 1, "{}: {report:?}", blob.display());
            assert!(!report.findings[0].harmed.is_empty() && report.whole < 2, "{report:?}");
            assert!(!blob.exists());
            fs::write(&blob, &sound).unwrap();
        }
    }
    assert_eq!(registry.verify(&|_, _| true).unwrap().findings, []);
}

/// Puts `manifest` (with its config in place) into the registry as the content of 1.1.0.
fn forge(scratch: &Scratch, manifest: &serde_json::Value, config: &serde_json::Value) -> Record {
    let registry = scratch.registry();
    let mut manifest = manifest.clone();
    let config = serde_json::to_vec(config).unwrap();
    if manifest["config"]["digest"] == "forge" {
        manifest["config"]["digest"] = Digest::of(&config).to_string().into();
        manifest["config"]["size"] = config.len().into();
    }
    let manifest = serde_json::to_vec(&manifest).unwrap();
    for bytes in [&config, &manifest] {
        fs::write(registry.blob(&Digest::of(bytes)), bytes).unwrap();
    }
    let mut record = registry.record(&select("web@1.1.0")).unwrap();
    record.manifest.digest = Digest::of(&manifest);
    record.manifest.size = manifest.len() as u64;
    record
}

#[test]
fn manifests_and_configs_of_a_stranger_are_refused_before_anything_is_made_of_them() {
    type Change = fn(&mut serde_json::Value, &mut serde_json::Value);
    let forgeries: [(&str, Change); 12] = [
        ("another type", |manifest, _| manifest["artifactType"] = "application/x-other".into()),
        ("no layers", |manifest, _| manifest["layers"] = serde_json::json!([])),
        ("one layer too many", |manifest, _| {
            let layer = manifest["layers"][0].clone();
            manifest["layers"].as_array_mut().unwrap().push(layer);
        }),
        ("layers in another order", |manifest, _| manifest["layers"].as_array_mut().unwrap().swap(0, 2)),
        ("a layer of a petabyte", |manifest, _| manifest["layers"][0]["size"] = (1_u64 << 50).into()),
        ("a config of a petabyte", |manifest, config| {
            manifest["config"]["digest"] = Digest::of(&serde_json::to_vec(config).unwrap()).to_string().into();
            manifest["config"]["size"] = (1_u64 << 50).into();
        }),
        ("a disk of an exabyte", |_, config| config["size"] = (1_u64 << 60).into()),
        ("a disk of no bytes", |_, config| config["size"] = 0.into()),
        ("a disk of half a sector", |_, config| config["size"] = ((8 << 20) + 256).into()),
        ("another disk", |_, config| config["disk"] = Digest::of(b"other").to_string().into()),
        ("chunks of garbage", |_, config| config["chunks"][0] = "AAAA".into()),
        ("frames longer than a cluster can hold", |_, config| {
            let text = config["chunks"][0].as_str().unwrap();
            config["chunks"][0] = format!("////{}", &text[4..]).into();
        }),
    ];
    let scratch = Scratch::new("forged");
    let (_, second, _) = two_versions(&scratch, 0);
    let registry = scratch.registry();
    let read = |digest: &Digest| -> serde_json::Value {
        serde_json::from_slice(&fs::read(registry.blob(digest)).unwrap()).unwrap()
    };
    let manifest = read(&second.manifest.digest);
    let config = read(&manifest["config"]["digest"].as_str().unwrap().parse().unwrap());
    let mut open = manifest.clone();
    open["config"]["digest"] = "forge".into();
    registry.content(&forge(&scratch, &open, &config)).unwrap();
    for (what, change) in forgeries {
        let (mut manifest, mut config) = (open.clone(), config.clone());
        change(&mut manifest, &mut config);
        let error = registry.content(&forge(&scratch, &manifest, &config)).unwrap_err();
        assert!(matches!(error, RegistryError::Content { .. }), "{what}: {error}");
    }
}

#[test]
fn a_segment_that_expands_without_end_or_to_other_bytes_is_refused() {
    let scratch = Scratch::new("bomb");
    let (_, second, _) = two_versions(&scratch, 0);
    let registry = scratch.registry();
    let content = registry.content(&second).unwrap();
    let chunks = &content.segments[0].chunks;
    let length: usize = chunks.iter().map(kiln_disk::segment::stored_length).sum();
    // A gigabyte of zeros in 33 kB, cut to the length that the config says; and bytes that are no frame at all.
    let bomb = scratch.0.join("zeros");
    fs::File::create(&bomb).unwrap().set_len(1 << 30).unwrap();
    let bomb = judge("zstd", &["-qc", bomb.to_str().unwrap()]);
    for mut blob in [bomb, vec![0x28; length]] {
        blob.resize(length, 0);
        assert!(kiln_disk::segment::expand(chunks, &blob).is_err());
    }
    assert_eq!(kiln_disk::segment::expand(chunks, &[]).unwrap_err(), 1, "chunk 0 is zeros");
}
