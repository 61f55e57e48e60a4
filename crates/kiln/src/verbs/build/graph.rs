//! The builds of one run and what they wait for, and which of them may begin. Pure: nothing runs here.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use kiln_core::{ImageName, plan::Plan};
use kiln_provision::Library;

use crate::{failure::Failure, templates::Planned};

/// What an emulator takes besides the memory of its guest.
const BESIDE_THE_GUEST: u64 = 512 << 20;

/// One image that is to be built.
#[derive(Debug, Clone)]
pub(super) struct Node {
    pub(super) plan: Plan,
    pub(super) library: Arc<Library>,
    pub(super) template: PathBuf,
}

/// All images of a run, none twice.
#[derive(Debug)]
pub(super) struct Graph {
    pub(super) nodes: Vec<Node>,
    /// The node that makes the base of each, if one does.
    parents: Vec<Option<usize>>,
}

/// How far a build is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum State {
    Waiting,
    Running,
    Done,
    Failed,
    /// It will not be built, and why.
    LeftOut(String),
}

/// What may run at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Budget {
    pub(super) jobs: usize,
    /// Bytes, of all guests together.
    pub(super) memory: u64,
}

/// Which build comes next.
#[derive(Debug)]
pub(super) struct Schedule {
    parents: Vec<Option<usize>>,
    names: Vec<ImageName>,
    memory: Vec<u64>,
    /// How many builds wait for each, one behind the other.
    depth: Vec<usize>,
    budget: Budget,
    pub(super) states: Vec<State>,
}

/// Refuses what no run could make: two images of one name, images that are built on each other.
pub(crate) fn check(planned: &[Planned]) -> Result<(), Failure> {
    Graph::of(planned.to_vec(), true).map(drop)
}

/// The same as far as it can be told without a registry, which says what is published of the bases.
pub(crate) fn check_names(planned: &[Planned]) -> Result<(), Failure> {
    nodes(planned.to_vec()).map(drop)
}

/// All images, each once.
fn nodes(planned: Vec<Planned>) -> Result<Vec<Node>, Failure> {
    let mut nodes: Vec<Node> = Vec::new();
    for Planned { template, plans, library } in planned {
        let library = Arc::new(library);
        for plan in plans {
            match nodes.iter().find(|node| node.plan.image == plan.image) {
                // Built once; both mean the same image.
                Some(other) if same(&other.plan, &plan) => {}
                Some(other) => return Err(two_of_one_name(&plan.image, &other.template, &template)),
                None => nodes.push(Node { plan, library: library.clone(), template: template.clone() }),
            }
        }
    }
    Ok(nodes)
}

impl Graph {
    /// The graph of what templates make. `publishes`: whether what is built gets into the registry, where a child finds it.
    pub(super) fn of(planned: Vec<Planned>, publishes: bool) -> Result<Self, Failure> {
        let nodes = nodes(planned)?;
        let place = |image: &ImageName| nodes.iter().position(|node| node.plan.image == *image);
        let parents: Vec<_> = nodes.iter().map(|node| node.plan.awaited().and_then(place)).collect();
        let graph = Self { nodes, parents };
        graph.refuse_circles()?;
        graph.refuse_unpublished(publishes)?;
        Ok(graph)
    }

    fn refuse_circles(&self) -> Result<(), Failure> {
        for start in 0..self.nodes.len() {
            let mut chain = vec![start];
            while let Some(parent) = self.parents[chain[chain.len() - 1]] {
                if parent == start {
                    let link = |at: usize, on: usize| {
                        let (node, on) = (&self.nodes[at], &self.nodes[on].plan.image);
                        format!("`{}` has `{on}` as its base (`{}`)", node.plan.image, node.template.display())
                    };
                    let mut links: Vec<_> = chain.windows(2).map(|pair| link(pair[0], pair[1])).collect();
                    links.push(link(chain[chain.len() - 1], start));
                    let failure = Failure::usage("these images are built on each other in a circle");
                    return Err(links
                        .into_iter()
                        .fold(failure, Failure::because)
                        .hint("name an exact version that is published, as `base.image = \"name@1.4.0\"`"));
                }
                if chain.contains(&parent) {
                    // A circle further up: found from there.
                    break;
                }
                chain.push(parent);
            }
        }
        Ok(())
    }

