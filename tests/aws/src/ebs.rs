//! EBS direct: snapshots written and read block by block.

mod read;
mod write;

use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::{
    blocks::{PER_GIB, Sha},
    ec2::snapshots::Snapshot,
    refusal::Refusal,
    request::Rest,
    server::Answer,
    world::World,
};

/// Seconds for which the token of a block is good.
const TOKEN_LIFE: u64 = 7 * 24 * 3600;

/// The digest of an upload's bytes.
pub(crate) fn digest(rest: &Rest) -> Option<Sha> {
    rest.header("x-amz-data-length")?;
    Some(Sha256::digest(&rest.body).into())
}

pub(crate) fn answer(world: &mut World, action: &str, rest: Rest, digest: Option<Sha>) -> Result<Answer, Refusal> {
    match action {
        "StartSnapshot" => write::start(world, rest),
        "PutSnapshotBlock" => write::put(world, &rest, digest),
        "CompleteSnapshot" => write::complete(world, &rest),
        "ListSnapshotBlocks" => read::list(world, rest),
        "ListChangedBlocks" => read::changed(world, rest),
        "GetSnapshotBlock" => read::get(world, rest),
        _ => Err(Refusal::unknown_action(action)),
    }
}

fn reply(status: u16, body: &Value) -> Answer {
    Answer { status, ..Answer::new("application/json", body.to_string()) }
}

fn snapshot<'a>(world: &'a mut World, id: &str) -> Result<&'a mut Snapshot, Refusal> {
    if !crate::ec2::names::well_formed(id, "snap") {
        return Err(Refusal::block("INVALID_SNAPSHOT_ID", format!("The snapshot id '{id}' is not valid.")));
    }
    let missing = || {
        let message = format!("The snapshot '{id}' does not exist.");
        Refusal::new(404, "ResourceNotFoundException", message).because("SNAPSHOT_NOT_FOUND")
    };
    let now = world.now().seconds();
    let snapshot = world.here().snapshots.get_mut(id).ok_or_else(missing)?;
    snapshot.expire(now);
    Ok(snapshot)
}

fn index(rest: &Rest, size: u64) -> Result<u32, Refusal> {
    let text = rest.block.as_deref().unwrap_or_default();
    let index = text.parse::<u32>().ok().filter(|index| u64::from(*index) < size * PER_GIB);
    index.ok_or_else(|| Refusal::block("INVALID_BLOCK", format!("The block index {text} is outside of the volume.")))
}

fn value(message: impl Into<String>) -> Refusal {
    Refusal::block("INVALID_PARAMETER_VALUE", message)
}
