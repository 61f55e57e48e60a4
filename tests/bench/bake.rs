//! A whole bake: the same base, the same packages, the same file; kiln with and without the boot test that Packer lacks.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use kiln_tests::home;
use serde_json::{Value, json};

use crate::{
    measure::{row, timed},
    packer, seal,
};

const MEMORY: u64 = 1024;
pub(crate) const TEMPLATE: &str = r#"
[image]
name = "bench"
version = "1"

[base.debian]
suite = "bookworm"

[builder.qemu]
memory = "1 GiB"
cpus = 2
disk = "4 GiB"

[[provision]]
use = "packages"
install = ["nginx-light"]

[[provision]]
use = "files"
files = [{ path = "/var/www/html/index.html", content = "hello\n" }]

[[check]]
use = "service"
name = "nginx"
"#;

pub(crate) fn run() {
    let work = tempfile::tempdir().expect("a directory to work in");
    let base = tokio::runtime::Runtime::new().expect("a runtime").block_on(seal::debian());
    let template = work.path().join("template.toml");
    fs::write(&template, TEMPLATE).expect("write the template");

    let tested = kiln(work.path(), "tested", &template, &["--checkpoints", "off"]);
    let options = ["--no-boot-test", "--checkpoints", "off"];
    let untested = kiln(work.path(), "untested", &template, &options);
    let theirs = packer_bake(work.path(), &base.disk);
    row("bake, sealed image boot-tested", tested, "packer 1.6.6 (no boot test)", theirs);
    row("bake, without the boot test", untested, "packer 1.6.6 (no boot test)", theirs);
}

/// One bake into a registry of its own; prints where its time went.
fn kiln(work: &Path, name: &str, template: &Path, options: &[&str]) -> Duration {
    let mut command = Command::new(home::kiln());
    command
        .arg("build")
        .arg(template)
        .arg("--json")
        .args(options)
        .env("KILN_DATA_DIR", work.join(name).join("data"))
        .env("KILN_STATE_DIR", work.join(name).join("state"));
    let ran = timed(&mut command);
    let phases = ran.output.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()).filter_map(|event| {
        (event["event"] == "phase-finished").then(|| {
            format!(
                "{} {:.1}",
                event["phase"].as_str().unwrap_or("?"),
                event["milliseconds"].as_f64().unwrap_or(0.0) / 1000.0
            )
        })
    });
    println!("kiln, {name}: {}", phases.collect::<Vec<_>>().join(", "));
    ran.elapsed
}

/// What Packer needs of a base: a qcow2, a key, and a seed that lets the key in.
pub(crate) struct PackerBase {
    disk: PathBuf,
    key: PathBuf,
    seed: PathBuf,
}

impl PackerBase {
    pub(crate) fn new(work: &Path, raw: &Path) -> Self {
        let (disk, key, seed) = (work.join("base.qcow2"), work.join("key"), work.join("seed.img"));
        timed(Command::new("qemu-img").args(["convert", "-f", "raw", "-O", "qcow2"]).arg(raw).arg(&disk));
        timed(Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&key));
        let public = fs::read_to_string(key.with_extension("pub")).expect("read the public key");
        let user_data = format!(
            "#cloud-config\ndisable_root: false\nusers:\n  - name: root\n    ssh_authorized_keys:\n      - {public}"
        );
        fs::write(work.join("user-data"), user_data).expect("write user-data");
        fs::write(work.join("meta-data"), "instance-id: bench\nlocal-hostname: bench\n").expect("write meta-data");
        timed(Command::new("mkfs.vfat").args(["-C", "-n", "CIDATA"]).arg(&seed).arg("512"));
        let files = [work.join("user-data"), work.join("meta-data")];
        timed(Command::new("mcopy").arg("-i").arg(&seed).args(files).arg("::"));
        Self { disk, key, seed }
    }

    /// The same on what Packer made in `work`.
    pub(crate) fn on(&self, work: &Path) -> Self {
        let disk = work.join("packer-output/bench.qcow2");
        Self { disk, key: self.key.clone(), seed: self.seed.clone() }
    }

    pub(crate) fn bake(&self, work: &Path, commands: &[&[&str]]) -> Duration {
        let provisioners: Vec<_> = commands.iter().map(|inline| json!({ "type": "shell", "inline": inline })).collect();
        packer::bake(work, &self.disk, &self.seed, &self.key, MEMORY, &provisioners).elapsed
    }
}

/// The packages of [`TEMPLATE`].
pub(crate) const INSTALL: &[&str] =
    &["apt-get update", "DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends nginx-light"];
/// Its page and its check.
pub(crate) const PAGE: &[&str] = &["echo hello > /var/www/html/index.html", "systemctl is-active nginx"];

pub(crate) fn packer_bake(work: &Path, raw: &Path) -> Duration {
    PackerBase::new(work, raw).bake(work, &[INSTALL, PAGE])
}
