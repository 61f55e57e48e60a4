//! Every verb against one real `kiln serve`, and what a client believes of it: the keys and the memory are the client's.

#![expect(clippy::unwrap_used, reason = "tests")]

#[path = "../crates/kiln-registry/tests/support/artifact.rs"]
mod support;
#[path = "../crates/kiln-registry/tests/support/system.rs"]
mod system;

use std::{collections::BTreeSet, fs, path::Path};

use kiln_core::artifact::{Artifact, BaseRecord};
use kiln_registry::{KeyStore, Registry};
use kiln_tests::{
    home::{Home, Ran, repository},
    served::Served,
};
use serde_json::Value;
use system::System;

/// Who bakes, who serves, who uses; each with a home of his own.
struct Scene {
    forge: Home,
    server: Home,
    consumer: Home,
    tokens: String,
    token: String,
    served: Served,
}

impl Scene {
    /// The forge has `web` 1.0.0 and 1.1.0, boot-tested and signed, and `app` 1.0.0 on the older one; the server serves nothing yet. The
    /// consumer trusts the forge, and the server for states of images alone.
    fn new(name: &str, allow: &str) -> Self {
        let home = |who: &str| Home::apart(&format!("{name}-{who}"));
        let (forge, server, consumer) = (home("forge"), home("server"), home("consumer"));
        let key = consumer.path("key.pub").display().to_string();
        let states_only = ["--builder", "urn:kiln:server"];
        for (who, name, builder) in [(&forge, "forge", &[][..]), (&server, "server", &states_only)] {
            who.kiln(&["key", "init", "--name", name]).succeeds();
            fs::write(&key, who.kiln(&["key", "export"]).succeeds().stdout).unwrap();
            consumer.kiln(&[&["key", "trust", &key, "--name", name], builder].concat()).succeeds();
            if name == "forge" {
                server.kiln(&["key", "trust", &key, "--name", name]).succeeds();
            }
        }
        bake(&forge);
        let tokens = server.path("tokens.toml").display().to_string();
        let made = server.kiln(&["token", "forge", "--tokens", &tokens, "--allow", allow]).succeeds();
        let served = Served::new(&server, &["--listen", "127.0.0.1:0", "--tokens", &tokens]);
        Self { forge, server, consumer, tokens, token: made.stdout.trim().to_owned(), served }
    }

    /// `kiln ... --registry URL` of somebody without a token.
    fn asks(&self, arguments: &[&str]) -> Ran {
        self.consumer.kiln(&[arguments, &["--registry", &self.served.url]].concat())
    }

    /// The same of the forge, which has one.
    fn does(&self, arguments: &[&str]) -> Ran {
        let all = [arguments, &["--registry", &self.served.url]].concat();
        Ran::new(&all, &self.forge.command(&all).env("KILN_TOKEN", &self.token).output().unwrap())
    }

    fn push_all(&self) {
        for version in ["web@1.0.0", "web@1.1.0", "app@1.0.0"] {
            self.does(&["push", version]).succeeds();
        }
    }

    fn head(&self) -> std::path::PathBuf {
        self.server.path("data/registry/images/web/head.json")
    }
}

fn bake(user: &Home) {
    let signer = KeyStore::new(user.path("data/keys")).signer().unwrap().unwrap();
    let registry = Registry::open(&user.path("data/registry")).unwrap().signing(signer);
    let system = System::debian(&user.path("work"));
    let tested = |artifact: &mut Artifact| {
        artifact.times.insert("boot-test".to_owned(), 1);
    };
    let first = system.publish_as(&registry, "1.0.0", tested);
    system.write("etc/motd", "hello\n");
    system.publish_as(&registry, "1.1.0", tested);
    system.write("etc/motd", "an app\n");
    let base = first.file("qcow2").unwrap().sha256;
    let source = user.path("work/baked-app");
    let mut artifact = support::sealed(&source, "b-app", &system.disk(), kiln_disk::seal::LEVEL);
    artifact.image = "app".parse().unwrap();
    artifact.base = BaseRecord { digest: base, ..artifact.base };
    registry.publish(&artifact, &source, &support::fixed("1.0.0"), &kiln_io::guest::Quiet).unwrap();
}

#[test]
fn every_verb_works_against_a_server_or_says_where_it_works() {
    let scene = Scene::new("remote", "publish,promote,revoke,restrict");
    let refused = scene.forge.kiln(&["push", "web@1.0.0", "--registry", &scene.served.url]).ends_with(1);
    assert!(refused.stderr.contains("KILN_TOKEN"), "{refused:?}");
    scene.push_all();
    scene.does(&["promote", "web", "1.0.0", "--to", "stable", "--reason", "first"]).succeeds();
    reads(&scene);
    changes(&scene);
    refusals(&scene);
}

