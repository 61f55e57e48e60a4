//! Publishers at once: a thousand of one version, and one that was stopped and comes back too late.

use std::{
    env, fs,
    path::PathBuf,
    process::{self, Command, Stdio},
    sync::Barrier,
    thread,
};

use kiln_core::artifact::Artifact;
use kiln_io::guest::Quiet;
use kiln_registry::RegistryError;
use kiln_tests::strace::{Stopped, traced};

use crate::{
    artifacts::{fixed, sealed},
    scene::{Place, State, publish, publisher, registry, revisions},
};

const PROCESSES: usize = 8;
const THREADS: usize = 125;
/// Different disks that are offered under the same version.
const DISKS: usize = 5;

/// Where a racer publishes; it finds the disks beside it.
const HOME: &str = "KILN_TEST_RACE_IN";

/// Does nothing in an ordinary run; started by the test below it is a process of many publishers.
#[test]
fn racer() {
    let Some(home) = env::var_os(HOME).map(PathBuf::from) else { return };
    let (start, registry) = (Barrier::new(THREADS), registry(&home));
    let outcomes = thread::scope(|scope| {
        let publishers: Vec<_> = (0..THREADS)
            .map(|number| {
                let (start, registry, directory) = (&start, &registry, home.join(format!("disk-{}", number % DISKS)));
                scope.spawn(move || {
                    let artifact = fs::read(directory.join("artifact.json")).unwrap();
                    let artifact: Artifact = serde_json::from_slice(&artifact).unwrap();
                    start.wait();
                    match registry.publish(&artifact, &directory, &fixed("1.0.0"), &Quiet) {
                        Ok(published) if published.already => "same".to_owned(),
                        Ok(_) => "won".to_owned(),
                        Err(RegistryError::Conflict { .. }) => "refused".to_owned(),
                        Err(error) => format!("{error:?}"),
                    }
                })
            })
            .collect();
        publishers.into_iter().map(|publisher| publisher.join().unwrap()).collect::<Vec<_>>()
    });
    fs::write(home.join(format!("outcome-{}", process::id())), outcomes.join("\n")).unwrap();
}

#[test]
fn of_a_thousand_publishers_of_one_version_at_once_exactly_one_wins() {
    let place = Place::new("thousand");
    let home = place.path("home");
    for number in 0..DISKS {
        let directory = home.join(format!("disk-{number}"));
        let mut artifact =
            sealed(&directory, &format!("b-{number}"), &vec![u8::try_from(number).unwrap() + 1; 64 << 10], 1);
        artifact.files.truncate(1);
        fs::write(directory.join("artifact.json"), serde_json::to_vec(&artifact).unwrap()).unwrap();
    }
    let racers: Vec<_> = (0..PROCESSES)
        .map(|_| {
            let mut racer = Command::new(env::current_exe().unwrap());
            racer.args(["--exact", "race::racer"]).env(HOME, &home).stdout(Stdio::null()).spawn().unwrap()
        })
        .collect();
    for mut racer in racers {
        assert!(racer.wait().unwrap().success());
    }
    let outcomes = fs::read_dir(&home).unwrap().flatten().filter(|entry| entry.path().is_file());
    let outcomes: Vec<_> = outcomes.map(|entry| fs::read_to_string(entry.path()).unwrap()).collect();
    let count = |wanted: &str| outcomes.iter().flat_map(|text| text.lines()).filter(|line| *line == wanted).count();
    // Who brought the disk of the winner is told that it is there, all others that it is another.
    let expected = (1, PROCESSES * THREADS / DISKS - 1, PROCESSES * THREADS / DISKS * (DISKS - 1));
    assert_eq!((count("won"), count("same"), count("refused")), expected, "{outcomes:?}");
    let registry = registry(&home);
    assert_eq!(revisions(&registry, "after the race"), 1);
    let _whole = State::of(&registry, "after the race");
}

#[test]
fn a_publisher_that_was_stopped_and_comes_back_late_finds_the_version_taken() {
    let place = Place::new("late");
    let scene = place.scene("one", &["0.9.0"], |_| {});
    place.bake("1.0.0", None);
    let other = place.bake("1.1.0", None);
    let home = place.copy(&scene, "count");
    let (_, points) = traced(&publisher(&place, &home, "1.0.0"), &home.path(""));
    // From the lock of the image on it would keep the other waiting; before that nothing is decided.
    let locked = points.iter().rposition(|point| point.call == "flock").unwrap();
    assert!(locked > 20, "{points:?}");
    for point in points[..locked].iter().step_by(6) {
        let when = format!("stopped at {point:?}");
        let home = place.copy(&scene, "stopped");
        let late = Stopped::at(&publisher(&place, &home, "1.0.0"), *point);
        publish(&registry(&home.path("")), &other, "1.0.0").unwrap_or_else(|error| panic!("{when}: {error}"));
        let taken = State::of(&registry(&home.path("")), &when);
        let output = late.wake();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.code() == Some(1) && said.contains("is already published with the disk"),
            "{when}: {output:?}"
        );
        assert_eq!(State::of(&registry(&home.path("")), &when), taken, "{when}");
        assert_eq!(revisions(&registry(&home.path("")), &when), 2, "{when}");
    }
}
