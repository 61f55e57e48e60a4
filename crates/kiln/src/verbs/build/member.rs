//! One build of a run: baked, placed, and everything it had released again.

use std::sync::{Arc, OnceLock, PoisonError, atomic::Ordering};

use kiln_build::{
    bake::{BakeContext, BakeError, Baked, Ended, OnError, bake},
    remote::Machines,
};
use kiln_core::{
    Version,
    artifact::Artifact,
    event::{Event, Events as _},
    plan::{Accelerator, Plan},
};
use kiln_io::{guard::Guard, random};
use tokio_util::sync::CancellationToken;

use super::{
    Active, Session,
    ask::{Answer, Person},
    graph::Node,
    wish,
};
use crate::{
    arguments,
    failure::{Exit, Failure},
    render::{Broadcast, Journal},
    surroundings,
};

/// How one build ended.
#[derive(Debug)]
pub(super) enum Member {
    /// Its image is there; as it is in the registry, if it went there.
    Done(Option<Box<Artifact>>),
    /// The registry has it, and nothing ran.
    UpToDate(Box<Artifact>),
    /// Its machine waits after the step that was asked for.
    Held,
    Failed,
    Interrupted,
}

/// The same, or the wish to do it over.
enum Ending {
    Member(Member),
    Again(Box<Node>),
}

impl Session {
    /// Builds one image and brings it where else it is to go.
    pub(super) async fn member(self: &Arc<Self>, node: Node) -> Result<Member, Failure> {
        #[cfg(feature = "aws")]
        let plan = node.plan.clone();
        let member = self.baked(node).await?;
        #[cfg(feature = "aws")]
        if let Member::UpToDate(artifact) = &member {
            self.amis(&plan, artifact, None).await;
        }
        Ok(member)
    }

    /// Builds one image, unless it is there already; over and over while somebody retries.
    async fn baked(self: &Arc<Self>, node: Node) -> Result<Member, Failure> {
        if let Some(artifact) = self.nothing_to_do(&node).await? {
            return Ok(Member::UpToDate(Box::new(artifact)));
        }
        self.may_publish(&node.plan).await?;
        self.warn_of_taken_version(&node.plan);
        // Whoever will not take another's result need not wait for it.
        // Held to the end: whoever wants the same waits for what comes out of it.
        let turn = if self.takes_results(&node.plan) {
            let Some(turn) = self.turn(&node).await else { return Ok(Member::Interrupted) };
            Some(turn)
        } else {
            None
        };
        if turn.as_ref().is_some_and(|turn| turn.waited)
            && let Some(artifact) = self.nothing_to_do(&node).await?
        {
            return Ok(Member::UpToDate(Box::new(artifact)));
        }
        let mut node = node;
        loop {
            match self.attempt(&node).await? {
                Ending::Member(member) => return Ok(member),
                Ending::Again(again) => node = *again,
            }
        }
    }

    async fn attempt(self: &Arc<Self>, node: &Node) -> Result<Ending, Failure> {
        let plan = &node.plan;
        let build = random::build_id(surroundings::now());
        let cancel = self.interruption.token().child_token();
        let unwritten = Arc::new(OnceLock::new());
        let journal = Journal::begin(&self.dirs.build(&build), cancel.clone(), unwritten.clone())?;
        let face = self.stage.face(&plan.image, Some(&build));
        let events = Arc::new(Broadcast::new(vec![face, Box::new(journal)]));
        let answer = Arc::new(Answer::default());
        let active = Active { image: plan.image.clone(), events: events.clone() };
        self.running.lock().unwrap_or_else(PoisonError::into_inner).insert(build.clone(), active);
        let result = Box::pin(self.bake_and_publish(node, &build, &events, cancel, &answer)).await;
        self.running.lock().unwrap_or_else(PoisonError::into_inner).remove(&build);
        events.rest();
        let result = match unwritten.get() {
            Some(error) => Err(Failure::of(error).hint("free some space; nothing was published")),
            None => result,
        };
        match result {
            Ok(member) => Ok(Ending::Member(member)),
            Err(failure) => {
                self.tell_failure(failure, plan, &build, &events, &answer);
                if self.interruption.happened() {
                    return Ok(Ending::Member(Member::Interrupted));
                }
                Ok(answer.again().map_or(Ending::Member(Member::Failed), |again| Ending::Again(Box::new(again))))
            }
        }
    }

