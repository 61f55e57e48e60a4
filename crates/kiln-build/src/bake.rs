//! The flow of a bake: base, boot or checkpoint, provision, checks, clean, shut down, placement, seal, read the finished disk, boot-test it.
//!
//! One plain async function. Each phase hands a typed value to the next; what a phase acquires stands in the build's
//! ledger first, and the guard releases it whatever becomes of this process.

use std::{fmt, path::PathBuf, sync::Arc, time::UNIX_EPOCH};

use async_trait::async_trait;
use kiln_core::{
    Version,
    artifact::Artifact,
    event::{Event, Events, Phase},
    plan::{Accelerator, AmiBase, Base, Builder, Plan, QemuMachine},
};
use kiln_disk::DiskFile;
use kiln_io::{
    dirs::Dirs,
    guard::Guard,
    ledger::{EntryId, Ledger},
    process,
    time::{Clock, SystemClock},
};
use kiln_provision::Library;
use tokio_util::sync::CancellationToken;

use crate::{
    base::Images,
    checkpoint::Wish,
    qemu::{LoginKeys, VmHost},
    remote::Machines,
};

mod artifact;
mod caching;
mod error;
mod ground;
mod guest;
mod journal;
mod making;
mod placement;
mod preflight;
mod prove;
mod remote;

use self::{
    artifact::About,
    caching::Caching,
    ground::Ground,
    journal::Journal,
    making::{Making, Test},
};
pub use self::{
    artifact::UNPUBLISHED,
    error::BakeError,
    placement::{Previous, PublishedDisk},
};

/// The artifact's directory in the build's.
const ARTIFACT: &str = "artifact";

/// What a bake needs besides its plan.
#[derive(Debug, Clone)]
pub struct BakeContext {
    pub dirs: Dirs,
    /// The build's id; its files lie in `dirs.build(..)`.
    pub build: String,
    pub events: Arc<dyn Events>,
    pub cancel: CancellationToken,
    pub on_error: OnError,
    /// The program that runs as the build's guard: kiln itself.
    pub kiln: PathBuf,
    /// Overrides the template's accelerator.
    pub accelerator: Option<Accelerator>,
    /// Boot the sealed artifact and run the checks on it.
    pub boot_test: bool,
    /// Which checkpoints are used and taken, and whether the bake stops after a step.
    pub checkpoints: Wish,
    /// The version before: where its files lie, the unchanged ones of this image will.
    pub previous: Option<Previous>,
    /// Where the plan's provisioners are found.
    pub library: Arc<Library>,
    /// Where published images come from, for those that are bases.
    pub images: Option<Arc<dyn Images>>,
    /// Who starts machines elsewhere, for the builders that need one.
    pub machines: Option<Arc<dyn Machines>>,
}

/// What to do with the machine when a step or a check fails.
#[derive(Debug, Clone)]
pub enum OnError {
    Clean,
    Keep,
    Ask(Arc<dyn Ask>),
}

/// Somebody who can be asked.
#[async_trait]
pub trait Ask: Send + Sync + fmt::Debug {
    /// Whether to keep the machine after `error`.
    async fn keep(&self, error: &BakeError) -> bool;
}

/// A sealed, proven image on this machine, not published yet. Its directory goes away with the build.
#[derive(Debug)]
pub struct Baked {
    pub artifact: Artifact,
    /// Holds the files named in `artifact`.
    pub directory: PathBuf,
    /// Must live until the files are published; closing it releases the build.
    pub guard: Guard,
}

/// How a bake ended that did not fail.
#[derive(Debug)]
pub enum Ended {
    Baked(Box<Baked>),
    /// The machine came out with the file tree of this version, which stands for it.
    Same {
        version: Version,
        guard: Box<Guard>,
    },
    /// The step that was asked for is done and the machine waits for a person.
    Held,
}

/// Bakes `plan`.
pub async fn bake(plan: &Plan, context: &BakeContext) -> Result<Ended, BakeError> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let mut journal = Journal::new(clock.as_ref(), context.events.as_ref());
    let ledger = Ledger::open(&context.dirs, &context.build)?;
    context.events.emit(Event::BuildStarted {
        build: context.build.clone(),
        image: plan.image.clone(),
        recipe: plan.recipe,
        steps: plan.steps.len(),
        log: ledger.directory().join("log").display().to_string(),
    });
    preflight::check(plan, context)?;
    let guard = Guard::spawn(&context.kiln, &context.dirs, &context.build, &ledger).await?;
    match Box::pin(run(plan, context, &clock, &mut journal, &ledger, &guard)).await {
        Ok(Reached::Artifact(artifact)) => {
            let directory = ledger.directory().join(ARTIFACT);
            Ok(Ended::Baked(Box::new(Baked { artifact: *artifact, directory, guard })))
        }
        Ok(Reached::Same(version)) => Ok(Ended::Same { version, guard: Box::new(guard) }),
        Ok(Reached::Step) => {
            guard.keep().await?;
            Ok(Ended::Held)
        }
        Err(Stopped { error, keep: true }) => {
            guard.keep().await?;
            Err(error)
        }
        Err(Stopped { error, keep: false }) => {
            // What could not be released stays in the ledger, and the error says so; it does not hide the first one.
            let mut left = Vec::new();
            if let Some(machines) = &context.machines {
                left.extend(machines.release().await.err().map(|error| error.message));
            }
            left.extend(match guard.close().await {
                Ok(released) => released.failed,
                Err(failure) => vec![failure.to_string()],
            });
            Err(if left.is_empty() { error } else { BakeError::Left { error: Box::new(error), left } })
        }
    }
}

