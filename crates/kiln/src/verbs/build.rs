//! `kiln build`: bakes the images of templates, each when its base is there, and publishes each when it is proven.

#[cfg(feature = "aws")]
mod amis;
mod ask;
mod audit;
pub(crate) mod graph;
#[cfg(feature = "aws")]
mod instances;
mod member;
mod place;
mod server;
mod skip;
mod stage;
mod turn;
mod walk;
mod wish;

use std::{
    collections::BTreeMap,
    env,
    io::{self, IsTerminal as _},
    sync::{Arc, Mutex, PoisonError, atomic::AtomicBool},
    thread,
};

use kiln_core::{ImageName, plan::Plan};
use kiln_io::{
    dirs::Dirs,
    guest::Access,
    ledger::{self, BuildReport, Choice, Condition},
    memory,
};

use self::{
    graph::{Budget, Graph},
    stage::Stage,
};
use crate::{
    arguments::{self, Build},
    bases::Shelf,
    failure::{Exit, Failure, Outcome},
    output,
    render::Broadcast,
    signals::Interruption,
    surroundings::{self, Place},
    templates,
    verbs::{clean, doctor},
};

/// What all builds of a run share.
#[derive(Debug)]
struct Session {
    arguments: Build,
    dirs: Dirs,
    registry: Option<Place>,
    /// Where bases are looked up and laid down from.
    shelf: Option<Arc<Shelf>>,
    interruption: Interruption,
    stage: Stage,
    /// The builds that run, by their ids.
    running: Mutex<BTreeMap<String, Active>>,
    /// An image is published, and not everywhere it was to go.
    partly: AtomicBool,
    /// This program, which also runs as the guard of each build.
    kiln: std::path::PathBuf,
}

/// A build that runs.
#[derive(Debug, Clone)]
struct Active {
    image: ImageName,
    events: Arc<Broadcast>,
}

pub(crate) async fn run(arguments: Build) -> Outcome {
    let asks = arguments.on_error == arguments::OnError::Ask;
    if asks && !(io::stdin().is_terminal() && io::stderr().is_terminal()) {
        return Err(
            Failure::usage("`--on-error ask` needs a terminal").hint("use `--on-error keep` or `--on-error clean`")
        );
    }
    let shelf = surroundings::shelf(&arguments.registry, arguments.allow_revoked).map(Arc::new);
    let graph = Graph::of(templates::resolve(&arguments.template, shelf.as_deref())?, !arguments.no_publish)?;
    let plans: Vec<&Plan> = graph.nodes.iter().map(|node| &node.plan).collect();
    wish::check(&arguments, &plans)?;
    let dirs = surroundings::dirs()?;
    let registry = if arguments.no_publish { None } else { Some(surroundings::place(&arguments.registry)?) };
    if let Some(registry) = registry.as_ref().filter(|_| !arguments.allow_revoked) {
        plans.iter().try_for_each(|plan| place::check_base(registry, plan))?;
    }
    if let Some(output) = &arguments.output {
        place::check(output)?;
    }
    if arguments.install {
        doctor::install_missing().await?;
    }
    check_aws(&plans, !arguments.no_publish).await?;
    release_interrupted(&dirs)?;
    let kiln = env::current_exe()
        .map_err(|error| Failure::new("cannot find kiln's own program").because(error.to_string()))?;
    let budget = budget(&arguments);
    let several = budget.jobs > 1 && plans.len() > 1;
    let stage = if several {
        Stage::many(arguments.json, plans.iter().map(|plan| &plan.image))
    } else {
        Stage::one(arguments.json)
    };
    let interruption = Interruption::listen()?;
    let running = Mutex::new(BTreeMap::new());
    let partly = AtomicBool::new(false);
    let session = Arc::new(Session { arguments, dirs, registry, shelf, interruption, stage, running, partly, kiln });
    let mut work = Box::pin(walk::walk(session.clone(), graph, budget));
    tokio::select! {
        outcome = &mut work => outcome,
        () = session.announce_stop() => session.leave_at_once(),
    }
}

/// Refuses AMIs that cannot be made, before anything slow begins.
#[cfg(feature = "aws")]
async fn check_aws(plans: &[&Plan], publish: bool) -> Result<(), Failure> {
    if publish { amis::check(plans).await } else { Ok(()) }
}

