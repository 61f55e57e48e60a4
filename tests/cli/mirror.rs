//! `kiln mirror` into Debian's own OCI registry, and out of it again with stock clients.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Child, Command, Output, Stdio},
};

use kiln_core::Digest;
use kiln_tests::home::{self, Home};

use crate::registry::published;

/// `ada` and her password `myPassword`, as `htpasswd -B` writes it.
const PEOPLE: &str = "ada:$2y$05$c4WoMPo3SXsafkva.HHa6uXQZWr7oboPiC2bT/r7q1BB8I2s0BRqC\n";

/// A `docker-registry` that runs; it is killed when dropped.
struct OciRegistry {
    child: Child,
    host: String,
}

impl OciRegistry {
    fn start(user: &Home, guarded: bool) -> Self {
        let (store, people, config) = (user.path("oci"), user.path("people"), user.path("oci.yml"));
        fs::write(&people, PEOPLE).unwrap();
        let auth = if guarded {
            format!("auth: {{ htpasswd: {{ realm: test, path: {} }} }}\n", people.display())
        } else {
            String::new()
        };
        let text = format!(
            "version: 0.1\nlog: {{ level: info, formatter: text }}\nhttp: {{ addr: '127.0.0.1:0' }}\n\
             storage: {{ filesystem: {{ rootdirectory: {} }} }}\n{auth}",
            store.display()
        );
        fs::write(&config, text).unwrap();
        let program = home::unpacked("docker-registry/usr/bin/docker-registry");
        let mut command = Command::new(program);
        command.arg("serve").arg(&config).env("OTEL_TRACES_EXPORTER", "none");
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let listening = lines.find_map(|line| {
            let line = line.ok()?;
            let (_, rest) = line.split_once("listening on ")?;
            Some(rest.split(['"', ',', ' ']).next()?.to_owned())
        });
        std::thread::spawn(move || lines.for_each(drop));
        Self { child, host: listening.expect("the registry says where it listens") }
    }
}

impl Drop for OciRegistry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn run(program: &str, arguments: &[&str]) -> Output {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {output:?}");
    output
}

/// The raw disk that `skopeo` and `zstd -d` make of an image.
fn fetched(user: &Home, host: &str, tag: &str) -> Vec<u8> {
    let to = user.path(&format!("fetched-{tag}"));
    let from = format!("docker://{host}/team/web:{tag}");
    run("skopeo", &["copy", "--src-tls-verify=false", &from, &format!("dir:{}", to.display())]);
    let manifest: serde_json::Value = serde_json::from_slice(&fs::read(to.join("manifest.json")).unwrap()).unwrap();
    let layers = manifest["layers"].as_array().unwrap().iter();
    let layers = layers.map(|layer| fs::read(to.join(&layer["digest"].as_str().unwrap()[7..])).unwrap());
    let stream = user.path("disk.zst");
    fs::write(&stream, layers.collect::<Vec<_>>().concat()).unwrap();
    run("zstd", &["-d", "-c", stream.to_str().unwrap()]).stdout
}

#[test]
fn a_version_comes_back_from_an_oci_registry_bit_for_bit() {
    let user = Home::apart("mirror");
    let raw = published(&user);
    let oci = OciRegistry::start(&user, false);
    let repository = format!("{}/team/web", oci.host);
    user.kiln(&["promote", "web", "1.0.0", "--to", "stable"]).succeeds();

    let mirror = |image: &str| user.kiln(&["mirror", image, "--to", &repository, "--plain-http"]);
    let first = mirror("web@stable").succeeds();
    assert!(first.stderr.contains("as 1.0.0 and stable"), "{first:?}");
    assert!(first.stdout.starts_with(&format!("{repository}@sha256:")), "{first:?}");
    for tag in ["1.0.0", "stable"] {
        assert!(fetched(&user, &oci.host, tag) == fs::read(&raw).unwrap(), "{tag}");
    }
    // The digest that was printed is that of the manifest.
    let inspected = ["inspect", "--raw", "--tls-verify=false", &format!("docker://{repository}:stable")];
    let digest = Digest::of(&run("skopeo", &inspected).stdout);
    assert_eq!(first.stdout.trim(), format!("{repository}@{digest}"));
    // Nothing is sent twice.
    let again = mirror("web").succeeds();
    assert!(again.stderr.contains("as 1.0.0 and latest: 0 B sent"), "{again:?}");
    // A version's tag is another's for ever.
    let other = format!("docker://{repository}:1.0.0");
    let local = user.path("other");
    fs::create_dir(&local).unwrap();
    fabricate(&local);
    run("skopeo", &["copy", "--dest-tls-verify=false", &format!("oci:{}", local.display()), &other]);
    let taken = mirror("web").ends_with(1);
    assert!(taken.stderr.contains("is another image there"), "{taken:?}");
}