/// An error, and whether the machine stays for a look.
struct Stopped {
    error: BakeError,
    keep: bool,
}

impl<E: Into<BakeError>> From<E> for Stopped {
    fn from(error: E) -> Self {
        Self { error: error.into(), keep: false }
    }
}

/// How far a bake came.
enum Reached {
    Artifact(Box<Artifact>),
    Same(Version),
    /// The step after which it was to stop.
    Step,
}

/// A machine that was provisioned, checked, cleaned and shut down.
struct Provisioned {
    /// Its disk, the upmost layer first.
    layers: Vec<DiskFile>,
    /// The layer that is its own, and its entry in the ledger.
    disk: PathBuf,
    entry: EntryId,
    keys: LoginKeys,
}

/// Everything between the guard's start and the finished record.
async fn run(
    plan: &Plan,
    context: &BakeContext,
    clock: &Arc<dyn Clock>,
    journal: &mut Journal<'_>,
    ledger: &Ledger,
    guard: &Guard,
) -> Result<Reached, Stopped> {
    let (dirs, events, cancel) = (&context.dirs, context.events.as_ref(), &context.cancel);
    let started = seconds(clock.as_ref());
    let host = VmHost { dirs, guard, ledger, events, clock: clock.as_ref(), cancel };
    match &plan.builder {
        Builder::Qemu(machine) => {
            let ground = Ground::prepare(plan, machine, context, clock, journal).await?;
            let Some(provisioned) = Box::pin(provision(plan, context, &ground, journal, host)).await? else {
                return Ok(Reached::Step);
            };
            let about = here(machine, &ground).await?;
            let making = Making { plan, context, host, started, about, test: Test::Here(&ground) };
            Box::pin(making.artifact(provisioned, journal)).await
        }
        Builder::Ec2(machine) => {
            let Base::Ami(AmiBase { found: Some(ami), .. }) = &plan.base else {
                return Err(BakeError::NotLookedUp.into());
            };
            let scene = remote::Scene { plan, machine, ami, context, ledger, clock: clock.as_ref() };
            let Some((provisioned, about)) = Box::pin(remote::provision(scene, journal)).await? else {
                return Ok(Reached::Step);
            };
            let making = Making { plan, context, host, started, about, test: Test::There(scene) };
            Box::pin(making.artifact(provisioned, journal)).await
        }
    }
}

/// What the record says of a machine that ran here.
async fn here(machine: &QemuMachine, ground: &Ground) -> Result<About, BakeError> {
    let mut about = About::here(&ground.base, machine, &ground.calibration);
    about.tools.insert("qemu".to_owned(), process::version("qemu-system-x86_64").await?);
    Ok(about)
}

fn seconds(clock: &dyn Clock) -> u64 {
    clock.wall().duration_since(UNIX_EPOCH).map_or(0, |passed| passed.as_secs())
}

/// From a machine, booted or come back from a checkpoint, to one that was provisioned, checked, cleaned and shut down.
/// `None` when it stays for a person after the step that was asked for.
async fn provision(
    plan: &Plan,
    context: &BakeContext,
    ground: &Ground,
    journal: &mut Journal<'_>,
    host: VmHost<'_>,
) -> Result<Option<Provisioned>, Stopped> {
    let mut caching = Caching::begin(plan, context, host.clock, &ground.base, &ground.spec).await?;
    let vm = Box::pin(caching.machine(&ground.spec, host, journal)).await?;
    let keys = vm.keys().clone();
    let directory = host.ledger.directory();
    let work = guest::Work { plan, checks: &ground.checks, context, clock: host.clock, directory };
    let done = tokio::select! {
        done = work.run(&vm, host, &mut caching, journal) => done,
        trouble = vm.watch() => Err(BakeError::Machine(Box::new(trouble))),
    };
    // What was taken is for the next bake, also when this one failed.
    caching.settle(host).await;
    let reached = match done {
        Ok(reached) => reached,
        Err(error) => {
            // What a step sees of a machine that fails is a broken connection; the machine's own trouble says more.
            let trouble = vm.trouble().filter(|_| !error.is_cancelled());
            let error = trouble.map_or(error, |trouble| BakeError::Machine(Box::new(trouble)));
            let keep = keeps(context, &error).await;
            if keep {
                vm.keep().map_err(BakeError::boot)?;
            } else {
                // Whatever cannot be ended here is the guard's to end.
                let _ = vm.kill().await;
            }
            return Err(Stopped { error, keep });
        }
    };
    if reached == guest::Reached::Step {
        vm.keep().map_err(BakeError::boot)?;
        return Ok(None);
    }
    let shutdown = async { vm.shutdown().await.map_err(BakeError::shutdown) };
    let stopped = journal.phase(Phase::Shutdown, "", shutdown, |_| "powered off by itself".to_owned()).await?;
    // The machine's own overlay first, the base last.
    let layers = std::iter::once(&stopped.disk).chain(stopped.layers.iter().rev()).map(DiskFile::qcow2);
    let layers = layers.chain([ground.base_file()]).collect();
    Ok(Some(Provisioned { layers, disk: stopped.disk, entry: stopped.entry, keys }))
}

async fn keeps(context: &BakeContext, error: &BakeError) -> bool {
    match &context.on_error {
        _ if error.is_cancelled() => false,
        OnError::Clean => false,
        OnError::Keep => true,
        OnError::Ask(person) => person.keep(error).await,
    }
}
