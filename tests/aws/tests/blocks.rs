//! Snapshots over the wire: what was written is read back, children inherit, and faults look as AWS's do.

#![expect(clippy::unwrap_used, reason = "tests")]

#[path = "support/wire.rs"]
mod wire;

use std::{collections::BTreeMap, time::Duration};

use base64::{Engine as _, prelude::BASE64_STANDARD as BASE64};
use kiln_aws_tests::{BLOCK, Fake, Fault, Pace, Schedule};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use wire::{REGION, Wire};

/// Numbers that a seed decides (splitmix64).
struct Random(u64);

impl Random {
    fn below(&mut self, end: u32) -> u32 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        u32::try_from(((mixed ^ (mixed >> 27)) >> 32) % u64::from(end)).unwrap()
    }
}

/// A block's bytes, told by one number; 0 is a block of zeros.
fn bytes(of: u8) -> Vec<u8> {
    vec![of; BLOCK]
}

fn linear(written: &BTreeMap<u32, u8>) -> String {
    let digests: Vec<u8> = written.values().flat_map(|of| Sha256::digest(bytes(*of))).collect();
    BASE64.encode(Sha256::digest(digests))
}

fn index(block: &Value) -> u32 {
    u32::try_from(block["BlockIndex"].as_u64().unwrap()).unwrap()
}

/// Writes a snapshot, a child of `parent` if there is one; returns its id.
async fn upload(wire: &Wire, parent: Option<&str>, written: &BTreeMap<u32, u8>) -> String {
    let mut fields = json!({ "VolumeSize": 1 });
    if let Some(parent) = parent {
        fields["ParentSnapshotId"] = parent.into();
    }
    let started = wire.start(fields).await;
    assert_eq!(started["status"], 201, "{started}");
    let id = started["SnapshotId"].as_str().unwrap().to_owned();
    for (index, of) in written {
        assert_eq!(wire.put(&id, *index, bytes(*of)).await, 201);
    }
    assert_eq!(wire.complete(&id, written.len() + 1, &linear(written)).await, 400, "a wrong count");
    assert_eq!(
        wire.complete(&id, written.len(), &linear(&BTreeMap::new())).await,
        if written.is_empty() { 202 } else { 400 }
    );
    if !written.is_empty() {
        assert_eq!(wire.complete(&id, written.len(), &linear(written)).await, 202);
    }
    id
}

#[tokio::test]
async fn random_snapshots_and_their_children_are_read_back_as_they_were_written() {
    for seed in 0..24 {
        let (fake, mut random) = (Fake::start(), Random(seed));
        fake.pace(Pace { page: 3, ..Pace::default() });
        let wire = Wire::to(fake.endpoint());
        // Ids, parents, what each wrote, and what it holds.
        let mut known: Vec<(String, BTreeMap<u32, u8>)> = Vec::new();
        for _ in 0..5 {
            let parent = match random.below(3) {
                0 => None,
                _ if known.is_empty() => None,
                _ => Some(known[random.below(u32::try_from(known.len()).unwrap()) as usize].clone()),
            };
            let count = random.below(6);
            let written: BTreeMap<u32, u8> =
                (0..count).map(|_| (random.below(12) * 186, u8::try_from(random.below(5)).unwrap())).collect();
            let (parent, mut holds) = parent.map_or((None, BTreeMap::new()), |(id, holds)| (Some(id), holds));
            let id = upload(&wire, parent.as_deref(), &written).await;
            holds.extend(written.clone());
            let listed = wire.pages(&format!("/snapshots/{id}/blocks"), "Blocks").await;
            assert_eq!(
                listed.iter().map(index).collect::<Vec<_>>(),
                holds.keys().copied().collect::<Vec<_>>(),
                "seed {seed}"
            );
            for block in &listed {
                let (index, token) = (index(block), block["BlockToken"].as_str().unwrap());
                assert_eq!(wire.block(&id, index, token).await, bytes(holds[&index]), "seed {seed}, block {index}");
            }
            if let Some(parent) = parent {
                let path = format!("/snapshots/{id}/changedblocks?firstSnapshotId={parent}");
                let changed = wire.pages(&path, "ChangedBlocks").await;
                assert_eq!(changed.iter().map(index).collect::<Vec<_>>(), written.keys().copied().collect::<Vec<_>>());
            }
            known.push((id, holds));
        }
        // What is later written to children does not change their parents.
        for (id, holds) in &known {
            for at in 0..12 {
                // Elsewhere an encrypted volume would have noise.
                let Some(held) = holds.get(&(at * 186)) else { continue };
                assert_eq!(fake.block(REGION, Fake::ACCOUNT, id, at * 186).unwrap()[7], *held);
            }
        }
    }
}

#[tokio::test]
async fn an_encrypted_snapshot_is_noise_where_nothing_was_written() {
    let fake = Fake::start();
    let wire = Wire::to(fake.endpoint());
    let started = wire.start(json!({ "VolumeSize": 1, "Encrypted": true })).await;
    let id = started["SnapshotId"].as_str().unwrap();
    assert_eq!(wire.put(id, 5, bytes(0)).await, 201);
    assert_eq!(fake.block(REGION, Fake::ACCOUNT, id, 5).unwrap(), bytes(0));
    let unwritten = fake.block(REGION, Fake::ACCOUNT, id, 6).unwrap();
    assert!(unwritten.iter().any(|byte| *byte != 0) && unwritten.len() == BLOCK);
    assert_eq!(fake.block(REGION, Fake::ACCOUNT, id, 2048), None);
}

