//! What the recipes of docs/consumers.md are tried on: their text, and a registry with two versions.

#[path = "../crates/kiln-registry/tests/support/artifact.rs"]
mod artifacts;

use std::fs;

use artifacts::{artifact, fixed};
use kiln_io::guest::Quiet;
use kiln_registry::Registry;
use kiln_tests::home::{Home, repository};

/// Publishes `web` 1.0.0 and 1.1.0 in the user's own registry.
pub(crate) fn bake(user: &Home) {
    let registry = Registry::open(&user.path("data/registry")).unwrap();
    for (build, content, version) in [("b-1", "one", "1.0.0"), ("b-2", "two", "1.1.0")] {
        let directory = user.path("baked").join(version);
        let artifact = artifact(&directory, build, content);
        registry.publish(&artifact, &directory, &fixed(version), &Quiet).unwrap();
    }
}

/// The recipes as they are documented.
pub(crate) fn document() -> String {
    fs::read_to_string(repository().join("docs/consumers.md")).unwrap()
}

/// The blocks of a kind in a document.
pub(crate) fn blocks(document: &str, kind: &str) -> Vec<String> {
    let fence = format!("```{kind}\n");
    document.split(&fence).skip(1).map(|rest| rest.split("```").next().unwrap().to_owned()).collect()
}
