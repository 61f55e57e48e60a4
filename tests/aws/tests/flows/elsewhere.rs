//! AMIs of versions that are not in a directory here: in a bucket, on a server. The real binary, a real S3 server, a real `kiln serve`.

use std::{fs, path::Path};

use kiln_aws_tests::{Fake, Fault, Schedule, documented};
use kiln_io::guest::Quiet;
use kiln_registry::Registry;
use kiln_tests::{
    home::{Home, Ran},
    moto::Moto,
    served::Served,
};

use crate::{
    artifact::{fixed, sealed},
    bake::in_account,
    bench::{self, REGIONS},
};

/// Somebody with two versions, the second of which differs in one block, an account, and a registry somewhere else.
struct Scene {
    home: Home,
    fake: Fake,
    registry: String,
    token: String,
}

impl Scene {
    fn new(home: Home, registry: String, token: String) -> Self {
        let own = Registry::open(&home.path("data/registry")).unwrap();
        let mut disk = bench::disk(1, 31);
        for version in ["1.0.0", "1.1.0"] {
            let directory = home.path("baked").join(version);
            let built = sealed(&directory, &format!("b-{version}"), &disk, 1);
            own.publish(&built, &directory, &fixed(version), &Quiet).unwrap();
            disk[20 * bench::BLOCK + 5] ^= 1;
        }
        let fake = Fake::start();
        fake.allow(documented());
        Self { home, fake, registry, token }
    }

    fn run(&self, arguments: &[&str]) -> Ran {
        let mut command = in_account(&self.home, &self.fake, arguments);
        Ran::new(arguments, &command.env("KILN_TOKEN", &self.token).env("AWS_REGION", "us-east-1").output().unwrap())
    }

    /// The same about the registry.
    fn ask(&self, arguments: &[&str]) -> Ran {
        self.run(&[arguments, &["--registry", &self.registry]].concat())
    }

    fn living(&self) -> Vec<&'static str> {
        self.fake.living().iter().map(|living| living.kind).collect()
    }

    fn calls(&self, action: &str) -> u64 {
        self.fake.ledger().iter().filter(|call| call.action == action).count() as u64
    }

    fn works(&self) {
        for version in ["web@1.0.0", "web@1.1.0"] {
            self.run(&["push", version, "--registry", &self.registry]).succeeds();
        }
        // Nothing of it is needed any more: what is published comes from there.
        fs::remove_dir_all(self.home.path("data/registry")).unwrap();
        let region = ["--region", REGIONS[0]];
        let publish = |version: &str| self.ask(&[&["publish", "ami", version, "--to", "stable"], &region[..]].concat());
        publish("web@1.0.0").succeeds();
        let (asked, put) = (self.calls("DescribeSnapshots"), self.calls("PutSnapshotBlock"));
        let second = publish("web@1.1.0").succeeds();
        assert!(second.stderr.contains("1 blocks of 512 KiB to send, on top of 1.0.0"), "{second:?}");
        assert!(second.stderr.contains("web@stable is 1.1.0 now"), "{second:?}");
        assert_eq!(self.calls("PutSnapshotBlock") - put, 1);
        let asked = self.calls("DescribeSnapshots") - asked;
        let resolved = self.ask(&["resolve", "web@stable", "--format", "env"]).succeeds().stdout;
        assert!(
            resolved.contains("KILN_VERSION='1.1.0'") && resolved.contains("KILN_AMI_EU_WEST_1='ami-"),
            "{resolved}"
        );
        let shown = self.ask(&["show", "web@1.1.0"]).succeeds().stdout;
        assert!(shown.contains("ami-"), "{shown}");
        let checked = self.ask(&[&["release", "check", "web"], &region[..]].concat()).succeeds().stdout;
        assert_eq!(checked.matches("sound").count(), 2, "{checked}");
        assert!(checked.contains("stable"), "{checked}");

        // What the registry has is not cleaned away, and what it does not have is; and nothing without its word.
        let elsewhere = ["--region", REGIONS[1]];
        let other = |version: &str| self.ask(&[&["publish", "ami", version], &elsewhere[..]].concat());
        self.fake.schedule(Schedule::new().at("DescribeSnapshots", asked, Fault::AccessDenied));
        other("web@1.0.0").ends_with(1);
        self.fake.schedule(Schedule::new().at("RegisterImage", 1, Fault::AccessDenied));
        other("web@1.1.0").ends_with(1);
        self.fake.schedule(Schedule::new());
        assert_eq!(self.living().iter().filter(|kind| **kind == "image").count(), 3);
        let resolved = self.ask(&["resolve", "web@1.0.0", "--format", "env"]).succeeds().stdout;
        assert!(resolved.contains("KILN_AMI_EU_NORTH_1="), "{resolved}");
    }

    fn cleans(&self) {
        let cleaned = self.run(&["clean"]).succeeds();
        assert!(cleaned.stderr.contains("is published and stays"), "{cleaned:?}");
        let left = self.living();
        let count = |kind: &str| left.iter().filter(|other| **other == kind).count();
        assert_eq!((count("image"), count("snapshot")), (3, 3), "{cleaned:?}");

        // An old one is withdrawn by what the registry says.
        let region = ["--region", REGIONS[0]];
        let retire = [&["release", "retire", "web", "--keep", "1", "--days", "0", "--yes"], &region[..]].concat();
        self.ask(&retire).succeeds();
        self.ask(&retire).succeeds();
        let resolved = self.ask(&["resolve", "web@1.0.0", "--format", "env"]).succeeds().stdout;
        assert!(!resolved.contains("KILN_AMI_EU_WEST_1="), "{resolved}");
    }
}

