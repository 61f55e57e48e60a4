//! Everything at once against two `kiln serve` over one directory: several who push and promote, several who pull, resolve and download,
//! and a collector. Nobody may see a failure, and the server may not grow.
//!
//! Two minutes; `KILN_SOAK_SECONDS=10800 cargo test -p kiln-tests --test soak -- --nocapture` is the long run.

#![expect(clippy::disallowed_methods, reason = "tests drive programs as a user would")]
#![expect(clippy::unwrap_used, reason = "tests")]

#[path = "../crates/kiln-registry/tests/support/artifact.rs"]
mod artifacts;

use std::{
    collections::BTreeMap,
    env,
    process::Command,
    sync::Mutex,
    thread,
    time::{Duration, Instant},
};

use artifacts::{disk, fixed, intent, sealed};
use kiln_core::Digest;
use kiln_io::guest::Quiet;
use kiln_registry::{Registry, Rules};
use kiln_tests::{
    home::{Home, Ran},
    served::Served,
};

const WRITERS: usize = 3;
const READERS: usize = 3;
/// So many versions of an image stay; what a reader has resolved is still there when it asks for it.
const KEPT: &str = "12";
/// The memory of the server may grow by this much in the second half: its cache of pieces may fill up only then.
const SLACK: u64 = 96 << 20;

/// What was done, how often, and what went wrong.
#[derive(Default)]
struct Tally {
    done: Mutex<BTreeMap<&'static str, usize>>,
    failures: Mutex<Vec<String>>,
}

impl Tally {
    fn count(&self, what: &'static str) {
        *self.done.lock().unwrap().entry(what).or_default() += 1;
    }

    fn judge(&self, what: &'static str, ran: &Ran) {
        if ran.code == Some(0) {
            self.count(what);
        } else {
            self.failures.lock().unwrap().push(format!("{what}: {ran:?}"));
        }
    }
}

struct Soak<'a> {
    tally: &'a Tally,
    /// Of the two servers.
    urls: [&'a str; 2],
    token: &'a str,
    until: Instant,
}

impl Soak<'_> {
    fn goes_on(&self) -> bool {
        Instant::now() < self.until && self.tally.failures.lock().unwrap().is_empty()
    }

    fn with_token(&self, home: &Home, arguments: &[&str]) -> Ran {
        Ran::new(arguments, &home.command(arguments).env("KILN_TOKEN", self.token).output().unwrap())
    }

    /// Publishes at home, pushes, promotes, and now and then rolls back. Two writers share an image.
    fn write(&self, number: usize) {
        let (home, url) = (Home::apart(&format!("soak-writer-{number}")), self.urls[number % 2]);
        let own = Registry::open(&home.path("data/registry")).unwrap();
        let image = if number < 2 { "web" } else { "shop" };
        let directory = home.path("baked");
        for round in 0_usize.. {
            if !self.goes_on() {
                return;
            }
            // Five disks in turn: what is being collected is wanted again.
            let bytes = disk(&format!("the disk {} of {number}", round % 5));
            let mut artifact = sealed(&directory, &format!("b-{number}-{round}"), &bytes, 1);
            artifact.image = image.parse().unwrap();
            artifact.files.truncate(1);
            let version = format!("{number}.{round}");
            own.publish(&artifact, &directory, &fixed(&version), &Quiet).unwrap();
            let name = format!("{image}@{version}");
            self.tally.judge("push", &self.with_token(&home, &["push", &name, "--registry", url]));
            let promote = ["promote", image, &version, "--to", "stable", "--registry", url];
            self.tally.judge("promote", &self.with_token(&home, &promote));
            if round % 4 == 3 {
                let back = ["rollback", image, "stable", "--registry", url, "--reason", "slow"];
                self.tally.judge("rollback", &self.with_token(&home, &back));
            }
            if round % 20 == 19 {
                own.prune(&Rules { newest: Some(3), days: None, now: 3_000 }, &intent("writer")).unwrap();
            }
        }
    }

    /// Pulls into a registry of its own, resolves, and downloads the qcow2 as stock clients do.
    fn read(&self, number: usize) {
        let (home, url) = (Home::apart(&format!("soak-reader-{number}")), self.urls[number % 2]);
        for round in 0_usize.. {
            if !self.goes_on() {
                return;
            }
            let image = ["web", "shop"][(round + number) % 2];
            let stable = format!("{image}@stable");
            self.tally.judge("pull", &home.kiln(&["pull", &stable, "--registry", url]));
            let resolved = home.kiln(&["resolve", &stable, "--registry", url]);
            self.tally.judge("resolve", &resolved);
            if resolved.code == Some(0) {
                self.download(&serde_json::from_str(&resolved.stdout).unwrap());
            }
            if round % 20 == 19 {
                self.tally.judge("prune at home", &home.kiln(&["registry", "prune", "--keep", "2", "--remove"]));
            }
        }
    }

    fn download(&self, facts: &BTreeMap<String, String>) {
        let curl = Command::new("curl").args(["-sSf", &facts["qcow2_url"]]).output().unwrap();
        let digest = Digest::of(&curl.stdout).hex();
        if curl.status.success() && digest == facts["qcow2_sha256"] {
            self.tally.count("download");
        } else {
            let said = String::from_utf8_lossy(&curl.stderr);
            self.tally.failures.lock().unwrap().push(format!("download of {facts:?}: {said} {digest}"));
        }
    }

    /// Collects as often as it can. To be told that others are at work is no failure of anybody.
    fn collect(&self, server: &Home) {
        while self.goes_on() {
            let ran = server.kiln(&["registry", "prune", "--keep", KEPT, "--remove"]);
            if ran.stderr.contains("somebody publishes to, or reads from") {
                self.tally.count("collections put off");
            } else {
                self.tally.judge("collection", &ran);
            }
        }
    }
}

