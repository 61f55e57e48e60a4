//! Fault schedules: every flow, disturbed at every call in every way, then at random in several ways at once.
//!
//! After each one, one `kiln clean` in an account that works again: nothing of ours is left that no catalog knows, nothing of anybody
//! else's is gone, and every version that was acknowledged is there, byte for byte. Schedules have numbers: the first ones go through all
//! flows, calls and troubles in order, those after them are drawn from their number.
//!
//! `KILN_SCHEDULES=20000` runs so many, `KILN_SCHEDULE=4711` one of them, and says what it does.

mod judge;
mod stage;
mod trouble;

use std::{
    collections::BTreeMap,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use kiln_aws_tests::{Entry, Schedule};

use self::{
    judge::Damage,
    stage::{End, Flow, Stage},
    trouble::{Chance, Trouble},
};

/// Continuous integration runs every third of those that are in order, which leaves no call out, and so many drawn ones.
const STEP: usize = 3;
const DRAWN: usize = 60;
/// Run side by side: each waits for the other side of a socket half of the time.
const AT_ONCE: usize = 4;

/// What befalls one flow, and what is done about it.
#[derive(Debug, Clone)]
struct Case {
    flow: Flow,
    troubles: Vec<Trouble>,
    chance: Chance,
    /// Runs of the flow in trouble, each after the one before has ended or was killed.
    runs: usize,
    then: Then,
}

/// What is done once the account works again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Then {
    Clean,
    /// The same command once more, which must do what it is for.
    Again,
    CleanAndAgain,
}

/// What all of them came to.
#[derive(Debug, Default)]
struct Tally {
    run: usize,
    met: BTreeMap<String, usize>,
    damage: Damage,
    failures: Vec<String>,
}

#[test]
fn no_schedule_of_faults_leaks_touches_what_is_not_ours_or_loses_a_version() {
    let number = |name| std::env::var(name).ok().map(|value| value.parse::<usize>().unwrap());
    let ordered = ordered();
    let case = |index: usize| ordered.get(index).cloned().unwrap_or_else(|| trouble::draw(index as u64, &ordered));
    let numbers: Vec<usize> = match (number("KILN_SCHEDULE"), number("KILN_SCHEDULES")) {
        (Some(one), _) => vec![one],
        (None, Some(most)) => (0..most).collect(),
        (None, None) => (0..ordered.len()).step_by(STEP).chain(ordered.len()..ordered.len() + DRAWN).collect(),
    };
    let (next, tally) = (AtomicUsize::new(0), Mutex::new(Tally::default()));
    thread::scope(|scope| {
        for _ in 0..AT_ONCE.min(numbers.len()) {
            scope.spawn(|| {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                while let Some(number) = numbers.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let case = case(*number);
                    let (damage, met) = runtime.block_on(play(&case));
                    tally.lock().unwrap().add(*number, &case, &damage, met);
                }
            });
        }
    });
    let tally = tally.into_inner().unwrap();
    println!(
        "{} schedules: {} leaked, {} foreign deletes, {} acknowledged versions lost\nfaults met: {:?}",
        tally.run, tally.damage.leaked, tally.damage.foreign, tally.damage.lost, tally.met
    );
    assert!(tally.run > 300 || numbers.len() < 300);
    assert!(tally.failures.is_empty(), "{} fail:\n{}", tally.failures.len(), tally.failures.join("\n"));
}

impl Tally {
    fn add(&mut self, number: usize, case: &Case, damage: &Damage, met: Vec<String>) {
        self.run += 1;
        for fault in met {
            *self.met.entry(fault).or_default() += 1;
        }
        self.damage.leaked += damage.leaked;
        self.damage.foreign += damage.foreign;
        self.damage.lost += damage.lost;
        if !damage.what.is_empty() {
            let what = damage.what.join("; ");
            self.failures.push(format!("KILN_SCHEDULE={number}: {what}\n    {case:?}"));
        }
    }
}

/// Every flow, call and trouble. Whether the flow is run again or its remains are cleaned takes turns.
fn ordered() -> Vec<Case> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut cases = Vec::new();
    for flow in Flow::ALL {
        let calls = runtime.block_on(calls(flow));
        for call in 1..=calls {
            for trouble in Trouble::at_every_call(call).into_iter().chain(Trouble::of_creation(flow, call)) {
                let then = match cases.len() % 2 {
                    _ if trouble.is_for_ever() => Then::CleanAndAgain,
                    0 => Then::Again,
                    _ => Then::CleanAndAgain,
                };
                cases.push(Case { flow, troubles: vec![trouble], chance: Chance::NONE, runs: 1, then });
            }
        }
    }
    cases
}

/// Calls of a flow that nothing disturbs, as far as each of them can be told from the one before.
async fn calls(flow: Flow) -> u64 {
    const MOST: u64 = 24;
    let mut stage = Box::pin(Stage::set(flow, 0)).await;
    let before = stage.bench.fake.ledger().len();
    assert_eq!(stage.run(flow).await, End::Done, "{flow:?}");
    ((stage.bench.fake.ledger().len() - before) as u64).min(MOST)
}

/// Plays a case to its end: the damage, and the faults that were met.
async fn play(case: &Case) -> (Damage, Vec<String>) {
    let mut stage = Box::pin(Stage::set(case.flow, case.chance.seed)).await;
    stage.bench.fake.pace(case.chance.pace);
    let began = stage.bench.fake.ledger().len();
    let schedule = case.troubles.iter().fold(Schedule::new(), |schedule, trouble| trouble.enter(schedule));
    stage.bench.fake.schedule(case.chance.enter(schedule));
    for run in 0..case.runs {
        // Not always the same command: somebody may clean in between.
        let flow = if case.chance.cleans(run) { Flow::Clean } else { case.flow };
        stage.run(flow).await;
    }
    stage.bench.fake.schedule(Schedule::new());
    let ledger = stage.bench.fake.ledger();
    let met = ledger[began..].iter().filter_map(|entry| entry.fault.as_ref().map(trouble::name)).collect();
    let mut damage = Damage::default();
    let disturbed = ledger.len();
    if case.then == Then::Again {
        damage.expect_done("the second run", &stage.run(case.flow).await);
        stage.reached(case.flow, &mut damage);
    }
    damage.expect_done("clean", &stage.run(Flow::Clean).await);
    stage.judge(&mut damage);
    if case.then == Then::CleanAndAgain {
        damage.expect_done("the run after it was cleaned", &stage.run(case.flow).await);
        stage.reached(case.flow, &mut damage);
        stage.judge(&mut damage);
    }
    if std::env::var_os("KILN_SCHEDULE").is_some() {
        tell(&stage.bench.fake.ledger()[began..], disturbed);
    }
    (damage, met)
}

/// Every call, and after how many of them nothing was disturbed any more.
#[expect(clippy::print_stdout, reason = "somebody asked for it")]
fn tell(calls: &[Entry], disturbed: usize) {
    for Entry { number, region, action, fault, refused, created, deleted, .. } in calls {
        let phase = if *number > disturbed as u64 { "then" } else { "" };
        let fault = fault.as_ref().map(trouble::name).unwrap_or_default();
        let refused = refused.as_deref().unwrap_or_default();
        println!("{number:4} {phase:4} {region} {action} {fault} {refused} +{created:?} -{deleted:?}");
    }
}
