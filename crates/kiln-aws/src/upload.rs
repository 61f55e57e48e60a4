//! A snapshot of a sealed disk through the EBS direct APIs: found or started, filled, completed.

mod journal;
mod snapshot;

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use aws_sdk_ebs::{
    primitives::ByteStream,
    types::{ChecksumAggregationMethod, ChecksumAlgorithm},
};
use aws_sdk_ec2::types::SnapshotState;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use futures_util::{StreamExt as _, stream};
use kiln_disk::ReadAt;
use sha2::{Digest as _, Sha256};

use self::journal::Journal;
pub(crate) use self::snapshot::{DEFAULT_KEY, Snapshot};
use crate::{
    Note, Region,
    blocks::{self, BLOCK, Layout},
    call::{Age, Look},
    error::AwsError,
    intent::Intent,
};

/// Blocks on their way at once, which is also what bounds the memory: 512 KiB each.
const IN_FLIGHT: usize = 32;
/// How often it is told how far the blocks are.
const TELL: Duration = Duration::from_secs(5);
/// Snapshots of one disk that may fail or vanish before that is an error.
const REPLACED: usize = 2;
/// A version whose snapshot is in the region already.
#[derive(Debug)]
pub(crate) struct Parent {
    pub(crate) version: String,
    pub(crate) snapshot: String,
    pub(crate) layout: Arc<Layout>,
}

/// A disk that is to be the content of a snapshot.
#[derive(Debug, Clone)]
pub(crate) struct Disk {
    pub(crate) layout: Arc<Layout>,
    pub(crate) bytes: Arc<dyn ReadAt>,
}

/// How a snapshot is to be made.
#[derive(Debug)]
pub(crate) struct Wanted<'a> {
    pub(crate) disk: &'a Disk,
    pub(crate) tags: &'a BTreeMap<String, String>,
    /// The key to encrypt with; `None`: as the account has it by default.
    pub(crate) kms_key: Option<&'a str>,
    /// Versions that it may stand on, the best first.
    pub(crate) parents: &'a [Parent],
}

impl Region {
    /// The snapshot of `intent` with the disk in it, read back, and how many blocks were put for it. One that fails, or that somebody
    /// deletes, is replaced.
    pub(crate) async fn filled(&self, intent: &Intent<'_>, wanted: &Wanted<'_>) -> Result<(Snapshot, usize), AwsError> {
        let mut spoiled = Vec::new();
        loop {
            let snapshot = self.snapshot(intent, wanted, &spoiled).await?;
            intent.note(&snapshot.id);
            let filled = async {
                let put = self.fill(intent, &snapshot, wanted).await?;
                self.read_back(&snapshot, &wanted.disk.layout, wanted.parents).await.map(|()| put)
            };
            match filled.await {
                Ok(put) => return Ok((snapshot, put)),
                Err(error) if spoiled.len() < REPLACED && is_spoiled(&error) => spoiled.push(snapshot.id),
                Err(error) => return Err(error),
            }
        }
    }

    /// Fills `snapshot` with what of `disk` it lacks, completes it, and waits until it is there. How many blocks were put.
    async fn fill(&self, intent: &Intent<'_>, snapshot: &Snapshot, wanted: &Wanted<'_>) -> Result<usize, AwsError> {
        let Wanted { disk, parents, .. } = wanted;
        let parent = parents.iter().find(|parent| Some(&parent.snapshot) == snapshot.parent.as_ref());
        let mut put = 0;
        if !snapshot.complete {
            let below = parent.map(|parent| &*parent.layout);
            let blocks = blocks::to_write(&disk.layout, below);
            let (mut journal, mut sums) = Journal::open(&intent.journals, &snapshot.id).map_err(AwsError::Journal)?;
            sums.retain(|block, _| blocks.binary_search(block).is_ok());
            let version = parent.map(|parent| parent.version.as_str());
            let note = Note::Uploading { blocks: blocks.len(), present: sums.len(), parent: version };
            self.caller.watch.note(&self.name, note);
            let missing: Vec<u32> = blocks.into_iter().filter(|block| !sums.contains_key(block)).collect();
            put = missing.len();
            match self.put_all(&snapshot.id, disk, missing, &mut journal).await {
                Ok(put) => sums.extend(put),
                // A kiln before this one had completed it, and that cannot be seen yet. Whether all is there, reading it back says.
                Err(AwsError::Refused { code, .. }) if code == "ValidationException" && intent.is_taken_over() => {
                    return self.completed(&snapshot.id).await.map(|()| 0);
                }
                Err(error) => return Err(error),
            }
            match self.complete(&snapshot.id, &sums).await {
                // A kiln before this one may have been stopped right after it had asked for the same.
                Err(AwsError::Refused { code, .. })
                    if put == 0 && code == "ValidationException" && intent.is_taken_over() => {}
                Err(error) => {
                    // Whatever is wrong with what was put, the next run puts all of it.
                    if matches!(error, AwsError::Refused { .. }) {
                        intent.forget_blocks();
                    }
                    return Err(error);
                }
                Ok(()) => {}
            }
        }
        self.completed(&snapshot.id).await?;
        Ok(put)
    }

