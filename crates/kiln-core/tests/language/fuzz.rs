//! The bodies of the fuzz targets on arbitrary input, with every plain `cargo test`.

use proptest::prelude::*;

#[path = "../../../../tests/fuzz/bodies/manifest.rs"]
mod manifest;
#[path = "../../../../tests/fuzz/bodies/template.rs"]
mod template;

const SEED: &str = r#"
[image]
name = "a-{{ matrix.x }}"
[variables.v]
type = "list"
default = [1, "two", { three = 3.5 }]
[[variables.v.validation]]
condition = "v | length > 2"
message = "m"
[matrix]
x = ["p", { name = "q", z = 1 }]
[base.debian]
suite = "bookworm"
[[provision]]
use = "all"
when = "matrix.x == 'p' or v[0] > 0"
text = """
{{ v | first }} {{ image.name ~ "x" }}"""
list = [{ on = true }, { on = "{{ 1 == 1 }}" }]
map = { a = "b" }
size = "1 GiB"
[[check]]
use = "http"
url = "http://localhost/"
"#;

const OPTIONS: &str = r#"
api = 1
name = "x"
summary = "s"
timeout = "1 h"
[options.a]
type = "list<map<string>>"
doc = "d"
default = [{ a = "b" }]
[options.b]
type = "table"
doc = "d"
[options.b.fields.c]
type = "path"
doc = "d"
required = true
"#;

/// The seed with a few bytes replaced, removed, doubled: close enough to a template to get past the parser.
fn mutated(seed: &'static str) -> impl Strategy<Value = Vec<u8>> {
    let edits = proptest::collection::vec((0..seed.len(), 0_u8..4, any::<u8>(), 0_usize..40), 0..6);
    edits.prop_map(move |edits| {
        let mut bytes = seed.as_bytes().to_vec();
        for (at, kind, byte, length) in edits {
            let at = at.min(bytes.len().saturating_sub(1));
            let end = (at + length).min(bytes.len());
            match kind {
                0 if at < bytes.len() => bytes[at] = byte,
                1 => drop(bytes.drain(at..end)),
                2 => bytes.insert(at, byte),
                _ => {
                    let copy = bytes[at..end].to_vec();
                    bytes.splice(at..at, copy);
                }
            }
        }
        bytes
    })
}

#[test]
fn the_seed_resolves() {
    template::run(SEED.as_bytes());
    manifest::run(OPTIONS.as_bytes());
    assert!(kiln_core::manifest::parse("x", OPTIONS).is_ok());
}

proptest! {
    #[test]
    fn any_bytes_as_a_template(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        template::run(&bytes);
    }

    #[test]
    fn almost_a_template(bytes in mutated(SEED)) {
        template::run(&bytes);
    }

    #[test]
    fn any_bytes_as_a_manifest(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        manifest::run(&bytes);
    }

    #[test]
    fn almost_a_manifest(bytes in mutated(OPTIONS)) {
        manifest::run(&bytes);
    }
}
