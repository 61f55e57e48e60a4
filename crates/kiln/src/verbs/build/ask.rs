//! `--on-error ask`: a person decides what becomes of the machine, and whether the step is tried again.

use std::{
    io::{self, BufRead as _, Write as _},
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use async_trait::async_trait;
use kiln_build::bake::{Ask, BakeError};
use kiln_core::plan::{Base, Plan};
use kiln_io::{guest::Access, process::run_attached};
use tokio_util::sync::CancellationToken;

use super::{graph::Node, member::from_bake};
use crate::{
    arguments::TemplateArguments,
    bases::Shelf,
    failure::Failure,
    output,
    render::Broadcast,
    templates::{self, Planned},
    verbs::ssh,
};

const QUESTION: &str =
    "the machine still runs: [r]etry with the files as they are now, [c]lean, [k]eep, or look [i]nside? ";

/// What a person said.
#[derive(Debug, Default)]
pub(super) struct Answer {
    /// Set when the failure was shown.
    pub(super) told: AtomicBool,
    /// What is to be built again, with template and scripts read anew.
    again: Mutex<Option<Node>>,
}

impl Answer {
    pub(super) fn again(&self) -> Option<Node> {
        self.again.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// Somebody at the terminal.
#[derive(Debug)]
pub(super) struct Person {
    pub(super) events: Arc<Broadcast>,
    /// The build's directory.
    pub(super) directory: PathBuf,
    /// Somebody who presses Ctrl-C does not want to answer.
    pub(super) cancel: CancellationToken,
    pub(super) answer: Arc<Answer>,
    pub(super) node: Node,
    /// How the templates were named.
    pub(super) arguments: TemplateArguments,
    pub(super) shelf: Option<Arc<Shelf>>,
}

/// What is needed to go on after an answer, for a thread that may wait for it.
struct Desk {
    directory: PathBuf,
    node: Node,
    arguments: TemplateArguments,
    shelf: Option<Arc<Shelf>>,
}

enum Decision {
    Clean,
    Keep,
    Retry(Box<Node>),
}

impl Desk {
    /// Asks until there is an answer that can be followed.
    fn decide(&self) -> Decision {
        loop {
            let _ = write!(io::stderr(), "{QUESTION}");
            let mut answer = String::new();
            match io::stdin().lock().read_line(&mut answer) {
                // The terminal is gone: nobody will come back for the machine.
                Ok(0) | Err(_) => return Decision::Clean,
                Ok(_) => {}
            }
            match answer.trim() {
                "c" | "clean" => return Decision::Clean,
                "k" | "keep" => return Decision::Keep,
                "i" | "inside" => self.look_inside(),
                // The machine stays as long as the template has mistakes.
                "r" | "retry" => match self.read_again() {
                    Ok(node) => return Decision::Retry(Box::new(node)),
                    Err(failure) => output::complain(&failure),
                },
                _ => {}
            }
        }
    }

    fn look_inside(&self) {
        let shell = ssh::read(&self.directory.join(Access::FILE))
            .and_then(|access| run_attached(&ssh::client(&access, &[])).map_err(Failure::from));
        if let Err(failure) = shell {
            output::complain(&failure);
        }
    }

    /// The same image from the templates and scripts as they are now, on the same base.
    fn read_again(&self) -> Result<Node, Failure> {
        let planned = templates::resolve(&self.arguments, self.shelf.as_deref())?;
        let image = &self.node.plan.image;
        for Planned { template, plans, library } in planned {
            if let Some(plan) = plans.into_iter().find(|plan| plan.image == *image) {
                return Ok(Node { plan: settled(plan, &self.node.plan), library: Arc::new(library), template });
            }
        }
        Err(Failure::new(format!("no template makes `{image}` any more")))
    }
}

/// A base that was built in this run is what it was.
fn settled(plan: Plan, before: &Plan) -> Plan {
    match &before.base {
        Base::Image(base) if plan.awaited() == Some(&base.image) => match &base.version {
            Some(version) => plan.on(version.clone()),
            None => plan,
        },
        _ => plan,
    }
}

#[async_trait]
impl Ask for Person {
    async fn keep(&self, error: &BakeError) -> bool {
        self.events.rest();
        output::complain(&Failure { hint: None, ..from_bake(error) });
        self.answer.told.store(true, Ordering::Relaxed);
        let desk = Desk {
            directory: self.directory.clone(),
            node: self.node.clone(),
            arguments: self.arguments.clone(),
            shelf: self.shelf.clone(),
        };
        let decision = tokio::task::spawn_blocking(move || desk.decide());
        let decision = tokio::select! {
            decision = decision => decision.unwrap_or(Decision::Clean),
            () = self.cancel.cancelled() => Decision::Clean,
        };
        match decision {
            Decision::Clean => false,
            Decision::Keep => true,
            Decision::Retry(node) => {
                output::talk("going on from the last checkpoint before it");
                *self.answer.again.lock().unwrap_or_else(PoisonError::into_inner) = Some(*node);
                false
            }
        }
    }
}