#[cfg(not(feature = "aws"))]
#[expect(clippy::unused_async, reason = "with the feature `aws` it waits")]
async fn check_aws(plans: &[&Plan], publish: bool) -> Result<(), Failure> {
    let needed = plans.iter().find_map(|plan| match &plan.publish.ami {
        _ if plan.builder.qemu().is_none() => Some((plan, "[builder.ec2]")),
        Some(_) if publish => Some((plan, "[publish.ami]")),
        _ => None,
    });
    let because = |(plan, table): (&&Plan, &str)| format!("`{}` has `{table}`", plan.image);
    needed.map(because).map_or(Ok(()), |because| Err(crate::verbs::publish::without_aws().because(because)))
}

/// What may run at once: as the caller says, else as many builds as the machine has processors, in most of its free memory.
fn budget(arguments: &Build) -> Budget {
    // Nobody can answer two questions at once.
    let most = if arguments.on_error == arguments::OnError::Ask { 1 } else { usize::MAX };
    let processors = || thread::available_parallelism().map_or(1, usize::from);
    let free = || memory::available().map_or(u64::MAX, |available| available / 8 * 7);
    Budget {
        jobs: arguments.jobs.map_or_else(processors, usize::from).min(most),
        memory: arguments.memory.map_or_else(free, kiln_core::ByteSize::bytes),
    }
}

/// What a kiln that was killed left is released before anything new is begun.
fn release_interrupted(dirs: &Dirs) -> Result<(), Failure> {
    let survey = ledger::survey(dirs).map_err(|error| Failure::of(&error))?;
    let interrupted: Vec<_> = survey.iter().filter(|report| report.condition == Condition::Interrupted).collect();
    for report in interrupted {
        output::talk(&format!("found interrupted build {}: {}", report.build, clean::brief(report)));
        let choice = Choice { kept: false, build: Some(report.build.clone()) };
        for released in ledger::reap(dirs, &choice).map_err(|error| Failure::of(&error))? {
            output::talk(&clean::describe(&released, &choice, false));
        }
    }
    Ok(())
}

impl Session {
    /// Says at the first signal that the builds stop; returns when there is no more waiting for it.
    async fn announce_stop(&self) {
        self.interruption.token().cancelled().await;
        let running = self.running();
        let held = running.iter().filter_map(|(build, active)| Some((&active.image, self.held(build)?)));
        let held: Vec<_> = held.collect();
        let line = match &held[..] {
            [] => "stopping… (press again to leave at once)".to_owned(),
            [(_, held)] => format!("stopping… cleaning {held} (press again to leave it)"),
            several => {
                let each: Vec<_> = several.iter().map(|(image, held)| format!("{image} ({held})")).collect();
                format!("stopping… cleaning {} (press again to leave it)", each.join(", "))
            }
        };
        match running.values().next() {
            Some(only) if running.len() == 1 => only.events.say(&line),
            _ => self.stage.say(&line),
        }
        self.interruption.impatience().await;
    }

    /// Ends the process without waiting for anything. The guards notice and release what they can.
    fn leave_at_once(&self) -> ! {
        let mut left = false;
        for (build, active) in self.running() {
            active.events.rest();
            if let Some(held) = self.held(&build) {
                left = true;
                self.stage.say(&format!("left: {held} of build {build}; `kiln clean` releases what is still there"));
            }
        }
        if !left {
            self.stage.say("left: nothing");
        }
        std::process::exit(i32::from(Exit::Interrupted.number()));
    }

    fn running(&self) -> BTreeMap<String, Active> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What a build holds, in words.
    fn held(&self, build: &str) -> Option<String> {
        self.report(build).map(|report| clean::brief(&report))
    }

    /// Whether the machine of a build was left for a person.
    fn kept(&self, build: &str) -> bool {
        self.dirs.build(build).join(Access::FILE).exists()
    }

    fn report(&self, build: &str) -> Option<BuildReport> {
        let reports = ledger::survey(&self.dirs).ok()?;
        reports.into_iter().find(|report| report.build == build && !report.found.is_empty())
    }
}
