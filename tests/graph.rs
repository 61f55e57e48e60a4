//! A graph of images in real machines: a base and three children in one run, built once each, and what is left out when one fails.

use std::{fs, path::PathBuf};

use kiln_registry::Registry;
use kiln_tests::{
    home::{Home, Ran},
    running::{Build, alone, gone, nothing_but_logs},
    served::Served,
};
use serde_json::Value;

/// Four templates in a directory. All steps are tiny; the base makes what the children see.
struct Family {
    home: Home,
}

impl Family {
    fn new(name: &str) -> Self {
        let family = Self { home: Home::new(name) };
        family.write("root", "base.debian.suite = 'bookworm'", "echo root > /etc/root");
        for name in ["ant", "bee", "cat"] {
            family.write(name, "base.image = 'root@stable'", &format!("cat /etc/root; echo {name} > /etc/{name}"));
        }
        family
    }

    fn write(&self, name: &str, base: &str, script: &str) {
        let directory = self.home.path("templates").join(name);
        fs::create_dir_all(&directory).expect("a template's directory");
        let text = format!(
            "{base}\n[image]\nname = '{name}'\n[builder.qemu]\nmemory = '512 MiB'\ncpus = 1\n\
             [[provision]]\nuse = 'shell'\nscript = 'set -e; {script}'\n\
             [[check]]\nuse = 'file'\npath = '/etc/{name}'\ncontains = '{name}'\n"
        );
        // The base says how large the disks are; the children follow.
        let text = if name == "root" { text.replace("cpus = 1", "cpus = 1\ndisk = '5 GiB'") } else { text };
        fs::write(directory.join("template.toml"), text).expect("write a template");
    }

    fn build(&self, more: &[&str]) -> Ran {
        let templates = self.home.path("templates");
        let templates = templates.to_str().expect("a UTF-8 path");
        self.home.kiln(&[&["build", templates, "--json", "--no-boot-test"], more].concat())
    }

    fn record(&self, image: &str) -> Value {
        let shown = self.home.kiln(&["show", image, "--json"]).succeeds().stdout;
        serde_json::from_str(&shown).expect("kiln show prints JSON")
    }

    fn bases(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.home.path("cache/bases")).expect("the cache of bases").flatten();
        entries.map(|entry| entry.path()).filter(|path| path.to_string_lossy().contains("/image-")).collect()
    }
}

fn events(ran: &Ran) -> Vec<Value> {
    ran.stdout.lines().map(|line| serde_json::from_str(line).expect("events are JSON")).collect()
}

/// Of which images an event came, in order.
fn images(events: &[Value], name: &str) -> Vec<String> {
    let of = events.iter().filter(|event| event["event"] == name);
    of.map(|event| event["image"].as_str().expect("every line names its image").to_owned()).collect()
}

fn sorted(mut names: Vec<String>) -> Vec<String> {
    names.sort();
    names
}

