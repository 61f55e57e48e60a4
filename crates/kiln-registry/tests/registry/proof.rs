//! Signed statements: what is proven, and each way in which it is not. Every altered thing is refused with its own words.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use kiln_core::Digest;
use kiln_io::{guest::Quiet, signing::SigningKey};
use kiln_registry::{
    KeyStore, KeysError, Record, Registry, RegistryError, Trust, Unproven,
    proof::{LOCAL_BUILDER, PROVENANCE, SBOM, envelope::Envelope},
};
use serde_json::{Value, json};

use crate::support::{Scratch, artifact, fixed, intent, select};
use crate::system::System;

fn store(scratch: &Scratch) -> KeyStore {
    KeyStore::new(scratch.0.join("keys"))
}

/// A registry that signs with the key of `keys` and believes what they believe.
fn open(scratch: &Scratch, keys: &KeyStore) -> Registry {
    let registry = scratch.registry().trusting(keys.trust().unwrap());
    match keys.signer().unwrap() {
        Some(key) => registry.signing(key),
        None => registry,
    }
}

/// `web` 1.0.0 of a small Debian, signed.
fn signed(scratch: &Scratch) -> (Registry, KeyStore, Record) {
    let keys = store(scratch);
    keys.init("ada@forge", 1).unwrap();
    let registry = open(scratch, &keys);
    let record = System::debian(&scratch.0).publish(&registry, "1.0.0");
    (registry, keys, record)
}

fn refusal(registry: &Registry, record: &Record) -> Unproven {
    match registry.proof(record) {
        Err(RegistryError::Unproven { why, .. }) => *why,
        other => panic!("{other:?}"),
    }
}

/// Stores `bytes` as a blob and gives its descriptor.
fn blob(registry: &Registry, bytes: &[u8], media_type: &str) -> Value {
    let digest = Digest::of(bytes);
    fs::write(registry.blob(&digest), bytes).unwrap();
    json!({ "mediaType": media_type, "digest": digest, "size": bytes.len() })
}

/// The record with another statement of `predicate` in the place of its own: the digests fit, as somebody makes them who can
/// write to the registry.
fn replaced(registry: &Registry, record: &Record, predicate: &str, envelope: &[u8]) -> Record {
    let mut record = record.clone();
    let attestation =
        record.attestations.iter_mut().find(|attestation| attestation.predicate_type == predicate).unwrap();
    let mut manifest: Value =
        serde_json::from_slice(&fs::read(registry.blob(&attestation.manifest.digest)).unwrap()).unwrap();
    manifest["layers"] = json!([blob(registry, envelope, "application/vnd.dsse.envelope.v1+json")]);
    let manifest =
        blob(registry, &serde_json::to_vec(&manifest).unwrap(), "application/vnd.oci.image.manifest.v1+json");
    attestation.manifest = serde_json::from_value(manifest).unwrap();
    record
}

/// The envelope of a statement as it is stored.
fn envelope(registry: &Registry, record: &Record, predicate: &str) -> Value {
    let attestation = record.attestations.iter().find(|attestation| attestation.predicate_type == predicate).unwrap();
    let manifest: Value =
        serde_json::from_slice(&fs::read(registry.blob(&attestation.manifest.digest)).unwrap()).unwrap();
    assert_eq!(manifest["subject"]["digest"], json!(record.manifest.digest), "it refers to the version");
    let layer = manifest["layers"][0]["digest"].as_str().unwrap().parse().unwrap();
    serde_json::from_slice(&fs::read(registry.blob(&layer)).unwrap()).unwrap()
}

fn payload(envelope: &Value) -> Value {
    serde_json::from_slice(&STANDARD.decode(envelope["payload"].as_str().unwrap()).unwrap()).unwrap()
}

/// The statement after `change`, signed with `key`.
fn resigned(
    registry: &Registry,
    record: &Record,
    predicate: &str,
    key: &SigningKey,
    change: impl Fn(&mut Value),
) -> Record {
    let mut statement = payload(&envelope(registry, record, predicate));
    change(&mut statement);
    let bytes = serde_json::to_vec(&statement).unwrap();
    let envelope = Envelope::sign("application/vnd.in-toto+json", &bytes, key).unwrap();
    replaced(registry, record, predicate, &serde_json::to_vec(&envelope).unwrap())
}

