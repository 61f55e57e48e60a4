//! `--audit`: what checkpoints gave is compared with what running everything gives.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, OnceLock, PoisonError},
};

use kiln_build::{
    audit,
    bake::{BakeContext, Ended, OnError, bake},
    checkpoint::{Take, Wish},
};
use kiln_core::{
    artifact::Artifact,
    event::{AuditDifference, Event, Events as _, Phase},
};
use kiln_io::random;
use tokio_util::sync::CancellationToken;

use super::{
    Active, Session,
    graph::Node,
    member::{finished, from_bake},
};
use crate::{
    failure::Failure,
    render::{Broadcast, Journal},
    surroundings,
};

/// What an audit found.
struct Audited {
    paths: usize,
    same: usize,
    differing: Vec<AuditDifference>,
}

impl Session {
    /// Whether this bake is one of those that are audited: it used checkpoints, and the draw hits it.
    pub(super) fn audits(&self, artifact: &Artifact) -> bool {
        let Some(percent) = self.arguments.audit else { return false };
        let hits = artifact.steps.iter().any(|step| step.cached.is_some());
        hits && drawn(random::bytes::<2>(), percent)
    }

    /// Bakes the image once more without any checkpoint and tells how far both agree. Nothing depends on what comes out.
    pub(super) async fn audit(
        &self,
        node: &Node,
        artifact: &Artifact,
        directory: &Path,
        events: &Arc<Broadcast>,
        cancel: &CancellationToken,
    ) {
        let Some(qcow2) = artifact.files.iter().find(|file| file.format == "qcow2") else { return };
        let build = random::build_id(surroundings::now());
        let detail = format!("baked once more without checkpoints as {build}");
        events.emit(Event::PhaseStarted { phase: Phase::Audit, detail: detail.clone() });
        let began = events.elapsed();
        let audited = self.bake_again(node, &build, directory.join(&qcow2.name), cancel).await;
        self.running.lock().unwrap_or_else(PoisonError::into_inner).remove(&build);
        match audited {
            Ok(Audited { paths, same, differing }) => {
                events.emit(Event::AuditFinished { paths, same, differing });
                let took = events.elapsed().saturating_sub(began);
                let milliseconds = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
                events.emit(Event::PhaseFinished { phase: Phase::Audit, milliseconds, detail });
            }
            Err(failure) => {
                let message = format!("the audit could not be done: {}", failure.on_one_line());
                events.emit(Event::Warning { message });
            }
        }
    }

    async fn bake_again(
        &self,
        node: &Node,
        build: &str,
        with: PathBuf,
        cancel: &CancellationToken,
    ) -> Result<Audited, Failure> {
        let journal = Journal::begin(&self.dirs.build(build), cancel.clone(), Arc::new(OnceLock::new()))?;
        let quiet = Arc::new(Broadcast::new(vec![Box::new(journal)]));
        let active = Active { image: node.plan.image.clone(), events: quiet.clone() };
        self.running.lock().unwrap_or_else(PoisonError::into_inner).insert(build.to_owned(), active);
        let context = BakeContext {
            checkpoints: Wish { take: Take::Off, ..Wish::default() },
            boot_test: false,
            // Where files lie does not matter here, and no version stands for this bake.
            previous: None,
            on_error: OnError::Clean,
            ..self.context(node, build, &quiet, cancel, &Arc::default())
        };
        let plan = node.plan.clone();
        let baking = tokio::spawn(async move { Box::pin(bake(&plan, &context)).await });
        let ended = baking.await.map_err(|_| Failure::new("kiln itself failed; what it held is released"))?;
        let Ended::Baked(baked) = ended.map_err(|error| from_bake(&error))? else {
            return Err(Failure::new("it stopped before its end"));
        };
        let without = baked.directory.join(&baked.artifact.files[0].name);
        let compared = tokio::task::spawn_blocking(move || audit::compare(&with, &without)).await;
        let released = baked.guard.close().await.map_err(|error| Failure::of(&error));
        finished(build, &quiet);
        let (agreement, differing) =
            compared.map_err(|_| Failure::new("comparing was ended"))?.map_err(Failure::new)?;
        released?;
        Ok(Audited { paths: agreement.paths, same: agreement.same, differing })
    }
}

/// Whether a random number is among the lowest so many percent.
fn drawn(random: [u8; 2], percent: u8) -> bool {
    u32::from(u16::from_le_bytes(random)) * 100 < u32::from(percent) << 16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_of_audits_is_what_was_asked_for() {
        for percent in [0, 1, 50, 100] {
            let hits = (0..=u16::MAX).filter(|number| drawn(number.to_le_bytes(), percent)).count();
            assert_eq!(hits, (65_536 * usize::from(percent)).div_ceil(100), "{percent} percent");
        }
    }
}
