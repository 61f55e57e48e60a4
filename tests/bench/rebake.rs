//! What a change costs: the same image again after an edit of its last step, with nothing changed, and a second template on a
//! known base; and what a checkpoint costs, by the guest's memory.

use std::{fs, path::Path, time::Duration};

use crate::{
    bake,
    measure::{Timed, row},
    place::{Place, events},
    seal,
};

/// As `bake` measures it, with a page to edit.
const PAGE: &str = "hello\\n";

pub(crate) fn run() {
    let base = tokio::runtime::Runtime::new().expect("a runtime").block_on(seal::debian());
    let place = Place::new();
    // A version of its own for each bake.
    let text = bake::TEMPLATE.replace("version = \"1\"", "version = \"auto\"");
    let edited = text.replace(PAGE, "hello again\\n");
    assert_ne!(text, edited, "the template of `bake` has no page to edit");

    let template = place.template("web.toml", &text);
    let first = place.build(&template, &[]);
    let cold = first_step(&first);
    let nothing = place.build(&template, &[]);
    place.template("web.toml", &edited);
    let last = place.build(&template, &[]);
    place.template("web.toml", &text.replace(PAGE, "hello once more\\n"));
    let untested = place.build(&template, &["--no-boot-test"]);
    let second = text.replace("name = \"bench\"", "name = \"second\"").replace("\"nginx-light\"", "\"tree\"");
    let second = place.template("second.toml", &second.replace("\"nginx\"", "\"ssh\""));
    let known = first_step(&place.build(&second, &["--until", "1"]));
    place.release();

    let work = tempfile::tempdir().expect("a directory to work in");
    let theirs = bake::packer_bake(work.path(), &base.disk);
    row("the last step edited, image boot-tested", last.elapsed, "packer 1.6.6 (no boot test)", theirs);
    row("the last step edited, without boot test", untested.elapsed, "packer 1.6.6 (no boot test)", theirs);
    row("nothing changed", nothing.elapsed, "packer 1.6.6", theirs);
    row("second template, to its first step", known, "kiln, cold boot", cold);
    println!("where the time of the edit went: {}", phases(&last));
    // A figure of something else than it says would be worse than none.
    assert!(events(&nothing).any(|event| event["event"] == "build-skipped"), "{}", nothing.output);
    assert!(events(&last).any(|event| event["event"] == "step-cached"), "{}", last.output);
    costs(&place);
    graph(&base.disk);
}

/// A base with nginx and three children with a page each: one run of kiln, and four of Packer, one after another.
fn graph(base: &Path) {
    let place = Place::new();
    let text = bake::TEMPLATE.replace("version = \"1\"", "version = \"auto\"");
    let (head, steps) = text.split_once("[base.debian]").expect("a base");
    let (installs, page) = text.split_once("[[provision]]\nuse = \"files\"").expect("a page");
    let machine =
        &steps[steps.find("[builder.qemu]").expect("a machine")..steps.find("[[provision]]").expect("a step")];
    let write = |name: &str, text: &str| {
        let directory = place.work.path().join("templates").join(name);
        fs::create_dir_all(&directory).expect("a template's directory");
        fs::write(directory.join("template.toml"), text.replace("\"bench\"", &format!("\"{name}\"")))
            .expect("write a template");
    };
    write("root", installs);
    for child in ["one", "two", "three"] {
        let page = page.replace("hello", child);
        write(child, &format!("base.image = \"root\"\n{head}{machine}[[provision]]\nuse = \"files\"{page}"));
    }
    let templates = place.work.path().join("templates");
    let tested = place.build(&templates, &[]);
    // Another cache and registry: everything is made anew.
    let untested = Place::new().build(&templates, &["--no-boot-test"]);

    let work = tempfile::tempdir().expect("a directory to work in");
    let theirs = bake::PackerBase::new(work.path(), base);
    let mut elapsed = theirs.bake(work.path(), &[bake::INSTALL]);
    let child = theirs.on(work.path());
    for name in ["one", "two", "three"] {
        let own = work.path().join(name);
        fs::create_dir_all(&own).expect("a directory to work in");
        elapsed += child.bake(&own, &[bake::PAGE]);
    }
    row("a base and three children, boot-tested", tested.elapsed, "four runs of packer 1.6.6", elapsed);
    row("a base and three children, without boot test", untested.elapsed, "four runs of packer 1.6.6", elapsed);
}

/// Disk and pause of a checkpoint, by the guest's memory.
fn costs(place: &Place) {
    for memory in ["512 MiB", "1 GiB", "2 GiB", "4 GiB"] {
        let text = format!(
            "[image]\nname = 'cost'\n[base.debian]\nsuite = 'bookworm'\n[builder.qemu]\nmemory = '{memory}'\n\
             [[provision]]\nuse = 'shell'\nscript = 'true'\n"
        );
        let template = place.template("cost.toml", &text);
        let ran = place.build(&template, &["--checkpoints", "every", "--until", "1"]);
        place.release();
        for event in events(&ran).filter(|event| event["event"] == "checkpoint-taken") {
            println!(
                "checkpoint with {memory:<8} after {:<6} {:>7.1} MiB, paused for {:>5} ms",
                event["name"].as_str().unwrap_or("?"),
                event["bytes"].as_f64().unwrap_or(0.0) / f64::from(1 << 20),
                event["pause"]
            );
        }
    }
}

/// When the first step began.
fn first_step(ran: &Timed) -> Duration {
    let began = events(ran).find(|event| event["event"] == "step-started");
    Duration::from_millis(began.and_then(|event| event["elapsed"].as_u64()).expect("a step that began"))
}

fn phases(ran: &Timed) -> String {
    let finished = events(ran).filter(|event| event["event"] == "phase-finished").map(|event| {
        let seconds = event["milliseconds"].as_f64().unwrap_or(0.0) / 1000.0;
        format!("{} {seconds:.1}", event["phase"].as_str().unwrap_or("?"))
    });
    finished.collect::<Vec<_>>().join(", ")
}