/// What is read is judged where it is read.
fn reads(scene: &Scene) {
    let listed = scene.asks(&["images"]).succeeds();
    assert!(listed.stdout.contains("app") && listed.stdout.contains("1.1.0"), "{listed:?}");
    assert!(scene.asks(&["show", "web@stable"]).succeeds().stdout.starts_with("image        web 1.0.0"));
    let resolved = scene.asks(&["resolve", "web@stable"]).succeeds();
    assert_eq!(serde_json::from_str::<Value>(&resolved.stdout).unwrap()["version"], "1.0.0");
    let difference = scene.asks(&["diff", "web", "stable", "latest"]).succeeds();
    assert!(difference.stdout.contains("+ /etc/motd"), "{difference:?}");
    let here = scene.forge.kiln(&["diff", "web", "1.0.0", "1.1.0", "--json"]).succeeds().stdout;
    assert_eq!(scene.asks(&["diff", "web", "1.0.0", "1.1.0", "--json"]).succeeds().stdout, here);
    let packages = scene.asks(&["sbom", "web@1.0.0"]).succeeds();
    assert_eq!(packages.stdout, scene.forge.kiln(&["sbom", "web@1.0.0"]).succeeds().stdout);
    let proven = scene.asks(&["verify", "web@stable"]).succeeds();
    assert!(proven.stderr.contains("signed by     forge") && proven.stderr.contains("all whole"), "{proven:?}");
    let outdated = scene.asks(&["outdated"]).succeeds();
    let row = outdated.stdout.lines().find(|line| line.starts_with("app@1.0.0")).unwrap_or_default();
    assert!(row.contains("web@1.0.0") && row.ends_with("1.1.0"), "{outdated:?}");
    let to = scene.consumer.path("web.raw").display().to_string();
    scene.asks(&["export", "web@stable", "--format", "raw", "--to", &to]).succeeds();
    let baked = scene.forge.path("work/baked-1.0.0/web.raw");
    assert!(fs::read(to).unwrap() == fs::read(baked).unwrap());
    scene.asks(&["pull", "web@1.1.0"]).succeeds();
    let unknown = scene.asks(&["diff", "wub", "1", "2"]).ends_with(1);
    assert!(unknown.stderr.contains("there is no image `wub`"), "{unknown:?}");
}

/// What is changed is done by the server, for those who may.
fn changes(scene: &Scene) {
    let unlisted = scene.asks(&["channel", "web", "stable", "--restrict"]).ends_with(1);
    assert!(unlisted.stderr.contains("401"), "{unlisted:?}");
    scene.does(&["channel", "web", "stable", "--restrict"]).succeeds();
    let channels = scene.asks(&["channel", "web"]).succeeds();
    assert!(channels.stdout.contains("only proven versions"), "{channels:?}");
    scene.does(&["channel", "app", "tried", "--restrict"]).succeeds();
    let unproven = scene.does(&["promote", "app", "1.0.0", "--to", "tried"]).ends_with(1);
    assert!(unproven.stderr.contains("409") && unproven.stderr.contains("was not boot-tested"), "{unproven:?}");
    scene.does(&["promote", "web", "1.1.0", "--to", "stable", "--expect", "1.0.0"]).succeeds();
    scene.does(&["promote", "web", "1.0.0", "--to", "stable", "--expect", "1.0.0"]).ends_with(1);
    scene.does(&["rollback", "web", "stable", "--reason", "slow", "--by", "ada"]).succeeds();
    let history = scene.asks(&["channel", "web", "stable"]).succeeds();
    assert!(history.stdout.contains("restrict") && history.stdout.contains("ada (forge)"), "{history:?}");
    scene.does(&["revoke", "web", "1.0.0", "--reason", "CVE"]).succeeds();
    let inherited = scene.asks(&["resolve", "app"]).ends_with(1);
    assert!(inherited.stderr.contains("is revoked, baked on web@1.0.0: CVE"), "{inherited:?}");
    scene.asks(&["verify", "app"]).ends_with(1);
    scene.does(&["revoke", "web", "1.0.0", "--lift"]).succeeds();
    scene.does(&["channel", "web", "stable", "--unrestrict"]).succeeds();
}

/// What only makes sense where the registry lies says so; and the documentation knows every verb.
fn refusals(scene: &Scene) {
    let url = scene.served.url.as_str();
    for arguments in [
        &["registry", "init", "--registry", url][..],
        &["registry", "verify", "--registry", url],
        &["registry", "prune", "--registry", url],
        &["serve", "--registry", url],
        &["push", "web", "--from", url, "--registry", url],
        &["pull", "web", "--into", url, "--registry", url],
    ] {
        let refused = scene.consumer.kiln(arguments).ends_with(2);
        assert!(refused.stderr.contains("is a server") && refused.stderr.contains("hint"), "{refused:?}");
    }
    let document = fs::read_to_string(repository().join("docs/server.md")).unwrap();
    let rows = document.lines().filter_map(|line| line.strip_prefix("| `kiln "));
    let documented: BTreeSet<_> = rows.filter_map(|row| row.split('|').next()).flat_map(names).collect();
    for verb in with_registry(&fs::read_to_string(repository().join("docs/cli.md")).unwrap()) {
        assert!(documented.contains(&verb), "docs/server.md does not say what `kiln {verb} --registry URL` does");
    }
}

