//! The index beside the objects: it says what they say, whatever becomes of its file.

#![expect(clippy::unwrap_used, reason = "tests")]

#[path = "../../kiln-registry/tests/support/artifact.rs"]
mod artifacts;

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use artifacts::{Scratch, artifact, fixed, intent, select};
use kiln_core::{ChannelName, ImageName, artifact::Artifact};
use kiln_index::{Build, Index, Indexed};
use kiln_io::guest::Quiet;
use kiln_registry::{Change, ImageSummary, Listed, Registry};

/// A registry whose `web` has three versions and a channel that moved twice, and whose `base` has one.
struct Fixture {
    scratch: Scratch,
    registry: Registry,
    web: ImageName,
    artifact: Artifact,
}

/// Everything that an index says.
#[derive(Debug, PartialEq)]
struct Said {
    images: Vec<ImageSummary>,
    builds: Vec<Option<Build>>,
    moves: Vec<Change>,
    history: Vec<Change>,
}

impl Fixture {
    fn new(name: &str) -> Self {
        let scratch = Scratch::new(name);
        let registry = scratch.registry();
        let mut artifact = artifact(&scratch.0.join("baked"), "b-1", "one");
        artifact.times.insert("boot".to_owned(), 1_500);
        artifact.description = Some("a web server".to_owned());
        let fixture = Self { registry, web: "web".parse().unwrap(), artifact, scratch };
        for version in ["1.0.0", "1.1.0", "1.2.0"] {
            fixture.publish("web", version);
        }
        fixture.publish("base", "7");
        fixture.promote("1.0.0");
        fixture.promote("1.1.0");
        fixture
    }

    fn publish(&self, image: &str, version: &str) {
        let artifact =
            Artifact { image: image.parse().unwrap(), build: format!("b-{version}"), ..self.artifact.clone() };
        self.registry.publish(&artifact, &self.scratch.0.join("baked"), &fixed(version), &Quiet).unwrap();
    }

    fn promote(&self, version: &str) {
        let selector = select(&format!("web@{version}"));
        self.registry.promote(&selector, &stable(), None, &intent("ada")).unwrap();
    }

    fn cache(&self) -> PathBuf {
        self.scratch.0.join("index")
    }

    fn index(&self) -> Index {
        Index::new(self.registry.clone(), Some(&self.cache()))
    }

    fn file(&self) -> PathBuf {
        self.index().path().unwrap().to_owned()
    }

    fn listed(&self) -> Vec<Listed> {
        self.registry.versions(&self.web).unwrap()
    }

    fn said(&self, index: &Index) -> Said {
        Said {
            images: index.images().unwrap(),
            builds: index.builds(&self.web, self.listed().iter()),
            moves: index.moves(&self.web).unwrap(),
            history: index.history(&self.web, &stable()).unwrap(),
        }
    }

    /// The same from the objects alone, but for the builds.
    fn holds(&self, said: &Said, when: &str) {
        assert_eq!(said.images, self.registry.images().unwrap(), "{when}");
        assert_eq!(said.moves, self.registry.history(&self.web, None).unwrap(), "{when}");
        assert_eq!(said.history, self.registry.history(&self.web, Some(&stable())).unwrap(), "{when}");
        for (listed, build) in self.listed().iter().zip(&said.builds) {
            let artifact = self.registry.listed_record(&self.web, listed).unwrap().artifact;
            let build = build.as_ref().unwrap();
            let expected = (&artifact.version, &artifact.build, artifact.times.values().sum::<u64>());
            assert_eq!((&build.version, &build.build, build.duration()), expected, "{when}");
            assert_eq!(build.qcow2, artifact.files.first().map(|file| file.bytes), "{when}");
        }
        assert_eq!(said.builds.len(), self.listed().len(), "{when}");
    }

    /// Waits until the kernel's clock has gone on so far that heads can be told from later ones.
    fn settle(&self) {
        for image in self.registry.names().unwrap() {
            while self.registry.mark(&image).unwrap().is_none() {
                std::thread::yield_now();
            }
        }
    }
}

fn stable() -> ChannelName {
    "stable".parse().unwrap()
}

#[test]
fn says_what_the_objects_say_and_follows_every_change() {
    let fixture = Fixture::new("index-follows");
    let index = fixture.index();
    fixture.holds(&fixture.said(&index), "at first");
    fixture.settle();
    fixture.holds(&fixture.said(&index), "settled");
    // Another process writes, and this one is asked at once.
    fixture.publish("web", "1.3.0");
    fixture.holds(&fixture.said(&index), "after a publish");
    fixture.promote("1.3.0");
    fixture.holds(&fixture.said(&fixture.index()), "after a promotion, in another process");
    let indexed = Indexed { images: 2, builds: 5, histories: 2 };
    fixture.settle();
    assert_eq!(fixture.index().rebuild().unwrap(), Some(indexed));
    fixture.holds(&fixture.said(&index), "after a rebuild by another process");
}

