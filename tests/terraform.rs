//! The recipes for Terraform in docs/consumers.md, run by Terraform itself: a machine follows its channel, there and back. The
//! providers `external` and `http` are stand-ins of ours from a filesystem mirror, since the real ones come from the network alone.

#![expect(clippy::disallowed_methods, reason = "tests drive stock programs as a user would")]
#![expect(clippy::unwrap_used, reason = "tests")]

mod consumers;

use std::{
    env, fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use consumers::{bake, blocks, document};
use kiln_core::Digest;
use kiln_tests::{
    home::{Home, kiln, repository, unpacked},
    served::Served,
};
use serde_json::Value;

/// A directory that Terraform works in without a network, and a server whose `web@stable` is 1.0.0.
struct Scene {
    served: Served,
    user: Home,
    work: PathBuf,
}

impl Scene {
    /// None where there is no Terraform, and that is said.
    #[expect(clippy::print_stderr, reason = "what is not run is not left out in silence")]
    fn new(name: &str) -> Option<Self> {
        let Some(platform) = platform() else {
            eprintln!("terraform is not on the PATH, and not in Debian: its recipes were NOT run");
            return None;
        };
        let user = Home::apart(name);
        bake(&user);
        user.kiln(&["promote", "web", "1.0.0", "--to", "stable"]).succeeds();
        let served = Served::new(&user, &["--listen", "127.0.0.1:0"]);
        let work = user.path("work");
        fs::create_dir_all(&work).unwrap();
        let mirror = user.path("mirror");
        fill_mirror(&mirror, &platform);
        let mirror = format!("filesystem_mirror {{\n  path = \"{}\"\n}}\n", mirror.display());
        fs::write(user.path("terraform.rc"), format!("provider_installation {{\n{mirror}}}\n")).unwrap();
        Some(Self { served, user, work })
    }

    fn terraform(&self, arguments: &[&str]) -> Output {
        // The stand-ins run in the environment that `tests/run` has made for them, as if it were activated.
        let before = [unpacked("terraform-python/bin"), kiln().parent().unwrap().to_owned()];
        let path = env::join_paths(before.into_iter().chain(env::split_paths(&env::var_os("PATH").unwrap()))).unwrap();
        let mut command = Command::new("terraform");
        command.args(arguments).arg("-no-color").current_dir(&self.work).env_clear();
        command.env("PATH", path).env("HOME", &self.work).env("KILN_REGISTRY", &self.served.url);
        command.env("TF_CLI_CONFIG_FILE", self.user.path("terraform.rc")).env("TF_DISABLE_PLUGIN_TLS", "1");
        command.env("TF_INPUT", "0").env("CHECKPOINT_DISABLE", "1").output().unwrap()
    }

    fn begin(&self, configuration: &str) {
        fs::write(self.work.join("main.tf"), configuration).unwrap();
        let begun = self.terraform(&["init"]);
        assert!(begun.status.success(), "{}", text(&begun));
    }

    /// What a plan that ends with this exit code says, without its line breaks; with 2 there is something to do.
    fn plan(&self, code: i32) -> String {
        let planned = self.terraform(&["plan", "-detailed-exitcode"]);
        assert_eq!(planned.status.code(), Some(code), "{}", text(&planned));
        text(&planned).split_whitespace().collect::<Vec<_>>().join(" ")
    }

    /// The values of all outputs afterwards.
    fn apply(&self) -> Value {
        let applied = self.terraform(&["apply", "-auto-approve"]);
        assert!(applied.status.success(), "{}", text(&applied));
        serde_json::from_slice(&self.terraform(&["output", "-json"]).stdout).unwrap()
    }

    /// Applies a configuration whose output `resolved` is what a data source said, while the channel moves, comes back, and what it
    /// points to is revoked.
    fn follow_the_channel(&self, configuration: &str) {
        self.begin(configuration);
        let first = self.apply();
        self.assert_resolved(&first, "1.0.0");
        self.plan(0);
        self.user.kiln(&["promote", "web", "1.1.0", "--to", "stable"]).succeeds();
        self.plan(2);
        self.assert_resolved(&self.apply(), "1.1.0");
        self.user.kiln(&["rollback", "web", "stable"]).succeeds();
        self.plan(2);
        assert_eq!(self.apply(), first);
        self.user.kiln(&["revoke", "web", "1.0.0", "--reason", "CVE-1"]).succeeds();
        let refused = self.plan(1);
        assert!(refused.contains("revoked: CVE-1"), "{refused}");
    }

    fn assert_resolved(&self, outputs: &Value, version: &str) {
        let resolved = &outputs["resolved"]["value"];
        let file = fs::read(self.user.path("baked").join(version).join("web.qcow2")).unwrap();
        assert_eq!(resolved["id"], format!("web@{version}"), "{outputs:#}");
        assert_eq!(resolved["qcow2_sha256"], Digest::of(&file).hex(), "{outputs:#}");
        assert_eq!(
            resolved["qcow2_url"],
            format!("{}/images/web/{version}/disk.qcow2", self.served.url),
            "{outputs:#}"
        );
    }
}

/// `linux_amd64`, as Terraform calls this machine.
fn platform() -> Option<String> {
    let asked = Command::new("terraform").args(["version", "-json"]).env("CHECKPOINT_DISABLE", "1").output().ok()?;
    let version: Value = serde_json::from_slice(&asked.stdout).unwrap();
    Some(version["platform"].as_str().unwrap().to_owned())
}

/// Both stand-ins where Terraform looks for them in a mirror. They are one program, which goes by its name.
fn fill_mirror(mirror: &Path, platform: &str) {
    for name in ["external", "http"] {
        let directory = mirror.join(format!("registry.terraform.io/hashicorp/{name}/1.0.0/{platform}"));
        fs::create_dir_all(&directory).unwrap();
        let program = directory.join(format!("terraform-provider-{name}_v1.0.0"));
        symlink(repository().join("tests/terraform/provider.py"), program).unwrap();
    }
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&[output.stdout.as_slice(), &output.stderr].concat()).into_owned()
}

