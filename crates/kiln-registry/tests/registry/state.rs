//! The signed state of an image: its number only grows, and a client that saw one takes no older one.

use std::{fs, time::Duration};

use kiln_core::ImageName;
use kiln_io::guest::Quiet;
use kiln_registry::{Intent, KeyStore, Parent, Registry, RegistryError, Renewed, Seen, Unproven, Validity};
use serde_json::Value;

use crate::support::{Scratch, artifact, fixed, intent, select};

struct Fixture {
    scratch: Scratch,
    keys: KeyStore,
    seen: Seen,
    image: ImageName,
}

impl Fixture {
    /// A registry with `web` 1.0.0 and 1.1.0, signed, and `stable` at 1.1.0.
    fn new(name: &str) -> Self {
        let scratch = Scratch::new(name);
        let (keys, seen) = (KeyStore::new(scratch.0.join("keys")), Seen::new(scratch.0.join("seen")));
        keys.init("ada@forge", 1).unwrap();
        let fixture = Self { scratch, keys, seen, image: "web".parse().unwrap() };
        for version in ["1.0.0", "1.1.0"] {
            let source = fixture.scratch.0.join("baked");
            let baked = artifact(&source, version, version);
            fixture.registry().publish(&baked, &source, &fixed(version), &Quiet).unwrap();
            fixture.promote(version);
        }
        fixture
    }

    fn registry(&self) -> Registry {
        let registry = self.scratch.registry().trusting(self.keys.trust().unwrap());
        registry.signing(self.keys.signer().unwrap().unwrap())
    }

    fn promote(&self, version: &str) {
        let selector = select(&format!("web@{version}"));
        self.registry().promote(&selector, &"stable".parse().unwrap(), None, &intent("ada")).unwrap();
    }

    fn rollback(&self) {
        self.registry().rollback(&self.image, &"stable".parse().unwrap(), None, None, &intent("ada")).unwrap();
    }

    fn check(&self) -> Result<(), RegistryError> {
        self.seen.check(&self.registry(), &self.image, 1_795_267_596)
    }

    fn head(&self) -> std::path::PathBuf {
        self.scratch.0.join("registry/images/web/head.json")
    }

    fn edit(&self, change: impl FnOnce(&mut Value)) {
        let mut head = serde_json::from_slice(&fs::read(self.head()).unwrap()).unwrap();
        change(&mut head);
        fs::write(self.head(), serde_json::to_vec(&head).unwrap()).unwrap();
    }
}

#[test]
fn a_rollback_is_a_higher_signed_state_that_points_at_an_older_version() {
    let fixture = Fixture::new("state-rollback");
    let before = fixture.registry().standing(&fixture.image).unwrap();
    fixture.rollback();
    let after = fixture.registry().standing(&fixture.image).unwrap();
    assert!(after.rev > before.rev);
    assert!(after.signer.is_some() && after.signer == before.signer);
    let stable = fixture.registry().record(&select("web@stable")).unwrap();
    assert_eq!(stable.artifact.version.as_str(), "1.0.0");
    fixture.check().unwrap();
}

#[test]
fn an_older_state_is_refused_by_who_saw_a_newer_one() {
    let fixture = Fixture::new("state-old");
    let old = fs::read(fixture.head()).unwrap();
    fixture.rollback();
    fixture.check().unwrap();
    fixture.check().unwrap();
    fs::write(fixture.head(), old).unwrap();
    let error = fixture.check().unwrap_err();
    assert!(matches!(error, RegistryError::OldState { .. }), "{error}");
    assert!(error.to_string().contains("it is at revision 4, and was at 5 on 2026-11-21"), "{error}");
    assert!(error.hint().unwrap().contains("restored from a backup"));
    // Its own signature is good: only memory tells.
    assert!(fixture.registry().standing(&fixture.image).is_ok());
}

#[test]
fn two_signed_states_cannot_be_mixed() {
    let fixture = Fixture::new("state-mixed");
    let before: Value = serde_json::from_slice(&fs::read(fixture.head()).unwrap()).unwrap();
    fixture.rollback();
    for (key, value) in
        [("channels", before["channels"].clone()), ("rev", before["rev"].clone()), ("signed", before["signed"].clone())]
    {
        let now = fs::read(fixture.head()).unwrap();
        fixture.edit(|head| head[key] = value);
        let error = fixture.registry().standing(&fixture.image).unwrap_err();
        let RegistryError::State { why, .. } = error else { panic!("{error}") };
        assert!(matches!(*why, Unproven::Contradicts(_) | Unproven::WrongSubject(_)), "{key}: {why}");
        fs::write(fixture.head(), now).unwrap();
    }
}

#[test]
fn an_unsigned_state_is_refused_after_a_signed_one() {
    let fixture = Fixture::new("state-unsigned");
    fixture.check().unwrap();
    fixture.edit(|head| {
        head.as_object_mut().unwrap().remove("signed");
    });
    let error = fixture.check().unwrap_err();
    assert!(error.to_string().contains("nobody signed its revision 4, and 4 was signed"), "{error}");
    // Who never saw it signed, or trusts nobody, has nothing to hold against it.
    Seen::new(fixture.scratch.0.join("fresh")).check(&fixture.registry(), &fixture.image, 1).unwrap();
    Seen::new(fixture.scratch.0.join("fresh-too")).check(&fixture.scratch.registry(), &fixture.image, 1).unwrap();
}