#[test]
fn records_are_read_once() {
    let fixture = Fixture::new("index-once");
    let (index, listed) = (fixture.index(), fixture.listed());
    let first = index.builds(&fixture.web, listed.iter());
    // What was indexed needs no record any more; what was not, does.
    let directory = fixture.registry.root().join("images/web/v");
    fs::rename(&directory, directory.with_extension("away")).unwrap();
    assert_eq!(fixture.index().builds(&fixture.web, listed.iter()), first);
    fs::remove_file(fixture.file()).unwrap();
    assert_eq!(fixture.index().builds(&fixture.web, listed.iter()), [None, None, None]);
}

#[test]
fn a_flipped_byte_anywhere_in_the_file_changes_no_answer() {
    let fixture = Fixture::new("index-flips");
    fixture.settle();
    let expected = fixture.said(&fixture.index());
    let (file, whole) = (fixture.file(), fs::read(fixture.file()).unwrap());
    assert!(whole.len() > 8 << 10, "there is something to damage");
    // The header and every table, each byte of which has its turn in some run of the offsets.
    let step = 97;
    for at in (0..whole.len()).step_by(step) {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x41;
        fs::write(&file, bytes).unwrap();
        assert_eq!(fixture.said(&fixture.index()), expected, "byte {at}");
    }
    for length in [0, 1, 100, 4096, whole.len() / 2, whole.len() - 1] {
        fs::write(&file, &whole[..length]).unwrap();
        assert_eq!(fixture.said(&fixture.index()), expected, "cut to {length}");
    }
}

#[test]
fn whatever_becomes_of_the_file_the_answers_are_right() {
    let fixture = Fixture::new("index-faults");
    let file = fixture.file();
    let connect = |path: &Path| rusqlite::Connection::open(path).unwrap();
    let index = fixture.index();
    fixture.holds(&fixture.said(&index), "made");

    fs::remove_file(&file).unwrap();
    fixture.publish("web", "1.3.0");
    fixture.holds(&fixture.said(&index), "removed while it is open");
    fixture.holds(&fixture.said(&fixture.index()), "removed");

    connect(&file).pragma_update(None, "user_version", 99).unwrap();
    fixture.holds(&fixture.said(&fixture.index()), "of another format");
    connect(&file).execute_batch("drop table moves; create table moves (other)").unwrap();
    fixture.holds(&fixture.said(&fixture.index()), "with another table");
    fs::write(&file, b"something else").unwrap();
    fixture.holds(&fixture.said(&fixture.index()), "something else");
    fs::remove_file(&file).unwrap();
    fs::create_dir(&file).unwrap();
    fixture.holds(&fixture.said(&fixture.index()), "a directory");
    fs::remove_dir(&file).unwrap();

    // Somebody writes and does not end.
    fixture.said(&fixture.index());
    let holder = connect(&file);
    holder.execute_batch("begin exclusive").unwrap();
    fixture.publish("web", "1.4.0");
    fixture.holds(&fixture.said(&fixture.index()), "locked");
    drop(holder);

    fs::remove_file(&file).unwrap();
    std::os::unix::fs::symlink("/dev/full", &file).unwrap();
    fixture.holds(&fixture.said(&fixture.index()), "on a full disk");
    assert_eq!(fs::read_link(&file).unwrap(), Path::new("/dev/full"), "it was not taken for damage");
    fs::remove_file(&file).unwrap();
    fixture.said(&fixture.index());
    let unmade = Index::new(fixture.registry.clone(), Some(Path::new("/proc/none")));
    fixture.holds(&fixture.said(&unmade), "nowhere to keep it");
    assert_eq!(unmade.rebuild().unwrap(), None);
    fixture.holds(&fixture.said(&Index::new(fixture.registry.clone(), None)), "in memory");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o444)).unwrap();
    fs::set_permissions(fixture.cache(), fs::Permissions::from_mode(0o555)).unwrap();
    fixture.publish("web", "1.5.0");
    fixture.holds(&fixture.said(&fixture.index()), "read-only");
    fs::set_permissions(fixture.cache(), fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn another_registry_in_the_same_place_is_another_one() {
    let fixture = Fixture::new("index-another");
    let index = fixture.index();
    fixture.said(&index);
    fs::remove_dir_all(fixture.registry.root()).unwrap();
    for version in ["1.2.0", "1.1.0", "1.0.0"] {
        fixture.publish("web", version);
    }
    fixture.publish("base", "7");
    fixture.promote("1.1.0");
    fixture.promote("1.0.0");
    fixture.holds(&fixture.said(&index), "the same process");
    fixture.holds(&fixture.said(&fixture.index()), "another process");
}
