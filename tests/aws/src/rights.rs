//! The rights that the documentation says are needed.

use std::{fs, path::Path};

use serde_json::Value;

/// Every action of the policies in `docs/aws.md`.
///
/// # Panics
/// Where one of them is no policy.
pub fn documented() -> Vec<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/aws.md");
    let text = fs::read_to_string(&path).expect("docs/aws.md");
    let mut actions = Vec::new();
    for block in text.split("```json\n").skip(1) {
        let policy = block.split("```").next().unwrap_or_default();
        let policy: Value = serde_json::from_str(policy).expect("a policy");
        for statement in policy["Statement"].as_array().expect("statements") {
            let named = statement["Action"].as_array().expect("actions");
            actions.extend(named.iter().filter_map(Value::as_str).map(str::to_owned));
        }
    }
    assert!(!actions.is_empty(), "docs/aws.md has a policy");
    actions
}
