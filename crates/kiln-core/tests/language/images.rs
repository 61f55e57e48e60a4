//! Bases that are images of the registry: what a template may write, and what a plan and its recipe make of it.

use kiln_core::{
    ByteSize, Diagnostic, Digest,
    artifact::BootRecord,
    facts::{ImageFact, Inputs},
    plan::{Base, ImageVersion, Login, Plan},
};

use crate::shared::{World, resolve_in, world};

fn published(version: &str, gib: u64) -> ImageVersion {
    ImageVersion {
        version: version.parse().expect("a version"),
        disk: Digest::of(version.as_bytes()),
        qcow2: Digest::of(b"qcow2"),
        size: ByteSize::gib(gib),
        boot: BootRecord { login: Login::Credentials, command_line: None },
    }
}

/// A registry with `golden-base@1.4.0`, which is stable and the newest, in a world where `ready` is being built.
fn registry() -> World {
    let mut world = world();
    for reference in ["golden-base", "golden-base@1.4.0", "golden-base@stable"] {
        world.images.insert(reference.to_owned(), ImageFact::Published(Box::new(published("1.4.0", 8))));
    }
    world.images.insert("golden-base@1.5.0".to_owned(), ImageFact::Published(Box::new(published("1.5.0", 8))));
    world.images.insert("ready".to_owned(), ImageFact::Awaited);
    world
}

fn text(reference: &str, more: &str) -> String {
    format!("base.image = '{reference}'\n[image]\nname = 'web'\n{more}")
}

fn plan(reference: &str, more: &str) -> Plan {
    let plans = resolve_in(&registry(), &text(reference, more), &Inputs::default());
    plans.unwrap_or_else(|found| panic!("{found}")).remove(0)
}

fn mistake(reference: &str, more: &str) -> String {
    let found = resolve_in(&registry(), &text(reference, more), &Inputs::default()).expect_err("a mistake");
    let one = |found: &Diagnostic| format!("{} ({})", found.message, found.help.as_deref().unwrap_or(""));
    assert!(found.render().contains("template.toml:"), "{}", found.render());
    found.iter().map(one).collect::<Vec<_>>().join("; ")
}

fn disk(plan: &Plan) -> ByteSize {
    plan.builder.qemu().expect("a local machine").disk
}

#[test]
fn the_recipe_binds_the_version_and_its_disk_and_not_its_name_in_the_template() {
    let stable = plan("golden-base@stable", "");
    assert!(stable.render().contains("base image golden-base@stable = 1.4.0 (disk sha256:"), "{}", stable.render());
    for same in ["golden-base", "golden-base@latest", "golden-base@1.4.0"] {
        assert_eq!(plan(same, "").recipe, stable.recipe, "{same}");
    }
    assert_ne!(plan("golden-base@1.5.0", "").recipe, stable.recipe);
    let on = |version: ImageVersion| stable.clone().on(version).recipe;
    assert_eq!(on(published("1.4.0", 8)), stable.recipe);
    assert_ne!(on(ImageVersion { disk: Digest::of(b"other"), ..published("1.4.0", 8) }), stable.recipe);
    assert_eq!(on(ImageVersion { qcow2: Digest::of(b"other"), ..published("1.4.0", 8) }), stable.recipe);
}

#[test]
fn the_disk_is_at_least_that_of_the_base() {
    assert_eq!(disk(&plan("golden-base", "")), ByteSize::gib(8));
    assert_eq!(disk(&plan("golden-base", "[builder.qemu]\ndisk = '10 GiB'\n")), ByteSize::gib(10));
    let refused = mistake("golden-base", "[builder.qemu]\ndisk = '4 GiB'\n");
    assert!(refused.contains("`disk` must be at least 8 GiB"), "{refused}");
}

#[test]
fn what_is_built_in_the_same_run_is_awaited_and_settled_later() {
    let waiting = plan("ready", "");
    assert_eq!(waiting.awaited().map(ToString::to_string).as_deref(), Some("ready"));
    assert!(waiting.render().contains("base image ready, built first"), "{}", waiting.render());
    assert!(waiting.render().contains("recipe known once ready is built"), "{}", waiting.render());
    let settled = waiting.clone().on(published("2", 9));
    assert!(settled.awaited().is_none() && matches!(&settled.base, Base::Image(base) if base.version.is_some()));
    assert_eq!(disk(&settled), ByteSize::gib(9));
    assert_ne!(settled.recipe, waiting.recipe);
    assert_ne!(settled.recipe, waiting.on(published("3", 9)).recipe);
}

#[test]
fn a_base_that_is_not_there_is_a_mistake_at_its_place() {
    let unknown = mistake("golden-base@nightly", "");
    assert!(unknown.contains("there is no `golden-base@nightly` (published: `golden-base@1.4.0`)"), "{unknown}");
    assert!(mistake("Golden", "").contains("is not an image name"));
    assert!(mistake("golden-base@a b", "").contains("names no version"));
    assert!(mistake("golden-base", "[base.debian]\nsuite = 'bookworm'\n").contains("two bases"));
}
