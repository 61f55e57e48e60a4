//! What goes wrong, and where.

use kiln_aws_tests::{Fault, Pace, Refusal, Schedule};

use super::{Case, Then, stage::Flow};

/// Calls of a flow that go wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Trouble {
    /// This call of all.
    At(u64, Fault),
    /// So many calls in a row.
    Burst(u64, Fault),
    /// From this call on, until somebody logs in.
    From(u64, Fault),
    /// This call of an action.
    Of(&'static str, u64, Fault),
}

impl Trouble {
    pub(super) fn at_every_call(call: u64) -> Vec<Self> {
        vec![
            Self::Burst(call, Fault::Throttle),
            Self::At(call, Fault::Internal),
            Self::At(call, Fault::InternalAfter),
            Self::At(call, Fault::Cut),
            Self::At(call, Fault::LoseReply),
            Self::From(call, Fault::ExpiredToken),
            Self::At(call, Fault::AccessDenied),
            Self::At(call, Fault::Refuse(quota())),
            Self::At(call, Fault::Kill),
            Self::At(call, Fault::KillAfter),
        ]
    }

    /// What has something of its own to go wrong with.
    pub(super) fn of_creation(flow: Flow, call: u64) -> Vec<Self> {
        let actions: &[&'static str] = match flow {
            Flow::First | Flow::Further => &["StartSnapshot", "RegisterImage"],
            Flow::Delete | Flow::Clean => {
                let busy = |action| Self::Of(action, 1, Fault::Refuse(busy()));
                return if call == 1 { vec![busy("DeleteSnapshot"), busy("DeregisterImage")] } else { Vec::new() };
            }
            _ => &[],
        };
        if call > 1 {
            return Vec::new();
        }
        let both = |action: &&'static str| [Fault::Stuck, Fault::Fails].map(|fault| Self::Of(action, 1, fault));
        actions.iter().flat_map(both).collect()
    }

    /// Only a clean-up helps against what is never ready.
    pub(super) fn is_for_ever(&self) -> bool {
        matches!(self, Self::Of(_, _, Fault::Stuck))
    }

    pub(super) fn enter(&self, schedule: Schedule) -> Schedule {
        match self.clone() {
            Self::At(call, fault) => schedule.at_call(call, fault),
            Self::Burst(call, fault) => schedule.during_calls(call..=call + 4, fault),
            Self::From(call, fault) => schedule.during_calls(call..=u64::MAX, fault),
            Self::Of(action, call, fault) => schedule.at(action, call, fault),
        }
    }
}

/// More than one thing at a time, by its number.
#[derive(Debug, Clone)]
pub(super) struct Chance {
    pub(super) seed: u64,
    pub(super) pace: Pace,
    /// Of a thousand calls.
    noise: u16,
    cleans: bool,
}

impl Chance {
    pub(super) const NONE: Self =
        Self { seed: 0, pace: Pace { hidden: 0, flapping: false, pending: 0, page: 0 }, noise: 0, cleans: false };

    pub(super) fn enter(&self, schedule: Schedule) -> Schedule {
        let faults = [Fault::Throttle, Fault::Internal, Fault::InternalAfter, Fault::Cut, Fault::LoseReply];
        schedule.random(self.seed, self.noise, 40, &faults)
    }

    pub(super) fn cleans(&self, run: usize) -> bool {
        self.cleans && run % 2 == 1
    }
}

/// The case of this number: a flow of those in order, up to four troubles, slow and forgetful services, several runs.
pub(super) fn draw(number: u64, ordered: &[Case]) -> Case {
    let mut state = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut below = |bound: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 16) % bound
    };
    let flow = Flow::ALL[below(Flow::ALL.len() as u64) as usize];
    let known: Vec<&Case> = ordered.iter().filter(|case| case.flow == flow).collect();
    let troubles: Vec<Trouble> =
        (0..=below(4)).flat_map(|_| known[below(known.len() as u64) as usize].troubles.clone()).collect();
    let pace = Pace {
        hidden: below(4) as u32,
        flapping: below(2) == 0,
        pending: below(4) as u32,
        page: if below(2) == 0 { 0 } else { 1 + below(3) as usize },
    };
    let noise = [0, 20, 100, 300][below(4) as usize];
    let chance = Chance { seed: number, pace, noise, cleans: below(3) == 0 };
    let then = match below(3) {
        _ if troubles.iter().any(Trouble::is_for_ever) => Then::CleanAndAgain,
        0 => Then::Clean,
        1 => Then::Again,
        _ => Then::CleanAndAgain,
    };
    Case { flow, troubles, chance, runs: 1 + below(3) as usize, then }
}

/// The variant's name.
pub(super) fn name(fault: &Fault) -> String {
    match fault {
        Fault::Refuse(refusal) => refusal.code.clone(),
        fault => format!("{fault:?}"),
    }
}

fn quota() -> Refusal {
    Refusal::new(400, "SnapshotLimitExceeded", "You have reached the limit of 100000 snapshots of your account.")
}

fn busy() -> Refusal {
    Refusal::new(400, "InvalidSnapshot.InUse", "The snapshot is currently in use by an AMI.")
}