#[test]
fn a_number_that_leaps_is_refused_and_what_a_revoked_key_signed_is_forgotten() {
    let fixture = Fixture::new("state-leap");
    fixture.check().unwrap();
    let true_head = fs::read(fixture.head()).unwrap();
    // The thief has the key: he logs and signs what he likes.
    fixture.edit(|head| {
        head["rev"] = Value::from(u64::MAX - 10);
        head.as_object_mut().unwrap().remove("signed");
    });
    let log = fixture.scratch.0.join("registry/images/web/log");
    fixture.promote("1.0.0");
    let error = fixture.check().unwrap_err();
    assert!(error.to_string().contains("its revision leapt from 4 on 2026-11-21 to "), "{error}");
    // A fresh client believes him, until the key is revoked.
    let fresh = Seen::new(fixture.scratch.0.join("fresh"));
    fresh.check(&fixture.registry(), &fixture.image, 1).unwrap();
    fs::remove_file(log.join(format!("{}.json", u64::MAX - 9))).unwrap();
    fs::write(fixture.head(), true_head).unwrap();
    assert!(fresh.check(&fixture.registry(), &fixture.image, 2).is_err());
    let stolen = fixture.keys.trust().unwrap().keys()[0].id;
    fixture.keys.rotate("ada@forge", 2).unwrap();
    fixture.keys.revoke(&stolen.hex()[..12], "stolen", 3).unwrap();
    fixture.promote("1.0.0");
    fresh.check(&fixture.registry(), &fixture.image, 4).unwrap();
}

/// Seconds of a day.
const DAY: u64 = 86_400;

fn at(now: u64) -> Intent {
    Intent { now, ..intent("ada") }
}

#[test]
fn a_state_that_is_shown_for_ever_expires() {
    let fixture = Fixture::new("state-frozen");
    let (registry, web) = (fixture.registry(), &fixture.image);
    let week = Validity::For(Duration::from_secs(7 * DAY));
    let limited = registry.renew(web, Some(week), &at(10 * DAY)).unwrap();
    assert_eq!((limited.rev, limited.expires, limited.renewed), (5, Some(17 * DAY), true));
    let check = |day: u64| fixture.seen.check(&fixture.registry(), web, day * DAY);
    check(16).unwrap();
    let frozen = fs::read(fixture.head()).unwrap();

    // Meanwhile the version is revoked; whoever is shown the old state does not learn of it.
    let harmed = Parent { image: web.clone(), version: "1.1.0".parse().unwrap() };
    registry.revoke(&harmed, Some(11 * DAY), &at(11 * DAY)).unwrap();
    let theirs = fs::read(fixture.head()).unwrap();
    fs::write(fixture.head(), frozen).unwrap();
    check(16).unwrap();
    let error = check(17).unwrap_err();
    assert!(matches!(error, RegistryError::Expired { .. }), "{error}");
    assert!(error.to_string().contains("expired on 1970-01-18 00:00"), "{error}");
    assert!(error.hint().unwrap().contains("`kiln registry renew web`"));
    // To take the limit out, or to stretch it, is to say something else than was signed.
    for longer in [Value::Null, Value::from(70 * DAY)] {
        let before = fs::read(fixture.head()).unwrap();
        fixture.edit(|head| head["valid_for"] = longer);
        assert!(matches!(check(17), Err(RegistryError::State { .. })));
        fs::write(fixture.head(), before).unwrap();
    }
    fs::write(fixture.head(), theirs).unwrap();
    check(17).unwrap();
    check(18).unwrap_err();
}

#[test]
fn a_state_is_renewed_when_half_of_its_time_is_over_and_by_every_change() {
    let fixture = Fixture::new("state-renewed");
    let (registry, web) = (fixture.registry(), &fixture.image);
    assert_eq!(registry.renew(web, None, &at(DAY)).unwrap(), Renewed { rev: 4, expires: None, renewed: false });
    let four_days = Some(Validity::For(Duration::from_secs(4 * DAY)));
    registry.renew(web, four_days, &at(10 * DAY)).unwrap();
    for validity in [None, four_days] {
        let early = registry.renew(web, validity, &at(12 * DAY - 1)).unwrap();
        assert_eq!(early, Renewed { rev: 5, expires: Some(14 * DAY), renewed: false });
    }
    let due = registry.renew(web, None, &at(12 * DAY)).unwrap();
    assert_eq!(due, Renewed { rev: 6, expires: Some(16 * DAY), renewed: true });
    // A change signs the state anew too; nothing was lost by renewing.
    registry.promote(&select("web@1.0.0"), &"stable".parse().unwrap(), None, &at(13 * DAY)).unwrap();
    assert_eq!(registry.standing(web).unwrap().expires, Some(17 * DAY));
    registry.rollback(web, &"stable".parse().unwrap(), None, None, &at(13 * DAY)).unwrap();
    assert_eq!(registry.record(&select("web@stable")).unwrap().artifact.version.as_str(), "1.1.0");
    // Another key takes over: what the one before signed is not believed here, so it is time.
    let key = fixture.keys.trust().unwrap().keys()[0].id;
    fixture.keys.rotate("ada@forge", 2).unwrap();
    fixture.keys.revoke(&key.hex()[..12], "stolen", 3).unwrap();
    assert!(fixture.registry().renew(web, None, &at(13 * DAY)).unwrap().renewed);
    // Without a key nothing is signed, and a limit that nobody signs is none.
    let unsigned = fixture.scratch.registry().renew(web, None, &at(20 * DAY)).unwrap_err();
    assert!(matches!(unsigned, RegistryError::CannotSign { .. }), "{unsigned}");
    let unlimited = fixture.registry().renew(web, Some(Validity::Unlimited), &at(20 * DAY)).unwrap();
    assert_eq!((unlimited.expires, unlimited.renewed), (None, true));
    fixture.seen.check(&fixture.registry(), web, 1_000 * DAY).unwrap();
}