#[test]
fn a_signed_version_is_proven_with_its_packages_and_how_it_was_made() {
    let scratch = Scratch::new("proof-signed");
    let (registry, keys, record) = signed(&scratch);
    let proof = registry.proof(&record).unwrap();
    assert_eq!(proof.key, keys.trust().unwrap().keys()[0]);
    assert_eq!(proof.provenance.run_details.builder.id, LOCAL_BUILDER);
    assert_eq!(proof.provenance.run_details.metadata.finished_on, "1970-01-01T00:00:01Z");
    assert_eq!(proof.sbom.unwrap().packages().count(), 3);
    let statement = payload(&envelope(&registry, &record, PROVENANCE));
    assert_eq!(statement["subject"][0]["name"], "web@1.0.0");
    assert_eq!(statement["subject"][0]["digest"]["kilnDiskV1"], record.artifact.disk.digest.hex());
    assert_eq!(statement["subject"][2]["digest"]["sha256"], record.artifact.files[0].sha256.hex());
    assert!(registry.verify(&|_, _| true).unwrap().findings.is_empty());
    assert_eq!(registry.verify(&|_, _| true).unwrap().unneeded, 0, "statements are needed");
}

#[test]
fn without_a_key_the_statements_are_there_and_prove_nothing() {
    let scratch = Scratch::new("proof-unsigned");
    let registry = scratch.registry();
    let record = System::debian(&scratch.0).publish(&registry, "1.0.0");
    assert!(record.attestations.len() == 2 && record.attestations.iter().all(|attestation| !attestation.signed));
    assert_eq!(refusal(&registry, &record), Unproven::NoTrust);
    let keys = store(&scratch);
    keys.init("ada", 1).unwrap();
    assert_eq!(refusal(&open(&scratch, &keys), &record), Unproven::Unsigned);
    let statement = registry.statement(&record, SBOM).unwrap().unwrap();
    assert_eq!(statement.predicate["components"].as_array().unwrap().len(), 4);
    // Somebody took the statements away.
    let bare = Record { attestations: Vec::new(), ..record };
    assert_eq!(refusal(&open(&scratch, &keys), &bare), Unproven::Unsigned);
}

#[test]
fn a_key_that_nobody_trusts_one_that_is_revoked_and_one_for_another_builder_are_refused() {
    let scratch = Scratch::new("proof-keys");
    let (registry, keys, record) = signed(&scratch);
    let stranger = KeyStore::new(scratch.0.join("stranger"));
    stranger.init("eve", 1).unwrap();
    let elsewhere = registry.clone().trusting(stranger.trust().unwrap());
    assert!(matches!(refusal(&elsewhere, &record), Unproven::UnknownKey { .. }));
    // Rotation keeps what was signed proven; revocation does not.
    let old = keys.trust().unwrap().keys()[0].id;
    keys.rotate("ada@forge", 2).unwrap();
    assert_ne!(keys.signer().unwrap().unwrap().public().id(), old);
    assert_eq!(open(&scratch, &keys).proof(&record).unwrap().key.id, old);
    keys.revoke(&old.hex()[..12], "the laptop was stolen", 3).unwrap();
    match refusal(&open(&scratch, &keys), &record) {
        Unproven::RevokedKey { key, reason, .. } => assert_eq!((key, reason.as_str()), (old, "the laptop was stolen")),
        other => panic!("{other:?}"),
    }
    let mut other = keys.trust().unwrap().keys().to_vec();
    for key in &mut other {
        (key.builders, key.revoked) = (vec!["urn:ci".to_owned()], None);
    }
    assert!(matches!(refusal(&registry.trusting(Trust::of(other)), &record), Unproven::WrongBuilder { .. }));
}

#[test]
fn a_version_of_the_only_key_is_refused_once_that_key_is_revoked() {
    let scratch = Scratch::new("proof-only-key");
    let (registry, keys, record) = signed(&scratch);
    let id = keys.trust().unwrap().keys()[0].id;
    keys.revoke(&id.hex()[..12], "the laptop was stolen", 2).unwrap();
    let trust = keys.trust().unwrap();
    assert!(!trust.is_empty());
    let revoked = registry.trusting(trust.clone());
    assert!(matches!(refusal(&revoked, &record), Unproven::RevokedKey { key, .. } if key == id));
    let bare = Record { attestations: Vec::new(), ..record.clone() };
    assert_eq!(refusal(&revoked, &bare), Unproven::Unsigned);
    // Nor is it taken over from another registry, or its state believed.
    let there = Registry::open(&scratch.0.join("there")).unwrap().trusting(trust);
    let copied = there.copy(&revoked, &record, &fixed("1.0.0"), true, &|_| true);
    assert!(matches!(copied, Err(RegistryError::Unproven { .. })), "{copied:?}");
    let standing = revoked.standing(&record.artifact.image);
    assert!(matches!(standing, Err(RegistryError::State { .. })), "{standing:?}");
}

