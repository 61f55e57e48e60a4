//! Goes through the graph: begins what may begin, hands each result to the builds that wait for it, and tells what became of all.

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use kiln_core::{
    artifact::Artifact,
    event::{Event, Events as _},
};
use kiln_io::time::{Clock as _, SystemClock};
use tokio::task::JoinSet;

use super::{
    Session,
    graph::{Budget, Graph, Node, Schedule, State},
    member::Member,
};
use crate::{
    bases,
    failure::{Exit, Failure, Outcome},
    output,
    render::{Broadcast, duration},
};

/// What became of a build, for the table at the end.
#[derive(Debug, Clone)]
struct Told {
    what: String,
    took: Option<Duration>,
}

/// Builds all of `graph` within `budget`.
pub(super) async fn walk(session: Arc<Session>, graph: Graph, budget: Budget) -> Outcome {
    let mut schedule = graph.schedule(budget);
    let mut nodes: Vec<Option<Node>> = graph.nodes.iter().cloned().map(Some).collect();
    let mut results: BTreeMap<usize, Artifact> = BTreeMap::new();
    let mut told: BTreeMap<usize, Told> = BTreeMap::new();
    let mut tasks = JoinSet::new();
    let clock = SystemClock::new();
    loop {
        if session.interruption.happened() {
            let left_out = schedule.stop("the run was interrupted");
            tell_left_out(&session, &graph, &schedule, &left_out, &mut told);
        }
        while let Some(at) = schedule.next() {
            let Some(node) = nodes[at].take() else { break };
            schedule.states[at] = State::Running;
            let node = match schedule.parent(at).and_then(|parent| results.get(&parent)) {
                None => Ok(node),
                Some(base) => bases::version(base).map(|version| Node { plan: node.plan.on(version), ..node }),
            };
            let (session, began) = (session.clone(), clock.monotonic());
            tasks.spawn(async move {
                let member = match node {
                    Ok(node) => Box::pin(session.member(node)).await,
                    Err(error) => Err(Failure::new(error.message)),
                };
                (at, member, began)
            });
        }
        let Some(ended) = tasks.join_next().await else { break };
        let Ok((at, member, began)) = ended else { continue };
        let took = clock.monotonic().saturating_sub(began);
        let member = match member {
            Ok(member) => member,
            // Nothing was begun.
            Err(failure) if graph.nodes.len() == 1 => return Err(failure),
            Err(failure) => {
                session.stage.complain(&graph.nodes[at].plan.image, &failure);
                Member::Failed
            }
        };
        let left_out = note(&mut schedule, at, &member);
        told.insert(at, in_words(&member, took));
        if let Member::Done(Some(artifact)) | Member::UpToDate(artifact) = member {
            results.insert(at, *artifact);
        }
        tell_left_out(&session, &graph, &schedule, &left_out, &mut told);
    }
    if graph.nodes.len() > 1 {
        summary(&graph, &schedule, &told);
    }
    Ok(exit(&session, &schedule))
}

/// Notes how a build ended; the builds that are left out for it.
fn note(schedule: &mut Schedule, at: usize, member: &Member) -> Vec<usize> {
    match member {
        Member::Done(Some(_)) | Member::UpToDate(_) => schedule.states[at] = State::Done,
        // Nobody can stand on it; who would have is left out.
        Member::Done(None) | Member::Held => {
            let left_out = schedule.failed(at, "was not published");
            schedule.states[at] = State::Done;
            return left_out;
        }
        Member::Failed => return schedule.failed(at, "failed"),
        Member::Interrupted => return schedule.failed(at, "was interrupted"),
    }
    Vec::new()
}

fn tell_left_out(
    session: &Session,
    graph: &Graph,
    schedule: &Schedule,
    left_out: &[usize],
    told: &mut BTreeMap<usize, Told>,
) {
    for at in left_out {
        let State::LeftOut(reason) = &schedule.states[*at] else { continue };
        let image = &graph.nodes[*at].plan.image;
        let events = Broadcast::new(vec![session.stage.face(image, None)]);
        events.emit(Event::BuildLeftOut { image: image.clone(), reason: reason.clone() });
        events.rest();
        told.insert(*at, Told { what: format!("not built: {reason}"), took: None });
    }
}

fn in_words(member: &Member, took: Duration) -> Told {
    let what = match member {
        Member::Done(Some(artifact)) => format!("{} published", artifact.version),
        Member::Done(None) => "done".to_owned(),
        Member::UpToDate(artifact) => format!("{} is up to date", artifact.version),
        Member::Held => "its machine waits".to_owned(),
        Member::Failed => "FAILED".to_owned(),
        Member::Interrupted => "interrupted".to_owned(),
    };
    Told { what, took: Some(took) }
}

/// What became of every image, in the order of the templates.
fn summary(graph: &Graph, schedule: &Schedule, told: &BTreeMap<usize, Told>) {
    let rows = graph.nodes.iter().enumerate().map(|(at, node)| {
        let told = told.get(&at).cloned().unwrap_or(Told { what: "not built".to_owned(), took: None });
        let took = told.took.map(|took| duration(u64::try_from(took.as_millis()).unwrap_or(u64::MAX)));
        vec![node.plan.image.to_string(), told.what, took.unwrap_or_default()]
    });
    let rows: Vec<_> = rows.collect();
    output::talk(output::table(&rows).trim_end());
    let done = schedule.states.iter().filter(|state| **state == State::Done).count();
    output::talk(&format!("{done} of {} images done", graph.nodes.len()));
}

fn exit(session: &Session, schedule: &Schedule) -> Exit {
    let done = schedule.states.iter().filter(|state| **state == State::Done).count();
    match (done, schedule.states.len() - done) {
        _ if session.interruption.happened() => Exit::Interrupted,
        (_, 0) if session.partly.load(Ordering::Relaxed) => Exit::Partial,
        (_, 0) => Exit::Done,
        (0, _) => Exit::Failed,
        _ => Exit::Partial,
    }
}
