//! Keys of checkpoints: whatever a step can see changes its key and every later one; nothing else does.

use std::collections::BTreeMap;

use kiln_core::{
    Digest,
    checkpoint::{Ground, Key, first_difference, keys},
    plan::Plan,
};
use proptest::prelude::*;

use crate::shared::{World, given, resolve_in, world};

const HEAD: &str = "[image]\nname = 'web'\n[variables.token]\nsensitive = true\n[base.debian]\nsuite = 'bookworm'\n\
                    [builder.qemu]\nmemory = '1 GiB'\ncpus = 2\ndisk = '4 GiB'\n";
const STEPS: [&[&str]; 3] = [
    &["use = 'packages'", "as = 'one'", "install = ['x', 'y']", "timeout = '1 h'"],
    &[
        "use = 'files'",
        "files = [{ path = '/a', content = 'hello' }, { path = '/b', source = 'index.html' }]",
        "env = { A = '1', B = '2' }",
        "secrets = { TOKEN = '{{ token }}' }",
    ],
    &["use = 'shell'", "script = 'true'"],
];

fn write(steps: &[Vec<&str>]) -> String {
    let step = |keys: &Vec<&str>| format!("[[provision]]\n{}\n", keys.join("\n"));
    format!("{HEAD}{}", steps.iter().map(step).collect::<String>())
}

fn plain() -> String {
    write(&STEPS.map(<[&str]>::to_vec))
}

fn plan_in(world: &World, text: &str) -> Plan {
    resolve_in(world, text, &given(&[("token", "t")])).unwrap_or_else(|found| panic!("{text}\n{found}")).remove(0)
}

fn ground() -> Ground {
    Ground {
        facts: vec![("base".to_owned(), "b1".to_owned()), ("QEMU".to_owned(), "7.2".to_owned())],
        provisioners: BTreeMap::new(),
        secrets: BTreeMap::from([("token".to_owned(), Digest::of(b"keyed t"))]),
    }
}

fn chain(text: &str) -> Vec<Key> {
    keys(&plan_in(&world(), text), &ground())
}

/// The number of the first step whose key is another one; all later ones must be others, too.
fn first_miss(before: &[Key], after: &[Key]) -> Option<usize> {
    let same = before.iter().zip(after).take_while(|(a, b)| a.digest == b.digest).count();
    let rest = before.iter().skip(same).zip(after.iter().skip(same));
    for (a, b) in rest {
        assert_ne!(a.digest, b.digest, "a key after a miss is the same again");
    }
    (same < before.len().max(after.len())).then_some(same)
}

#[test]
fn every_input_that_changes_is_a_miss_from_its_step_on() {
    let text = plain();
    let changes = [
        (0, "memory = '1 GiB'", "memory = '2 GiB'"),
        (0, "cpus = 2", "cpus = 3"),
        (0, "disk = '4 GiB'", "disk = '5 GiB'"),
        (1, "install = ['x', 'y']", "install = ['y', 'x']"),
        (1, "install = ['x', 'y']", "install = ['x', 'y']\nwait = '3 min'"),
        (1, "install = ['x', 'y']", "install = ['x', 'y']\nenv = { C = '1' }"),
        (1, "use = 'packages'", "use = 'packages'\nwhen = false"),
        (2, "content = 'hello'", "content = 'hullo'"),
        (2, "path = '/a'", "path = '/c'"),
        (2, "A = '1', B = '2'", "A = '2', B = '1'"),
        (2, "A = '1', ", ""),
        (2, "TOKEN =", "OTHER ="),
        (2, "secrets = { TOKEN = '{{ token }}' }", ""),
        (3, "script = 'true'", "script = 'true '"),
        (3, "script = 'true'", "script = 'true'\n[[provision]]\nuse = 'shell'\nscript = 'x'"),
    ];
    for (step, before, after) in changes {
        assert!(text.contains(before), "{before}");
        let other = chain(&text.replacen(before, after, 1));
        let expected = if after.contains("script = 'x'") { 4 } else { step };
        assert_eq!(first_miss(&chain(&text), &other), Some(expected), "{before} -> {after}");
    }
}

#[test]
fn files_secrets_and_the_machine_beneath_count() {
    let (text, before) = (plain(), chain(&plain()));
    let mut other = world();
    other.files.insert("index.html".to_owned(), b"hellO".to_vec());
    let changed = keys(&plan_in(&other, &text), &ground());
    assert_eq!(first_miss(&before, &changed), Some(2));
    let told = first_difference(&before[2].inputs, &changed[2].inputs).unwrap().to_string();
    assert!(told.starts_with("content of the file `index.html` (/files/1/source) differs: "), "{told}");

    let mut other = world();
    other.provisioners.entry("shell".to_owned()).and_modify(|text| text.push_str("# more\n"));
    assert_eq!(first_miss(&before, &keys(&plan_in(&other, &text), &ground())), Some(3), "a provisioner's byte");

    let mut secret = ground();
    secret.secrets.insert("token".to_owned(), Digest::of(b"keyed u"));
    assert_eq!(first_miss(&before, &keys(&plan_in(&world(), &text), &secret)), Some(2), "the value of a secret");

    let mut qemu = ground();
    qemu.facts[1].1 = "7.3".to_owned();
    let changed = keys(&plan_in(&world(), &text), &qemu);
    assert_eq!(first_miss(&before, &changed), Some(0));
    assert_eq!(
        first_difference(&before[0].inputs, &changed[0].inputs).unwrap().to_string(),
        "QEMU differs: 7.2 -> 7.3"
    );
}