/// A documented recipe, with the output `resolved` added.
fn recipe(number: usize, resolved: &str) -> String {
    format!("{}output \"resolved\" {{\n  value = {resolved}\n}}\n", blocks(&document(), "hcl")[number])
}

#[test]
fn a_machine_is_replaced_when_the_channel_moves_and_again_when_it_goes_back() {
    let Some(scene) = Scene::new("terraform") else { return };
    let resolve = || {
        let arguments = ["resolve", "web@stable", "--registry", &scene.served.url, "--format", "tfvars"];
        fs::write(scene.work.join("image.auto.tfvars"), scene.user.kiln(&arguments).succeeds().stdout).unwrap();
    };
    let replaces = |code| assert_eq!(scene.plan(code).contains("must be replaced"), code == 2);
    resolve();
    scene.begin(&blocks(&document(), "hcl")[0]);
    let first = scene.apply();
    let url = format!("{}/images/web/1.0.0/disk.qcow2", scene.served.url);
    assert_eq!(first["web"]["value"], serde_json::json!({ "version": "1.0.0", "url": url }));
    resolve();
    replaces(0);
    scene.user.kiln(&["promote", "web", "1.1.0", "--to", "stable"]).succeeds();
    resolve();
    replaces(2);
    assert_eq!(scene.apply()["web"]["value"]["version"], "1.1.0");
    scene.user.kiln(&["rollback", "web", "stable"]).succeeds();
    resolve();
    replaces(2);
    assert_eq!(scene.apply(), first);
}

#[test]
fn the_external_data_source_follows_the_channel() {
    let Some(scene) = Scene::new("terraform-external") else { return };
    let configuration = recipe(1, "data.external.web.result");
    scene.follow_the_channel(&configuration);
    let state = fs::read_to_string(scene.work.join("terraform.tfstate")).unwrap();
    let state: Value = serde_json::from_str(&state).unwrap();
    assert_eq!(state["outputs"]["version"]["value"], "1.0.0", "the output that is documented");
}

/// The recipe with the http provider, for this server.
fn http_recipe(url: &str) -> String {
    let recipe = recipe(2, "local.web");
    assert!(recipe.contains("\"http://images:8080/"), "the server of the documentation");
    recipe.replace("http://images:8080", url)
}

#[test]
fn the_http_data_source_follows_the_channel() {
    let Some(scene) = Scene::new("terraform-http") else { return };
    scene.follow_the_channel(&http_recipe(&scene.served.url));
}

#[test]
fn the_http_data_source_reads_with_a_token_where_reading_needs_one() {
    let Some(mut scene) = Scene::new("terraform-token") else { return };
    let tokens = scene.user.path("tokens.toml");
    let file = tokens.to_str().unwrap();
    let token = ["token", "reader", "--image", "web", "--allow", "read", "--tokens", file];
    let token = scene.user.kiln(&token).succeeds().stdout;
    let entries = fs::read_to_string(&tokens).unwrap();
    fs::write(&tokens, format!("public = false\n{entries}")).unwrap();
    scene.served = Served::new(&scene.user, &["--listen", "127.0.0.1:0", "--tokens", file]);
    let recipe = http_recipe(&scene.served.url);
    scene.begin(&recipe);
    let refused = scene.plan(1);
    assert!(refused.contains("Resource postcondition failed") && refused.contains("401"), "{refused}");
    let document = document();
    let header = document.split('`').find(|code| code.starts_with("request_headers")).unwrap();
    let header = header.replace("${var.token}", token.trim());
    scene.begin(&recipe.replace("  lifecycle {", &format!("  {header}\n  lifecycle {{")));
    scene.assert_resolved(&scene.apply(), "1.0.0");
}

#[test]
fn the_stand_in_for_the_external_provider_refuses_what_is_not_an_object_of_texts() {
    let Some(scene) = Scene::new("terraform-refuses") else { return };
    scene.begin(
        r#"
        data "external" "printed" {
          for_each = toset(["{\"a\": 1}", "{\"a\": {}}", "[\"a\"]", "\"a\"", "not JSON", ""])
          program  = ["printf", "%s", each.key]
        }
        data "external" "failed" {
          program = ["sh", "-c", "echo no such image >&2; echo '{}'; exit 1"]
        }
        data "external" "absent" {
          program = ["no-such-program"]
        }
        "#,
    );
    let refused = scene.plan(1);
    assert_eq!(refused.matches("Unexpected External Program Results").count(), 6, "{refused}");
    assert!(refused.contains("External Program Execution Failed") && refused.contains("no such image"), "{refused}");
    assert!(refused.contains("External Program Lookup Failed"), "{refused}");
}
