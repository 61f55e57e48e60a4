//! The whole way of an image: baked into a bucket, served, pulled by a second machine, booted there; a package more, replaced,
//! and rolled back.

#![expect(clippy::disallowed_methods, reason = "tests drive stock programs as a user would")]

use std::{fs, path::PathBuf, process::Command};

use kiln_tests::{
    home::{Home, Ran},
    moto::{self, Moto},
    other_machine::OtherMachine,
    plain_vm::{Firmware, PlainVm},
    running::alone,
    served::Served,
};
use serde_json::Value;

/// Debian, and whatever packages are named.
const TEMPLATE: &str = "
base.debian.suite = 'bookworm'
[image]
name = 'web'
version = '{{ version }}'
[variables.version]
type = 'string'
[builder.qemu]
memory = '768 MiB'
disk = '3 GiB'
[[provision]]
use = 'shell'
script = 'echo baked > /etc/baked'
";
/// The one package that the second version has more: small, and without dependencies.
const PACKAGE: &str = "[[provision]]\nuse = 'packages'\ninstall = ['tree']\n";

/// A second machine, with a home of its own.
struct Consumer {
    home: Home,
    machine: OtherMachine,
    url: String,
}

impl Consumer {
    fn kiln(&self, arguments: &[&str]) -> Ran {
        self.machine.kiln(&self.home, &[arguments, &["--registry", &self.url]].concat())
    }

    /// What `web@stable` is, laid down as a qcow2; with the bytes that came over the wire.
    fn stable(&self, name: &str) -> (PathBuf, String) {
        let to = self.home.path(name);
        let said = self.kiln(&["export", "web@stable", "--to", to.to_str().expect("a UTF-8 path")]).succeeds().stderr;
        (to, said)
    }
}

#[test]
fn an_image_is_baked_pulled_replaced_and_rolled_back() {
    let _turn = alone();
    let machine = OtherMachine::new();
    let moto = Moto::start(machine.address());
    let forge = Home::new("journey");
    let bucket = moto.registry("journey");
    let on_the_bucket = |arguments: &[&str]| moto::kiln(&forge, &bucket, arguments).succeeds();
    on_the_bucket(&["registry", "init"]);
    let build = |version: &str, more: &str| {
        let template = forge.path("web.toml");
        fs::write(&template, format!("{TEMPLATE}{more}")).expect("write the template");
        let variable = format!("version={version}");
        let template = template.to_str().expect("a UTF-8 path");
        on_the_bucket(&["build", template, "--var", &variable, "--json", "--no-boot-test"])
    };

    build("1.0.0", "");
    on_the_bucket(&["promote", "web", "1.0.0", "--to", "stable"]);
    let served = served(&forge, &bucket, machine.address());
    let consumer = Consumer { home: Home::apart("journey-consumer"), machine, url: served.url.clone() };
    let (first, _) = consumer.stable("first.qcow2");

    let again = build("1.1.0", PACKAGE);
    assert!(again.stdout.contains("\"checkpoint-used\""), "what both have in common is not made again: {again:?}");
    on_the_bucket(&["promote", "web", "1.1.0", "--to", "stable"]);
    let difference: Value = serde_json::from_str(&on_the_bucket(&["diff", "web", "1.0.0", "1.1.0", "--json"]).stdout)
        .expect("kiln diff prints JSON");
    let packages = difference["packages"].as_array().expect("a list of packages");
    assert!(packages.len() == 1 && packages[0]["name"] == "tree", "{difference:#}");
    let (second, said) = consumer.stable("second.qcow2");
    assert!(said.contains(" came"), "{said}");
    assert_sound(&second);
    // What was pulled is a machine.
    let vm = PlainVm::boot(&second, &consumer.home.path("vm"), "replaced", Firmware::Bios);
    assert_eq!(vm.read("cat /etc/baked; dpkg-query -W -f '${Status}' tree"), "baked\ninstall ok installed");
    drop(vm);

    on_the_bucket(&["rollback", "web", "stable", "--reason", "slow"]);
    let (back, _) = consumer.stable("back.qcow2");
    assert!(fs::read(back).expect("read it") == fs::read(first).expect("read it"), "the same version, another file");
    consumer.home.kiln(&["registry", "verify"]).succeeds();
}

/// The registry in `bucket` behind a server, for machines that know nothing of buckets.
fn served(user: &Home, bucket: &str, address: &str) -> Served {
    Served::spawn(moto::command(user, bucket, &["serve", "--registry", bucket, "--listen", &format!("{address}:0")]))
}

/// `qemu-img` is the outside judge.
fn assert_sound(qcow2: &PathBuf) {
    let check = Command::new("qemu-img").args(["check", "-f", "qcow2"]).arg(qcow2).output().expect("run qemu-img");
    assert!(check.status.success(), "{check:?}");
}
