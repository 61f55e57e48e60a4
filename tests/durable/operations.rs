//! What is done to a registry, by the real binary wherever it has a verb for it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use kiln_tests::{
    home::Home,
    served::Served,
    strace::{Point, traced},
};

use crate::scene::{Place, State, promote, publisher, registry, revisions};

/// One thing that is done to a registry.
pub(crate) struct Operation<'a> {
    pub(crate) name: &'static str,
    /// The registry before.
    pub(crate) scene: PathBuf,
    pub(crate) program: Box<dyn Fn(&Home) -> Command + Sync + 'a>,
    /// What must hold besides, at any time.
    pub(crate) check: fn(&Path, &str),
    /// Several threads make its calls.
    pub(crate) threads: bool,
    pub(crate) points: Vec<Point>,
    pub(crate) before: State,
    pub(crate) after: State,
    pub(crate) revisions: usize,
    /// Ended with the operation.
    _server: Option<(Served, Home)>,
}

/// The exported disk, as it should be.
static EXPORTED: OnceLock<Vec<u8>> = OnceLock::new();

pub(crate) fn operations(place: &Place) -> Vec<Operation<'_>> {
    let nothing = place.scene("nothing", &[], |_| {});
    let one = place.scene("one", &["1.0.0"], |_| {});
    let moved = place.scene("moved", &["1.0.0", "1.1.0"], |registry| {
        promote(registry, "1.0.0");
        promote(registry, "1.1.0");
    });
    let many = ["1.0.0", "1.1.0", "1.2.0", "1.3.0", "1.4.0", "1.5.0", "1.6.0", "1.7.0", "1.8.0"];
    let many = place.scene("many", &many, |registry| promote(registry, "1.8.0"));
    let revoked = place.scene("revoked", &["1.0.0"], |registry| {
        let version = kiln_registry::Parent { image: "web".parse().unwrap(), version: "1.0.0".parse().unwrap() };
        registry.revoke(&version, Some(1), &crate::artifacts::intent("ada")).unwrap();
    });
    for version in ["1.0.0", "1.1.0"] {
        place.bake(version, None);
    }
    let mut all = vec![
        operation("the first publish", &nothing, |home| publisher(place, home, "1.0.0")),
        operation("the next publish", &one, |home| publisher(place, home, "1.1.0")),
        verb("a new channel", &one, &["promote", "web", "1.0.0", "--to", "stable"]),
        verb("promote", &moved, &["promote", "web", "1.0.0", "--to", "stable", "--expect", "1.1.0"]),
        verb("rollback", &moved, &["rollback", "web", "stable", "--expect", "1.1.0", "--reason", "slow"]),
        verb("rollback to a version", &moved, &["rollback", "web", "stable", "--to", "1.0.0"]),
        verb("revoke", &one, &["revoke", "web", "1.0.0", "--at", "2001-01-01", "--reason", "CVE"]),
        verb("lift", &revoked, &["revoke", "web", "1.0.0", "--lift"]),
        verb("restrict", &one, &["channel", "web", "next", "--restrict"]),
        verb("collect", &many, &["registry", "prune", "--keep", "1", "--remove"]),
    ];
    let mut export = verb("export", &one, &["export", "web", "--to", "out/web.qcow2", "--force"]);
    let whole = fs::read(place.path("baked/1.0.0/web.qcow2")).unwrap();
    EXPORTED.get_or_init(|| whole);
    fs::create_dir(one.join("out")).unwrap();
    export.threads = true;
    export.check = |home, when| crate::only_whole_files(&home.join("out"), EXPORTED.get().unwrap(), when);
    all.push(export);
    for (name, scene, version) in [("the first pull", &nothing, "web@1.0.0"), ("the next pull", &one, "web@1.1.0")] {
        let server = place.copy(&moved, &format!("the server of {name}"));
        let served = Served::new(&server, &["--listen", "127.0.0.1:0"]);
        let url = served.url.clone();
        let program = move |home: &Home| home.command(&["pull", version, "--registry", &url]);
        all.push(Operation { threads: true, _server: Some((served, server)), ..operation(name, scene, program) });
    }
    for operation in &mut all {
        measure(place, operation);
    }
    all
}

fn operation<'a>(name: &'static str, scene: &Path, program: impl Fn(&Home) -> Command + Sync + 'a) -> Operation<'a> {
    Operation {
        name,
        scene: scene.to_owned(),
        program: Box::new(program),
        check: |_, _| {},
        threads: false,
        points: Vec::new(),
        before: State::default(),
        after: State::default(),
        revisions: 0,
        _server: None,
    }
}

fn verb<'a>(name: &'static str, scene: &Path, arguments: &'static [&'static str]) -> Operation<'a> {
    operation(name, scene, move |home| {
        let mut command = home.command(arguments);
        command.current_dir(home.path(""));
        command
    })
}

/// Does it once without a fault: which calls it makes, and what is seen before and after.
fn measure(place: &Place, operation: &mut Operation<'_>) {
    let home = place.copy(&operation.scene, operation.name);
    operation.before = State::of(&registry(&home.path("")), operation.name);
    let (output, points) = traced(&(operation.program)(&home), &home.path(""));
    assert!(output.status.success(), "{}: {output:?}", operation.name);
    assert!(points.len() > 8, "{}: only {points:?}", operation.name);
    operation.points = points;
    let registry = registry(&home.path(""));
    operation.after = State::of(&registry, operation.name);
    operation.revisions = revisions(&registry, operation.name);
}
