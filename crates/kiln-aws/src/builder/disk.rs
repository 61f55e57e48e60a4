//! The disk of an instance that ended: a snapshot of its volume, block by block into a file.

use std::{
    collections::BTreeMap,
    fs::File,
    os::unix::fs::FileExt as _,
    path::Path,
    sync::{Arc, atomic::Ordering},
};

use aws_sdk_ec2::types::ResourceType;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};

use super::network::marked;
use crate::{Region, blocks::BLOCK, call::Age, error::AwsError};

/// Blocks on their way at once, which is also what bounds the memory.
const IN_FLIGHT: usize = 32;

impl Region {
    /// Begins a snapshot of a volume; its id. There is no client token: each of several attempts may have made one.
    pub(super) async fn snapshot_of(&self, volume: &str, tags: &BTreeMap<String, String>) -> Result<String, AwsError> {
        let marked = marked(ResourceType::Snapshot, tags);
        let mut attempts = 0;
        let create = || {
            attempts += 1;
            let request = self.ec2.create_snapshot().volume_id(volume).description("kiln: the disk of one bake");
            request.tag_specifications(marked.clone()).send()
        };
        let created = self.caller.call("CreateSnapshot", Age::New, create).await;
        if attempts > 1 {
            self.caller.doubtful.store(true, Ordering::Relaxed);
        }
        let created = created?;
        let id = created.snapshot_id.ok_or_else(|| self.caller.incomplete("CreateSnapshot", "snapshotId"))?;
        Ok(id)
    }

    /// Writes the disk of a snapshot to `to`, sparse where nobody ever wrote. The size in bytes.
    pub(super) async fn fetch(
        &self,
        snapshot: &str,
        to: &Path,
        progress: &(dyn Fn(u64, u64) + Send + Sync),
    ) -> Result<u64, AwsError> {
        let file = Arc::new(File::create_new(to).map_err(AwsError::File)?);
        let (blocks, gib) = self.blocks(snapshot).await?;
        let size = gib << 30;
        file.set_len(size).map_err(AwsError::File)?;
        let total = blocks.len() as u64 * BLOCK as u64;
        let mut fetched =
            stream::iter(blocks).map(|(block, token)| self.block(snapshot, block, token)).buffer_unordered(IN_FLIGHT);
        let mut done = 0;
        while let Some((block, bytes)) = fetched.try_next().await? {
            write(file.clone(), block, bytes).await?;
            done += BLOCK as u64;
            progress(done, total);
        }
        let file = file.clone();
        in_the_background(move || file.sync_all()).await?;
        Ok(size)
    }
}

async fn write(file: Arc<File>, block: u32, bytes: Vec<u8>) -> Result<(), AwsError> {
    in_the_background(move || {
        // A hole reads the same.
        if bytes.iter().all(|byte| *byte == 0) {
            return Ok(());
        }
        file.write_all_at(&bytes, u64::from(block) * BLOCK as u64)
    })
    .await
}

/// On a thread that may wait for the disk.
async fn in_the_background(work: impl FnOnce() -> std::io::Result<()> + Send + 'static) -> Result<(), AwsError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(std::io::Error::other).and_then(|done| done).map_err(AwsError::File)
}
