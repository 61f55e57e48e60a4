//! Checkpoints of real machines: a build goes on from the deepest one that is right, says why the first step runs, survives
//! `kill -9` and damage, and does nothing when nothing has changed.

use std::{fmt::Write as _, fs, path::PathBuf, thread};

use kiln_tests::{
    home::{Home, Ran},
    running::{Build, alone, gone, nothing_but_logs},
};
use serde_json::Value;

/// Six cheap steps. Each leaves a line; the third also draws a random number.
const STEPS: [&str; 6] = ["true", "true", "head -c 16 /dev/urandom | sha256sum", "sleep 2", "date +%s", "true"];

/// A template in a test's home.
struct Six {
    home: Home,
    template: PathBuf,
}

impl Six {
    fn new(name: &str) -> Self {
        let home = Home::new(name);
        let template = home.path("six.toml");
        let six = Self { home, template };
        six.write(&STEPS);
        six
    }

    fn write(&self, steps: &[&str]) {
        let mut text = "[image]\nname = 'six'\n[base.debian]\nsuite = 'bookworm'\n[builder.qemu]\nmemory = '768 MiB'\ndisk = '3 GiB'\n\
                        [[check]]\nuse = 'command'\nrun = 'wc -l < /root/steps'\ncontains = '6'\n"
            .to_owned();
        for (number, step) in steps.iter().enumerate() {
            let number = number + 1;
            let _ = write!(
                text,
                "[[provision]]\nuse = 'shell'\nas = 's{number}'\nscript = 'set -e; {step}; echo {number} >> /root/steps'\n"
            );
        }
        fs::write(&self.template, text).expect("write the template");
    }

    fn arguments<'a>(&'a self, more: &[&'a str]) -> Vec<&'a str> {
        let template = self.template.to_str().expect("a UTF-8 path");
        // The boot test of an unproven edit is not what is tested here; `bake` does it.
        [&["build", template, "--json", "--no-boot-test", "--checkpoints", "every"], more].concat()
    }

    fn build(&self, more: &[&str]) -> Events {
        Events::of(&self.home.kiln(&self.arguments(more)).succeeds())
    }

    /// Stops after a step; the machine is released again.
    fn build_until(&self, step: &str, more: &[&str]) -> Events {
        let events = self.build(&[&["--until", step], more].concat());
        self.home.kiln(&["clean", "--kept"]).succeeds();
        gone(&self.home, "until");
        events
    }

    fn layers(&self) -> PathBuf {
        self.home.path("cache/checkpoints")
    }
}

/// What a build said.
struct Events(Vec<Value>);

impl Events {
    fn of(ran: &Ran) -> Self {
        Self(ran.stdout.lines().map(|line| serde_json::from_str(line).expect("events are JSON")).collect())
    }

    fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Value> {
        self.0.iter().filter(move |event| event["event"] == name)
    }

    fn numbers(&self, name: &str) -> Vec<u64> {
        self.all(name).filter_map(|event| event["number"].as_u64()).collect()
    }

    fn booted(&self) -> bool {
        self.all("phase-finished").any(|event| event["phase"] == "boot")
    }

    /// What a step wrote.
    fn output(&self, step: u64) -> String {
        self.all("output").filter(|event| event["number"] == step).filter_map(|event| event["text"].as_str()).collect()
    }

