//! Hygiene: what must not be on a finished disk, verified from outside; the guest is never asked.
//!
//! The disk is read with a reader of our own and `ext4-view`, never mounted: a hostile file system gives findings or
//! errors, not a compromised host. Findings are data; [`waive`] applies the exceptions a template declares.

use std::{
    fmt, io,
    ops::Range,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use kiln_core::{ByteSize, artifact::FindingRecord, plan::Waiver};

use self::superblock::{Superblock, SuperblockError};
use crate::{
    ReadAt, Window,
    qcow2::{header::Limits, image::Image},
    residue::{self, Scan},
    tree::Tree,
};

mod fat;
mod firmware;
mod kernel;
pub(crate) mod little_endian;
pub(crate) mod partitions;
mod rules;
pub mod superblock;

pub use self::{
    firmware::{Firmware, firmware},
    kernel::{Kernel, kernel},
};

/// Whether a finding stops the bake.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    Fail,
    Warn,
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Fail => "fail",
            Self::Warn => "warn",
        })
    }
}

/// Something on the disk that should not be there, or the reverse.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    /// The check's name: `H01`.
    pub id: &'static str,
    pub level: Level,
    /// Absolute path in the guest; empty where no file is meant.
    pub path: String,
    pub detail: String,
}

/// What the caller knows about the bake, for the checks that need it.
#[derive(Debug, Default)]
pub struct Asked<'a> {
    /// The residue search that watched the sealing of this disk. Without it H39 cannot be proven and fails.
    pub scan: Option<&'a Scan>,
    /// The guest's host name during the bake; must not stay (H16).
    pub build_host_name: Option<&'a str>,
    /// Users that existed for the bake only (H09).
    pub build_users: &'a [&'a str],
}

/// Verifies a finished qcow2 file. Findings come in a fixed order: by id, level, path, detail.
pub fn verify(file: Arc<dyn ReadAt>, asked: &Asked<'_>) -> Vec<Finding> {
    match Image::open(file, Limits::default()) {
        Ok(image) => verify_disk(&(Arc::new(image) as Arc<dyn ReadAt>), asked),
        Err(refusal) => vec![Finding::fail("H40", "", refusal.to_string())],
    }
}

/// Verifies a disk as the guest sees it.
pub fn verify_disk(disk: &Arc<dyn ReadAt>, asked: &Asked<'_>) -> Vec<Finding> {
    let mut findings = residue_findings(asked);
    // A reader that panics on a hostile file system has found something wrong with it, and must not end the bake here.
    let checked = catch_unwind(AssertUnwindSafe(|| check_disk(disk, asked)));
    findings.extend(match checked {
        Ok(Ok(found)) => found,
        Ok(Err(error)) => vec![Finding::fail("H38", "", format!("the disk cannot be read: {error}"))],
        Err(_) => vec![Finding::fail("H38", "", "a file system of the disk is damaged beyond reading")],
    });
    findings.sort();
    findings.dedup();
    findings
}

/// Whether the ext4 file systems of a disk were left clean; the reasons if not. For the proof of a clean shutdown.
pub fn unclean_file_systems(disk: &Arc<dyn ReadAt>) -> io::Result<Vec<String>> {
    let table = partitions::read(disk.as_ref())?;
    let mut faults = Vec::new();
    for partition in &table.partitions {
        if let Ok((_, superblock)) = open_ext4(disk, partition) {
            faults.extend(superblock.unclean().into_iter().map(|fault| format!("{}: {fault}", partition.name)));
        }
    }
    Ok(faults)
}

/// More runs than a file system in use has; a hostile one must not fill the memory.
const MOST_RUNS: usize = 4 << 20;

/// The bytes of a disk that no file uses: the free space of every ext4 file system that was left clean, in rising
/// order of partitions. What lies there belongs to nobody, so it can read as zeros without changing any file.
pub fn free_space(disk: &Arc<dyn ReadAt>) -> io::Result<Vec<Range<u64>>> {
    let table = partitions::read(disk.as_ref())?;
    let mut free = Vec::new();
    for partition in &table.partitions {
        let Ok((volume, superblock)) = open_ext4(disk, partition) else { continue };
        if !superblock.unclean().is_empty() {
            continue;
        }
        let start = partition.range.start;
        superblock.free_runs(volume.as_ref(), |run| {
            if free.len() < MOST_RUNS {
                free.push(start + run.start..start + run.end);
            }
            Ok(())
        })?;
    }
    Ok(free)
}

impl Finding {
    fn fail(id: &'static str, path: &str, detail: impl Into<String>) -> Self {
        Self { id, level: Level::Fail, path: path.to_owned(), detail: detail.into() }
    }
}

/// H39
fn residue_findings(asked: &Asked<'_>) -> Vec<Finding> {
    let Some(scan) = asked.scan else {
        return vec![Finding::fail("H39", "", "the disk was not searched for secrets")];
    };
    let found = scan.hits().into_iter().map(|hit| {
        let place = format!("{} stands on the disk at byte {} ({})", hit.name, hit.offset, hit.encoding);
        Finding::fail("H39", "", place)
    });
    let unsearched = scan.too_short().iter().map(|name| Finding {
        id: "H39",
        level: Level::Warn,
        path: String::new(),
        detail: format!("{name} has fewer than {} bytes and was not searched for", residue::SHORTEST),
    });
    found.chain(unsearched).collect()
}

