//! Properties of the template language and of the recipe digest.

use std::collections::BTreeSet;

use kiln_core::{
    Digest,
    facts::{GivenValue, Inputs, VariableValue},
    plan::Plan,
};
use proptest::prelude::*;

use crate::shared::{World, given, resolve_in, world};

/// A template in pieces: sections with their keys, in the order that is compared against.
const SECTIONS: &[(&str, &[&str])] = &[
    ("[image]", &["name = 'web'", "version = '1.0'", "description = 'd'"]),
    ("[variables.token]", &["sensitive = true"]),
    ("[variables.greeting]", &["type = 'string'", "default = 'hello'"]),
    ("[base.debian]", &["suite = 'bookworm'", "packages = ['b', 'a']"]),
    ("[builder.qemu]", &["memory = '1 GiB'", "cpus = 2", "disk = '4 GiB'", "accelerator = 'tcg'"]),
    ("[output]", &["formats = ['raw', 'vmdk']"]),
    ("[publish.registry]", &["enabled = true"]),
];
const STEPS: &[(&str, &[&str])] = &[
    ("[[provision]]", &["use = 'packages'", "as = 'one'", "install = ['x', 'y']", "timeout = '1 h'", "retries = 1"]),
    (
        "[[provision]]",
        &[
            "use = 'files'",
            "files = [{ path = '/a', content = '{{ greeting }}' }, { path = '/b', source = 'index.html' }]",
            "env = { A = '1', B = '2' }",
            "secrets = { TOKEN = '{{ token }}' }",
        ],
    ),
    ("[[check]]", &["use = 'port'", "port = 80", "within = '10s'"]),
    ("[[waive]]", &["finding = 'H21'", "reason = 'r'"]),
];

fn write(sections: &[(&str, Vec<&str>)], space: &[&str]) -> String {
    let mut spaces = space.iter().cycle();
    let mut text = String::new();
    for (heading, keys) in sections {
        for line in std::iter::once(heading).chain(keys) {
            text.push_str(spaces.next().unwrap_or(&""));
            text.push_str(line);
            text.push('\n');
        }
    }
    text
}

fn plain() -> String {
    let sections: Vec<(&str, Vec<&str>)> =
        SECTIONS.iter().chain(STEPS).map(|(heading, keys)| (*heading, keys.to_vec())).collect();
    write(&sections, &[""])
}

fn plan_in(world: &World, text: &str) -> Plan {
    let mut plans =
        resolve_in(world, text, &given(&[("token", "t")])).unwrap_or_else(|found| panic!("{text}\n{found}"));
    assert_eq!(plans.len(), 1);
    plans.remove(0)
}

fn recipe(text: &str) -> Digest {
    plan_in(&world(), text).recipe
}

/// The sections in any order (lists of steps keep theirs), the keys of each in any order.
fn shuffled() -> impl Strategy<Value = Vec<(&'static str, Vec<&'static str>)>> {
    let keys = |sections: &'static [(&'static str, &'static [&'static str])]| {
        sections.iter().map(|(heading, keys)| (Just(*heading), Just(keys.to_vec()).prop_shuffle())).collect::<Vec<_>>()
    };
    (keys(SECTIONS).prop_shuffle_sections(), keys(STEPS)).prop_map(|(mut sections, steps)| {
        sections.extend(steps);
        sections
    })
}

trait ShuffleSections {
    type Item: std::fmt::Debug + Clone;
    fn prop_shuffle_sections(self) -> BoxedStrategy<Vec<Self::Item>>;
}

impl<S: Strategy + 'static> ShuffleSections for Vec<S>
where
    S::Value: Clone,
{
    type Item = S::Value;

    fn prop_shuffle_sections(self) -> BoxedStrategy<Vec<Self::Item>> {
        self.prop_shuffle().boxed()
    }
}

/// The digest of a fixed template over fixed provisioners, as first released. When this changes, every recipe changes:
/// raise the format in `template/recipe.rs` and say so in the changelog.
const RELEASED: &str = "sha256:c757b1d1afc2b2a0ca32f406b83633e289a35c1dfe2fa4ec2a0655575d4877c3";