#[tokio::test]
async fn what_nobody_writes_to_for_an_hour_is_given_up() {
    let fake = Fake::start();
    let wire = Wire::to(fake.endpoint());
    let id = wire.start(json!({ "VolumeSize": 1 })).await["SnapshotId"].as_str().unwrap().to_owned();
    fake.advance(Duration::from_secs(3500));
    assert_eq!(wire.put(&id, 0, bytes(1)).await, 201);
    fake.advance(Duration::from_secs(3500));
    assert_eq!(wire.put(&id, 1, bytes(1)).await, 201);
    fake.advance(Duration::from_secs(3700));
    assert_eq!(wire.put(&id, 2, bytes(1)).await, 400);
    let (_, described) = wire.ec2("DescribeSnapshots", &[("SnapshotId.1", &id)]).await.unwrap();
    assert!(described.contains("<status>error</status>"), "{described}");
}

const GROUP: [(&str, &str); 2] = [("GroupName", "bake"), ("GroupDescription", "a")];

fn groups(fake: &Fake) -> usize {
    fake.living().iter().filter(|living| living.kind == "security-group").count()
}

#[tokio::test]
async fn each_fault_is_heard_as_aws_says_it_and_does_what_it_says() {
    // The fault, what the client hears (nothing for a cut connection), and whether the action was done.
    let cases = [
        (Fault::Throttle, Some((503, "RequestLimitExceeded")), false),
        (Fault::Internal, Some((500, "InternalError")), false),
        (Fault::InternalAfter, Some((500, "InternalError")), true),
        (Fault::ExpiredToken, Some((400, "RequestExpired")), false),
        (Fault::AccessDenied, Some((403, "UnauthorizedOperation")), false),
        (Fault::NoCapacity, Some((500, "InsufficientInstanceCapacity")), false),
        (Fault::Cut, None, false),
        (Fault::LoseReply, None, true),
    ];
    for (fault, heard, done) in cases {
        let fake = Fake::start();
        fake.schedule(Schedule::new().at("CreateSecurityGroup", 1, fault.clone()));
        let wire = Wire::to(fake.endpoint());
        let answer = wire.ec2("CreateSecurityGroup", &GROUP).await;
        match (answer, heard) {
            (Ok((status, body)), Some((wanted, code))) => {
                assert_eq!(status, wanted, "{fault:?}");
                assert!(body.contains(&format!("<Code>{code}</Code>")), "{body}");
            }
            (Err(_), None) => {}
            (answer, heard) => panic!("{fault:?}: {answer:?} and not {heard:?}"),
        }
        assert_eq!(groups(&fake), usize::from(done), "{fault:?}");
        let ledger = fake.ledger();
        assert_eq!((ledger[0].fault.clone(), ledger[0].created.len()), (Some(fault.clone()), usize::from(done)));
        let again = wire.ec2("CreateSecurityGroup", &GROUP).await.unwrap();
        assert_eq!(
            again.0,
            if done { 400 } else { 200 },
            "{fault:?}: the next call meets none, and perhaps a duplicate"
        );
    }
}

#[tokio::test]
async fn what_was_created_is_found_late_and_once_too_early() {
    let fake = Fake::start();
    fake.pace(Pace { hidden: 2, flapping: true, ..Pace::default() });
    let wire = Wire::to(fake.endpoint());
    wire.ec2("CreateSecurityGroup", &GROUP).await.unwrap();
    let id = fake.living()[0].id.clone();
    let mut seen = Vec::new();
    for _ in 0..6 {
        seen.push(wire.ec2("DescribeSecurityGroups", &[("GroupId.1", &id)]).await.unwrap().0);
    }
    assert_eq!(seen, [400, 400, 200, 400, 200, 200]);
}

#[tokio::test]
async fn an_image_is_pending_for_a_while_or_for_ever_or_fails() {
    for (fault, states) in [
        (None, ["pending", "pending", "available"]),
        (Some(Fault::Stuck), ["pending"; 3]),
        (Some(Fault::Fails), ["pending", "pending", "failed"]),
    ] {
        let fake = Fake::start();
        let wire = Wire::to(fake.endpoint());
        let snapshot = upload(&wire, None, &BTreeMap::from([(0, 1)])).await;
        fake.pace(Pace { pending: 2, ..Pace::default() });
        if let Some(fault) = fault {
            fake.schedule(Schedule::new().at("RegisterImage", 1, fault));
        }
        let device = [
            ("Name", "web"),
            ("VirtualizationType", "hvm"),
            ("RootDeviceName", "xvda"),
            ("BlockDeviceMapping.1.DeviceName", "xvda"),
            ("BlockDeviceMapping.1.Ebs.SnapshotId", &snapshot),
        ];
        assert_eq!(wire.ec2("RegisterImage", &device).await.unwrap().0, 200);
        for wanted in states {
            let (_, body) = wire.ec2("DescribeImages", &[("Owner.1", "self")]).await.unwrap();
            assert!(body.contains(&format!("<imageState>{wanted}</imageState>")), "{wanted}: {body}");
        }
    }
}

#[tokio::test]
async fn nothing_is_ignored_in_silence() {
    let fake = Fake::start();
    let wire = Wire::to(fake.endpoint());
    for (action, fields, code) in [
        ("CreateFleet", &[][..], "InvalidAction"),
        ("DescribeImages", &[("Colour", "red")][..], "UnknownParameter"),
        ("DescribeImages", &[("Filter.1.Name", "colour"), ("Filter.1.Value.1", "red")][..], "InvalidParameterValue"),
    ] {
        let (status, body) = wire.ec2(action, fields).await.unwrap();
        assert!(status == 400 && body.contains(code), "{body}");
    }
}