    fn tell_failure(&self, failure: Failure, plan: &Plan, build: &str, events: &Arc<Broadcast>, answer: &Answer) {
        let mut failure = if self.interruption.happened() { interrupted(build) } else { failure };
        if self.kept(build) {
            failure.hint = Some(format!("look inside with `kiln ssh {build}`, release it with `kiln clean {build}`"));
        }
        events.emit(Event::BuildFailed {
            message: failure.message.clone(),
            causes: failure.causes.clone(),
            hint: failure.hint.clone(),
            left: self.left(build),
        });
        events.rest();
        // A person who was asked what to do about the failure has read it.
        if !answer.told.load(Ordering::Relaxed) {
            self.stage.complain(&plan.image, &failure);
        }
        let left = match self.held(build) {
            None => "left: nothing".to_owned(),
            Some(held) if self.kept(build) => format!("kept: {held}"),
            Some(held) => format!("left: {held}; `kiln clean {build}` releases it"),
        };
        self.stage.talk(&plan.image, &left);
    }

    async fn bake_and_publish(
        self: &Arc<Self>,
        node: &Node,
        build: &str,
        events: &Arc<Broadcast>,
        cancel: CancellationToken,
        answer: &Arc<Answer>,
    ) -> Result<Member, Failure> {
        #[cfg(feature = "aws")]
        let cloud = self.ec2(&node.plan, events);
        #[cfg(feature = "aws")]
        let machines: Option<Arc<dyn Machines>> = Some(cloud.clone());
        #[cfg(not(feature = "aws"))]
        let machines: Option<Arc<dyn Machines>> = None;
        let context = BakeContext { machines: machines.clone(), ..self.context(node, build, events, &cancel, answer) };
        // In a task of its own, so that a panic in there becomes a failure out here.
        let baking = {
            let plan = node.plan.clone();
            tokio::spawn(async move { Box::pin(bake(&plan, &context)).await })
        };
        let Baked { artifact, directory, guard } = match baking.await {
            Ok(ended) => match ended.map_err(|error| from_bake(&error))? {
                Ended::Baked(baked) => *baked,
                Ended::Held => return Ok(self.held_for_a_person(&node.plan, build, events)),
                Ended::Same { version, guard } => return self.same(node, &version, *guard, build, events).await,
            },
            Err(_) => return Err(Failure::new("kiln itself failed; what it held is released")),
        };
        if self.audits(&artifact) {
            self.audit(node, &artifact, &directory, events, &cancel).await;
            if cancel.is_cancelled() {
                let _ = give_back(machines.as_deref(), guard).await;
                return Err(interrupted(build));
            }
        }
        let placed = self.place(&node.plan, &artifact, &directory, events).await;
        #[cfg(feature = "aws")]
        if let Ok(super::place::Placed { published: Some(artifact), .. }) = &placed {
            self.amis(&node.plan, artifact, cloud.tried().await.as_ref()).await;
        }
        if let Ok(placed) = &placed {
            self.remember(node, placed, events).await;
        }
        let released = give_back(machines.as_deref(), guard).await;
        let placed = placed?;
        let left = released?;
        if !left.is_empty() {
            events.emit(Event::Warning { message: format!("not everything could be released: {}", left.join("; ")) });
        }
        finished(build, events);
        for line in &placed.said {
            self.stage.talk(&node.plan.image, line);
        }
        Ok(Member::Done(placed.published.map(Box::new)))
    }

    /// The machine came out with the tree of a published version: that one stands for it.
    async fn same(
        self: &Arc<Self>,
        node: &Node,
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
        if self.arguments.audit.is_some() {
            let message = format!("not audited: there is no new image, every file is as in {version}");
            events.emit(Event::Warning { message });
        }
        let placed = self.stands(&node.plan, version, events)?;
        if let Some(placed) = &placed {
            self.remember(node, placed, events).await;
            #[cfg(feature = "aws")]
            if let Some(artifact) = &placed.published {
                self.amis(&node.plan, artifact, None).await;
            }
        }
        finished(build, events);
        let image = &node.plan.image;
        self.stage.talk(image, &format!("every file is as in {image} {version}: nothing is published"));
        Ok(Member::Done(placed.and_then(|placed| placed.published).map(Box::new)))
    }

