//! What must never be, whatever happened.

use super::stage::{End, Flow, Stage};
use crate::bench::{GROUP, REGIONS};

/// What a case did that it must not do.
#[derive(Debug, Default)]
pub(super) struct Damage {
    pub(super) leaked: usize,
    pub(super) foreign: usize,
    pub(super) lost: usize,
    pub(super) what: Vec<String>,
}

impl Damage {
    pub(super) fn expect_done(&mut self, what: &str, end: &End) {
        if *end != End::Done {
            self.what.push(format!("{what} is {end:?}"));
        }
    }

    fn note(&mut self, what: impl Into<String>) {
        self.what.push(what.into());
    }
}

impl Stage {
    /// Whether the flow did what it is for.
    pub(super) fn reached(&self, flow: Flow, damage: &mut Damage) {
        let held = |version: &str| self.acknowledged.iter().any(|(known, _)| known == version);
        let reached = match flow {
            Flow::First => held("1.0.0"),
            Flow::Further | Flow::Everywhere | Flow::Try => held("1.1.0"),
            Flow::Point => self.parameter() == self.ami("1.0.0"),
            Flow::Start => self.refreshes() == [self.numbered("1.0.0")],
            Flow::RollBack => self.refreshes() == [self.numbered("1.0.0"), "1".to_owned()],
            Flow::TurnBack => self.group_refreshes().contains("<Status>Rollback"),
            Flow::Withdraw => self.image("1.0.0").contains("<imageState>disabled<"),
            Flow::Delete => self.recorded().len() == 2,
            Flow::Clean => self.bench.outstanding() == 0,
            // It ends as it began.
            Flow::Bake => true,
        };
        if !reached {
            damage.note(format!("{flow:?} is not where it should be"));
        }
    }

    /// Nothing leaked, nothing foreign gone, nothing acknowledged lost.
    pub(super) fn judge(&self, damage: &mut Damage) {
        let living = self.bench.fake.living();
        for foreign in &self.foreign {
            if !living.contains(foreign) {
                damage.foreign += 1;
                damage.note(format!("{} was not ours to touch", foreign.id));
            }
        }
        let recorded = self.recorded();
        for thing in &living {
            let made = ["image", "snapshot"].contains(&thing.kind) || thing.tags.contains_key("kiln:intent");
            let ours = made && !self.foreign.contains(thing);
            if ours && !recorded.contains(&thing.id) {
                damage.leaked += 1;
                damage.note(format!("{} in {} is left, {:?}", thing.id, thing.region, thing.tags));
            }
        }
        if self.has_group() {
            let versions = self.template_versions();
            if versions.len() > 2 {
                damage.leaked += versions.len() - 2;
                damage.note(format!("the template of {GROUP} in {} has {versions:?}", REGIONS[0]));
            }
        }
        if self.bench.outstanding() > 0 {
            damage.leaked += self.bench.outstanding();
            damage.note("a ledger is not done");
        }
        for (version, published) in &self.acknowledged {
            if let Err(how) = self.intact(version, published) {
                damage.lost += 1;
                damage.note(format!("{version} was acknowledged as {}: {how}", published.ami));
            }
        }
    }
}