#[test]
fn what_was_altered_after_it_was_signed_is_refused() {
    let scratch = Scratch::new("proof-altered");
    let (registry, _, record) = signed(&scratch);
    for predicate in [PROVENANCE, SBOM] {
        let original = envelope(&registry, &record, predicate);
        let mut statement = payload(&original);
        statement["predicate"]["note"] = json!("added");
        let mut altered = original.clone();
        altered["payload"] = json!(STANDARD.encode(serde_json::to_vec(&statement).unwrap()));
        let mut retyped = original.clone();
        retyped["payloadType"] = json!("text/plain");
        let mut flipped = original.clone();
        let mut signature = STANDARD.decode(original["signatures"][0]["sig"].as_str().unwrap()).unwrap();
        signature[10] ^= 1;
        flipped["signatures"][0]["sig"] = json!(STANDARD.encode(signature));
        for envelope in [altered, retyped, flipped] {
            let record = replaced(&registry, &record, predicate, &serde_json::to_vec(&envelope).unwrap());
            assert_eq!(refusal(&registry, &record), Unproven::Altered { name: "ada@forge".to_owned() });
        }
    }
}

/// A sound signature of a believed key does not help a statement that is about something else.
#[test]
fn a_statement_about_something_else_is_refused_though_it_is_signed() {
    let scratch = Scratch::new("proof-other");
    let (registry, keys, record) = signed(&scratch);
    let key = keys.signer().unwrap().unwrap();
    let change = |predicate, change: &dyn Fn(&mut Value)| {
        refusal(&registry, &resigned(&registry, &record, predicate, &key, change))
    };
    let wrong = |why| matches!(why, Unproven::WrongSubject(_));
    let other = Digest::of(b"other").hex();
    assert!(wrong(change(PROVENANCE, &|statement| statement["subject"][0]["digest"]["kilnDiskV1"] = json!(other))));
    assert!(wrong(change(PROVENANCE, &|statement| statement["subject"][0]["name"] = json!("web@0.9.0"))));
    assert!(wrong(change(PROVENANCE, &|statement| statement["subject"][1]["digest"]["sha256"] = json!(other))));
    assert!(wrong(change(PROVENANCE, &|statement| statement["subject"][2]["digest"]["sha256"] = json!(other))));
    assert!(wrong(change(PROVENANCE, &|statement| statement["subject"] = json!([]))));
    assert!(wrong(change(PROVENANCE, &|statement| statement["predicateType"] = json!(SBOM))));
    assert!(wrong(change(SBOM, &|statement| statement["_type"] = json!("https://in-toto.io/Statement/v0.1"))));
    let contradicts = |why| matches!(why, Unproven::Contradicts(_));
    let external = "/predicate/buildDefinition/externalParameters";
    let set = |statement: &mut Value, path: &str, value: Value| *statement.pointer_mut(path).unwrap() = value;
    assert!(contradicts(change(PROVENANCE, &|statement| set(statement, &format!("{external}/version"), json!("2")))));
    assert!(contradicts(change(PROVENANCE, &|statement| {
        set(statement, &format!("{external}/recipe"), json!(Digest::of(b"evil")));
    })));
    assert!(contradicts(change(PROVENANCE, &|statement| {
        set(statement, "/predicate/runDetails/metadata/invocationId", json!("b-9"));
    })));
    assert!(contradicts(change(PROVENANCE, &|statement| {
        set(statement, "/predicate/runDetails/byproducts/0/digest/sha256", json!(other));
    })));
    assert!(contradicts(change(SBOM, &|statement| set(statement, "/predicate/components", json!([])))));
    // A parameter that kiln does not know may have changed what was built.
    let unknown = change(PROVENANCE, &|statement| statement.pointer_mut(external).unwrap()["debugShell"] = json!(true));
    assert!(matches!(&unknown, Unproven::Unreadable(why) if why.contains("debugShell")), "{unknown:?}");
    let builder = change(PROVENANCE, &|statement| {
        set(statement, "/predicate/runDetails/builder/id", json!("urn:kiln:builder:worker:v1"));
    });
    assert!(matches!(builder, Unproven::WrongBuilder { .. }), "{builder:?}");
}

