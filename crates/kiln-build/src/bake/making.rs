//! From the disk of a machine that is off to a proven artifact with its record.

use std::path::Path;

use kiln_core::{
    ByteSize,
    artifact::FindingRecord,
    event::{CheckedOn, Event, Phase},
    plan::{Check, Plan},
};
use kiln_disk::{DiskFile, seal::Sealed};
use kiln_io::{
    fs,
    ledger::{EntryId, Ledger},
};

use super::{
    ARTIFACT, BakeContext, BakeError, Provisioned, Reached, Stopped,
    artifact::{self, About, Facts},
    ground::Ground,
    journal::Journal,
    placement::{self, Placed},
    prove::{self, QCOW2},
    remote, seconds,
};
use crate::{
    check::{CheckRun, run_checks},
    qemu::{self, VmHost, VmSpec},
    remote::SealedDisk,
};

/// What making an artifact of a disk needs.
pub(super) struct Making<'a> {
    pub(super) plan: &'a Plan,
    pub(super) context: &'a BakeContext,
    pub(super) host: VmHost<'a>,
    /// When the bake began, seconds since 1970.
    pub(super) started: u64,
    pub(super) about: About,
    pub(super) test: Test<'a>,
}

/// Where the sealed image is booted.
pub(super) enum Test<'a> {
    /// In a machine here.
    Here(&'a Ground),
    /// Where its instances will start.
    There(remote::Scene<'a>),
}

impl Making<'_> {
    /// From the disk of a machine that is off to the finished record.
    pub(super) async fn artifact(
        self,
        provisioned: Provisioned,
        journal: &mut Journal<'_>,
    ) -> Result<Reached, Stopped> {
        let Self { plan, context, host, started, about, test } = self;
        let (ledger, clock) = (host.ledger, host.clock);
        let Provisioned { layers, disk, entry, keys } = provisioned;
        prove::clean_file_systems(layers.clone()).await?;
        let mut placement = None;
        let (layers, placed) = match placement::place(&layers, plan, context, journal, ledger).await? {
            Placed::AsItIs => (layers, None),
            Placed::Same(version) => return Ok(Reached::Same(version)),
            Placed::Anew { disk, entry, record } => {
                placement = Some(record);
                (vec![DiskFile::raw(&disk)], Some((disk, entry)))
            }
        };
        let directory = ledger.directory().join(ARTIFACT);
        ledger.acquire_directory("artifact", &directory)?;
        let needles = prove::needles(plan, &keys);
        let sealing = prove::seal(layers, &directory, needles, context);
        let sealed = |(sealed, _): &(Sealed, _)| ByteSize(sealed.bytes).approximate();
        let (sealed, scan) = journal.phase(Phase::Seal, "", sealing, sealed).await?;
        // The disk has become the artifact; its room may be needed for what follows.
        discard(ledger, &disk, &entry)?;
        if let Some((disk, entry)) = placed {
            discard(ledger, &disk, &entry)?;
        }

        let reading = prove::hygiene(&directory, scan, plan, context);
        journal.findings = journal.phase(Phase::Hygiene, "the finished disk", reading, |found| in_words(found)).await?;
        let disk = artifact::disk(&sealed);
        let file = directory.join(QCOW2);
        match test {
            _ if !context.boot_test => {}
            Test::Here(ground) => {
                let spec = ground.boot_test(file, sealed.size);
                Box::pin(boot_test(&ground.checks, context, journal, spec, host)).await?;
            }
            Test::There(scene) => {
                let disk = SealedDisk { file: &file, sealed: &sealed };
                Box::pin(remote::test(scene, disk, journal)).await?;
            }
        }
        context.events.emit(Event::Sealed {
            disk: disk.digest,
            qcow2: directory.join(QCOW2).display().to_string(),
            bytes: sealed.bytes,
        });
        let files = prove::files(&directory, sealed, &plan.outputs, context);
        let files = if plan.outputs.is_empty() {
            files.await?
        } else {
            // The qcow2 is there already.
            journal.phase(Phase::Export, "", files, |files| format!("{} more formats", files.len() - 1)).await?
        };
        let created = seconds(clock);
        let facts = Facts { plan, context, about, disk, placement, files, started, created };
        let record = artifact::record(facts, journal);
        let text = serde_json::to_vec_pretty(&record).map_err(BakeError::Record)?;
        fs::write_atomic(&directory.join("artifact.json"), &text, 0o644)?;
        Ok(Reached::Artifact(Box::new(record)))
    }
}

/// Boots a throw-away overlay of the sealed disk through its own boot loader and runs the checks meant for it.
async fn boot_test(
    checks: &[Check],
    context: &BakeContext,
    journal: &mut Journal<'_>,
    spec: VmSpec,
    host: VmHost<'_>,
) -> Result<(), BakeError> {
    let test = Box::pin(async {
        let vm = qemu::boot(spec, host).await.map_err(BakeError::boot_test)?;
        let run = CheckRun {
            guest: vm.guest(),
            on: CheckedOn::Artifact,
            events: host.events,
            clock: host.clock,
            cancel: &context.cancel,
        };
        let checked = run_checks(run, checks).await.map_err(BakeError::artifact_check);
        // The overlay is thrown away with the machine: nothing it wrote matters.
        vm.kill().await.map_err(BakeError::boot_test)?;
        checked
    });
    let passed = journal
        .phase(Phase::BootTest, "the sealed image", test, |passed| format!("it boots, {} checks passed", passed.len()))
        .await?;
    journal.checks.extend(passed);
    Ok(())
}

/// Deletes a disk that has served its purpose.
fn discard(ledger: &Ledger, disk: &Path, entry: &EntryId) -> Result<(), BakeError> {
    match disk.parent() {
        // A layer has a directory of its own.
        Some(layer) if layer != ledger.directory() => {
            std::fs::remove_dir_all(layer).map_err(fs::failed("remove", layer, 0))?;
        }
        _ => std::fs::remove_file(disk).map_err(fs::failed("remove", disk, 0))?,
    }
    Ok(ledger.release(entry)?)
}

fn in_words(findings: &[FindingRecord]) -> String {
    match findings.len() {
        0 => "clean".to_owned(),
        1 => "1 finding, none stops the bake".to_owned(),
        findings => format!("{findings} findings, none stops the bake"),
    }
}
