//! Any bytes as a provisioner manifest: a manifest or mistakes that render, never a panic.

use kiln_core::manifest;

pub(crate) fn run(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    match manifest::parse("provisioner.toml", &text) {
        Ok(manifest) => assert_eq!(manifest.api, manifest::API),
        Err(found) => assert!(!found.render().is_empty()),
    }
}