    fn miss(&self) -> (u64, String) {
        let event = self.all("checkpoint-missed").next().expect("a step that had to run");
        (event["number"].as_u64().expect("a number"), event["reason"].as_str().expect("a reason").to_owned())
    }
}

/// The same build by two kilns at once: one bakes, and the other takes what came out of it.
fn two_kilns_bake_once(six: &Six) -> Events {
    let (one, other) = thread::scope(|scope| {
        let run = || six.home.kiln(&six.arguments(&[])).succeeds();
        let one = scope.spawn(run);
        (run(), one.join().expect("the other kiln"))
    });
    let waited = |ran: &Ran| ran.stderr.contains("bakes the same: waiting for what comes out of it");
    let (baked, told) = if waited(&one) { (other, one) } else { (one, other) };
    assert!(!waited(&baked) && waited(&told), "{baked:?}{told:?}");
    let told = Events::of(&told);
    assert!(told.0.len() == 1 && told.0[0]["event"] == "build-skipped", "{:?}", told.0);
    Events::of(&baked)
}

/// Edit nothing; edit the last step; kill at step four and run again; damage; edit the first step: what runs, what does not, and what is said.
#[test]
fn a_change_costs_what_the_change_costs() {
    let _turn = alone();
    let six = Six::new("checkpoints");
    let first = two_kilns_bake_once(&six);
    assert!(first.booted());
    assert_eq!(first.numbers("step-finished"), [1, 2, 3, 4, 5, 6]);
    assert_eq!(first.numbers("checkpoint-taken"), [0, 1, 2, 3, 4, 5, 6]);

    let again = six.build(&[]);
    assert_eq!(again.0.len(), 1, "{:?}", again.0);
    assert_eq!(again.0[0]["event"], "build-skipped");

    let mut steps = STEPS;
    steps[5] = "echo edited | tee /root/edited";
    six.write(&steps);
    let last = six.build(&["--audit"]);
    assert!(!last.booted());
    agrees_with_a_bake_without_hits(&last);
    assert_eq!(last.numbers("step-cached"), [1, 2, 3, 4, 5]);
    assert_eq!(last.numbers("step-finished"), [6]);
    let (number, reason) = last.miss();
    assert!(number == 6 && reason.contains("option `script` differs") && reason.contains("echo edited"), "{reason}");
    let shown = six.home.kiln(&["show", "six", "--json"]).succeeds().stdout;
    let shown: Value = serde_json::from_str(&shown).expect("kiln show prints JSON");
    let cached: Vec<_> = shown["steps"].as_array().expect("steps").iter().map(|step| step["cached"].is_u64()).collect();
    assert_eq!(cached, [true, true, true, true, true, false], "the record says which steps ran for this image");

    killed_at_step_four(&six);
    a_damaged_checkpoint_is_set_aside(&six);

    steps[0] = "echo the first";
    six.write(&steps);
    let plan = six.home.kiln(&["plan", six.template.to_str().expect("a UTF-8 path")]).succeeds().stdout;
    assert!(plan.contains("1. s1                will run: option `script` differs"), "{plan}");
    assert!(plan.contains("the boot             in a checkpoint of"), "{plan}");
    let edited = six.build(&["--until", "s1"]);
    assert!(!edited.booted(), "the boot is a checkpoint, too");
    assert_eq!(edited.numbers("step-finished"), [1]);
    let inside = six.home.kiln(&["ssh", "six", "--", "cat", "/root/steps"]).succeeds().stdout;
    assert_eq!(inside, "1\n", "the machine waits after the step that was asked for");
    // Nobody takes the disk away from under a machine whose kiln is gone.
    let pruned = six.home.kiln(&["cache", "prune", "--to", "0"]).succeeds();
    assert!(pruned.stderr.contains("in use stay"), "{pruned:?}");
    six.home.kiln(&["ssh", "six", "--", "sync; md5sum /usr/bin/* > /dev/null"]).succeeds();
    six.home.kiln(&["clean", "--kept"]).succeeds();
    gone(&six.home, "until");
    six.home.kiln(&["cache", "prune", "--to", "0"]).succeeds();
    assert_eq!(six.home.kiln(&["cache", "list", "--json"]).succeeds().stdout.trim(), "[]");
}

/// The sealed image of a bake with hits holds the same files as that of one without, but for what every boot writes; the rest is printed
/// with its reason.
#[expect(clippy::print_stdout, reason = "what differs is for whoever reads the test's output")]
fn agrees_with_a_bake_without_hits(build: &Events) {
    let audit = build.all("audit-finished").next().expect("an audit");
    println!("{audit:#}");
    let differing = audit["differing"].as_array().expect("what differs");
    let installed =
        |one: &&Value| one["path"].as_str().is_some_and(|path| path.starts_with("/usr/") || path == "/root/steps");
    let installed: Vec<_> = differing.iter().filter(installed).collect();
    assert!(installed.is_empty(), "with checkpoints and without: {installed:#?}");
    let (paths, same) = (audit["paths"].as_u64(), audit["same"].as_u64());
    assert!(paths > Some(10_000) && same.zip(paths).is_some_and(|(same, paths)| same * 1000 > paths * 995), "{audit}");
}

/// Steps one to three are known, step four runs when kiln is killed; the next build begins after step three, on a guest that has
/// the present time and draws other random numbers than its twin.
fn killed_at_step_four(six: &Six) {
    let mut steps = STEPS;
    steps[3] = "head -c 16 /dev/urandom | sha256sum; sleep 20";
    six.write(&steps);
    let mut build = Build::spawn(six.home.command(&six.arguments(&[])));
    build.wait_for_output(4);
    build.signal("KILL");
    build.end();
    gone(&six.home, "step four");
    six.home.kiln(&["clean"]).succeeds();
    nothing_but_logs(&six.home, "step four");

    steps[3] = "head -c 16 /dev/urandom | sha256sum";
    six.write(&steps);
    let again = six.build(&[]);
    assert!(!again.booted());
    assert_eq!((again.numbers("step-cached"), again.numbers("step-finished")), (vec![1, 2, 3], vec![4, 5, 6]));
    let now = std::time::UNIX_EPOCH.elapsed().expect("a clock").as_secs();
    let guest: u64 = again.output(5).trim().parse().expect("the guest's clock");
    assert!(now.abs_diff(guest) < 300, "the guest's clock says {guest} at {now}");

    // The same step once more from the same checkpoint: the twin must not draw the same number.
    let twin = six.build_until("s4", &["--fresh-from", "s4"]);
    assert_eq!(twin.numbers("step-cached"), [1, 2, 3]);
    assert!(again.output(4).len() > 60 && again.output(4) != twin.output(4), "{}", again.output(4));
}

/// One byte of the deepest checkpoint's memory, and one of the disk below: said, set aside, and the one before is taken.
fn a_damaged_checkpoint_is_set_aside(six: &Six) {
    let listed = six.home.kiln(&["cache", "list", "--json"]).succeeds().stdout;
    let listed: Value = serde_json::from_str(&listed).expect("kiln cache list prints JSON");
    let after = |step: u64| {
        let found = listed.as_array().expect("a list").iter().find(|checkpoint| checkpoint["step"] == step);
        six.layers().join(found.expect("a checkpoint")["id"].as_str().expect("an id"))
    };
    // Several have this step; the newest comes first, and the newest is what the next build looks at first. What stood on
    // the older one went when step four was made anew.
    flip(&after(4).join("memory.zst"));
    let build = six.build_until("s5", &[]);
    let warned: Vec<_> = build.all("warning").filter_map(|event| event["message"].as_str()).collect();
    assert!(warned.iter().any(|message| message.contains("after step 4 s4 cannot be used (its memory")), "{warned:?}");
    assert!(!build.booted(), "an older checkpoint is still good");
    assert_eq!(build.numbers("step-cached"), [1, 2, 3]);
    assert!(after(4).join("damaged.json").exists());
    nothing_but_logs(&six.home, "damage");
}

/// Changes one byte in the middle of a file.
fn flip(file: &std::path::Path) {
    let mut bytes = fs::read(file).expect("read a checkpoint's file");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(file, bytes).expect("damage a checkpoint's file");
}

/// Two builds of two templates on one base at the same time, from one checkpoint; both leave nothing behind.
#[test]
fn two_builds_go_on_from_one_checkpoint_at_once() {
    let _turn = alone();
    let six = Six::new("checkpoints-two");
    let (one, two) = (six.home.path("one.toml"), six.home.path("two.toml"));
    let text = |name: &str| {
        format!(
            "[image]\nname = '{name}'\n[base.debian]\nsuite = 'bookworm'\n[builder.qemu]\nmemory = '768 MiB'\ndisk = '3 GiB'\n\
             [[provision]]\nuse = 'shell'\nscript = 'echo {name} > /root/name'\n\
             [[check]]\nuse = 'command'\nrun = 'cat /root/name'\ncontains = '{name}'\n"
        )
    };
    fs::write(&one, text("one")).expect("write a template");
    fs::write(&two, text("two")).expect("write a template");
    let arguments = |template: &PathBuf| {
        let template = template.to_str().expect("a UTF-8 path").to_owned();
        ["build".to_owned(), template]
            .into_iter()
            .chain(["--json", "--no-boot-test"].map(str::to_owned))
            .collect::<Vec<_>>()
    };
    let first = arguments(&one);
    let first = Events::of(&six.home.kiln(&[&words(&first)[..], &["--until", "shell"]].concat()).succeeds());
    assert!(first.booted() && first.numbers("checkpoint-taken").contains(&0));
    six.home.kiln(&["clean", "--kept"]).succeeds();
    gone(&six.home, "first");
    let build = |template: &PathBuf| {
        let ran = six.home.kiln(&words(&arguments(template))).succeeds();
        assert!(!Events::of(&ran).booted(), "{ran:?}");
    };
    std::thread::scope(|scope| {
        scope.spawn(|| build(&one));
        scope.spawn(|| build(&two));
    });
    nothing_but_logs(&six.home, "two at once");
}

fn words(list: &[String]) -> Vec<&str> {
    list.iter().map(String::as_str).collect()
}

/// Without memory: the machine boots from what the step left on its disk, also when QEMU is another one by then.
#[test]
fn a_checkpoint_of_the_disk_alone_outlives_an_update_of_qemu() {
    let _turn = alone();
    let six = Six::new("checkpoints-disk");
    let write = |second: &str| {
        let text = format!(
            "[image]\nname = 'disk'\n[base.debian]\nsuite = 'bookworm'\n\
             [builder.qemu]\nmemory = '512 MiB'\ndisk = '3 GiB'\ncheckpoints = 'disk'\n\
             [[provision]]\nuse = 'shell'\nas = 's1'\nscript = 'echo kept > /root/disk; echo lost > /run/memory'\n\
             [[provision]]\nuse = 'shell'\nas = 's2'\nscript = '{second}'\n"
        );
        fs::write(&six.template, text).expect("write the template");
    };
    write("true");
    let first = six.build_until("s2", &[]);
    assert_eq!(first.numbers("checkpoint-taken"), [1, 2], "of a boot, the disk alone is worth nothing");

    let programs = six.home.path("bin");
    fs::create_dir_all(&programs).expect("a directory of programs");
    let newer = "#!/bin/sh\n[ \"$1\" = --version ] && { echo 'QEMU emulator version 99.0.0'; exit; }\n\
                 exec /usr/bin/qemu-system-x86_64 \"$@\"\n";
    let program = programs.join("qemu-system-x86_64");
    fs::write(&program, newer).expect("write a newer QEMU");
    fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("make it a program");
    write("cat /root/disk; test ! -e /run/memory");
    let path = std::env::var("PATH").unwrap_or_default();
    let arguments = six.arguments(&["--until", "s2"]);
    let output = six.home.command(&arguments).env("PATH", format!("{}:{path}", programs.display())).output();
    let ran = Ran::new(&arguments, &output.expect("run kiln")).succeeds();
    let again = Events::of(&ran);
    assert!(again.booted(), "it boots from the disk: {ran:?}");
    assert_eq!((again.numbers("step-cached"), again.numbers("step-finished")), (vec![1], vec![2]), "{ran:?}");
    assert_eq!(again.output(2), "kept\n");
    six.home.kiln(&["clean", "--kept"]).succeeds();
    gone(&six.home, "the disk alone");
    nothing_but_logs(&six.home, "the disk alone");
}
