//! Hygiene: what must not be on a finished disk, verified from outside; the guest is never asked.
//!
//! The disk is read with a reader of our own and `ext4-view`, never mounted: a hostile file system gives findings or
//! errors, not a compromised host. Findings are data; [`waive`] applies the exceptions a template declares.

use std::{fmt, sync::Arc};

use kiln_core::{artifact::FindingRecord, plan::Waiver};

use crate::{
    ReadAt,
    qcow2::{header::Limits, image::Image},
    residue::Scan,
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
}

/// Verifies a finished qcow2 file. Findings come in a fixed order: by id, path, detail.
pub fn verify(file: Arc<dyn ReadAt>, asked: &Asked<'_>) -> Vec<Finding> {
    match Image::open(file, Limits::default()) {
        Ok(image) => verify_disk(Arc::new(image), asked),
        Err(refusal) => {
            vec![Finding { id: "H40", level: Level::Fail, path: String::new(), detail: refusal.to_string() }]
        }
    }
}

/// Verifies a disk as the guest sees it.
pub fn verify_disk(disk: Arc<dyn ReadAt>, asked: &Asked<'_>) -> Vec<Finding> {
    let _ = (disk, asked);
    Vec::new()
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
