//! A registry over HTTP from end to end, with the real binary: published on one machine, served, pulled on another; and what the
//! documentation tells consumers to do.

#![expect(clippy::disallowed_methods, reason = "tests drive stock programs as a user would")]
#![expect(clippy::unwrap_used, reason = "tests")]

mod consumers;

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use consumers::{bake, blocks, document};
use kiln_registry::Registry;
use kiln_tests::{
    home::{Home, Ran, kiln},
    other_machine::OtherMachine,
    served::Served,
};

fn with_token(user: &Home, token: &str, arguments: &[&str]) -> Ran {
    let output = user.command(arguments).env("KILN_TOKEN", token).output().unwrap();
    Ran::new(arguments, &output)
}

fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

#[test]
fn what_one_machine_publishes_another_pulls_bit_for_bit() {
    let (forge, server, consumer) = (Home::apart("forge"), Home::apart("server"), Home::apart("consumer"));
    bake(&forge);
    let tokens = text(&server.path("tokens.toml"));
    let token =
        server.kiln(&["token", "forge", "--tokens", &tokens, "--image", "w*", "--allow", "publish,promote,revoke"]);
    let token = token.succeeds().stdout.trim().to_owned();
    server.kiln(&["token", "forge", "--tokens", &tokens]).ends_with(2);
    assert!(!fs::read_to_string(&tokens).unwrap().contains(&token), "only its hash is kept");
    let machine = OtherMachine::new();
    let listen = format!("{}:0", machine.address());
    let served = Served::new(&server, &["--listen", &listen, "--tokens", &tokens]);
    let url = served.url.as_str();

    let refused = forge.kiln(&["push", "web@1.0.0", "--registry", url]).ends_with(1);
    assert!(refused.stderr.contains("KILN_TOKEN"), "{refused:?}");
    let first = with_token(&forge, &token, &["push", "web@1.0.0", "--registry", url]).succeeds();
    assert!(first.stderr.contains("is on http"), "{first:?}");
    with_token(&forge, &token, &["push", "web@1.1.0", "--registry", url]).succeeds();
    let again = with_token(&forge, &token, &["push", "web", "--registry", url]).succeeds();
    assert!(again.stderr.contains("already"), "{again:?}");
    let promote = ["promote", "web", "1.0.0", "--to", "stable", "--registry", url, "--reason", "first"];
    with_token(&forge, &token, &promote).succeeds();

    let images = machine.kiln(&consumer, &["images", "--registry", url]).succeeds();
    assert!(images.stdout.contains("web") && images.stdout.contains("1.1.0"), "{images:?}");
    let listed = machine.kiln(&consumer, &["images", "web", "--registry", url]).succeeds();
    assert!(listed.stdout.contains("stable"), "{listed:?}");
    let shown = machine.kiln(&consumer, &["show", "web@stable", "--registry", url]).succeeds();
    assert!(shown.stdout.starts_with("image        web 1.0.0"), "{shown:?}");
    let pulled = machine.kiln(&consumer, &["pull", "web@stable", "--registry", url]).succeeds();
    assert!(pulled.stderr.contains("web@1.0.0 is in"), "{pulled:?}");
    // The next version comes as its difference, and is laid down here.
    let to = consumer.path("web.qcow2");
    let exported = machine.kiln(&consumer, &["export", "web@1.1.0", "--registry", url, "--to", &text(&to)]).succeeds();
    assert!(exported.stderr.contains(" came"), "{exported:?}");
    assert!(fs::read(&to).unwrap() == fs::read(forge.path("baked/1.1.0/web.qcow2")).unwrap());
    let mut compare = Command::new("qemu-img");
    compare.args(["compare", "-f", "qcow2", "-F", "raw"]).arg(&to).arg(forge.path("baked/1.1.0/web.raw"));
    assert!(compare.output().unwrap().status.success());
    consumer.kiln(&["registry", "verify"]).succeeds();

    // The channel moves, and back; the history says who.
    let promote = ["promote", "web", "1.1.0", "--to", "stable", "--registry", url, "--expect", "1.0.0"];
    with_token(&forge, &token, &promote).succeeds();
    with_token(&forge, &token, &promote).ends_with(1);
    let back = ["rollback", "web", "stable", "--registry", url, "--reason", "slow", "--by", "ada"];
    let back = with_token(&forge, &token, &back).succeeds();
    assert!(back.stderr.contains("web@stable is 1.0.0 now, was 1.1.0"), "{back:?}");
    let history = machine.kiln(&consumer, &["channel", "web", "stable", "--registry", url]).succeeds();
    assert!(history.stdout.contains("ada (forge)") && history.stdout.contains("slow"), "{history:?}");
    let revoke = ["revoke", "web", "1.0.0", "--reason", "CVE", "--registry", url];
    let revoked = with_token(&forge, &token, &revoke).succeeds();
    assert!(revoked.stderr.contains("kiln rollback web stable"), "{revoked:?}");
    let gone = machine.kiln(&consumer, &["resolve", "web@stable", "--registry", url]).ends_with(1);
    assert!(gone.stderr.contains("revoked: CVE"), "{gone:?}");
    let outdated = machine.kiln(&consumer, &["outdated", "--registry", url]).succeeds();
    assert!(outdated.stderr.contains("no image has a base"), "{outdated:?}");
    assert_eq!(served.interrupt(), Some(0));
}

