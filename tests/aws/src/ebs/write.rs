//! Making a snapshot: start, put, complete.

use base64::{Engine as _, prelude::BASE64_STANDARD as BASE64};
use serde_json::json;
use sha2::{Digest as _, Sha256};

use crate::{
    blocks::{BLOCK, Block, Sha},
    ebs::{index, reply, snapshot, value},
    ec2::{
        snapshots::{Phase, Snapshot},
        tags::check_tags,
        volumes::OWN_KEY,
    },
    json::Fields,
    refusal::Refusal,
    request::Rest,
    server::Answer,
    world::{Stage, World},
};

const LARGEST: u64 = 65_536;
/// Snapshots being written at a time in a region.
const UNFINISHED: usize = 100;

pub(super) fn start(world: &mut World, rest: Rest) -> Result<Answer, Refusal> {
    let input = serde_json::from_slice(&rest.body);
    let mut input = Fields::of(input.map_err(|error| Refusal::client("SerializationException", error.to_string()))?)?;
    rest.query.finish()?;
    let token = input.text("ClientToken")?;
    let request = format!("{input:?}");
    let size = input.number("VolumeSize")?.unwrap_or_default();
    let parent = input.text("ParentSnapshotId")?;
    let description = input.text("Description")?.unwrap_or_default();
    let (encrypted, key) = (input.flag("Encrypted")?, input.text("KmsKeyArn")?);
    let timeout = input.number("Timeout")?.unwrap_or(60);
    let tags = input.tags("Tags")?;
    input.finish()?;
    check_tags(&tags).map_err(|refusal| Refusal::block("INVALID_TAG", refusal.message))?;
    if !(1..=LARGEST).contains(&size) {
        return Err(Refusal::block("INVALID_VOLUME_SIZE", format!("The volume size {size} GiB is not valid.")));
    }
    if !(10..=4320).contains(&timeout) {
        return Err(value(format!("The timeout of {timeout} minutes is not valid.")));
    }
    if parent.is_some() && (encrypted.is_some() || key.is_some()) {
        return Err(value("Encrypted and KmsKeyArn cannot be specified together with ParentSnapshotId."));
    }
    if key.is_some() && encrypted != Some(true) {
        return Err(Refusal::block("INVALID_CUSTOMER_KEY", "KmsKeyArn requires Encrypted to be true."));
    }
    let inconsistent = |refusal: Refusal| Refusal::new(409, "ConflictException", refusal.message);
    if let Some(id) = world.repeated("StartSnapshot", token.as_deref(), &request).map_err(inconsistent)? {
        return Ok(started(world, &id));
    }
    let now = world.now();
    let mut made = Snapshot::new(world, size, description, now);
    let default = world.here().default_key.clone();
    made.encrypted = encrypted == Some(true) || default.is_some();
    made.key = key;
    if let Some(parent) = &parent {
        let parent = snapshot(world, parent)?;
        if !parent.is_completed() {
            return Err(value("The parent snapshot is not completed."));
        }
        if parent.size > size {
            return Err(Refusal::block(
                "INVALID_VOLUME_SIZE",
                "The volume is smaller than that of the parent snapshot.",
            ));
        }
        if default.is_some() && !parent.encrypted {
            return Err(value("An unencrypted snapshot is no parent where encryption by default is on."));
        }
        made.blocks = parent.blocks.clone();
        made.lineage.clone_from(&parent.lineage);
        (made.encrypted, made.key) = (parent.encrypted, parent.key.clone());
        made.parent = Some(parent.id.clone());
    }
    if made.encrypted && made.key.is_none() {
        let own = || format!("arn:aws:kms:{}:{}:key/default-of-ebs", world.region, world.account);
        made.key = Some(default.filter(|key| key != OWN_KEY).unwrap_or_else(own));
    }
    let unfinished = world.here().snapshots.values().filter(|snapshot| snapshot.is_being_written()).count();
    if unfinished >= UNFINISHED {
        let message = "You have reached the limit for concurrent snapshots.";
        return Err(Refusal::client("ConcurrentLimitExceededException", message));
    }
    made.phase = Phase::Written { timeout: timeout * 60, last: now.seconds(), fate: world.progress() };
    let id = made.id.clone();
    world.here().snapshots.insert(id.clone(), made);
    world.note(&id, tags);
    world.remember("StartSnapshot", token.as_deref(), &request, &id);
    Ok(started(world, &id))
}

