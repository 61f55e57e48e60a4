//! The finished snapshot against the chunk list: nothing becomes an AMI that is not, byte for byte, what was sealed.

use std::collections::BTreeMap;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};

use crate::{
    Note, Region,
    blocks::{self, Layout},
    call::Age,
    error::AwsError,
    upload::{Parent, Snapshot},
};

/// Blocks on their way at once.
const IN_FLIGHT: usize = 32;
/// Blocks that one answer lists, the most there are.
const PAGE: i32 = 10_000;

impl Region {
    /// Reads everything of `snapshot` that is not its parent's, and compares it with `disk`.
    pub(crate) async fn read_back(
        &self,
        snapshot: &Snapshot,
        disk: &Layout,
        parents: &[Parent],
    ) -> Result<(), AwsError> {
        let parent = parents.iter().find(|parent| Some(&parent.snapshot) == snapshot.parent.as_ref());
        let expected = blocks::to_write(disk, parent.map(|parent| &*parent.layout));
        let found = match parent {
            Some(parent) => self.changed_blocks(&parent.snapshot, &snapshot.id).await?,
            None => self.blocks(&snapshot.id).await?.0,
        };
        let differs = |block| AwsError::Differs { snapshot: snapshot.id.clone(), region: self.name.clone(), block };
        // All that was to be written is there. What else there is, is compared too: it may be what was there before.
        if let Some(missing) = expected.into_iter().find(|block| !found.contains_key(block)) {
            return Err(differs(missing));
        }
        let count = found.len();
        let mut read = stream::iter(found)
            .map(|(block, token)| self.block(&snapshot.id, block, token))
            .buffer_unordered(IN_FLIGHT);
        while let Some((block, bytes)) = read.try_next().await? {
            if !blocks::is_block(disk, block, &bytes) {
                return Err(differs(block));
            }
        }
        self.caller.watch.note(&self.name, Note::ReadBack { blocks: count });
        Ok(())
    }

    /// The blocks of `snapshot` that differ from those of `parent`, and how each is asked for.
    async fn changed_blocks(&self, parent: &str, snapshot: &str) -> Result<BTreeMap<u32, String>, AwsError> {
        let (mut found, mut next) = (BTreeMap::new(), None);
        loop {
            let list = || {
                let request = self.ebs.list_changed_blocks().first_snapshot_id(parent).second_snapshot_id(snapshot);
                request.max_results(PAGE).set_next_token(next.clone()).send()
            };
            let page = self.caller.call("ListChangedBlocks", Age::New, list).await?;
            let blocks = page.changed_blocks.unwrap_or_default();
            found.extend(blocks.into_iter().filter_map(|block| number(block.block_index, block.second_block_token)));
            next = page.next_token.filter(|token| !token.is_empty());
            if next.is_none() {
                return Ok(found);
            }
        }
    }

    /// The blocks that were ever written to `snapshot` or its ancestors, and the size of its volume in GiB.
    pub(crate) async fn blocks(&self, snapshot: &str) -> Result<(BTreeMap<u32, String>, u64), AwsError> {
        let (mut found, mut next) = (BTreeMap::new(), None);
        loop {
            let list = || {
                let request = self.ebs.list_snapshot_blocks().snapshot_id(snapshot);
                request.max_results(PAGE).set_next_token(next.clone()).send()
            };
            let page = self.caller.call("ListSnapshotBlocks", Age::New, list).await?;
            let size = page.volume_size.and_then(|gib| u64::try_from(gib).ok());
            let blocks = page.blocks.unwrap_or_default();
            found.extend(blocks.into_iter().filter_map(|block| number(block.block_index, block.block_token)));
            next = page.next_token.filter(|token| !token.is_empty());
            if next.is_none() {
                let size = size.ok_or_else(|| self.caller.incomplete("ListSnapshotBlocks", "VolumeSize"))?;
                return Ok((found, size));
            }
        }
    }

    pub(crate) async fn block(&self, snapshot: &str, block: u32, token: String) -> Result<(u32, Vec<u8>), AwsError> {
        let index = i32::try_from(block).unwrap_or(i32::MAX);
        let read = || async {
            let request = self.ebs.get_snapshot_block().snapshot_id(snapshot).block_index(index).block_token(&token);
            let answer = request.send().await?;
            // A body that breaks off is a lost answer.
            answer.block_data.collect().await.map_err(aws_sdk_ec2::error::SdkError::timeout_error)
        };
        let bytes = self.caller.call("GetSnapshotBlock", Age::New, read).await?;
        Ok((block, bytes.to_vec()))
    }
}

fn number(block: Option<i32>, token: Option<String>) -> Option<(u32, String)> {
    Some((u32::try_from(block?).ok()?, token?))
}