#[test]
fn a_base_and_three_children_are_built_in_one_run() {
    let _turn = alone();
    let family = Family::new("graph");
    // One of the children cannot be built: it alone is not there in the end.
    family.write("bee", "base.image = 'root'", "echo stung >&2; exit 7");
    let ran = family.build(&["--jobs", "2"]).ends_with(3);
    let said = events(&ran);
    assert_eq!(images(&said, "build-started")[0], "root", "the children wait");
    assert_eq!(sorted(images(&said, "published")), ["ant", "cat", "root"], "{ran:?}");
    assert_eq!(images(&said, "build-failed"), ["bee"]);
    assert!(ran.stderr.contains("3 of 4 images done") && ran.stderr.contains("bee: "), "{ran:?}");
    assert!(said.iter().all(|event| event["build"].is_string()), "every line names its build");

    // The base was made and laid down once, and the children are baked on just that version.
    let root = family.record("root");
    assert_eq!(root["boot"]["login"], "credentials");
    assert_eq!(family.bases().iter().filter(|path| path.to_string_lossy().contains(&digest(&root))).count(), 1);
    let laid_down = said
        .iter()
        .filter(|event| event["event"] == "phase-finished" && event["phase"] == "base" && event["image"] != "root");
    assert_eq!(laid_down.count(), 1, "each base is made once: {ran:?}");
    for child in ["ant", "cat"] {
        let record = family.record(child);
        assert_eq!(record["base"]["parent"]["version"], root["version"], "{record}");
        assert_eq!(record["disk"]["size"], root["disk"]["size"], "the disk follows that of the base");
    }
    nothing_but_logs(&family.home, "a graph");

    // The mistake is mended: that child is baked on its own, proven by a boot, and on the same base.
    family.write("bee", "base.image = 'root'", "cat /etc/root; echo bee > /etc/bee");
    let bee = family.home.path("templates/bee");
    let ran = family.home.kiln(&["build", bee.to_str().expect("a UTF-8 path"), "--json"]).succeeds();
    let said = events(&ran);
    assert_eq!(images(&said, "published"), ["bee"], "{ran:?}");
    assert!(said.iter().all(|event| event["phase"] != "boot"), "its siblings' boot is a checkpoint: {ran:?}");
    assert!(said.iter().any(|event| event["event"] == "check-finished" && event["on"] == "artifact"), "{ran:?}");
    let said = events(&family.build(&[]).succeeds());
    assert_eq!(sorted(images(&said, "build-skipped")), ["ant", "bee", "cat", "root"]);
    gone(&family.home, "a graph");

    published_on_a_server(&family);
    killed_while_its_base_is_laid_down(&family);
    one_interrupt_stops_all(&family);
    a_failed_base_leaves_its_children_out(&family);
    revoked_with_its_base(&family);
}

fn digest(record: &Value) -> String {
    record["disk"]["digest"].as_str().expect("a digest").trim_start_matches("sha256:").to_owned()
}

/// Base and child live on a server: the child is baked here, and only what the server lacks is sent; then there is nothing to do.
fn published_on_a_server(family: &Family) {
    let server = Home::apart("graph-server");
    let tokens = server.path("tokens.toml").display().to_string();
    let token = server.kiln(&["token", "forge", "--tokens", &tokens, "--allow", "publish,promote"]).succeeds();
    let served = Served::new(&server, &["--listen", "127.0.0.1:0", "--tokens", &tokens]);
    let with_token = |arguments: &[&str]| {
        let all = [arguments, &["--registry", &served.url]].concat();
        let mut command = family.home.command(&all);
        Ran::new(&all, &command.env("KILN_TOKEN", token.stdout.trim()).output().expect("run kiln"))
    };
    let ant = family.home.path("templates/ant").display().to_string();
    let unknown = with_token(&["plan", &ant]).ends_with(2);
    assert!(unknown.stderr.contains("there is no image `root`"), "{unknown:?}");
    with_token(&["push", "root"]).succeeds();
    let root = family.record("root")["version"].as_str().expect("a version").to_owned();
    with_token(&["promote", "root", &root, "--to", "stable"]).succeeds();
    let build = ["build", &ant, "--json", "--no-boot-test"];
    let refused = family.home.kiln(&[&build[..], &["--registry", &served.url]].concat()).ends_with(1);
    assert!(refused.stderr.contains("KILN_TOKEN") && !refused.stdout.contains("phase-started"), "{refused:?}");

    let ran = with_token(&build).succeeds();
    assert_eq!(images(&events(&ran), "published"), ["ant"], "{ran:?}");
    assert!(ran.stderr.contains(&format!("is on {}", served.url)) && ran.stderr.contains("were sent"), "{ran:?}");
    let shown = with_token(&["show", "ant", "--json"]).succeeds();
    let record: Value = serde_json::from_str(&shown.stdout).expect("kiln show prints JSON");
    assert_eq!(record["base"]["parent"]["version"], root.as_str(), "{record}");
    assert_eq!(images(&events(&with_token(&build).succeeds()), "build-skipped"), ["ant"]);
    nothing_but_logs(&family.home, "a build for a server");
    // The server knows what the child stands on.
    let on = Registry::open(&server.path("data/registry"))
        .and_then(|registry| registry.record(&"ant".parse().expect("a selector")));
    assert_eq!(on.expect("it is there").parent.map(|parent| parent.to_string()), Some(format!("root@{root}")));
}