#[test]
fn amis_of_a_registry_in_a_bucket_are_entered_there() {
    let moto = Moto::start("127.0.0.1");
    let scene = Scene::new(Home::apart("aws-bucket"), moto.registry("team/kiln"), String::new());
    scene.run(&["registry", "init", "--registry", &scene.registry]).succeeds();
    scene.works();
    scene.cleans();
}

#[test]
fn amis_of_a_server_are_entered_there_by_those_who_may_publish() {
    let server = Home::apart("aws-server");
    let tokens = server.path("tokens.toml").display().to_string();
    let token = |name: &str, allow: &str| {
        let made = server.kiln(&["token", name, "--tokens", &tokens, "--allow", allow]).succeeds();
        made.stdout.trim().to_owned()
    };
    let (forge, reader) = (token("forge", "publish,promote"), token("reader", "read"));
    let serve = |listen: &str| Served::new(&server, &["--listen", listen, "--tokens", &tokens]);
    let served = serve("127.0.0.1:0");
    let host = served.host().to_owned();
    let scene = Scene::new(Home::apart("aws-served"), served.url.clone(), forge);
    scene.works();
    let record = only_ami(&server.path("data/registry/images/web/ami/1.1.0"));
    drop(served);
    let before = scene.fake.living();
    let refused = scene.run(&["clean"]).ends_with(1);
    assert!(refused.stderr.contains("the registry that knows what is published"), "{refused:?}");
    assert_eq!(scene.fake.living(), before);
    let served = serve(&host);
    scene.cleans();

    // Only what is the record of an AMI of that version is taken, and not from everybody.
    let sends = |token: &str, name: &str, body: &str| {
        let url = format!("{}/api/v1/images/web/records/ami/1.1.0/{name}", served.url);
        let authorization = format!("Authorization: Bearer {token}");
        let arguments =
            ["-s", "-o", "/dev/null", "-w", "%{http_code}", "-X", "PUT", "-H", &authorization, "-d", body, &url];
        let output = std::process::Command::new("curl").args(arguments).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let (name, text) = record;
    assert_eq!(sends(&scene.token, &name, &text), "200", "it is there already");
    assert_eq!(sends(&reader, &name, &text), "403");
    let other = text.replace("eu-west-1", "eu-west-2");
    assert_eq!(sends(&scene.token, &name, &other), "400", "the record of another");
    let (name, gone) = (name.replace("eu-west-1", "eu-west-2"), name.replace(".json", ".gone"));
    let disk = other.split("sha256:").nth(1).unwrap()[..64].to_owned();
    assert_eq!(sends(&scene.token, &name, &other.replace(&disk, &"0".repeat(64))), "400", "another disk");
    assert_eq!(sends(&scene.token, &name, &other), "201");
    assert_eq!(sends(&scene.token, &gone, "x"), "400", "the mark is empty");
    assert_eq!(sends(&scene.token, "1.none.ami-1.gone", ""), "400", "never entered");
}

/// The one record in this folder.
fn only_ami(folder: &Path) -> (String, String) {
    let entry = fs::read_dir(folder).unwrap().next().unwrap().unwrap();
    (entry.file_name().into_string().unwrap(), fs::read_to_string(entry.path()).unwrap())
}