/// H38 for every file system, H14 for the EFI system partition, and the tree rules for the root.
fn check_disk(disk: &Arc<dyn ReadAt>, asked: &Asked<'_>) -> io::Result<Vec<Finding>> {
    let table = partitions::read(disk.as_ref())?;
    let mut findings: Vec<Finding> = table.faults.iter().map(|fault| Finding::fail("H38", "", fault)).collect();
    let mut root = None;
    for partition in &table.partitions {
        let name = &partition.name;
        if partition.efi_system {
            findings.extend(efi_system(disk, partition)?);
            continue;
        }
        let (volume, superblock) = match open_ext4(disk, partition) {
            Ok(opened) => opened,
            Err(SuperblockError::NotExt4) => continue,
            Err(error) => {
                findings.push(Finding::fail("H38", "", format!("{name}: {error}")));
                continue;
            }
        };
        findings
            .extend(superblock.unclean().into_iter().map(|fault| Finding::fail("H38", "", format!("{name}: {fault}"))));
        findings.extend(not_trimmed(partition, &volume, &superblock)?);
        match Tree::read(volume) {
            Ok(tree) if tree.exists("/etc/passwd") => root = Some(tree),
            Ok(_) => {}
            Err(error) => findings.push(Finding::fail("H38", "", format!("{name} cannot be read: {error}"))),
        }
    }
    match root {
        Some(tree) => findings.extend(rules::check(&tree, asked)),
        None => findings.push(Finding::fail(
            "H38",
            "",
            "no readable ext4 root file system, so nothing in it could be verified; other file systems are not supported",
        )),
    }
    Ok(findings)
}

/// The ext4 file systems of a disk, in the order of its partitions.
pub(crate) fn ext4_volumes(disk: &Arc<dyn ReadAt>) -> io::Result<Vec<Arc<dyn ReadAt>>> {
    let partitions = partitions::read(disk.as_ref())?.partitions;
    Ok(partitions.iter().filter_map(|partition| Some(open_ext4(disk, partition).ok()?.0)).collect())
}

fn open_ext4(
    disk: &Arc<dyn ReadAt>,
    partition: &partitions::Partition,
) -> Result<(Arc<dyn ReadAt>, Superblock), SuperblockError> {
    let volume = volume(disk, partition)?;
    let superblock = Superblock::read(volume.as_ref())?;
    Ok((volume, superblock))
}

fn volume(disk: &Arc<dyn ReadAt>, partition: &partitions::Partition) -> io::Result<Arc<dyn ReadAt>> {
    let size = partition.range.end - partition.range.start;
    let window = Window::new(disk.clone(), partition.range.start, size).ok_or(io::ErrorKind::UnexpectedEof)?;
    Ok(Arc::new(window))
}

fn not_trimmed(
    partition: &partitions::Partition,
    volume: &Arc<dyn ReadAt>,
    superblock: &Superblock,
) -> io::Result<Option<Finding>> {
    let untrimmed = superblock.untrimmed(volume.as_ref(), partition.range.start)?;
    let name = &partition.name;
    Ok(match untrimmed {
        Some(0) => None,
        Some(bytes) => {
            let bytes = ByteSize(bytes).approximate();
            Some(Finding::fail(
                "H38",
                "",
                format!("{name}: {bytes} of free space still hold old data; it was not trimmed"),
            ))
        }
        None => {
            Some(Finding::fail("H38", "", format!("{name}: its free space cannot be checked (meta_bg or bigalloc)")))
        }
    })
}

fn efi_system(disk: &Arc<dyn ReadAt>, partition: &partitions::Partition) -> io::Result<Option<Finding>> {
    let seed = fat::exists(volume(disk, partition)?.as_ref(), &["loader", "random-seed"])?;
    Ok((seed == Some(true)).then(|| {
        Finding::fail("H14", "/loader/random-seed", "a random seed on the EFI system partition; clones would share it")
    }))
}

/// Findings with the template's exceptions applied.
#[derive(Debug, Clone, PartialEq)]
pub struct Verdict {
    /// Every finding, with the reason where it is waived. For the artifact's record.
    pub records: Vec<FindingRecord>,
    /// The findings that stop the bake.
    pub blocking: Vec<Finding>,
    /// Names of waivers that nothing needed.
    pub unused: Vec<String>,
}

/// Applies waivers, by finding id.
pub fn waive(findings: &[Finding], waivers: &[Waiver]) -> Verdict {
    let waiver = |finding: &Finding| waivers.iter().find(|waiver| waiver.finding == finding.id);
    let record = |finding: &Finding| FindingRecord {
        id: finding.id.to_owned(),
        level: finding.level.to_string(),
        path: finding.path.clone(),
        detail: finding.detail.clone(),
        waived: waiver(finding).map(|waiver| waiver.reason.clone()),
    };
    let blocks = |finding: &&Finding| finding.level == Level::Fail && waiver(finding).is_none();
    let unused = |waiver: &&Waiver| findings.iter().all(|finding| finding.id != waiver.finding);
    Verdict {
        records: findings.iter().map(record).collect(),
        blocking: findings.iter().filter(blocks).cloned().collect(),
        unused: waivers.iter().filter(unused).map(|waiver| waiver.finding.clone()).collect(),
    }
}
