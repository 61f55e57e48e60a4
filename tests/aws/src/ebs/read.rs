//! Reading snapshots: what blocks there are, what differs between two, and their bytes.

use base64::{Engine as _, prelude::BASE64_STANDARD as BASE64};
use bytes::Bytes;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::{
    blocks::{BLOCK, noise},
    ebs::{TOKEN_LIFE, index, reply, snapshot, value},
    ec2::snapshots::Snapshot,
    form::Form,
    refusal::Refusal,
    request::Rest,
    server::Answer,
    world::World,
};

pub(super) fn list(world: &mut World, rest: Rest) -> Result<Answer, Refusal> {
    let page = Page::of(rest.query, &rest.snapshot, world.pace.page)?;
    let expiry = world.now().seconds() + TOKEN_LIFE;
    let snapshot = completed(world, &rest.snapshot)?;
    let indices = snapshot.blocks.keys().copied().collect();
    let size = snapshot.size;
    let (indices, next) = page.cut(indices, &rest.snapshot);
    let block = |index: &u32| json!({ "BlockIndex": index, "BlockToken": token(&rest.snapshot, *index, expiry) });
    Ok(paged("Blocks", indices.iter().map(block).collect(), next, size, expiry))
}

pub(super) fn changed(world: &mut World, mut rest: Rest) -> Result<Answer, Refusal> {
    let first = rest.query.text("firstSnapshotId");
    let page = Page::of(rest.query, &rest.snapshot, world.pace.page)?;
    let expiry = world.now().seconds() + TOKEN_LIFE;
    let first = first.ok_or_else(|| value("FirstSnapshotId must be specified."))?;
    let old = completed(world, &first)?.clone();
    let new = completed(world, &rest.snapshot)?;
    if old.lineage != new.lineage {
        let message = "The snapshots are not from the same volume.";
        return Err(Refusal::block("UNRELATED_SNAPSHOTS", message));
    }
    let mut indices: Vec<u32> = old.blocks.keys().chain(new.blocks.keys()).copied().collect();
    indices.sort_unstable();
    indices.dedup();
    indices.retain(|index| old.blocks.get(index) != new.blocks.get(index));
    let (indices, next) = page.cut(indices, &rest.snapshot);
    let size = new.size;
    let blocks = indices.iter().map(|index| {
        let mut block = json!({ "BlockIndex": index });
        if old.blocks.contains_key(index) {
            block["FirstBlockToken"] = token(&old.id, *index, expiry).into();
        }
        if new.blocks.contains_key(index) {
            block["SecondBlockToken"] = token(&new.id, *index, expiry).into();
        }
        block
    });
    Ok(paged("ChangedBlocks", blocks.collect(), next, size, expiry))
}

pub(super) fn get(world: &mut World, mut rest: Rest) -> Result<Answer, Refusal> {
    let token = rest.query.required("blockToken").map_err(|_| invalid_token("is missing"))?;
    std::mem::take(&mut rest.query).finish()?;
    let now = world.now().seconds();
    let snapshot = completed(world, &rest.snapshot)?;
    let index = index(&rest, snapshot.size)?;
    let (stored, encrypted) = (snapshot.blocks.get(&index).copied(), snapshot.encrypted);
    let said = BASE64.decode(&token).ok().and_then(|bytes| String::from_utf8(bytes).ok()).unwrap_or_default();
    let expiry =
        said.strip_prefix(&format!("{} {index} ", rest.snapshot)).and_then(|expiry| expiry.parse::<u64>().ok());
    let expiry = expiry.ok_or_else(|| invalid_token("is not of this block"))?;
    if expiry < now {
        return Err(invalid_token("has expired"));
    }
    let bytes = match stored {
        Some(block) => world.blocks.read(&block.digest),
        None if encrypted => Ok(noise(&rest.snapshot, index)),
        None => Ok(vec![0; BLOCK]),
    };
    let bytes = bytes.map_err(|error| Refusal::new(500, "InternalServerException", error.to_string()))?;
    let headers = vec![
        ("x-amz-Data-Length", BLOCK.to_string()),
        ("x-amz-Checksum", BASE64.encode(Sha256::digest(&bytes))),
        ("x-amz-Checksum-Algorithm", "SHA256".to_owned()),
    ];
    Ok(Answer { headers, ..Answer::new("application/octet-stream", Bytes::from(bytes)) })
}

fn token(snapshot: &str, index: u32, expiry: u64) -> String {
    BASE64.encode(format!("{snapshot} {index} {expiry}"))
}

fn invalid_token(why: &str) -> Refusal {
    Refusal::block("INVALID_BLOCK_TOKEN", format!("The block token {why}."))
}

fn completed<'a>(world: &'a mut World, id: &str) -> Result<&'a Snapshot, Refusal> {
    let snapshot = snapshot(world, id)?;
    snapshot.look();
    if snapshot.is_completed() {
        return Ok(snapshot);
    }
    Err(Refusal::block("INVALID_SNAPSHOT_ID", format!("The snapshot '{id}' is not completed.")))
}

fn paged(name: &str, blocks: Vec<Value>, next: Option<String>, size: u64, expiry: u64) -> Answer {
    let mut body = json!({ "ExpiryTime": expiry, "VolumeSize": size, "BlockSize": BLOCK });
    body[name] = blocks.into();
    if let Some(next) = next {
        body["NextToken"] = next.into();
    }
    reply(200, &body)
}

/// From which block on, and how many.
struct Page {
    from: u32,
    most: usize,
}

impl Page {
    fn of(mut query: Form, snapshot: &str, at_most: usize) -> Result<Self, Refusal> {
        let most = query.number("maxResults")?.unwrap_or(10_000);
        if !(100..=10_000).contains(&most) {
            return Err(value("MaxResults must be between 100 and 10000."));
        }
        let mut from = query.number("startingBlockIndex")?.unwrap_or_default();
        if let Some(token) = query.text("pageToken") {
            let said = BASE64.decode(&token).ok().and_then(|bytes| String::from_utf8(bytes).ok()).unwrap_or_default();
            let next = said.strip_prefix(&format!("page {snapshot} ")).and_then(|next| next.parse().ok());
            from = next.ok_or_else(|| Refusal::block("INVALID_PAGE_TOKEN", "The page token is not valid."))?;
        }
        query.finish()?;
        let most = if at_most == 0 { most } else { most.min(at_most) };
        Ok(Self { from, most })
    }

    fn cut(&self, indices: Vec<u32>, snapshot: &str) -> (Vec<u32>, Option<String>) {
        let mut rest = indices.into_iter().skip_while(|index| *index < self.from);
        let page = rest.by_ref().take(self.most).collect();
        (page, rest.next().map(|next| BASE64.encode(format!("page {snapshot} {next}"))))
    }
}