#[test]
fn a_pull_that_was_cut_goes_on_and_a_server_in_tls_is_known_by_its_certificate() {
    let (server, consumer) = (Home::apart("tls-server"), Home::apart("tls-consumer"));
    bake(&server);
    let (certificate, key) = (text(&server.path("tls.crt")), text(&server.path("tls.key")));
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ed25519", "-nodes", "-days", "2", "-subj", "/CN=localhost"])
        .args(["-addext", "subjectAltName=IP:127.0.0.1", "-out", &certificate, "-keyout", &key])
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    let served = Served::new(&server, &["--listen", "127.0.0.1:0", "--tls-cert", &certificate, "--tls-key", &key]);
    assert!(served.url.starts_with("https://"));
    let pull = ["pull", "web@1.0.0", "--registry", served.url.as_str()];
    let unknown = consumer.kiln(&pull).ends_with(1);
    assert!(unknown.stderr.contains("certificate"), "{unknown:?}");
    // As if an earlier pull had been killed: some blobs are here, nothing names them.
    let own = Registry::open(&consumer.path("data/registry")).unwrap();
    let theirs = Registry::open(&server.path("data/registry")).unwrap();
    let record = theirs.record(&"web@1.0.0".parse().unwrap()).unwrap();
    let segment = theirs.content(&record).unwrap().segments[2].blob.digest;
    own.receive_bytes(segment, &fs::read(theirs.blob(&segment)).unwrap()).unwrap();
    let output = consumer.command(&pull).env("SSL_CERT_FILE", &certificate).output().unwrap();
    let pulled = Ran::new(&pull, &output).succeeds();
    assert!(pulled.stderr.contains("KiB of 10") && !pulled.stderr.contains("already"), "{pulled:?}");
    let mut curl = Command::new("curl");
    curl.args(["-sf", "--cacert", &certificate, &format!("{}/healthz", served.url)]);
    assert_eq!(curl.output().unwrap().stdout, b"ok\n");
}

#[test]
fn the_recipes_for_consumers_do_what_they_say() {
    let user = Home::apart("consumers");
    bake(&user);
    let served = Served::new(&user, &["--listen", "127.0.0.1:0"]);
    user.kiln(&["promote", "web", "1.0.0", "--to", "stable"]).succeeds();
    let work = user.path("work");
    fs::create_dir_all(&work).unwrap();
    let path = format!("{}:{}", kiln().parent().unwrap().display(), std::env::var("PATH").unwrap());
    let run = |program: &str, arguments: &[&str]| -> Output {
        let mut command = Command::new(program);
        command
            .args(arguments)
            .current_dir(&work)
            .env_clear()
            .env("PATH", &path)
            .env("HOME", user.path(""))
            .env("LANG", "C.UTF-8");
        let command = command.env("KILN_REGISTRY", &served.url).env("GITHUB_OUTPUT", work.join("github"));
        let output = command.env("KILN_DATA_DIR", user.path("data")).output().unwrap();
        assert!(output.status.success(), "{program} {arguments:?}: {output:?}");
        output
    };
    let document = document();
    // QEMU, twice: the second time the file is there already.
    let shell = blocks(&document, "sh");
    assert_eq!(shell.len(), 2);
    for script in [&shell[0], &shell[0], &shell[1]] {
        run("bash", &["-euo", "pipefail", "-c", script]);
    }
    assert!(fs::read(work.join("web-1.0.0.qcow2")).unwrap() == fs::read(user.path("baked/1.0.0/web.qcow2")).unwrap());
    run("qemu-img", &["check", "-q", "web-1.qcow2"]);
    let listed = run("mdir", &["-b", "-i", "seed.img", "::"]).stdout;
    assert!(String::from_utf8_lossy(&listed).contains("user-data"), "{listed:?}");
    // GitHub Actions: the command of the first step.
    let yaml = blocks(&document, "yaml");
    let command = yaml[0].lines().find_map(|line| line.trim().strip_prefix("run: kiln")).unwrap();
    run("bash", &["-euc", &format!("kiln{command}")]);
    let outputs = fs::read_to_string(work.join("github")).unwrap();
    assert!(outputs.contains("id=web@1.0.0\n") && outputs.contains("qcow2_url=http://"), "{outputs}");
    for line in outputs.lines() {
        let name = line.split('=').next().unwrap();
        assert!(document.contains(&format!("`{name}`")), "{name} is not documented");
    }
    // Ansible.
    fs::write(work.join("play.yml"), &yaml[1]).unwrap();
    fs::remove_file(work.join("web-1.0.0.qcow2")).unwrap();
    run("ansible-playbook", &["-i", "localhost,", "play.yml"]);
    assert!(fs::read(work.join("web-1.0.0.qcow2")).unwrap() == fs::read(user.path("baked/1.0.0/web.qcow2")).unwrap());
    // What the external and http data sources of Terraform take is one flat object of texts.
    let by_kiln = run("kiln", &["resolve", "web@stable"]).stdout;
    let by_http = run("curl", &["-sf", &format!("{}/api/v1/images/web/resolve/stable", served.url)]).stdout;
    let flat = |bytes: &[u8]| {
        let object: serde_json::Value = serde_json::from_slice(bytes).unwrap();
        assert!(object.as_object().unwrap().values().all(serde_json::Value::is_string), "{object}");
        object
    };
    assert_eq!(flat(&by_kiln), flat(&by_http));
}