#[test]
fn what_no_step_can_see_changes_no_key() {
    let text = plain();
    let changes = [
        ("name = 'web'", "name = 'other'"),
        ("as = 'one'", "as = 'two'"),
        ("timeout = '1 h'", "timeout = '2 h'\nretries = 1"),
        ("script = 'true'", "script = 'true'\ncache = false"),
        ("memory = '1 GiB'", "memory = '1024 MiB'"),
        ("script = 'true'", "script = 'true'\n[[check]]\nuse = 'port'\nport = 80"),
        ("script = 'true'", "script = 'true'\n[[provision]]\nuse = 'shell'\nscript = 'x'\nwhen = false"),
    ];
    for (before, after) in changes {
        assert!(text.contains(before), "{before}");
        assert_eq!(first_miss(&chain(&text), &chain(&text.replacen(before, after, 1))), None, "{before} -> {after}");
    }
}

#[test]
fn no_value_of_a_secret_is_kept_with_a_key() {
    let text = serde_json::to_string(&chain(&plain())).unwrap();
    assert!(!text.contains("keyed t") && text.contains("secret `TOKEN`"), "{text}");
}

#[test]
fn the_first_difference_is_told_with_both_values() {
    let (before, after) = (chain(&plain()), chain(&plain().replace("['x', 'y']", "['x', 'z']")));
    let told = first_difference(&before[1].inputs, &after[1].inputs).unwrap().to_string();
    assert_eq!(told, r#"option `install` differs: ["x","y"] -> ["x","z"]"#);
    assert_eq!(first_difference(&before[1].inputs, &before[1].inputs), None);
    let long = |end: &str| chain(&plain().replace("'true'", &format!("'{}{end}'", "a".repeat(500))));
    let told = first_difference(&long("x")[3].inputs, &long("y")[3].inputs).unwrap().to_string();
    assert!(told.contains("option `script` differs: aaaa") && told.len() < 300, "{told}");
    let more = chain(&plain().replace("script = 'true'", "script = 'true'\nenv = { A = '1' }"));
    assert_eq!(first_difference(&before[3].inputs, &more[3].inputs).unwrap().to_string(), "environment `A` is new");
    assert_eq!(
        first_difference(&more[3].inputs, &before[3].inputs).unwrap().to_string(),
        "environment `A` is there no longer"
    );
}

/// The keys of each step in any order.
fn shuffled() -> impl Strategy<Value = Vec<Vec<&'static str>>> {
    STEPS.map(|keys| Just(keys.to_vec()).prop_shuffle()).to_vec()
}

proptest! {
    #[test]
    fn order_and_comments_are_hits(steps in shuffled(), note in "[a-z ]{0,9}") {
        let text = write(&steps).replace("[[provision]]", &format!("# {note}\n\n  [[provision]] # {note}"));
        prop_assert_eq!(chain(&text), chain(&plain()));
    }

    #[test]
    fn texts_are_the_same_only_when_all_their_bytes_are(one in "[a-z\n'\"\\\\]{0,8}", other in "[a-z\n'\"\\\\]{0,8}", env in any::<bool>()) {
        let with = |value: &str| {
            let value = toml::Value::String(value.to_owned());
            let extra = if env { format!("script = 'x'\nenv = {{ A = {value} }}") } else { format!("script = {value}") };
            chain(&plain().replace("script = 'true'", &extra))
        };
        prop_assert_eq!(first_miss(&with(&one), &with(&other)), (one != other).then_some(3));
    }

    #[test]
    fn file_contents_are_the_same_only_when_all_their_bytes_are(one in any::<Vec<u8>>(), other in any::<Vec<u8>>()) {
        let with = |bytes: &Vec<u8>| {
            let mut world = world();
            world.files.insert("index.html".to_owned(), bytes.clone());
            keys(&plan_in(&world, &plain()), &ground())
        };
        prop_assert_eq!(first_miss(&with(&one), &with(&other)), (one != other).then_some(2));
    }

    #[test]
    fn facts_are_the_same_only_when_all_are(one in "[a-z]{0,3}", other in "[a-z]{0,3}", which in 0_usize..2) {
        let with = |value: &str| {
            let mut ground = ground();
            ground.facts[which].1 = value.to_owned();
            keys(&plan_in(&world(), &plain()), &ground)
        };
        prop_assert_eq!(first_miss(&with(&one), &with(&other)), (one != other).then_some(0));
    }
}