#[test]
fn of_those_who_push_pull_promote_and_collect_at_once_nobody_sees_a_failure() {
    let seconds = env::var("KILN_SOAK_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(120);
    let server = Home::apart("soak-server");
    let tokens = server.path("tokens.toml").display().to_string();
    let token = server.kiln(&["token", "soak", "--tokens", &tokens, "--image", "*", "--allow", "publish,promote"]);
    let token = token.succeeds().stdout.trim().to_owned();
    let served = Served::new(&server, &["--listen", "127.0.0.1:0", "--tokens", &tokens]);
    let beside = Served::new(&server, &["--listen", "127.0.0.1:0", "--tokens", &tokens]);
    begin(&served.url, &token);
    let tally = Tally::default();
    let soak = Soak {
        tally: &tally,
        urls: [&served.url, &beside.url],
        token: &token,
        until: Instant::now() + Duration::from_secs(seconds),
    };
    let first_half = thread::scope(|scope| {
        let soak = &soak;
        for number in 0..WRITERS {
            scope.spawn(move || soak.write(number));
        }
        for number in 0..READERS {
            scope.spawn(move || soak.read(number));
        }
        scope.spawn(|| soak.collect(&server));
        while soak.goes_on() && soak.until - Instant::now() > Duration::from_secs(seconds) / 2 {
            thread::sleep(Duration::from_millis(200));
        }
        served.forget_peak_memory()
    });
    let second_half = served.peak_memory();
    let done = tally.done.into_inner().unwrap();
    let failures = tally.failures.into_inner().unwrap();
    eprintln!("{seconds} s: {done:?}; memory of the server {} and {} MiB at most", first_half >> 20, second_half >> 20);
    assert!(failures.is_empty(), "{} failures, the first: {}", failures.len(), failures[0]);
    for what in ["push", "promote", "rollback", "pull", "resolve", "download", "collection"] {
        assert!(done.contains_key(what), "no {what} at all");
    }
    assert!(second_half <= first_half + SLACK, "the server grows");
    assert_eq!((served.interrupt(), beside.interrupt()), (Some(0), Some(0)));
    server.kiln(&["registry", "prune", "--keep", KEPT, "--remove"]).succeeds();
    let verified = server.kiln(&["registry", "verify"]).succeeds();
    assert!(!verified.stderr.contains("belong to no version"), "{verified:?}");
}

/// One version of each image, so that readers find a channel.
fn begin(url: &str, token: &str) {
    let home = Home::apart("soak-begin");
    let own = Registry::open(&home.path("data/registry")).unwrap();
    for image in ["web", "shop"] {
        let directory = home.path("baked");
        let mut artifact = sealed(&directory, "b-0", &disk(image), 1);
        artifact.image = image.parse().unwrap();
        artifact.files.truncate(1);
        own.publish(&artifact, &directory, &fixed("0"), &Quiet).unwrap();
        let name = format!("{image}@0");
        for arguments in
            [&["push", &name, "--registry", url][..], &["promote", image, "0", "--to", "stable", "--registry", url]]
        {
            Ran::new(arguments, &home.command(arguments).env("KILN_TOKEN", token).output().unwrap()).succeeds();
        }
    }
}