#[test]
fn the_recipe_is_the_same_on_every_machine_and_in_every_version() {
    assert_eq!(recipe(&plain()).to_string(), RELEASED);
}

#[test]
fn every_change_of_an_input_changes_the_recipe() {
    let text = plain();
    let mut recipes = BTreeSet::from([recipe(&text)]);
    let changes = [
        ("name = 'web'", "name = 'web2'"),
        ("suite = 'bookworm'", "suite = 'trixie'"),
        ("suite = 'bookworm'", "suite = 'bookworm'\nmirror = 'http://example.org/debian'"),
        ("packages = ['b', 'a']", "packages = ['b']"),
        ("memory = '1 GiB'", "memory = '2 GiB'"),
        ("cpus = 2", "cpus = 3"),
        ("disk = '4 GiB'", "disk = '5 GiB'"),
        ("default = 'hello'", "default = 'hullo'"),
        ("install = ['x', 'y']", "install = ['y', 'x']"),
        ("install = ['x', 'y']", "install = ['x y']"),
        ("install = ['x', 'y']", "install = ['x', 'y']\nwait = '3 min'"),
        ("path = '/a'", "path = '/c'"),
        ("A = '1'", "A = '2'"),
        ("A = '1', ", ""),
        ("A = '1', B = '2'", "A = '2', B = '1'"),
        ("TOKEN =", "TOKEN2 ="),
        ("secrets = { TOKEN = '{{ token }}' }", ""),
        ("use = 'packages'", "use = 'packages'\nwhen = false"),
        ("use = 'port'\nport = 80", "use = 'port'\nport = 81"),
        ("within = '10s'", "within = '10s'\non = ['guest']"),
        ("reason = 'r'", "reason = 'other'"),
        ("'raw', 'vmdk'", "'raw'"),
    ];
    for (before, after) in changes {
        assert!(text.contains(before), "{before}");
        assert!(recipes.insert(recipe(&text.replacen(before, after, 1))), "{before} -> {after} changes nothing");
    }
    let mut other = world();
    other.files.insert("index.html".to_owned(), b"hellO".to_vec());
    assert!(recipes.insert(plan_in(&other, &text).recipe), "an uploaded file's byte");
    let mut other = world();
    other.provisioners.entry("packages".to_owned()).and_modify(|text| text.push_str("# more\n"));
    assert!(recipes.insert(plan_in(&other, &text).recipe), "a provisioner's byte");
}

#[test]
fn what_cannot_change_the_image_does_not_change_the_recipe() {
    let text = plain();
    let changes = [
        ("version = '1.0'", "version = 'auto'"),
        ("description = 'd'", "description = 'other'"),
        ("accelerator = 'tcg'", "accelerator = 'auto'\nboot_timeout = '9 min'"),
        ("packages = ['b', 'a']", "packages = ['a', 'b']"),
        ("memory = '1 GiB'", "memory = '1024 MiB'"),
        ("formats = ['raw', 'vmdk']", "formats = ['vmdk', 'raw']"),
        ("enabled = true", "enabled = false"),
        ("timeout = '1 h'", "timeout = '2 h'"),
        ("retries = 1", "retries = 2"),
        ("as = 'one'", "as = 'two'"),
        ("install = ['x', 'y']", "install = ['x', 'y']\nwait = '120s'"),
        ("within = '10s'", "within = '20s'"),
    ];
    for (before, after) in changes {
        assert!(text.contains(before), "{before}");
        assert_eq!(recipe(&text.replacen(before, after, 1)), recipe(&text), "{before} -> {after}");
    }
    let other = resolve_in(&world(), &text, &given(&[("token", "another")])).unwrap();
    assert_eq!(other[0].recipe, recipe(&text), "the value of a secret");
}

fn typed(name: &str, value: serde_json::Value) -> Inputs {
    let value =
        VariableValue { name: name.to_owned(), value: GivenValue::Typed(value), origin: "vars.toml".to_owned() };
    Inputs { variables: vec![value] }
}

const HEAD: &str = "[image]\nname = 'web'\n[base.debian]\nsuite = 'bookworm'\n[[provision]]\nuse = 'shell'\n";

