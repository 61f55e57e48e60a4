//! What a bake stands on: the accelerator, the base, the machine.

use std::{path::PathBuf, sync::Arc};

use kiln_core::{
    ByteSize,
    event::Phase,
    plan::{Check, Plan, QemuMachine},
};
use kiln_disk::DiskFile;
use kiln_io::time::Clock;

use super::{BakeContext, BakeError, journal::Journal};
use crate::{
    base::{self, BaseContext, DiskFormat, PreparedBase},
    qemu::{self, Calibration, CalibrationHost, VmSpec},
};

/// Builds of one run that measured the machine at the same time would each find it slow.
static MEASURING: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// Made ready before the first machine.
#[derive(Debug)]
pub(super) struct Ground {
    pub(super) base: PreparedBase,
    pub(super) calibration: Calibration,
    /// With limits as this machine needs them.
    pub(super) checks: Vec<Check>,
    pub(super) spec: VmSpec,
}

impl Ground {
    pub(super) async fn prepare(
        plan: &Plan,
        machine: &QemuMachine,
        context: &BakeContext,
        clock: &Arc<dyn Clock>,
        journal: &mut Journal<'_>,
    ) -> Result<Self, BakeError> {
        let (dirs, cancel) = (&context.dirs, &context.cancel);
        let wanted = context.accelerator.unwrap_or(machine.accelerator);
        let host = CalibrationHost::new(dirs, context.events.as_ref(), clock.as_ref(), cancel);
        let calibration = async {
            let _turn = MEASURING.lock().await;
            qemu::calibrate(wanted, &host).await.map_err(BakeError::boot)
        };
        let calibration = journal
            .phase(Phase::Calibrate, "accelerator", calibration, |found| {
                format!("{}: {}", found.accelerator.name(), found.reason)
            })
            .await?;
        let base_context = BaseContext {
            dirs: dirs.clone(),
            events: Arc::clone(&context.events),
            clock: Arc::clone(clock),
            images: context.images.clone(),
            cancel: cancel.clone(),
        };
        let base = base::prepare(&plan.base, &base_context).await.map_err(BakeError::base)?;
        if machine.disk.bytes() < base.size {
            return Err(BakeError::DiskTooSmall { disk: machine.disk, base: ByteSize(base.size) });
        }
        let spec = VmSpec::on(&base, machine, &calibration, &context.build);
        let checks = on_this_machine(&plan.checks, &calibration);
        Ok(Self { base, calibration, checks, spec })
    }

    pub(super) fn base_file(&self) -> DiskFile {
        match self.base.format {
            DiskFormat::Raw => DiskFile::raw(&self.base.disk),
            DiskFormat::Qcow2 => DiskFile::qcow2(&self.base.disk),
        }
    }

    /// A machine for the sealed disk.
    pub(super) fn boot_test(&self, disk: PathBuf, size: u64) -> VmSpec {
        VmSpec {
            name: "boot-test".to_owned(),
            disk,
            format: DiskFormat::Qcow2,
            size,
            // By its own boot loader: that it boots anywhere is what is to be shown.
            kernel: None,
            ..self.spec.clone()
        }
    }
}

/// The checks, given as much more time as this machine is slower than the one their limits are meant for.
fn on_this_machine(checks: &[Check], calibration: &Calibration) -> Vec<Check> {
    checks.iter().map(|check| Check { within: calibration.scaled(check.within), ..check.clone() }).collect()
}