    /// Writes these blocks, many at a time; the SHA-256 of each.
    async fn put_all(
        &self,
        snapshot: &str,
        disk: &Disk,
        blocks: Vec<u32>,
        journal: &mut Journal,
    ) -> Result<BTreeMap<u32, [u8; 32]>, AwsError> {
        let (mut sums, mut failure) = (BTreeMap::new(), None);
        // After a failure no further block is begun, but what is on its way still counts.
        let failed = AtomicBool::new(false);
        let (clock, total) = (self.caller.clock.as_ref(), blocks.len());
        let begun = blocks.into_iter().take_while(|_| !failed.load(Ordering::Relaxed));
        let mut told = clock.monotonic();
        let mut done = stream::iter(begun).map(|block| self.put(snapshot, disk, block)).buffer_unordered(IN_FLIGHT);
        while let Some(outcome) = done.next().await {
            match outcome {
                Ok((block, sum)) => {
                    journal.add(block, &sum).map_err(AwsError::Journal)?;
                    sums.insert(block, sum);
                    if clock.monotonic().saturating_sub(told) >= TELL {
                        told = clock.monotonic();
                        self.caller.watch.note(&self.name, Note::Sent { done: sums.len(), blocks: total });
                    }
                }
                Err(error) => {
                    failed.store(true, Ordering::Relaxed);
                    failure.get_or_insert(error);
                }
            }
        }
        failure.map_or(Ok(sums), Err)
    }

    /// Writes one block; its SHA-256.
    async fn put(&self, snapshot: &str, disk: &Disk, block: u32) -> Result<(u32, [u8; 32]), AwsError> {
        let (bytes, sum) = read(disk.bytes.clone(), block).await?;
        let checksum = STANDARD.encode(sum);
        let index = i32::try_from(block).unwrap_or(i32::MAX);
        let put = || {
            let request = self.ebs.put_snapshot_block().snapshot_id(snapshot).block_index(index);
            let request = request.data_length(i32::try_from(BLOCK).unwrap_or(i32::MAX));
            let request = request.checksum(&checksum).checksum_algorithm(ChecksumAlgorithm::ChecksumAlgorithmSha256);
            request.block_data(ByteStream::from(bytes.clone())).send()
        };
        self.caller.call("PutSnapshotBlock", Age::New, put).await?;
        Ok((block, sum))
    }

    async fn complete(&self, snapshot: &str, sums: &BTreeMap<u32, [u8; 32]>) -> Result<(), AwsError> {
        let linear = sums.values().fold(Sha256::new(), sha2::Digest::chain_update).finalize();
        let count = i32::try_from(sums.len()).unwrap_or(i32::MAX);
        let mut attempts = 0;
        let complete = || {
            attempts += 1;
            let request = self.ebs.complete_snapshot().snapshot_id(snapshot).changed_blocks_count(count);
            // Of nothing there is no checksum.
            if count == 0 {
                return request.send();
            }
            let request = request.checksum(STANDARD.encode(linear));
            request
                .checksum_algorithm(ChecksumAlgorithm::ChecksumAlgorithmSha256)
                .checksum_aggregation_method(ChecksumAggregationMethod::ChecksumAggregationLinear)
                .send()
        };
        match self.caller.call("CompleteSnapshot", Age::New, complete).await {
            // The first attempt may have been carried out, and only its answer lost.
            Err(AwsError::Refused { .. }) if attempts > 1 => Ok(()),
            completed => completed.map(drop),
        }
    }

    pub(crate) async fn completed(&self, snapshot: &str) -> Result<(), AwsError> {
        self.caller.wait("the snapshot", || self.look_at(snapshot)).await
    }

    async fn look_at(&self, id: &str) -> Result<Look<()>, AwsError> {
        let look = || self.ec2.describe_snapshots().snapshot_ids(id).send();
        let found = self.caller.call("DescribeSnapshots", Age::New, look).await?;
        let snapshot = found.snapshots.unwrap_or_default().into_iter().next();
        let snapshot = snapshot.ok_or_else(|| self.caller.incomplete("DescribeSnapshots", "snapshotSet"))?;
        match snapshot.state {
            Some(SnapshotState::Completed) => Ok(Look::Done(())),
            Some(SnapshotState::Error) => Err(AwsError::Snapshot {
                snapshot: id.to_owned(),
                region: self.name.clone(),
                reason: snapshot.state_message.unwrap_or_else(|| "no reason is given".to_owned()),
            }),
            _ => Ok(Look::Under(snapshot.progress.unwrap_or_default())),
        }
    }
}

/// Whether another snapshot may do better.
fn is_spoiled(error: &AwsError) -> bool {
    matches!(error, AwsError::Snapshot { .. }) || error.is_missing()
}

/// One block of a disk and its SHA-256, on a thread that may wait for the disk.
async fn read(disk: Arc<dyn ReadAt>, block: u32) -> Result<(Vec<u8>, [u8; 32]), AwsError> {
    let read = move || {
        let mut bytes = vec![0; BLOCK];
        let offset = u64::from(block) * BLOCK as u64;
        let within = disk.size().saturating_sub(offset).min(BLOCK as u64);
        disk.read_at(offset, &mut bytes[..usize::try_from(within).unwrap_or(BLOCK)])?;
        let sum = Sha256::digest(&bytes).into();
        Ok((bytes, sum))
    };
    let read = tokio::task::spawn_blocking(read).await;
    read.map_err(std::io::Error::other).and_then(|read| read).map_err(AwsError::Disk)
}