fn started(world: &mut World, id: &str) -> Answer {
    let account = world.account.clone();
    let here = world.here();
    let tags: Vec<_> = here.tags(id).iter().map(|(key, value)| json!({ "Key": key, "Value": value })).collect();
    let Some(snapshot) = here.snapshots.get(id) else { return reply(201, &json!({ "SnapshotId": id })) };
    let sse = if snapshot.encrypted { "sse-kms" } else { "none" };
    let mut body = json!({
        "SnapshotId": id, "OwnerId": account, "Status": "pending", "StartTime": snapshot.started.seconds(),
        "VolumeSize": snapshot.size, "BlockSize": BLOCK, "Tags": tags, "SseType": sse,
    });
    if !snapshot.description.is_empty() {
        body["Description"] = snapshot.description.clone().into();
    }
    if let Some(parent) = &snapshot.parent {
        body["ParentSnapshotId"] = parent.clone().into();
    }
    if let Some(key) = &snapshot.key {
        body["KmsKeyArn"] = key.clone().into();
    }
    reply(201, &body)
}

pub(super) fn put(world: &mut World, rest: &Rest, digest: Option<Sha>) -> Result<Answer, Refusal> {
    let now = world.now().seconds();
    let size = unfinished(world, &rest.snapshot)?.size;
    let index = index(rest, size)?;
    let (length, progress) = (rest.header("x-amz-data-length"), rest.header("x-amz-progress"));
    if length != Some("524288") || rest.body.len() != BLOCK {
        let (said, came) = (length.unwrap_or_default(), rest.body.len());
        return Err(value(format!("The data length must be 524288; {said} was announced and {came} came.")));
    }
    if progress.is_some_and(|progress| progress.parse().is_ok_and(|progress: u32| progress > 100)) {
        return Err(value("The progress is not a percentage."));
    }
    if rest.header("x-amz-checksum-algorithm") != Some("SHA256") {
        return Err(value("The checksum algorithm must be SHA256."));
    }
    let digest = digest.ok_or_else(|| value("The data length is missing."))?;
    let checksum = BASE64.encode(digest);
    if rest.header("x-amz-checksum") != Some(&checksum) {
        return Err(value("The checksum of the block does not match its data."));
    }
    let stored = world.blocks.keep(digest, &rest.body);
    stored.map_err(|error| Refusal::new(500, "InternalServerException", error.to_string()))?;
    world.puts += 1;
    let written = world.puts;
    let snapshot = snapshot(world, &rest.snapshot)?;
    snapshot.blocks.insert(index, Block { digest, written });
    snapshot.written.insert(index);
    if let Phase::Written { last, .. } = &mut snapshot.phase {
        *last = now;
    }
    let headers = vec![("x-amz-Checksum", checksum), ("x-amz-Checksum-Algorithm", "SHA256".to_owned())];
    Ok(Answer { headers, ..reply(201, &json!({})) })
}

pub(super) fn complete(world: &mut World, rest: &Rest) -> Result<Answer, Refusal> {
    let now = world.now();
    let snapshot = unfinished(world, &rest.snapshot)?;
    let announced = rest.header("x-amz-changedblockscount").and_then(|count| count.parse().ok());
    if announced != Some(snapshot.written.len()) {
        return Err(value(format!("The changed blocks count must be {}.", snapshot.written.len())));
    }
    if let Some(checksum) = rest.header("x-amz-checksum") {
        let method = rest.header("x-amz-checksum-aggregation-method");
        if rest.header("x-amz-checksum-algorithm") != Some("SHA256") || method != Some("LINEAR") {
            return Err(value("A checksum needs the algorithm SHA256 and the aggregation method LINEAR."));
        }
        if checksum != BASE64.encode(linear(snapshot)) {
            return Err(value("The checksum of the snapshot does not match its blocks."));
        }
    }
    if let Phase::Written { fate, .. } = snapshot.phase {
        snapshot.phase = Phase::Sealed(fate);
        snapshot.completed = Some(now);
    }
    let status = if snapshot.phase.stage() == Stage::Ready { "completed" } else { "pending" };
    Ok(reply(202, &json!({ "Status": status })))
}

/// The digest over the digests of the written blocks, in the order of their indices.
fn linear(snapshot: &Snapshot) -> Sha {
    let mut all = Sha256::new();
    for index in &snapshot.written {
        if let Some(block) = snapshot.blocks.get(index) {
            all.update(block.digest);
        }
    }
    all.finalize().into()
}

fn unfinished<'a>(world: &'a mut World, id: &str) -> Result<&'a mut Snapshot, Refusal> {
    let snapshot = snapshot(world, id)?;
    if snapshot.is_being_written() {
        return Ok(snapshot);
    }
    Err(match snapshot.phase {
        Phase::Expired => Refusal::block("WRITE_REQUEST_TIMEOUT", format!("The snapshot '{id}' timed out.")),
        _ => Refusal::block("INVALID_SNAPSHOT_ID", format!("The snapshot '{id}' is not pending.")),
    })
}
