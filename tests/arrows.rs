//! The crates and what each may depend on: arrows point down only.

#![expect(clippy::disallowed_methods, reason = "cargo knows the dependencies best")]
#![expect(clippy::unwrap_used, reason = "tests")]

use std::{collections::BTreeMap, process::Command};

use serde_json::Value;

/// Each crate and the crates of the workspace that it may use.
const ARROWS: [(&str, &[&str]); 11] = [
    ("kiln-core", &[]),
    ("kiln-io", &["kiln-core"]),
    ("kiln-disk", &["kiln-core"]),
    ("kiln-provision", &["kiln-core", "kiln-io", "kiln-disk"]),
    ("kiln-build", &["kiln-core", "kiln-io", "kiln-disk", "kiln-provision"]),
    ("kiln-registry", &["kiln-core", "kiln-io", "kiln-disk"]),
    ("kiln-index", &["kiln-core", "kiln-registry"]),
    ("kiln-serve", &["kiln-core", "kiln-io", "kiln-disk", "kiln-registry", "kiln-index"]),
    ("kiln-bucket", &["kiln-io", "kiln-registry"]),
    ("kiln-aws", &["kiln-core", "kiln-io", "kiln-disk", "kiln-registry"]),
    (
        "kiln",
        &[
            "kiln-core",
            "kiln-io",
            "kiln-disk",
            "kiln-provision",
            "kiln-build",
            "kiln-registry",
            "kiln-index",
            "kiln-serve",
            "kiln-bucket",
            "kiln-aws",
        ],
    ),
];

/// Crates that the pure ones must not use: the world reaches them as a parameter.
const FENCES: [(&str, &[&str]); 2] = [
    ("kiln-core", &["tokio", "rustix", "ssh2", "async-trait", "tempfile"]),
    ("kiln-disk", &["tokio", "ssh2", "async-trait"]),
];

fn packages() -> BTreeMap<String, Vec<String>> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let uses = |package: &Value| {
        let dependencies = package["dependencies"].as_array().unwrap().iter();
        // What only the tests of a crate use is not part of it.
        dependencies
            .filter(|dependency| dependency["kind"] != "dev")
            .map(|dependency| text(&dependency["name"]))
            .collect()
    };
    let packages = metadata["packages"].as_array().unwrap().iter();
    packages.map(|package| (text(&package["name"]), uses(package))).collect()
}

#[test]
fn arrows_point_down() {
    for (package, dependencies) in packages() {
        if package == "kiln-tests" || package == "kiln-aws-tests" {
            continue;
        }
        let allowed = ARROWS.iter().find(|(name, _)| *name == package);
        let (_, allowed) = allowed.unwrap_or_else(|| panic!("`{package}` has no place among the crates"));
        for used in dependencies.iter().filter(|used| used.starts_with("kiln")) {
            assert!(allowed.contains(&used.as_str()), "`{package}` may not use `{used}`");
        }
    }
}

#[test]
fn the_pure_crates_stay_pure() {
    let packages = packages();
    for (package, forbidden) in FENCES {
        for used in forbidden {
            assert!(!packages[package].iter().any(|name| name == used), "`{package}` may not use `{used}`");
        }
    }
}

#[test]
fn only_one_crate_waits_for_the_sdk_of_aws() {
    for (package, dependencies) in packages().iter().filter(|(package, _)| *package != "kiln-aws") {
        assert!(!dependencies.iter().any(|used| used.starts_with("aws-")), "`{package}` may not use the AWS SDK");
    }
}

#[test]
fn every_crate_says_what_it_must_not_do() {
    for (package, _) in ARROWS.iter().filter(|(name, _)| *name != "kiln") {
        let path = format!("{}/../crates/{package}/src/lib.rs", env!("CARGO_MANIFEST_DIR"));
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains("//! This crate must not"), "{path}");
    }
}