    pub(super) fn context(
        &self,
        node: &Node,
        build: &str,
        events: &Arc<Broadcast>,
        cancel: &CancellationToken,
        answer: &Arc<Answer>,
    ) -> BakeContext {
        BakeContext {
            dirs: self.dirs.clone(),
            build: build.to_owned(),
            events: events.clone(),
            on_error: match self.arguments.on_error {
                arguments::OnError::Clean => OnError::Clean,
                arguments::OnError::Keep => OnError::Keep,
                arguments::OnError::Ask => OnError::Ask(Arc::new(Person {
                    events: events.clone(),
                    directory: self.dirs.build(build),
                    cancel: cancel.clone(),
                    answer: answer.clone(),
                    node: node.clone(),
                    arguments: self.arguments.template.clone(),
                    shelf: self.shelf.clone(),
                })),
            },
            cancel: cancel.clone(),
            kiln: self.kiln.clone(),
            accelerator: self.arguments.accelerator.map(accelerator),
            boot_test: !self.arguments.no_boot_test,
            checkpoints: wish::wish(&self.arguments, &node.plan),
            previous: self.previous(&node.plan, cancel),
            library: node.library.clone(),
            images: self.shelf.clone().map(|shelf| shelf as _),
            machines: self.machines(&node.plan, events),
        }
    }

    #[cfg(feature = "aws")]
    #[expect(clippy::unnecessary_wraps, reason = "without the feature `aws` there are none")]
    fn machines(&self, plan: &Plan, events: &Arc<Broadcast>) -> Option<Arc<dyn Machines>> {
        Some(self.ec2(plan, events))
    }

    #[cfg(not(feature = "aws"))]
    #[expect(clippy::unused_self, reason = "with the feature `aws` it is used")]
    fn machines(&self, _: &Plan, _: &Arc<Broadcast>) -> Option<Arc<dyn Machines>> {
        None
    }

    fn held_for_a_person(&self, plan: &Plan, build: &str, events: &Broadcast) -> Member {
        finished(build, events);
        let until = self.arguments.until.as_deref().unwrap_or_default();
        let talk = |line: &str| self.stage.talk(&plan.image, line);
        talk(&format!("stopped after step `{until}`; nothing was sealed or published"));
        talk(&format!("  kiln ssh {build}"));
        talk(&format!("  kiln clean {build}"));
        Member::Held
    }

    fn left(&self, build: &str) -> Vec<String> {
        self.report(build).into_iter().flat_map(|report| report.found).map(|outstanding| outstanding.what).collect()
    }
}

/// Releases what a build still holds; what of it could not be.
async fn give_back(machines: Option<&dyn Machines>, guard: Guard) -> Result<Vec<String>, Failure> {
    let mut left = Vec::new();
    if let Some(machines) = machines {
        left.extend(machines.release().await.err().map(|error| error.message));
    }
    left.extend(guard.close().await.map_err(|error| Failure::of(&error))?.failed);
    Ok(left)
}

pub(super) fn finished(build: &str, events: &Broadcast) {
    events.emit(Event::BuildFinished {
        build: build.to_owned(),
        milliseconds: u64::try_from(events.elapsed().as_millis()).unwrap_or(u64::MAX),
    });
    events.rest();
}

pub(super) const fn accelerator(given: arguments::Accelerator) -> Accelerator {
    match given {
        arguments::Accelerator::Auto => Accelerator::Auto,
        arguments::Accelerator::Kvm => Accelerator::Kvm,
        arguments::Accelerator::Tcg => Accelerator::Tcg,
    }
}

fn interrupted(build: &str) -> Failure {
    Failure::new(format!("build {build} was interrupted")).exit(Exit::Interrupted)
}

pub(super) fn from_bake(error: &BakeError) -> Failure {
    let hint = error.hint();
    Failure { hint, ..Failure::of(error) }
}
