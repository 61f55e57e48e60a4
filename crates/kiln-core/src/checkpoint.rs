//! Keys of checkpoints: what the machine after a step can depend on, as a chain of digests with itemised inputs.
//!
//! In a key: the key before it, the base, the shape of the machine, the emulator, kiln's own format, and of each step its
//! number, provisioner, options, uploaded content, environment and the keyed digests of its secrets. What a step cannot
//! see is out: names, time limits, retries, how long its checkpoint may be used, everything about checks and publishing.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Value as Json, json};

use crate::{
    Digest,
    digest::canonical,
    plan::{Caching, Plan, Step},
};

/// Raised when a checkpoint that an earlier kiln took must not be used any more.
pub const FORMAT: u32 = 1;
/// Longest value that is kept for people; a longer one is shown by its beginning and its digest.
const SHOWN: usize = 120;

/// What the plan does not know, and every step depends on.
#[derive(Debug, Clone, Default)]
pub struct Ground {
    /// What the machine starts from and runs on, in the order in which differences are told: `base`, `qemu`, ...
    pub facts: Vec<(String, String)>,
    /// Provisioner to the digest of each of its files.
    pub provisioners: BTreeMap<String, BTreeMap<String, Digest>>,
    /// Sensitive variable to a digest of its value that cannot be computed without this user's own key.
    pub secrets: BTreeMap<String, Digest>,
}

/// One input of a key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyInput {
    /// ``option `install` ``, ``file `index.html` ``.
    pub what: String,
    /// The value, or its beginning and digest.
    pub value: String,
}

/// The key of the machine after one step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Key {
    /// Of the step; 0 is the machine that has just booted.
    pub number: usize,
    pub name: String,
    pub digest: Digest,
    /// What this step adds to the key before it.
    pub inputs: Vec<KeyInput>,
    /// For how many seconds after the step ran its result may stand for it.
    pub good_for: u64,
}

/// How two sets of inputs differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    pub what: String,
    /// `None`: it was not there.
    pub before: Option<String>,
    /// `None`: it is there no longer.
    pub now: Option<String>,
}

/// The keys of a plan: the booted machine, then one for each step that runs.
pub fn keys(plan: &Plan, ground: &Ground) -> Vec<Key> {
    let mut items = Items::default();
    items.add("checkpoint format", &json!(FORMAT));
    for (what, value) in &ground.facts {
        items.add(what, &json!(value));
    }
    // Of a machine elsewhere the ground says what it is.
    if let Some(machine) = plan.builder.qemu() {
        items.add("memory", &json!(machine.memory));
        items.add("CPUs", &json!(machine.cpus));
        items.add("disk", &json!(machine.disk));
    }
    let mut keys = vec![items.key(None, 0, "boot".to_owned(), u64::MAX)];
    for step in plan.steps.iter().filter(|step| step.skipped.is_none()) {
        let parent = keys.last().map(|key| key.digest);
        let good_for = match step.cache {
            Caching::Never => 0,
            Caching::For(age) => age.as_secs(),
        };
        keys.push(items_of(step, ground).key(parent, step.number, step.name.clone(), good_for));
    }
    keys
}

fn items_of(step: &Step, ground: &Ground) -> Items {
    let mut items = Items::default();
    items.add("place among the steps", &json!(step.number));
    items.add("provisioner", &json!(step.provisioner));
    for (path, digest) in ground.provisioners.get(&step.provisioner).into_iter().flatten() {
        items.add(&format!("`{path}` of the provisioner `{}`", step.provisioner), &json!(digest));
    }
    items.add(&format!("the provisioner `{}`", step.provisioner), &json!(step.provisioner_digest));
    for (name, value) in step.options.as_object().into_iter().flatten() {
        items.add(&format!("option `{name}`"), value);
    }
    for input in &step.inputs {
        let kind = if input.directory { "directory" } else { "file" };
        items.add(&format!("content of the {kind} `{}` ({})", input.path, input.option), &json!(input.digest));
    }
    for (name, value) in &step.env {
        items.add(&format!("environment `{name}`"), &json!(value));
    }
    for (name, variable) in &step.secrets {
        // A secret without a digest is one whose value is not known: it is never the same as another.
        let digest = ground.secrets.get(variable).map_or(Json::Null, |digest| json!(digest));
        items.add(&format!("secret `{name}`"), &json!([variable, digest]));
    }
    items
}

/// Inputs with their full values.
#[derive(Default)]
struct Items(Vec<(String, String)>);

impl Items {
    fn add(&mut self, what: &str, value: &Json) {
        self.0.push((what.to_owned(), canonical(value)));
    }

    fn key(self, parent: Option<Digest>, number: usize, name: String, good_for: u64) -> Key {
        let digest = Digest::of(canonical(&json!({ "parent": parent, "inputs": self.0 })).as_bytes());
        let inputs = self.0.into_iter().map(|(what, value)| KeyInput { what, value: shown(&value) }).collect();
        Key { number, name, digest, inputs, good_for }
    }
}

/// A value for people that still differs where the whole does.
fn shown(value: &str) -> String {
    let whole = serde_json::from_str::<String>(value).unwrap_or_else(|_| value.to_owned());
    if let Ok(digest) = whole.parse::<Digest>()
        && whole.starts_with("sha256:")
    {
        return digest.short();
    }
    if whole.chars().count() <= SHOWN && !whole.contains('\n') {
        return whole;
    }
    let beginning: String = whole.lines().next().unwrap_or_default().chars().take(SHOWN / 2).collect();
    format!("{beginning} .. ({})", Digest::of(value.as_bytes()).short())
}

/// The first input that is not the same, in the order of `now`; then what is there no longer.
pub fn first_difference(before: &[KeyInput], now: &[KeyInput]) -> Option<Difference> {
    let find = |inputs: &[KeyInput], what: &str| {
        inputs.iter().find(|input| input.what == what).map(|input| input.value.clone())
    };
    let changed = now.iter().find(|input| find(before, &input.what).as_ref() != Some(&input.value));
    let gone = || before.iter().find(|input| find(now, &input.what).is_none());
    let what = changed.or_else(gone)?.what.clone();
    Some(Difference { before: find(before, &what), now: find(now, &what), what })
}

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (&self.before, &self.now) {
            (Some(before), Some(now)) => write!(f, "{} differs: {before} -> {now}", self.what),
            (None, _) => write!(f, "{} is new", self.what),
            (_, None) => write!(f, "{} is there no longer", self.what),
        }
    }
}
