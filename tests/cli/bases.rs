//! Images of the registry as bases, and directories of templates, as far as no machine is needed.

use std::fs;

use kiln_tests::home::{Home, Ran};

use crate::registry::published_as_a_base;

/// A template in `templates/<name>` of a home.
fn write(user: &Home, name: &str, base: &str) {
    let directory = user.path("templates").join(name);
    fs::create_dir_all(&directory).unwrap();
    fs::write(directory.join("template.toml"), format!("{base}\n[image]\nname = '{name}'\n")).unwrap();
}

fn kiln(user: &Home, verb: &str, of: &str, more: &[&str]) -> Ran {
    let template = user.path("templates").join(of);
    user.kiln(&[&[verb, template.to_str().unwrap()], more].concat())
}

#[test]
fn a_plan_says_which_version_a_base_means_and_what_is_wrong_with_one() {
    let user = Home::apart("bases");
    write(&user, "shop", "base.image = 'web'");
    let missing = kiln(&user, "plan", "shop", &[]).ends_with(2).stderr;
    assert!(missing.contains("there is no image `web`") && missing.contains("template.toml:1"), "{missing}");
    // Whether a template is sound does not depend on what is published.
    kiln(&user, "validate", "shop", &[]).ends_with(0);

    published_as_a_base(&user, "1.1.0");
    let plan = kiln(&user, "plan", "shop", &[]).ends_with(0).stdout;
    assert!(plan.contains("base image web = 1.1.0 (disk sha256:"), "{plan}");
    user.kiln(&["promote", "web", "1.1.0", "--to", "stable"]).ends_with(0);
    for (base, exit, says) in [
        ("web@stable", 0, "base image web@stable = 1.1.0"),
        ("web@1.1.0", 0, "base image web@1.1.0 = 1.1.0"),
        ("web@candidate", 2, "`web` has no version and no channel `candidate`"),
        ("web@candidate", 2, "help: published: `stable`, `1.1.0`, `1.0.0`"),
        ("web@1.0.0", 2, "`web@1.0.0` was baked by an earlier kiln, which did not record how to log in to it"),
        ("web@1.0.0", 2, "help: bake it again"),
        ("Web", 2, "is not an image name"),
    ] {
        write(&user, "shop", &format!("base.image = '{base}'"));
        let ran = kiln(&user, "plan", "shop", &[]).ends_with(exit);
        assert!(ran.stdout.contains(says) || ran.stderr.contains(says), "{base}: {ran:?}");
    }
    user.kiln(&["revoke", "web", "1.1.0", "--reason", "a test"]).ends_with(0);
    write(&user, "shop", "base.image = 'web@1.1.0'");
    let revoked = kiln(&user, "plan", "shop", &[]).ends_with(2).stderr;
    assert!(revoked.contains("web@1.1.0 is revoked: a test") && revoked.contains("--allow-revoked"), "{revoked}");
}

#[test]
fn a_directory_of_templates_is_planned_as_one() {
    let user = Home::apart("directory");
    write(&user, "root", "base.debian.suite = 'bookworm'");
    write(&user, "one", "base.image = 'root@stable'");
    write(&user, "two", "base.image = 'one'");
    fs::create_dir_all(user.path("templates/parts")).unwrap();
    let plan = kiln(&user, "plan", "", &[]).ends_with(0).stdout;
    for says in ["base image root@stable, built first", "base image one, built first", "recipe known once one is built"]
    {
        assert!(plan.contains(says), "{plan}");
    }
    let plans = kiln(&user, "plan", "", &["--json", "--only", "r*"]).ends_with(0).stdout;
    let plans: serde_json::Value = serde_json::from_str(&plans).unwrap();
    assert_eq!((plans.as_array().map(Vec::len), &plans[0]["checkpoints"]), (Some(1), &serde_json::Value::Null));
    // What another template needs is not looked for.
    write(&user, "away", "base.image = 'nowhere@stable'");
    kiln(&user, "plan", "", &["--only", "r*"]).ends_with(0);
    fs::remove_dir_all(user.path("templates/away")).unwrap();
    // Without its base in the run, an image needs it in the registry.
    kiln(&user, "plan", "", &["--only", "one"]).ends_with(2);

    let unpublished = kiln(&user, "build", "", &["--no-publish"]).ends_with(2).stderr;
    assert!(unpublished.contains("`one` is to be built on `root`, which is not published"), "{unpublished}");
    let unknown = kiln(&user, "plan", "", &["--var", "colour=red"]).ends_with(2).stderr;
    assert!(unknown.contains("sets `colour`, which no template declares"), "{unknown}");

    write(&user, "root", "base.image = 'two'");
    for verb in ["build", "plan"] {
        let circle = kiln(&user, verb, "", &[]).ends_with(2).stderr;
        assert!(circle.contains("in a circle") && circle.contains("`root` has `two` as its base"), "{circle}");
    }
    // A version of its own that is published is no circle, and without a registry nobody knows what is.
    write(&user, "root", "base.image = 'two@1.4.0'");
    kiln(&user, "validate", "", &[]).ends_with(0);
    write(&user, "another", "");
    let path = user.path("templates/another/template.toml");
    fs::write(&path, "base.debian.suite = 'bookworm'\n[image]\nname = 'one'\n").unwrap();
    let twice = kiln(&user, "validate", "", &[]).ends_with(2).stderr;
    assert!(twice.contains("two templates make `one`"), "{twice}");
    fs::remove_dir_all(user.path("templates/another")).unwrap();
    let empty = kiln(&user, "build", "parts", &[]).ends_with(2).stderr;
    assert!(empty.contains("there is no `template.toml`"), "{empty}");
}