/// What was laid down by then goes with `kiln clean`, and the next build lays it down again.
fn killed_while_its_base_is_laid_down(family: &Family) {
    for base in family.bases() {
        fs::remove_dir_all(base).expect("forget a base");
    }
    family.write("cat", "base.image = 'root'", "echo cat again > /etc/cat");
    let cat = family.home.path("templates/cat").display().to_string();
    let arguments = ["build", &cat, "--json", "--until", "shell"];
    let mut build = Build::spawn(family.home.command(&arguments));
    build.wait_for("phase-started", "base");
    build.signal("KILL");
    build.end();
    gone(&family.home, "a base of the registry");
    family.home.kiln(&["clean"]).succeeds();
    nothing_but_logs(&family.home, "a base of the registry");
    let left = fs::read_dir(family.home.path("cache/bases")).expect("the cache of bases").flatten();
    let left: Vec<_> =
        left.map(|entry| entry.path()).filter(|path| path.to_string_lossy().contains("/.work-")).collect();
    assert!(left.is_empty(), "{left:?}");

    let again = events(&family.home.kiln(&arguments).succeeds());
    assert!(again.iter().any(|event| event["event"] == "phase-finished" && event["phase"] == "base"), "{again:?}");
    family.home.kiln(&["clean", "--kept"]).succeeds();
    gone(&family.home, "a base of the registry");
}

/// Two builds that run at once are both gone after one Ctrl-C.
fn one_interrupt_stops_all(family: &Family) {
    let templates = ["ant", "bee"].map(|name| {
        family.write(name, "base.image = 'root'", "sleep 300");
        family.home.path("templates").join(name).display().to_string()
    });
    let arguments = ["build", &templates[0], &templates[1], "--json", "--no-boot-test", "--jobs", "2"];
    let mut build = Build::spawn(family.home.command(&arguments));
    build.wait_for("step-started", "shell");
    build.wait_for("step-started", "shell");
    build.signal("INT");
    let (status, said) = build.end();
    assert_eq!(status.code(), Some(130), "{said}");
    assert!(["stopping… cleaning ", "ant (", "bee ("].iter().all(|words| said.contains(words)), "{said}");
    gone(&family.home, "an interrupt");
    nothing_but_logs(&family.home, "an interrupt");
}

/// A child of the family's base, and a grandchild, both without a machine.
fn a_failed_base_leaves_its_children_out(family: &Family) {
    family.write("root", "base.debian.suite = 'bookworm'", "exit 9");
    let ran = family.build(&[]).ends_with(1);
    let said = events(&ran);
    assert_eq!(images(&said, "build-failed"), ["root"]);
    assert_eq!(sorted(images(&said, "build-left-out")), ["ant", "bee", "cat"], "{ran:?}");
    assert!(ran.stderr.contains("not built: root failed") && ran.stderr.contains("0 of 4 images done"), "{ran:?}");
    nothing_but_logs(&family.home, "a failed base");
}

/// Lineage: who was baked on what, without a file in between.
fn revoked_with_its_base(family: &Family) {
    let version = family.record("root")["version"].as_str().expect("a version").to_owned();
    family.home.kiln(&["revoke", "root", &version, "--reason", "a test"]).succeeds();
    let child = family.home.kiln(&["export", "ant", "--to", "ant.qcow2"]).ends_with(1);
    assert!(child.stderr.contains(&format!("baked on root@{version}: a test")), "{child:?}");
    family.write("ant", "base.image = 'root@stable'", "true");
    let ant = family.home.path("templates/ant");
    let build = family.home.kiln(&["build", ant.to_str().expect("a UTF-8 path")]).ends_with(2);
    assert!(build.stderr.contains("`root` has no version and no channel `stable`"), "{build:?}");
    family.write("ant", &format!("base.image = 'root@{version}'"), "true");
    let build = family.home.kiln(&["build", ant.to_str().expect("a UTF-8 path")]).ends_with(2);
    assert!(build.stderr.contains(&format!("root@{version} is revoked")), "{build:?}");
    assert!(build.stderr.contains("template.toml:1"), "a mistake has its place: {build:?}");
    let plan = family.home.kiln(&["build", "--allow-revoked", "--until", "none", ant.to_str().expect("a UTF-8 path")]);
    assert!(plan.ends_with(2).stderr.contains("has no step `none`"), "named and allowed, it is a base");
}
