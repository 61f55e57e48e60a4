//! The graph and its order, without any machine.

use std::cell::{Cell, RefCell};

use kiln_core::{
    facts::{Inputs, TemplateText},
    template,
};
use kiln_provision::HostFacts;

use super::*;
use crate::{
    bases::{InRun, Known},
    lock::Lock,
};

/// A template of one image, on another image or on Debian, with so much memory.
fn planned(name: &str, base: Option<&str>, memory: &str) -> Planned {
    let base = base.map_or("base.debian.suite = 'bookworm'".to_owned(), |base| format!("base.image = '{base}'"));
    let text = format!("{base}\n[image]\nname = '{name}'\n[builder.qemu]\nmemory = '{memory}'\n");
    let template = PathBuf::from(format!("{name}.toml"));
    let host = HostFacts::for_template(&template);
    let lock = RefCell::new(Lock::beside(Path::new(""), false).unwrap());
    let facts = Known { host: &host, shelf: None, run: &InRun::default(), asked: Cell::new(false), lock };
    let entry = TemplateText { name: template.display().to_string(), text };
    let plans = template::load(&entry, &facts).unwrap().plans(&Inputs::default(), &facts).unwrap();
    Planned { template, plans, library: host.library().clone() }
}

fn graph(images: &[(&str, Option<&str>)]) -> Result<Graph, Failure> {
    Graph::of(images.iter().map(|(name, base)| planned(name, *base, "1 GiB")).collect(), true)
}

const ROOMY: Budget = Budget { jobs: 8, memory: u64::MAX };

/// Begins all that may begin now, in order.
fn begin(schedule: &mut Schedule) -> Vec<&'static str> {
    let mut begun = Vec::new();
    while let Some(at) = schedule.next() {
        schedule.states[at] = State::Running;
        begun.push(["a", "b", "c", "d", "e"][at]);
    }
    begun
}

#[test]
fn children_wait_for_their_base_and_the_longest_chain_goes_first() {
    let graph =
        graph(&[("a", None), ("b", Some("c")), ("c", Some("d@stable")), ("d", None), ("e", Some("gone"))]).unwrap();
    let mut schedule = graph.schedule(ROOMY);
    // Nobody in this run makes `gone`: that it is not there is said elsewhere.
    assert_eq!(begin(&mut schedule), ["d", "a", "e"]);
    assert_eq!((schedule.parent(1), schedule.parent(2), schedule.parent(4)), (Some(2), Some(3), None));
    schedule.states[3] = State::Done;
    assert_eq!(begin(&mut schedule), ["c"]);
    schedule.states[2] = State::Done;
    assert_eq!(begin(&mut schedule), ["b"]);
}

#[test]
fn builds_run_within_their_budget_and_one_always_does() {
    let three = [("a", None), ("b", None), ("c", None)];
    let graph = graph(&three).unwrap();
    let with = |jobs, memory| begin(&mut graph.schedule(Budget { jobs, memory })).len();
    let each = (1 << 30) + BESIDE_THE_GUEST;
    assert_eq!(
        (with(8, 3 * each), with(2, 3 * each), with(8, 2 * each), with(8, 1), with(1, u64::MAX)),
        (3, 2, 2, 1, 1)
    );
}

#[test]
fn a_failure_leaves_out_what_waits_for_it_and_nothing_else() {
    let graph = graph(&[("a", None), ("b", Some("a")), ("c", Some("b")), ("d", None), ("e", Some("d"))]).unwrap();
    let mut schedule = graph.schedule(ROOMY);
    begin(&mut schedule);
    assert_eq!(schedule.failed(0, "failed"), [1, 2]);
    assert_eq!(schedule.states[2], State::LeftOut("a failed".to_owned()));
    schedule.states[3] = State::Done;
    assert_eq!(begin(&mut schedule), ["e"]);
    assert_eq!(schedule.stop("interrupted"), Vec::<usize>::new());
}

#[test]
fn the_same_plan_is_built_once_and_another_of_its_name_is_refused() {
    let twice = graph(&[("a", None), ("b", Some("a")), ("a", None)]).unwrap();
    assert_eq!(twice.nodes.len(), 2);
    let other = vec![planned("a", None, "1 GiB"), planned("a", None, "2 GiB")];
    let refused = Graph::of(other, true).unwrap_err();
    assert!(refused.message.contains("two templates make `a`"), "{refused:?}");
}

#[test]
fn a_circle_is_a_mistake_of_the_templates() {
    for images in
        [&[("a", Some("a"))][..], &[("a", Some("b")), ("b", Some("c@stable")), ("c", Some("a")), ("d", Some("a"))]]
    {
        let refused = graph(images).unwrap_err();
        assert_eq!(refused.exit.number(), 2);
        assert!(refused.message.contains("in a circle") && refused.causes[0].contains("a.toml"), "{refused:?}");
        assert_eq!(refused.causes.len(), images.len().min(3));
    }
}

#[test]
fn a_child_of_what_is_not_published_is_refused() {
    let family = || vec![planned("a", None, "1 GiB"), planned("b", Some("a"), "1 GiB")];
    assert!(Graph::of(family(), false).unwrap_err().message.contains("`a`, which is not published"));
    assert!(Graph::of(vec![planned("a", None, "1 GiB")], false).is_ok());
}