/// Cut anywhere, an envelope is refused and nothing panics; what is too long is not read at all.
#[test]
fn cut_huge_and_nonsensical_envelopes_are_refused() {
    let scratch = Scratch::new("proof-hostile");
    let (registry, _, record) = signed(&scratch);
    let whole = serde_json::to_vec(&envelope(&registry, &record, PROVENANCE)).unwrap();
    for length in (0..whole.len()).step_by(97).chain([whole.len() - 1]) {
        let record = replaced(&registry, &record, PROVENANCE, &whole[..length]);
        assert!(matches!(refusal(&registry, &record), Unproven::Unreadable(_)), "{length}");
    }
    let deep = "[".repeat(100_000);
    let many =
        format!(r#"{{"payload":"","payloadType":"","signatures":[{}]}}"#, vec![r#"{"sig":""}"#; 10_000].join(","));
    let base64 = r#"{"payload":"%%%","payloadType":"","signatures":[{"sig":"AAAA"}]}"#;
    for nonsense in [deep.as_str(), &many, base64, "null", "[]", "{}", "\u{0}"] {
        let record = replaced(&registry, &record, PROVENANCE, nonsense.as_bytes());
        assert!(matches!(refusal(&registry, &record), Unproven::Unreadable(_)), "{nonsense:.80}");
    }
    let unsigned = r#"{"payload":"","payloadType":"","signatures":[]}"#;
    let bare = replaced(&registry, &record, PROVENANCE, unsigned.as_bytes());
    assert_eq!(refusal(&registry, &bare), Unproven::Unsigned);
    // The manifest says how long it is; nobody reads to see whether that is true.
    let mut huge = record.clone();
    huge.attestations[0].manifest.size = u64::MAX;
    huge.attestations[1].manifest.size = u64::MAX;
    assert!(matches!(refusal(&registry, &huge), Unproven::Unreadable(_)));
}

#[test]
fn a_damaged_statement_is_set_aside_and_names_the_version() {
    let scratch = Scratch::new("proof-damaged");
    let (registry, _, record) = signed(&scratch);
    let path = registry.blob(&record.attestations[0].manifest.digest);
    let mut bytes = fs::read(&path).unwrap();
    bytes[20] ^= 1;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    fs::write(&path, bytes).unwrap();
    let report = registry.verify(&|_, _| true).unwrap();
    assert_eq!(report.findings[0].harmed, ["web@1.0.0"], "{report:?}");
    assert!(!path.exists(), "it was moved aside");
}

#[test]
fn statements_stay_when_what_nobody_needs_is_removed() {
    let scratch = Scratch::new("proof-prune");
    let (registry, _, _) = signed(&scratch);
    System::debian(&scratch.0.join("two")).publish(&registry, "1.1.0");
    let rules = kiln_registry::Rules { newest: Some(1), days: None, now: 3_000 };
    registry.prune(&rules, &intent("ada")).unwrap();
    let record = registry.record(&select("web@1.1.0")).unwrap();
    assert!(registry.proof(&record).unwrap().sbom.is_some());
    assert_eq!(registry.verify(&|_, _| true).unwrap().unneeded, 0, "those of the removed version are gone");
}

#[test]
fn the_same_disk_published_twice_has_a_statement_for_each_version() {
    let scratch = Scratch::new("proof-twice");
    let (registry, _, first) = signed(&scratch);
    let source = scratch.0.join("baked-1.0.0");
    registry.publish(&Clone::clone(&first.artifact), &source, &fixed("1.0.1"), &Quiet).unwrap();
    let second = registry.record(&select("web@1.0.1")).unwrap();
    registry.proof(&second).unwrap();
    let swapped = Record { attestations: first.attestations.clone(), ..second };
    assert!(matches!(refusal(&registry, &swapped), Unproven::WrongSubject(why) if why == "it is about web@1.0.0"));
}

#[test]
fn a_disk_without_packages_is_proven_without_a_bill_of_materials() {
    let scratch = Scratch::new("proof-no-packages");
    let keys = store(&scratch);
    keys.init("ada", 1).unwrap();
    let registry = open(&scratch, &keys);
    let source = scratch.0.join("baked");
    registry.publish(&artifact(&source, "b-1", "one"), &source, &fixed("1.0.0"), &Quiet).unwrap();
    let record = registry.record(&select("web")).unwrap();
    assert_eq!(registry.proof(&record).unwrap().sbom, None);
}

#[test]
fn keys_are_private_and_what_is_wrong_with_them_is_said() {
    let scratch = Scratch::new("proof-keystore");
    let keys = store(&scratch);
    assert!(keys.signer().unwrap().is_none() && keys.trust().unwrap().is_empty());
    assert!(matches!(keys.rotate("ada", 1), Err(KeysError::NoKey)));
    let key = keys.init("ada", 1).unwrap();
    assert!(matches!(keys.init("ada", 1), Err(KeysError::Exists { .. })));
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&keys.private()), mode(&scratch.0.join("keys"))), (0o600, 0o700));
    fs::set_permissions(keys.private(), fs::Permissions::from_mode(0o644)).unwrap();
    assert!(matches!(keys.signer(), Err(KeysError::Unusable { problem, .. }) if problem.contains("chmod 600")));
    keys.revoke(&key.id.to_string(), "lost", 2).unwrap();
    assert!(!keys.trust().unwrap().is_empty(), "a revoked key still asks for proof");
    let public = kiln_io::signing::VerifyingKey::from_pem(&key.public).unwrap();
    assert!(matches!(keys.trust_key(&public, "ada", &[], 3), Err(KeysError::Revoked { .. })));
    assert!(matches!(keys.revoke("", "x", 2), Err(KeysError::Unknown { .. })));
    for broken in ["", "{", "{\"format\":9,\"keys\":[]}", "{\"format\":1,\"keys\":[{}]}"] {
        fs::write(scratch.0.join("keys/trust.json"), broken).unwrap();
        assert!(matches!(keys.trust(), Err(KeysError::Unusable { .. })), "{broken}");
    }
}