/// The script of a template with the variable `x` of a type, holding `value`.
fn script(kind: &str, value: serde_json::Value, written: &str) -> String {
    let written = toml::Value::String(written.to_owned());
    let text = format!("{HEAD}script = {written}\n[variables.x]\ntype = '{kind}'\n");
    let plans = resolve_in(&world(), &text, &typed("x", value)).unwrap_or_else(|found| panic!("{found}"));
    plans[0].steps[0].options["script"].as_str().unwrap_or_default().to_owned()
}

/// What a POSIX shell makes of single-quoted text.
fn unquote(quoted: &str) -> String {
    let mut text = String::new();
    let mut inside = false;
    let mut chars = quoted.chars();
    while let Some(c) = chars.next() {
        match c {
            '\'' => inside = !inside,
            '\\' if !inside => text.extend(chars.next()),
            c => text.push(c),
        }
    }
    assert!(!inside, "{quoted}");
    text
}

fn json() -> impl Strategy<Value = serde_json::Value> {
    let leaf = prop_oneof![
        any::<bool>().prop_map(serde_json::Value::from),
        any::<i64>().prop_map(serde_json::Value::from),
        "[^\0]{0,12}".prop_map(serde_json::Value::from),
    ];
    leaf.prop_recursive(3, 16, 4, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(serde_json::Value::from),
            proptest::collection::btree_map("[^\0]{0,6}", inner, 0..4).prop_map(|map| map.into_iter().collect()),
        ]
    })
}

proptest! {
    #[test]
    fn order_comments_and_white_space_mean_nothing(
        sections in shuffled(),
        space in proptest::collection::vec(prop_oneof![Just(""), Just("\n\n"), Just("# note\n"), Just("  \t")], 1..9),
    ) {
        prop_assert_eq!(recipe(&write(&sections, &space)), recipe(&plain()));
    }

    #[test]
    fn a_files_bytes_are_in_the_recipe(one in any::<Vec<u8>>(), other in any::<Vec<u8>>()) {
        let recipe_of = |bytes: &Vec<u8>| {
            let mut world = world();
            world.files.insert("index.html".to_owned(), bytes.clone());
            plan_in(&world, &plain()).recipe
        };
        prop_assert_eq!(recipe_of(&one) == recipe_of(&other), one == other);
    }

    #[test]
    fn text_without_expressions_stays_as_it_is(text in "[^\0]{0,40}") {
        prop_assume!(!text.contains("{{"));
        prop_assert_eq!(script("string", "v".into(), &text), text);
    }

    #[test]
    fn a_value_arrives_unchanged(value in "[^\0]{0,40}", before in "[a-z}% ]{0,4}", after in "[a-z{#]{0,1}") {
        prop_assert_eq!(script("string", value.clone().into(), "{{ x }}"), value.clone());
        prop_assert_eq!(script("string", value.clone().into(), &format!("{before}{{{{x}}}}{after}")), format!("{before}{value}{after}"));
    }

    #[test]
    fn json_survives(value in proptest::collection::vec(json(), 0..4)) {
        let value = serde_json::Value::from(value);
        let text = script("list", value.clone(), "{{ x | tojson }}");
        prop_assert_eq!(serde_json::from_str::<serde_json::Value>(&text).unwrap(), value);
    }

    #[test]
    fn quoted_text_is_one_word_of_a_shell(value in "[^\0\n\r]{0,40}") {
        let text = script("string", value.clone().into(), "{{ x | quote }}");
        prop_assert!(text.starts_with('\'') && text.ends_with('\''));
        prop_assert_eq!(unquote(&text), value);
    }

    #[test]
    fn numbers_are_computed(x in -1_000_000_i64..1_000_000, y in -1000_i64..1000) {
        let expected = format!("{} {} {}", x + y, x * y, x < y);
        prop_assert_eq!(script("number", x.into(), &format!("{{{{ x + {y} }}}} {{{{ x * ({y}) }}}} {{{{ x < {y} }}}}")), expected);
    }

    #[test]
    fn strings_compare_as_strings(x in "[a-c]{0,3}", y in "[a-c]{0,3}") {
        prop_assert_eq!(script("string", x.clone().into(), &format!("{{{{ 'same' if x == '{y}' else 'other' }}}}")), if x == y { "same" } else { "other" });
    }
}