/// The verbs between backticks: `diff` and `sbom`.
fn names(cell: &str) -> Vec<String> {
    cell.split('`')
        .map(|part| part.trim().trim_start_matches("kiln ").to_owned())
        .filter(|name| name.len() > 1)
        .collect()
}

/// The verbs whose help has `--registry`.
fn with_registry(document: &str) -> Vec<String> {
    let sections = document.split("\n## ").skip(1).filter(|section| section.contains("--registry <"));
    let names = sections.map(|section| section.lines().next().unwrap_or_default().trim_matches(['`', ' ']).to_owned());
    names.map(|name| name.trim_start_matches("kiln ").to_owned()).collect()
}

#[test]
fn a_server_that_shows_an_old_or_an_altered_state_is_not_believed() {
    let scene = Scene::new("rollback-attack", "publish,promote,revoke");
    scene.push_all();
    scene.does(&["promote", "web", "1.0.0", "--to", "stable"]).succeeds();
    let old = fs::read(scene.head()).unwrap();
    scene.does(&["promote", "web", "1.1.0", "--to", "stable"]).succeeds();
    scene.asks(&["resolve", "web@stable"]).succeeds();
    let new = fs::read(scene.head()).unwrap();

    // The old state is well signed: only the client's memory tells.
    fs::write(scene.head(), &old).unwrap();
    for arguments in
        [&["resolve", "web@stable"][..], &["pull", "web@stable"], &["export", "web", "--to", "/dev/null/x"]]
    {
        let refused = scene.asks(arguments).ends_with(1);
        assert!(refused.stderr.contains("is not the newest one: it is at revision 3, and was at 4"), "{refused:?}");
    }
    scene.asks(&["resolve", "web@stable", "--allow-unproven"]).succeeds();
    // Somebody who has not seen the newer one, from another place, cannot know.
    let fresh = Home::apart("rollback-attack-fresh");
    fresh.kiln(&["resolve", "web@stable", "--registry", &scene.served.url]).succeeds();

    for (what, said) in [
        ("channels", "channels or revocations are not those that were signed"),
        ("signed", "nobody signed its revision 4, and 4 was signed"),
    ] {
        let mut head: Value = serde_json::from_slice(&new).unwrap();
        if what == "channels" {
            head[what] = serde_json::from_slice::<Value>(&old).unwrap()[what].clone();
        } else {
            head.as_object_mut().unwrap().remove(what);
        }
        fs::write(scene.head(), serde_json::to_vec(&head).unwrap()).unwrap();
        let refused = scene.asks(&["resolve", "web@stable"]).ends_with(1);
        assert!(refused.stderr.contains(said), "{what}: {refused:?}");
    }
    fs::write(scene.head(), new).unwrap();
    scene.asks(&["resolve", "web@stable"]).succeeds();

    // Whoever does not trust the key of the server takes no state that it signed.
    let server = list_key(&scene.consumer, "server");
    scene.consumer.kiln(&["key", "revoke", &server, "--reason", "stolen"]).succeeds();
    let refused = scene.asks(&["resolve", "web@stable"]).ends_with(1);
    assert!(refused.stderr.contains("which is revoked: stolen"), "{refused:?}");

    // A token that is taken out of the file ends there and then, without a restart.
    let kept = fs::read_to_string(&scene.tokens).unwrap();
    fs::write(Path::new(&scene.tokens), "public = false\n").unwrap();
    let refused = scene.does(&["promote", "web", "1.0.0", "--to", "stable"]).ends_with(1);
    assert!(refused.stderr.contains("this token is not known here"), "{refused:?}");
    assert!(scene.asks(&["images"]).ends_with(1).stderr.contains("KILN_TOKEN"));
    fs::write(&scene.tokens, kept).unwrap();
    scene.does(&["promote", "web", "1.0.0", "--to", "stable"]).succeeds();
    assert_eq!(scene.served.interrupt(), Some(0));
}

fn list_key(user: &Home, name: &str) -> String {
    let keys: Value = serde_json::from_str(&user.kiln(&["key", "list", "--json"]).succeeds().stdout).unwrap();
    let key = keys.as_array().unwrap().iter().find(|key| key["name"] == name).unwrap();
    key["id"].as_str().unwrap().trim_start_matches("sha256:").to_owned()
}