fn promote(registry: &Registry, version: &str) -> Result<kiln_registry::Moved, RegistryError> {
    registry.promote(&select(&format!("web@{version}")), &"stable".parse().unwrap(), None, &intent("ada"))
}

fn problem(outcome: Result<kiln_registry::Moved, RegistryError>) -> String {
    match outcome {
        Err(RegistryError::Restricted { problem, .. }) => problem,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_restricted_channel_takes_only_versions_of_which_everything_holds() {
    let scratch = Scratch::new("proof-restricted");
    let keys = store(&scratch);
    let (image, stable) = ("web".parse().unwrap(), "stable".parse().unwrap());
    let unsigned = scratch.registry();
    let system = System::debian(&scratch.0);
    let tested = |artifact: &mut kiln_core::artifact::Artifact| {
        artifact.times.insert("boot-test".to_owned(), 1);
    };
    system.publish_as(&unsigned, "1.0.0", tested);
    promote(&unsigned, "1.0.0").unwrap();
    keys.init("ada", 1).unwrap();
    let registry = open(&scratch, &keys);
    // It cannot be restricted to what it does not point to.
    let refused = registry.restrict(&image, &stable, true, &intent("ada"));
    assert!(matches!(refused, Err(RegistryError::Restricted { .. })), "{refused:?}");
    system.publish_as(&registry, "1.1.0", tested);
    promote(&registry, "1.1.0").unwrap();
    assert!(registry.restrict(&image, &stable, true, &intent("ada")).unwrap());
    assert!(!registry.restrict(&image, &stable, true, &intent("ada")).unwrap(), "it is already");
    assert!(registry.restricted(&image).unwrap().contains(&stable));

    assert!(problem(promote(&registry, "1.0.0")).contains("it has no signature"));
    assert!(problem(registry.rollback(&image, &stable, None, None, &intent("ada"))).contains("it has no signature"));
    system.publish(&registry, "1.2.0");
    assert_eq!(problem(promote(&registry, "1.2.0")), "the sealed image was not boot-tested");
    system.publish_as(&registry, "1.3.0", |artifact| {
        tested(artifact);
        let (name, on) = ("http".to_owned(), "artifact".to_owned());
        artifact.checks = vec![kiln_core::artifact::CheckRecord { name, on, passed: false, milliseconds: 1 }];
    });
    assert_eq!(problem(promote(&registry, "1.3.0")), "the check `http` did not pass");
    system.publish_as(&registry, "1.4.0", |artifact| {
        tested(artifact);
        let finding = |waived| kiln_core::artifact::FindingRecord {
            id: "H05".to_owned(),
            level: "fail".to_owned(),
            path: "/root".to_owned(),
            detail: String::new(),
            waived,
        };
        artifact.hygiene = vec![finding(Some("known".to_owned())), finding(None)];
    });
    assert_eq!(problem(promote(&registry, "1.4.0")), "the hygiene finding H05 is not waived");
    // Whoever trusts no key cannot move it, and neither can who trusts another.
    system.publish_as(&registry, "1.5.0", tested);
    assert!(problem(promote(&unsigned, "1.5.0")).contains("no key is trusted"));
    assert_eq!(registry.channels(&image).unwrap()[&stable].version.as_str(), "1.1.0", "nothing moved");
    promote(&registry, "1.5.0").unwrap();
    registry.rollback(&image, &stable, None, None, &intent("ada")).unwrap();
    registry.restrict(&image, &stable, false, &intent("ada")).unwrap();
    promote(&registry, "1.2.0").unwrap();
    let history = registry.history(&image, Some(&stable)).unwrap();
    let about = history.iter().filter(|change| change.action.channel().is_none()).count();
    assert_eq!((history.len(), about), (7, 2), "restricting and lifting stand in the history");
}

/// What `kiln pull` and `kiln push` do: the statements come along, byte for byte, and are proven on the other side.
#[test]
fn statements_travel_with_a_version_and_those_of_another_are_refused() {
    let scratch = Scratch::new("proof-travel");
    let (registry, keys, record) = signed(&scratch);
    let there = Registry::open(&scratch.0.join("there")).unwrap().trusting(keys.trust().unwrap());
    let carry = |digest: &Digest| there.receive_bytes(*digest, &fs::read(registry.blob(digest)).unwrap()).unwrap();
    let manifest = fs::read(registry.blob(&record.manifest.digest)).unwrap();
    carry(&record.manifest.digest);
    registry.blobs_of(&manifest).unwrap().iter().for_each(|(digest, _)| carry(digest));
    let mut offer = kiln_registry::Offer {
        manifest: record.manifest.clone(),
        artifact: record.artifact.clone(),
        attestations: record.attestations.clone(),
    };
    let missing = there.enter_offer(&offer, &fixed("1.0.0")).unwrap_err();
    assert!(matches!(missing, RegistryError::Incomplete { .. }), "{missing}");
    registry.statement_blobs(&record.attestations).unwrap().iter().for_each(|(digest, _)| carry(digest));
    let source = scratch.0.join("baked-1.0.0");
    registry.publish(&record.artifact, &source, &fixed("1.0.1"), &Quiet).unwrap();
    let other = registry.record(&select("web@1.0.1")).unwrap();
    registry.statement_blobs(&other.attestations).unwrap().iter().for_each(|(digest, _)| carry(digest));
    offer.attestations.clone_from(&other.attestations);
    let refused = there.enter_offer(&offer, &fixed("1.0.0")).unwrap_err();
    assert!(
        matches!(&refused, RegistryError::Content { problem, .. } if problem == "it is about web@1.0.1"),
        "{refused}"
    );
    assert!(there.record(&select("web")).is_err(), "nothing was published");
    offer.attestations = vec![record.attestations[0].clone(); 17];
    assert!(there.enter_offer(&offer, &fixed("1.0.0")).is_err());
    offer.attestations.clone_from(&record.attestations);
    there.enter_offer(&offer, &fixed("1.0.0")).unwrap();
    let arrived = there.record(&select("web@1.0.0")).unwrap();
    assert_eq!(there.proof(&arrived).unwrap(), registry.proof(&record).unwrap());
    let report = there.verify_version(&arrived, &|_, _| true).unwrap();
    assert!(report.whole == 1 && report.findings.is_empty(), "{report:?}");
    let digest = arrived.attestations[0].manifest.digest;
    assert!(there.naming(&"web".parse().unwrap(), &digest, None).unwrap().is_some(), "a client may fetch it");
}
