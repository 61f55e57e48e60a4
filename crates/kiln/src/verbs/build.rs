//! `kiln build`: bakes the images of a template one after the other, and publishes each when it is proven.

mod ask;
mod place;
mod skip;
mod wish;

use std::{
    env,
    io::{self, IsTerminal as _},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
};

use kiln_build::bake::{BakeContext, BakeError, Baked, Ended, OnError, bake};
use kiln_core::{
    Version,
    event::{Event, Events as _},
    plan::{Accelerator, Plan},
};
use kiln_io::{
    dirs::Dirs,
    guard::Guard,
    guest::Access,
    ledger::{self, BuildReport, Choice, Condition},
    random,
};
use kiln_provision::Library;
use kiln_registry::Registry;
use tokio_util::sync::CancellationToken;

use crate::{
    arguments::{self, Build},
    failure::{Exit, Failure, Outcome},
    output,
    render::{Broadcast, Journal, Json, Plain, Renderer, Terminal},
    signals::Interruption,
    surroundings,
    templates::{self, Planned},
    verbs::{clean, doctor},
};

/// What all members of a matrix share.
struct Session {
    arguments: Build,
    dirs: Dirs,
    registry: Option<Registry>,
    interruption: Interruption,
    library: Arc<Library>,
    /// This program, which also runs as the guard of each build.
    kiln: std::path::PathBuf,
}

/// How the bake of one member ended.
enum Member {
    Done,
    /// Its machine waits after the step that was asked for.
    Held,
    Failed,
    Interrupted,
}