/// An OCI layout with an image of no layers.
fn fabricate(layout: &Path) {
    let put = |text: &str| {
        let digest = Digest::of(text.as_bytes());
        let blobs = layout.join("blobs/sha256");
        fs::create_dir_all(&blobs).unwrap();
        fs::write(blobs.join(digest.hex()), text).unwrap();
        (digest, text.len())
    };
    let (config, size) = put(r#"{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}"#);
    let (manifest, length) = put(&format!(
        r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{config}","size":{size}}},"layers":[]}}"#
    ));
    let index = format!(
        r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"{manifest}","size":{length}}}]}}"#
    );
    fs::write(layout.join("index.json"), index).unwrap();
    fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
}

#[test]
fn credentials_come_from_dockers_configuration() {
    let user = Home::apart("mirror-login");
    published(&user);
    let oci = OciRegistry::start(&user, true);
    let repository = format!("{}/team/web", oci.host);
    let arguments = ["mirror", "web", "--to", &repository, "--plain-http"];
    let refused = user.kiln(&arguments).ends_with(1);
    assert!(refused.stderr.contains(&oci.host), "{refused:?}");

    let config = user.path("docker");
    fs::create_dir(&config).unwrap();
    let login = format!(r#"{{"auths":{{"{}":{{"auth":"YWRhOm15UGFzc3dvcmQ="}}}}}}"#, oci.host);
    fs::write(config.join("config.json"), login).unwrap();
    let output = user.command(&arguments).env("DOCKER_CONFIG", &config).output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn what_is_not_proven_or_old_is_not_mirrored() {
    let user = Home::apart("mirror-unproven");
    published(&user);
    // The repository is looked at last: who hears of it has passed, and nothing was sent.
    let passed = "it begins with no host";
    let mirror = |more: &[&str]| {
        let ran = user.kiln(&[&["mirror", "web", "--to", "team/web"], more].concat());
        assert_ne!(ran.code, Some(0), "{ran:?}");
        ran.stderr
    };
    let head = user.path("data/registry/images/web/head.json");
    let old = fs::read(&head).unwrap();
    user.kiln(&["promote", "web", "1.0.0", "--to", "stable"]).succeeds();
    let asked = mirror(&[]);
    assert!(asked.contains(passed), "without a key there is nothing to prove: {asked}");
    let new = fs::read(&head).unwrap();
    fs::write(&head, old).unwrap();
    let refused = mirror(&[]);
    assert!(refused.contains("is not the newest one") && !refused.contains(passed), "{refused}");
    fs::write(&head, new).unwrap();

    user.kiln(&["key", "init", "--name", "ada"]).succeeds();
    let refused = mirror(&[]);
    assert!(refused.contains("it has no signature") && refused.contains("--allow-unproven"), "{refused}");
    let asked = mirror(&["--allow-unproven"]);
    assert!(asked.contains(passed), "{asked}");
}

#[test]
fn a_repository_that_is_none_is_refused_with_its_form() {
    let user = Home::apart("mirror-wrong");
    published(&user);
    for (to, problem) in [
        ("web", "it has no `/`"),
        ("team/web", "it begins with no host"),
        ("registry.example.com/web:1", "it has a tag or digest"),
        ("registry.example.com/Web", "invalid reference"),
    ] {
        let refused = user.kiln(&["mirror", "web", "--to", to]);
        assert!(refused.code != Some(0) && refused.stderr.contains(problem), "{to}: {refused:?}");
        assert!(refused.stderr.contains("registry.example.com/team/web"), "{refused:?}");
    }
}
