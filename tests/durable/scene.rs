//! Registries as they are before an operation, small and in memory where the machine has such a file system, copied for each
//! run; and what anybody can see of them.

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    path::{Path, PathBuf},
    process::{self, Command},
};

use kiln_core::{
    Digest,
    artifact::{Artifact, File},
};
use kiln_io::guest::Quiet;
use kiln_registry::{Intent, Registry, RegistryError};
use kiln_tests::home::Home;

use crate::artifacts::{fixed, intent, sealed, select};

/// Segments of the disks. Two of them are another in each version.
const SEGMENTS: usize = 10;

/// Where everything of this test program lies; removed when it is dropped.
pub(crate) struct Place(PathBuf);

impl Place {
    pub(crate) fn new(name: &str) -> Self {
        let memory = Path::new("/dev/shm");
        let name = format!("kiln-{name}-{}", process::id());
        let path = [memory.join(&name), env::temp_dir().join(&name)].into_iter().find(|path| {
            let _ = fs::remove_dir_all(path);
            fs::create_dir_all(path).is_ok()
        });
        Self(path.expect("a directory for the test"))
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Bakes `version` of `web`, which stands on `base`: a qcow2, and a file that is stored as a whole.
    pub(crate) fn bake(&self, version: &str, base: Option<Digest>) -> PathBuf {
        let directory = self.path("baked").join(version);
        let mut bytes = vec![0; SEGMENTS << 22];
        for segment in 0..SEGMENTS {
            let text = if segment < 2 { format!("{version} in {segment}") } else { format!("always in {segment}") };
            bytes[segment << 22..][..text.len()].copy_from_slice(text.as_bytes());
        }
        let mut artifact = sealed(&directory, &format!("b-{version}"), &bytes, 1);
        fs::remove_file(directory.join("web.raw")).unwrap();
        artifact.files.truncate(1);
        let whole = format!("a disk of {version} in a format that is stored as it is").repeat(100);
        fs::write(directory.join("web.vmdk"), &whole).unwrap();
        artifact.files.push(File {
            name: "web.vmdk".to_owned(),
            format: "vmdk".to_owned(),
            bytes: whole.len() as u64,
            sha256: Digest::of(whole.as_bytes()),
        });
        artifact.base.digest = base.unwrap_or(artifact.base.digest);
        fs::write(directory.join("artifact.json"), serde_json::to_vec(&artifact).unwrap()).unwrap();
        directory
    }

    /// A registry with `versions` of `web`, after `change`.
    pub(crate) fn scene(&self, name: &str, versions: &[&str], change: impl Fn(&Registry)) -> PathBuf {
        let directory = self.path("scenes").join(name);
        fs::create_dir_all(&directory).unwrap();
        if !versions.is_empty() {
            let registry = registry(&directory);
            for version in versions {
                publish(&registry, &self.bake(version, None), version).unwrap();
            }
            change(&registry);
        }
        directory
    }

    /// A home of its own that is as `scene`.
    pub(crate) fn copy(&self, scene: &Path, name: &str) -> Home {
        let home = Home::at(self.path("runs").join(name));
        copy(scene, &home.path(""));
        home
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        if from.is_dir() {
            copy(&from, &to);
        } else {
            fs::copy(&from, &to).unwrap();
        }
    }
}

pub(crate) fn registry(home: &Path) -> Registry {
    Registry::open(&home.join("data/registry")).unwrap()
}

/// Publishes what was baked into `directory`.
pub(crate) fn publish(registry: &Registry, directory: &Path, version: &str) -> Result<(), RegistryError> {
    let artifact: Artifact = serde_json::from_slice(&fs::read(directory.join("artifact.json")).unwrap()).unwrap();
    registry.publish(&artifact, directory, &fixed(version), &Quiet).map(drop)
}

/// Moves `stable`.
pub(crate) fn promote(registry: &Registry, version: &str) {
    registry.promote(&select(&format!("web@{version}")), &"stable".parse().unwrap(), None, &intent("ada")).unwrap();
}

pub(crate) fn nobody() -> Intent {
    intent("the judge")
}

/// What anybody can see of the image `web`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct State {
    versions: Vec<(String, Digest)>,
    channels: BTreeMap<String, String>,
    restricted: BTreeSet<String>,
    revoked: BTreeSet<String>,
}

impl State {
    /// Every version that is seen is complete: all of its bytes are read and compared.
    pub(crate) fn of(registry: &Registry, when: &str) -> Self {
        let report = registry.verify(&|_, _| true).unwrap_or_else(|error| panic!("{when}: {error}"));
        assert!(report.findings.is_empty() && report.whole == report.versions, "{when}: half visible: {report:?}");
        let image = "web".parse().unwrap();
        let listing = match registry.listing(&image, 3_000_000_000) {
            Ok(listing) => listing,
            Err(RegistryError::UnknownImage { .. }) => return Self::default(),
            Err(error) => panic!("{when}: {error}"),
        };
        let versions = listing.versions.iter().map(|entry| (entry.listed.version.to_string(), entry.listed.disk));
        let revoked = listing.versions.iter().filter(|entry| entry.revoked.is_some());
        let channels = listing.channels.iter().map(|(name, channel)| (name.to_string(), channel.version.to_string()));
        Self {
            versions: versions.collect(),
            channels: channels.collect(),
            revoked: revoked.map(|entry| entry.listed.version.to_string()).collect(),
            restricted: registry.restricted(&image).unwrap().iter().map(ToString::to_string).collect(),
        }
    }
}

/// Every revision of `web`, in order and without a gap; how many there are.
pub(crate) fn revisions(registry: &Registry, when: &str) -> usize {
    let log = registry.log(&"web".parse().unwrap()).unwrap_or_else(|error| panic!("{when}: {error}"));
    let revisions: Vec<_> = log.iter().map(|change| change.rev).collect();
    assert_eq!(revisions, (1..=revisions.len() as u64).collect::<Vec<_>>(), "{when}: the history has a gap");
    revisions.len()
}

/// One collection, and nothing is left but what the versions need.
pub(crate) fn collected(registry: &Registry, when: &str) {
    let rules = kiln_registry::Rules { newest: None, days: None, now: 3_000 };
    registry.prune(&rules, &nobody()).unwrap_or_else(|error| panic!("{when}: {error}"));
    let report = registry.verify(&|_, _| true).unwrap_or_else(|error| panic!("{when}: {error}"));
    assert_eq!(report.unneeded, 0, "{when}: {report:?}");
    assert_eq!(unfinished(registry), Vec::<String>::new(), "{when}");
    assert!(!registry.root().join("damaged").exists(), "{when}: something was set aside");
}

/// Files that were being written.
pub(crate) fn unfinished(registry: &Registry) -> Vec<String> {
    let entries = fs::read_dir(registry.root().join("tmp")).into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter(|name| name != "lock").collect()
}

/// Which home the actor publishes in, and which version.
pub(crate) const ACTOR: [&str; 2] = ["KILN_TEST_PUBLISH_IN", "KILN_TEST_PUBLISH"];

/// This program once more, which publishes `version` in `home` and ends with 1 when it cannot.
pub(crate) fn publisher(place: &Place, home: &Home, version: &str) -> Command {
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(["--exact", "actor", "--nocapture"]).env_clear().env("PATH", env::var_os("PATH").unwrap_or_default());
    command.env(ACTOR[0], home.path("")).env(ACTOR[1], place.path("baked").join(version));
    command
}