pub(crate) async fn run(arguments: Build) -> Outcome {
    if arguments.on_error == arguments::OnError::Ask && !(io::stdin().is_terminal() && io::stderr().is_terminal()) {
        return Err(
            Failure::usage("`--on-error ask` needs a terminal").hint("use `--on-error keep` or `--on-error clean`")
        );
    }
    let Planned { plans, library } = templates::resolve(&arguments.template)?;
    wish::check(&arguments, &plans)?;
    let dirs = surroundings::dirs()?;
    let registry = if arguments.no_publish { None } else { Some(surroundings::registry(&arguments.registry)?) };
    if let Some(registry) = &registry {
        plans.iter().try_for_each(|plan| place::check_base(registry, plan))?;
    }
    if let Some(output) = &arguments.output {
        place::check(output)?;
    }
    if arguments.install {
        doctor::install_missing().await?;
    }
    release_interrupted(&dirs)?;
    let kiln = env::current_exe()
        .map_err(|error| Failure::new("cannot find kiln's own program").because(error.to_string()))?;
    let session =
        Session { arguments, dirs, registry, interruption: Interruption::listen()?, library: Arc::new(library), kiln };
    let (mut done, mut failed) = (0, 0);
    for plan in &plans {
        if session.nothing_to_do(plan).await? {
            done += 1;
            continue;
        }
        match session.member(plan).await? {
            Member::Done | Member::Held => done += 1,
            Member::Failed => failed += 1,
            Member::Interrupted => return Ok(Exit::Interrupted),
        }
    }
    if plans.len() > 1 {
        output::talk(&format!("{done} of {} images done", plans.len()));
    }
    Ok(match (done, failed) {
        (_, 0) => Exit::Done,
        (0, _) => Exit::Failed,
        _ => Exit::Partial,
    })
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
    async fn member(&self, plan: &Plan) -> Result<Member, Failure> {
        let build = random::build_id(surroundings::now());
        let cancel = self.interruption.token().child_token();
        let unwritten = Arc::new(OnceLock::new());
        let journal = Journal::begin(&self.dirs.build(&build), cancel.clone(), unwritten.clone())?;
        let events = Arc::new(Broadcast::new(vec![self.face(), Box::new(journal)]));
        // A person who was asked what to do about the failure has read it.
        let told = Arc::new(AtomicBool::new(false));
        let mut work = Box::pin(self.bake_and_publish(plan, &build, &events, cancel, &told));
        let result = tokio::select! {
            result = &mut work => result,
            () = self.announce_stop(&events, &build) => self.leave_at_once(&events, &build),
        };
        events.rest();
        let result = match unwritten.get() {
            Some(error) => Err(Failure::of(error).hint("free some space; nothing was published")),
            None => result,
        };
        match result {
            Ok(member) => Ok(member),
            Err(failure) => {
                let mut failure = if self.interruption.happened() { interrupted(&build) } else { failure };
                if self.kept(&build) {
                    failure.hint =
                        Some(format!("look inside with `kiln ssh {build}`, release it with `kiln clean {build}`"));
                }
                events.emit(Event::BuildFailed {
                    message: failure.message.clone(),
                    causes: failure.causes.clone(),
                    hint: failure.hint.clone(),
                    left: self.left(&build),
                });
                events.rest();
                if !told.load(Ordering::Relaxed) {
                    output::complain(&failure);
                }
                self.say_what_is_left(&build);
                Ok(if self.interruption.happened() { Member::Interrupted } else { Member::Failed })
            }
        }
    }

    /// The renderer that the person or the program at the other end sees.
    fn face(&self) -> Box<dyn Renderer> {
        if self.arguments.json {
            Box::new(Json::new(io::stdout()))
        } else if io::stderr().is_terminal() && env::var_os("TERM").is_some_and(|term| term != "dumb") {
            Box::new(Terminal::new())
        } else {
            Box::new(Plain::live(io::stderr()))
        }
    }

    async fn bake_and_publish(
        &self,
        plan: &Plan,
        build: &str,
        events: &Arc<Broadcast>,
        cancel: CancellationToken,
        told: &Arc<AtomicBool>,
    ) -> Result<Member, Failure> {
        let context = BakeContext {
            dirs: self.dirs.clone(),
            build: build.to_owned(),
            events: events.clone(),
            cancel: cancel.clone(),
            on_error: match self.arguments.on_error {
                arguments::OnError::Clean => OnError::Clean,
                arguments::OnError::Keep => OnError::Keep,
                arguments::OnError::Ask => OnError::Ask(Arc::new(ask::Person {
                    events: events.clone(),
                    directory: self.dirs.build(build),
                    cancel: cancel.clone(),
                    told: told.clone(),
                })),
            },
            kiln: self.kiln.clone(),
            accelerator: self.arguments.accelerator.map(accelerator),
            boot_test: !self.arguments.no_boot_test,
            checkpoints: wish::wish(&self.arguments, plan),
            previous: self.previous(plan, &cancel),
            library: self.library.clone(),
        };
        // In a task of its own, so that a panic in there becomes a failure out here.
        let baking = {
            let plan = plan.clone();
            tokio::spawn(async move { Box::pin(bake(&plan, &context)).await })
        };
        let Baked { artifact, directory, guard } = match baking.await {
            Ok(ended) => match ended.map_err(|error| from_bake(&error))? {
                Ended::Baked(baked) => *baked,
                Ended::Held => return Ok(self.held_for_a_person(build, events)),
                Ended::Same { version, guard } => return self.same(plan, &version, *guard, build, events).await,
            },
            Err(_) => return Err(Failure::new("kiln itself failed; what it held is released")),
        };
        let placed = self.place(plan, &artifact, &directory, events).await;
        if let Ok(placed) = &placed {
            self.remember(plan, placed, events).await;
        }
        let released = guard.close().await.map_err(|error| Failure::of(&error));
        let said = placed?.said;
        let left = released?.failed;
        if !left.is_empty() {
            events.emit(Event::Warning { message: format!("not everything could be released: {}", left.join("; ")) });
        }
        finished(build, events);
        for line in &said {
            output::talk(line);
        }
        Ok(Member::Done)
    }

    /// The machine came out with the tree of a published version: that one stands for it.
    async fn same(
        &self,
        plan: &Plan,
        version: &Version,
        guard: Guard,
        build: &str,
        events: &Arc<Broadcast>,
    ) -> Result<Member, Failure> {
        let released = guard.close().await.map_err(|error| Failure::of(&error))?;
        if !released.failed.is_empty() {
            let left = released.failed.join("; ");
            events.emit(Event::Warning { message: format!("not everything could be released: {left}") });
        }
        if let Some(placed) = self.stands(plan, version, events)? {
            self.remember(plan, &placed, events).await;
        }
        finished(build, events);
        output::talk(&format!("every file is as in {} {version}: nothing is published", plan.image));
        Ok(Member::Done)
    }

    fn held_for_a_person(&self, build: &str, events: &Broadcast) -> Member {
        finished(build, events);
        let until = self.arguments.until.as_deref().unwrap_or_default();
        output::talk(&format!("stopped after step `{until}`; nothing was sealed or published"));
        output::talk(&format!("  kiln ssh {build}\n  kiln clean {build}"));
        Member::Held
    }

    /// Says at the first signal that the build stops; returns when there is no more waiting for it.
    async fn announce_stop(&self, events: &Broadcast, build: &str) {
        self.interruption.token().cancelled().await;
        events.say(&match self.held(build) {
            Some(held) => format!("stopping… cleaning {held} (press again to leave it)"),
            None => "stopping… (press again to leave at once)".to_owned(),
        });
        self.interruption.impatience().await;
    }

    /// Ends the process without waiting for anything. The guard notices and releases what it can.
    fn leave_at_once(&self, events: &Broadcast, build: &str) -> ! {
        events.rest();
        match self.held(build) {
            Some(held) => {
                output::talk(&format!("left: {held} of build {build}; `kiln clean` releases what is still there"));
            }
            None => output::talk("left: nothing"),
        }
        std::process::exit(i32::from(Exit::Interrupted.number()));
    }

    fn say_what_is_left(&self, build: &str) {
        match self.held(build) {
            None => output::talk("left: nothing"),
            Some(held) if self.kept(build) => output::talk(&format!("kept: {held}")),
            Some(held) => output::talk(&format!("left: {held}; `kiln clean {build}` releases it")),
        }
    }

    /// What the build holds, in words.
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

    fn left(&self, build: &str) -> Vec<String> {
        self.report(build).into_iter().flat_map(|report| report.found).map(|outstanding| outstanding.what).collect()
    }
}

fn finished(build: &str, events: &Broadcast) {
    events.emit(Event::BuildFinished {
        build: build.to_owned(),
        milliseconds: u64::try_from(events.elapsed().as_millis()).unwrap_or(u64::MAX),
    });
    events.rest();
}

const fn accelerator(given: arguments::Accelerator) -> Accelerator {
    match given {
        arguments::Accelerator::Auto => Accelerator::Auto,
        arguments::Accelerator::Kvm => Accelerator::Kvm,
        arguments::Accelerator::Tcg => Accelerator::Tcg,
    }
}

fn interrupted(build: &str) -> Failure {
    Failure::new(format!("build {build} was interrupted")).exit(Exit::Interrupted)
}

fn from_bake(error: &BakeError) -> Failure {
    let hint = error.hint();
    Failure { hint, ..Failure::of(error) }
}
