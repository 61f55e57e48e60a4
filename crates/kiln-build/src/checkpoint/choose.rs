//! Which checkpoint a bake may begin from, and why the first step that is not in it has to run.

use std::time::Duration;

use kiln_core::{
    checkpoint::Key,
    duration,
    plan::{Plan, Step},
};

use super::{Checkpoint, Store, Trail};

/// What the caller wants of checkpoints.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wish {
    pub take: Take,
    pub fresh: Fresh,
    /// The last step that is to be done.
    pub until: Option<usize>,
    /// Bytes that all checkpoints may take; `None`: [`Store::budget`] decides.
    pub budget: Option<u64>,
}

/// When a checkpoint is taken.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Take {
    /// Where running the steps since the last one again would cost clearly more.
    #[default]
    Auto,
    /// After the boot and every step.
    Every,
    /// Never, and none is used either.
    Off,
}

/// Which steps must run, whatever there is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Fresh {
    #[default]
    None,
    /// This step and all after it.
    From(usize),
    /// The boot, too.
    All,
}

/// What there is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Choice {
    /// The best first.
    pub usable: Vec<Checkpoint>,
    /// Why each key that is not covered by the best one has to run, in order.
    pub misses: Vec<Miss>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Miss {
    /// 0 is the boot.
    pub number: usize,
    pub name: String,
    pub reason: String,
}

/// The step that a person means by a number or a name.
pub fn step<'p>(plan: &'p Plan, which: &str) -> Option<&'p Step> {
    plan.steps.iter().find(|step| step.name == which || step.number.to_string() == which)
}

/// Looks for the deepest usable checkpoint. `now`: seconds since 1970.
pub fn choose(keys: &[Key], store: &Store, trail: &Trail, wish: &Wish, now: u64) -> Choice {
    let all = if wish.take == Take::Off { Vec::new() } else { store.list() };
    let mut usable = Vec::new();
    let mut refused = vec![None; keys.len()];
    for (place, key) in keys.iter().enumerate().rev() {
        if let Err(reason) = wanted(keys, place, wish) {
            refused[place] = Some(reason);
            continue;
        }
        for checkpoint in all.iter().filter(|checkpoint| checkpoint.record.key == key.digest) {
            match expired(keys, checkpoint, now) {
                None => usable.push(checkpoint.clone()),
                Some(reason) => refused[place] = Some(reason),
            }
        }
    }
    let covered = usable.first().map(|checkpoint| checkpoint.record.number);
    let to_run = keys.iter().zip(refused).filter(|(key, _)| covered.is_none_or(|covered| key.number > covered));
    let mut misses: Vec<Miss> = Vec::new();
    for (key, refused) in to_run {
        let after = misses
            .last()
            .map(|miss: &Miss| if miss.number == 0 { "the boot".to_owned() } else { format!("step {}", miss.number) });
        let reason = refused.or_else(|| trail.explain(key)).unwrap_or_else(|| match after {
            Some(after) => format!("{after} before it runs"),
            None if trail.has(key) => "its checkpoint was not worth taking, or is gone".to_owned(),
            None => "it did not run here before".to_owned(),
        });
        misses.push(Miss { number: key.number, name: key.name.clone(), reason });
    }
    Choice { usable, misses }
}

/// Whether the caller and the template let the machine after this step be taken from a checkpoint.
fn wanted(keys: &[Key], place: usize, wish: &Wish) -> Result<(), String> {
    let key = &keys[place];
    let fresh = match wish.fresh {
        _ if wish.take == Take::Off => Some("checkpoints are off"),
        Fresh::All => Some("`--fresh`"),
        Fresh::From(step) if key.number >= step => Some("`--fresh-from`"),
        _ if wish.until.is_some_and(|until| key.number > until) => Some("it is after `--until`"),
        _ => None,
    };
    match (fresh, keys[..=place].iter().find(|key| key.good_for == 0)) {
        (Some(reason), _) => Err(reason.to_owned()),
        (None, Some(never)) if never.number == key.number => Err("`cache = false`".to_owned()),
        (None, Some(never)) => Err(format!("step {} before it has `cache = false`", never.number)),
        (None, None) => Ok(()),
    }
}

/// Why a checkpoint is too old: the first of its steps that ran too long ago.
fn expired(keys: &[Key], checkpoint: &Checkpoint, now: u64) -> Option<String> {
    keys.iter().find_map(|key| {
        let ran = checkpoint.record.steps.get(&key.number)?;
        let age = now.saturating_sub(ran.at);
        let limit = duration::format(Duration::from_secs(key.good_for));
        (age >= key.good_for).then(|| {
            format!("step {} ran {} ago, and may be taken from a checkpoint for {limit}", key.number, ago(age))
        })
    })
}

/// `3 min`, `5 h`, `2 days`.
pub fn ago(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}