    /// A child takes its base out of the registry.
    fn refuse_unpublished(&self, publishes: bool) -> Result<(), Failure> {
        for (node, parent) in self.nodes.iter().zip(&self.parents) {
            let Some(parent) = parent.map(|parent| &self.nodes[parent].plan) else { continue };
            if !publishes || !parent.publish.registry {
                let message =
                    format!("`{}` is to be built on `{}`, which is not published", node.plan.image, parent.image);
                return Err(
                    Failure::usage(message).hint("build without `--no-publish`, or leave the child out with `--only`")
                );
            }
        }
        Ok(())
    }

    pub(super) fn schedule(&self, budget: Budget) -> Schedule {
        let mut depth = vec![0; self.nodes.len()];
        for start in 0..self.nodes.len() {
            let (mut at, mut below) = (start, 0);
            while let Some(parent) = self.parents[at] {
                below += 1;
                depth[parent] = depth[parent].max(below);
                at = parent;
            }
        }
        Schedule {
            parents: self.parents.clone(),
            names: self.nodes.iter().map(|node| node.plan.image.clone()).collect(),
            memory: self.nodes.iter().map(|node| memory(&node.plan)).collect(),
            depth,
            budget,
            states: vec![State::Waiting; self.nodes.len()],
        }
    }
}

impl Schedule {
    /// A build that may begin now: its base is there, and there is room for it. What most others wait for comes first.
    pub(super) fn next(&self) -> Option<usize> {
        let running: Vec<_> = (0..self.states.len()).filter(|at| self.states[*at] == State::Running).collect();
        let taken: u64 = running.iter().map(|at| self.memory[*at]).sum();
        let ready = |at: &usize| {
            self.states[*at] == State::Waiting && self.parents[*at].is_none_or(|on| self.states[on] == State::Done)
        };
        let fits = |at: &usize| {
            // One that is larger than everything is refused by its own preflight, or fits after all.
            running.is_empty() || (running.len() < self.budget.jobs && taken + self.memory[*at] <= self.budget.memory)
        };
        (0..self.states.len()).filter(ready).filter(fits).max_by_key(|at| (self.depth[*at], std::cmp::Reverse(*at)))
    }

    /// The build whose result is the base of this one.
    pub(super) fn parent(&self, at: usize) -> Option<usize> {
        self.parents[at]
    }

    /// Notes that a build did not make its image; those that wait for it are left out, with the reason.
    pub(super) fn failed(&mut self, at: usize, how: &str) -> Vec<usize> {
        self.states[at] = State::Failed;
        let mut left_out = Vec::new();
        let mut without = vec![(at, format!("{} {how}", self.names[at]))];
        while let Some((gone, reason)) = without.pop() {
            for child in (0..self.states.len()).filter(|child| self.parents[*child] == Some(gone)) {
                if self.states[child] == State::Waiting {
                    self.states[child] = State::LeftOut(reason.clone());
                    left_out.push(child);
                    without.push((child, reason.clone()));
                }
            }
        }
        left_out.sort_unstable();
        left_out
    }

    /// Nothing more is begun.
    pub(super) fn stop(&mut self, reason: &str) -> Vec<usize> {
        let waiting: Vec<_> = (0..self.states.len()).filter(|at| self.states[*at] == State::Waiting).collect();
        for at in &waiting {
            self.states[*at] = State::LeftOut(reason.to_owned());
        }
        waiting
    }
}

fn memory(plan: &Plan) -> u64 {
    plan.builder.qemu().map_or(0, |machine| machine.memory.bytes()) + BESIDE_THE_GUEST
}

/// Whether two plans do the same to the same image.
fn same(one: &Plan, two: &Plan) -> bool {
    serde_json::to_value(one).ok() == serde_json::to_value(two).ok() && one.secrets == two.secrets
}

fn two_of_one_name(image: &ImageName, one: &Path, two: &Path) -> Failure {
    Failure::usage(format!("two templates make `{image}`, each another one"))
        .because(format!("`{}` and `{}`", one.display(), two.display()))
        .hint("give one of them another `image.name`")
}

#[cfg(test)]
mod tests;
