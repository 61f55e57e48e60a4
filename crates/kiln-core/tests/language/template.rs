//! Templates through the public interface: what is accepted, what is refused, and with which words.

use kiln_core::{
    ByteSize, Diagnostic, Diagnostics, Digest,
    facts::Inputs,
    plan::{Base, CheckKind, Plan},
};

use crate::shared::{World, given, resolve_in, world};

fn resolve(text: &str) -> Result<Vec<Plan>, Diagnostics> {
    resolve_in(&world(), text, &Inputs::default())
}

const HEAD: &str = "[image]\nname = 'web'\n[base.debian]\nsuite = 'bookworm'\n";

#[test]
fn a_template_becomes_a_plan() {
    let text = format!(
        "{HEAD}{}",
        r#"
[variables.greeting]
default = "hello"
[[provision]]
use = "packages"
install = ["nginx-light"]
[[provision]]
use = "files"
files = [{ path = "/index.html", content = "{{ greeting }}\n" }, { path = "/b", source = "index.html" }]
[[check]]
use = "http"
url = "http://localhost/"
contains = "{{ greeting }}"
"#
    );
    let plans = resolve(&text).unwrap_or_else(|found| panic!("{found}"));
    let [plan] = plans.as_slice() else { panic!("{} plans", plans.len()) };
    assert!(matches!(&plan.base, Base::Debian(debian) if debian.suite == "bookworm"));
    assert_eq!(plan.steps[0].options["wait"], 120);
    assert_eq!(plan.steps[1].options["files"][0]["content"], "hello\n");
    assert_eq!(plan.steps[1].inputs[0].option, "/files/1/source");
    assert!(matches!(&plan.checks[0].kind, CheckKind::Http { contains: Some(text), .. } if text == "hello"));
}

/// What is reported for a template: `line:column: message` of every mistake, in order.
fn mistakes(text: &str) -> Vec<String> {
    mistakes_in(&world(), text, &Inputs::default())
}

fn mistakes_in(world: &World, text: &str, inputs: &Inputs) -> Vec<String> {
    let found = resolve_in(world, text, inputs).expect_err("mistakes");
    assert!(!found.render().is_empty());
    let one = |diagnostic: &Diagnostic| {
        let place = diagnostic.labels.first().and_then(|label| found.position(&label.file, label.start));
        let place = place.map(|at| format!("{}:{}: ", at.line, at.column)).unwrap_or_default();
        let help = diagnostic.help.as_ref().map(|help| format!(" ({help})")).unwrap_or_default();
        format!("{place}{}{help}", diagnostic.message)
    };
    found.iter().map(one).collect()
}

/// A step, a check and so on after [`HEAD`], which has four lines.
#[track_caller]
fn refused(body: &str, expected: &[&str]) {
    let found = mistakes(&format!("{HEAD}{body}"));
    assert_eq!(found.len(), expected.len(), "{found:#?}");
    for (found, expected) in found.iter().zip(expected) {
        assert!(found.contains(expected), "\n  found    {found}\n  expected {expected}");
    }
}

#[test]
fn every_mistake_is_reported_in_one_run() {
    let text = r#"
[imag]
[image]
nam = "web"
[base.debian]
suite = "bookwurm"
[builder.qemu]
memory = "1 GB"
cpus = "two"
[[provision]]
use = "pakages"
[[provision]]
use = "packages"
instal = ["x"]
timeout = 3
[[provision]]
use = "files"
files = [{ content = "{{ gretting }}" }]
[[check]]
use = "htp"
"#;
    let found = mistakes(text);
    let expected = [
        "2:2: unknown key `imag` in the template (did you mean `image`?)",
        "3:1: `[image]` lacks the key `name`",
        "4:1: unknown key `nam` in `[image]` (did you mean `name`?)",
        "6:9: `suite` cannot be `bookwurm`: it is one of `bookworm` and `trixie` (did you mean `bookworm`?)",
        "8:10: `memory`: `1 GB` is not a size",
        "9:8: `cpus` must be an integer, this is a string",
        "11:7: there is no provisioner `pakages` (did you mean `packages`?)",
        "14:1: unknown key `instal` in `packages` (did you mean `install`?)",
        "15:11: `timeout` must be a duration",
        "18:10: item 1 of `files` lacks the option `path` (path)",
        "18:26: `gretting` is not defined",
        "20:7: `use` cannot be `htp`",
    ];
    assert_eq!(found.len(), expected.len(), "{found:#?}");
    for (found, expected) in found.iter().zip(expected) {
        assert!(found.starts_with(expected), "\n  found    {found}\n  expected {expected}");
    }
}

#[test]
fn the_caret_stands_inside_the_string() {
    let text = format!(
        "{HEAD}[variables.greeting]\ndefault = 'x'\n[[provision]]\nuse = 'shell'\nscript = \"\"\"\nécho \\\"{{{{ gretting }}}}\\\"\n\"\"\"\n"
    );
    let found = resolve(&text).expect_err("a mistake").render();
    let expected = "error: `gretting` is not defined\n  --> template.toml:10:11\n   |\n10 | écho \\\"{{ gretting }}\\\"\n   |           ^^^^^^^^\n  help: did you mean `greeting`?\n";
    assert_eq!(found, expected);
}

#[test]
fn steps_are_held_against_the_manifest() {
    refused(
        "[[provision]]\nuse = 'packages'\nrefresh = 'alway'\n",
        &["7:11: `refresh` cannot be `alway`: it is one of `auto` and `always` (did you mean `always`?)"],
    );
    refused(
        "[[provision]]\nuse = 'packages'\ninstall = 'x'\nattempts = '3'\n",
        &["`install` must be a list, this is a string", "`attempts` must be an integer"],
    );
    refused("[[provision]]\nuse = 'files'\n", &["5:1: `files` lacks the option `files` (files)"]);
    refused("[[provision]]\nuse = 'packages'\ntimeot = '1 h'\n", &["(did you mean `timeout`?)"]);
    refused("[[provision]]\nuse = 'shell'\nretries = 2\n", &["does not declare that repeating it is safe"]);
    refused(
        "[[provision]]\nuse = 'packages'\ninstall = ['a', 2, \"b\\u0000\"]\n",
        &["item 2 of `install` must be a string", "contains a NUL"],
    );
}

#[test]
fn inputs_come_from_where_they_may() {
    let step = |path: &str| format!("[[provision]]\nuse = 'files'\nfiles = [{{ path = '/a', source = '{path}' }}]\n");
    refused(
        &step("/etc/shadow"),
        &["7:34: `/etc/shadow` leaves the directory of `template.toml` (name it in `allow_paths`)"],
    );
    refused(&step("missing"), &["cannot read `missing`"]);
    let mut world = world();
    world.files.insert("/srv/x".to_owned(), b"x".to_vec());
    let text = format!("allow_paths = ['/srv']\n{HEAD}{}", step("/srv/x"));
    assert_eq!(resolve_in(&world, &text, &Inputs::default()).unwrap()[0].steps[0].inputs.len(), 1);
}

#[test]
fn a_broken_manifest_is_shown_with_its_own_mistakes() {
    let mut world = world();
    world.provisioners.insert("broken".to_owned(), "api = 1\nname = 'broken'\nsumary = 'x'\n".to_owned());
    let found = mistakes_in(&world, &format!("{HEAD}[[provision]]\nuse = 'broken'\n"), &Inputs::default());
    assert!(found.iter().any(|line| line.contains("the manifest of `broken` has mistakes")), "{found:#?}");
    assert!(found.iter().any(|line| line.contains("did you mean `summary`?")), "{found:#?}");
}

#[test]
fn values_of_variables_follow_their_types() {
    let text = format!(
        "{HEAD}{}",
        r#"
[variables.name]
[variables.port]
type = "number"
default = 80
[[variables.port.validation]]
condition = "port > 0 and port < 65536"
message = "not a port"
[variables.on]
type = "bool"
default = true
[variables.packages]
type = "list"
default = []
[variables.settings]
type = "map"
default = { a = "b" }
[[provision]]
use = "packages"
when = "on and name != 'x'"
install = "{{ packages }}"
attempts = "{{ port }}"
env = { PORT = "{{ port }}", A = "{{ settings.a }}", N = "n: {{ name }}" }
"#
    );
    let plan = |values: &[(&str, &str)]| resolve_in(&world(), &text, &given(values)).map(|mut plans| plans.remove(0));
    let step = &plan(&[("name", "y"), ("packages", r#"["a", "b"]"#), ("settings", "{ a = 'c' }")]).unwrap().steps[0];
    assert_eq!(step.options["install"], serde_json::json!(["a", "b"]));
    assert_eq!(step.options["attempts"], 80);
    assert_eq!(step.env["PORT"], "80");
    assert_eq!(step.env["A"], "c");
    assert_eq!(step.env["N"], "n: y");
    assert!(step.skipped.is_none());
    // The last value given wins; a value is not evaluated again.
    let step = &plan(&[("name", "y"), ("name", "{{ port }}"), ("on", "false")]).unwrap().steps[0];
    assert_eq!(step.env["N"], "n: {{ port }}");
    assert!(step.skipped.is_some());

    let refused = |values: &[(&str, &str)]| mistakes_in(&world(), &text, &given(values));
    for (values, expected) in [
        (vec![], "6:12: the variable `name` has no value and no default (set it with `--var name=..`"),
        (
            vec![("name", "x"), ("prot", "1")],
            "`--var prot=..` sets `prot`, which the template does not declare (did you mean `port`?)",
        ),
        (vec![("name", "x"), ("port", "many")], "`port` from `--var port=..` must be a number, this is `many`"),
        (vec![("name", "x"), ("port", "70000")], "`port` from `--var port=..` is refused: not a port"),
        (vec![("name", "x"), ("on", "yes")], "`on` from `--var on=..` must be `true` or `false`, this is `yes`"),
        (
            vec![("name", "x"), ("packages", "a,b")],
            "must be a list, this is `a,b`; write for instance `[\"a\", \"b\"]`",
        ),
    ] {
        let found = refused(&values);
        assert_eq!(found.len(), 1, "{found:#?}");
        assert!(found[0].contains(expected), "\n  found    {}\n  expected {expected}", found[0]);
    }
}

#[test]
fn all_missing_variables_are_told_at_once() {
    let text = format!(
        "{HEAD}[variables.a]\n[variables.b]\n[[provision]]\nuse = 'shell'\nscript = '{{{{ a }}}}{{{{ b }}}}'\n"
    );
    let found = mistakes_in(&world(), &text, &Inputs::default());
    assert_eq!(found.len(), 2, "{found:#?}");
}

#[test]
fn sensitive_values_reach_only_secrets() {
    let declared = "[variables.token]\nsensitive = true\n[variables.plain]\ndefault = 'p'\n";
    let text = format!(
        "{HEAD}{declared}[[provision]]\nuse = 'shell'\nscript = 'x'\nsecrets = {{ TOKEN = '{{{{ token }}}}' }}\n"
    );
    let plans =
        resolve_in(&world(), &text, &given(&[("token", "canary-3f9")])).unwrap_or_else(|found| panic!("{found}"));
    assert_eq!(plans[0].steps[0].secrets["TOKEN"], "token");
    assert_eq!(plans[0].secrets["token"].reveal(), "canary-3f9");
    for shown in [format!("{plans:?}"), serde_json::to_string(&plans).unwrap(), plans[0].render()] {
        assert!(!shown.contains("canary-3f9"), "{shown}");
    }
    let other = resolve_in(&world(), &text, &given(&[("token", "other")])).unwrap();
    assert_eq!(plans[0].recipe, other[0].recipe);

    for (body, expected) in [
        ("script = '{{ token }}'\n", "`token` is sensitive and cannot be used here"),
        ("script = '{{ token | upper }}'\n", "`token` is sensitive"),
        ("script = 'x'\nwhen = 'token == \"a\"'\n", "`token` is sensitive"),
        ("script = 'x'\nenv = { A = '{{ token }}' }\n", "`token` is sensitive"),
        ("script = 'x'\nsecrets = { A = '{{ plain }}' }\n", "`plain` is not sensitive"),
        ("script = 'x'\nsecrets = { A = 'x{{ token }}' }\n", "a secret is exactly one sensitive variable"),
        ("script = 'x'\nsecrets = { A = 'literal' }\n", "a secret is exactly one sensitive variable"),
        ("script = 'x'\nsecrets = { A = '{{ tokn }}' }\n", "`tokn` is not defined"),
        ("script = 'x'\nsecrets = { KILN_X = '{{ token }}' }\n", "names that begin with `KILN_` are taken"),
        ("script = 'x'\nsecrets = { 'A B' = '{{ token }}' }\n", "cannot name an environment variable"),
    ] {
        let text = format!("{HEAD}{declared}[[provision]]\nuse = 'shell'\n{body}");
        let found = mistakes_in(&world(), &text, &given(&[("token", "canary-3f9")]));
        assert!(found.len() == 1 && found[0].contains(expected), "{body}: {found:#?}");
        assert!(!found[0].contains("canary"));
    }
    let text = format!("{HEAD}[variables.token]\nsensitive = true\ndefault = 'canary-3f9'\n");
    assert!(mistakes(&text)[0].contains("stands in the template"));
}

#[test]
fn a_matrix_gives_one_plan_for_each_combination() {
    let text = r#"
[image]
name = "web-{{ matrix.suite }}-{{ matrix.size.name }}"
[matrix]
suite = ["bookworm", "trixie"]
size = [{ name = "small", disk = "3 GiB" }, { name = "large", disk = "8 GiB" }]
[base.debian]
suite = "{{ matrix.suite }}"
[builder.qemu]
disk = "{{ matrix.size.disk }}"
[[check]]
use = "port"
port = 80
when = "matrix.suite == 'trixie'"
"#;
    let plans = resolve(text).unwrap_or_else(|found| panic!("{found}"));
    let names: Vec<&str> = plans.iter().map(|plan| plan.member_name.as_str()).collect();
    assert_eq!(names, ["bookworm-small", "bookworm-large", "trixie-small", "trixie-large"]);
    let images: Vec<&str> = plans.iter().map(|plan| plan.image.as_str()).collect();
    assert_eq!(images, ["web-bookworm-small", "web-bookworm-large", "web-trixie-small", "web-trixie-large"]);
    assert_eq!(plans.iter().map(|plan| plan.checks.len()).collect::<Vec<_>>(), [0, 0, 1, 1]);
    let recipes: std::collections::BTreeSet<_> = plans.iter().map(|plan| plan.recipe).collect();
    assert_eq!(recipes.len(), 4);

    let same = text.replace("-{{ matrix.size.name }}", "");
    assert!(mistakes(&same)[0].contains("are both called `web-bookworm`"), "{:?}", mistakes(&same));
    let wrong = text.replace("matrix.size.disk", "matrix.size.disc");
    assert!(
        mistakes(&wrong)[0].contains("`matrix.size.disc` is not defined (did you mean `disk`?)"),
        "{:?}",
        mistakes(&wrong)
    );
    for (matrix, expected) in [
        ("suite = []", "has no values"),
        ("suite = ['a', 'a']", "twice"),
        ("suite = ['a b']", "cannot name a value"),
        ("suite = 'a'", "must be a list"),
        ("suite = [{ x = 1 }]", "a table with a `name`"),
        ("Suite = ['a']", "not a name for an axis"),
    ] {
        let found = mistakes(&format!("{HEAD}[matrix]\n{matrix}\n"));
        assert!(found[0].contains(expected), "{matrix}: {found:#?}");
    }
    let axes = ('a'..='i').map(|axis| format!("{axis} = [1, 2]\n")).collect::<Vec<_>>().concat();
    assert!(mistakes(&format!("{HEAD}[matrix]\n{axes}"))[0].contains("more than 256 members"));
}

#[test]
fn parents_and_parts_are_put_together_by_the_rules() {
    let mut world = world();
    world.templates.insert(
        "base.toml".to_owned(),
        r#"
[image]
name = "base"
description = "kept"
[variables.who]
default = "parent"
[base.qcow2]
path = "index.html"
[builder.qemu]
memory = "2 GiB"
cpus = 4
[[provision]]
as = "a"
use = "shell"
script = "parent a"
[[provision]]
use = "packages"
install = ["parent"]
[[provision]]
as = "c"
use = "shell"
script = "parent c {{ who }}"
[[check]]
as = "gone"
use = "port"
port = 1
"#
        .to_owned(),
    );
    world
        .templates
        .insert("part.toml".to_owned(), "[[provision]]\nas = 'part'\nuse = 'shell'\nscript = 'part'\n".to_owned());
    let text = r#"
extends = "base.toml"
include = ["part.toml", "part.toml"]
[image]
name = "child"
[variables.who]
default = "child"
[base.debian]
suite = "trixie"
[builder.qemu]
cpus = 1
[remove]
provision = ["a"]
check = ["gone"]
[[provision]]
as = "packages"
use = "packages"
install = ["child"]
[[provision]]
use = "packages"
"#;
    let plans = resolve_in(&world, text, &Inputs::default()).unwrap_or_else(|found| panic!("{found}"));
    let plan = &plans[0];
    assert_eq!((plan.image.as_str(), plan.description.as_deref()), ("child", Some("kept")));
    assert!(matches!(&plan.base, Base::Debian(_)));
    let machine = plan.builder.qemu().expect("a local machine");
    assert_eq!((machine.memory, machine.cpus), (ByteSize::gib(2), 1));
    let steps: Vec<&str> = plan.steps.iter().map(|step| step.name.as_str()).collect();
    assert_eq!(steps, ["packages", "c", "part", "packages-2"]);
    assert_eq!(plan.steps[0].options["install"][0], "child");
    assert_eq!(plan.steps[1].options["script"], "parent c child");
    assert!(plan.checks.is_empty());

    let found = mistakes_in(&world, &text.replace("[\"gone\"]", "[\"gon\"]"), &Inputs::default());
    assert!(found[0].contains("there is no `gon` in `[[check]]` to remove (did you mean `gone`?)"), "{found:#?}");
}

#[test]
fn templates_do_not_grow_without_bound() {
    let mut world = world();
    world.templates.insert("loop.toml".to_owned(), "extends = 'loop.toml'\n".to_owned());
    let found = mistakes_in(&world, "extends = 'loop.toml'\n", &Inputs::default());
    assert!(found[0].contains("leads back to `loop.toml`"), "{found:#?}");

    let mut list = Vec::new();
    for index in 0..40 {
        world.templates.insert(format!("{index}.toml"), String::new());
        list.push(format!("'{index}.toml'"));
    }
    let found = mistakes_in(&world, &format!("include = [{}]\n{HEAD}", list.join(", ")), &Inputs::default());
    assert!(found[0].contains("at most 32 files"), "{found:#?}");

    let large = format!("{HEAD}# {}\n", "x".repeat(1 << 20));
    assert!(mistakes(&large)[0].contains("larger than 1024 KiB"));

    for (body, expected) in [
        // A megabyte in a few characters, over and over.
        (
            format!(
                "[variables.x]\ndefault = '{}'\n[[provision]]\nuse = 'shell'\nscript = '{}'\n",
                "x".repeat(200_000),
                "{{ x }}".repeat(6)
            ),
            "expand to more than 1048576 bytes",
        ),
        (
            format!("[[provision]]\nuse = 'shell'\nscript = '{{{{ {}1 }}}}'\n", "1 + ".repeat(2000)),
            "longer than 4096 bytes",
        ),
        ("[[provision]]\nuse = 'shell'\nscript = '{{ \"a\" * 99999999 }}'\n".to_owned(), "`*` multiplies numbers only"),
        (
            format!(
                "[variables.x]\ndefault = '{}'\n[[provision]]\nuse = 'shell'\nscript = '{{{{ x{} }}}}'\n",
                "x".repeat(200_000),
                " ~ x".repeat(500)
            ),
            "too large to compute with",
        ),
        (
            format!(
                "[[provision]]\nuse = 'shell'\nscript = '{{{{ \"aa\" {}}}}}'\n",
                "| replace(\"a\", \"aaaaaaaaaaaaaaaa\") ".repeat(30)
            ),
            "too large",
        ),
    ] {
        let found = mistakes(&format!("{HEAD}{body}"));
        assert!(found[0].contains(expected), "{expected}: {:.300}", found[0]);
    }
    let deep = format!("{HEAD}[variables.x]\ntype = 'list'\ndefault = {}{}\n", "[".repeat(5000), "]".repeat(5000));
    assert!(!mistakes(&deep).is_empty());
}

#[test]
fn values_are_text_wherever_they_go() {
    for value in ["'; rm -rf /", "$(id)", "a\nb", "\u{202e}x", "-rf", "é"] {
        let text = format!(
            "{HEAD}[variables.x]\n[[provision]]\nuse = 'shell'\nscript = 'echo \"$X\"'\nenv = {{ X = '{{{{ x }}}}' }}\n"
        );
        let plans = resolve_in(&world(), &text, &given(&[("x", value)])).unwrap();
        assert_eq!(plans[0].steps[0].env["X"], value);
        assert_eq!(plans[0].steps[0].options["script"], "echo \"$X\"");
    }
    let quoted = format!("{HEAD}[variables.x]\n[[provision]]\nuse = 'shell'\nscript = 'echo {{{{ x | quote }}}}'\n");
    let plans = resolve_in(&world(), &quoted, &given(&[("x", "it's; $(id)")])).unwrap();
    assert_eq!(plans[0].steps[0].options["script"], r"echo 'it'\''s; $(id)'");
    let found = mistakes_in(&world(), &quoted, &given(&[("x", "a\nb")]));
    assert!(found[0].contains("line breaks"), "{found:#?}");
}

#[test]
fn names_hold_nothing_that_could_be_misread() {
    for name in ["../x", "-rf", "a b", "a\\nb", "wéb", "e\\u0301", "\\u202ex", "A", ""] {
        let found = mistakes(&format!("[image]\nname = \"{name}\"\n[base.debian]\nsuite = 'bookworm'\n"));
        assert!(found[0].contains("is not an image name"), "{name}: {found:#?}");
    }
}

#[test]
fn bases_are_exactly_one_and_pinned() {
    let image = "[image]\nname = 'a'\n";
    let digest = Digest::of(b"hello").hex();
    for (base, expected) in [
        ("", "lacks the key `base`"),
        ("[base]\n", "the base is empty"),
        ("[base.debian]\nsuite = 'trixie'\n[base.qcow2]\npath = 'index.html'\n", "there are two bases"),
        ("[base.qcow2]\nurl = 'https://example.org/a.qcow2'\n", "a base from a URL needs its `sha256`"),
        ("[base.qcow2]\nurl = 'file:///etc/passwd'\nsha256 = 'x'\n", "is not a SHA-256"),
        (
            "[base.qcow2]\nurl = 'https://u:p@example.org/a'\nsha256 = '0000000000000000000000000000000000000000000000000000000000000000'\n",
            "holds a user name or a password",
        ),
        ("[base.qcow2]\npath = 'index.html'\nurl = 'https://example.org/a'\n", "both a `path` and a `url`"),
        (
            "[base.qcow2]\npath = 'index.html'\nsha256 = '0000000000000000000000000000000000000000000000000000000000000000'\n",
            "not the one in `sha256`",
        ),
        ("[base.qcow2]\n", "names no image"),
        ("[base.debian]\nsuite = 'bookworm'\npackages = ['--purge']\n", "is not the name of a Debian package"),
        ("[base.debian]\nsuite = 'bookworm'\nmirror = 'gopher://x'\n", "the URL must begin with"),
    ] {
        let found = mistakes(&format!("{image}{base}"));
        assert!(found.iter().any(|line| line.contains(expected)), "{base}: {found:#?}");
    }
    let text = format!("{image}[base.qcow2]\npath = 'index.html'\nsha256 = '{digest}'\n");
    assert!(resolve(&text).is_ok());
}

#[test]
fn options_are_held_to_what_the_manifest_says_of_them() {
    let step = |options: &str| format!("[[provision]]\nuse = 'narrow'\n{options}\n");
    for (options, expected) in [
        ("names = ['jq', '-oX']", "item 2 of `names` cannot be `-oX`: it must match `[a-z0-9][a-z0-9.+-]*`"),
        // The whole of it, to the last line.
        ("names = [\"jq\\nx\"]", r"item 1 of `names` cannot be `jq\nx`"),
        ("often = 0", "`often` must be from 1 to 9"),
        ("often = 10", "`often` must be from 1 to 9"),
        ("pins = { Jq = '1.6' }", "a key of `pins` cannot be `Jq`: it must match `[a-z]+`"),
        ("pins = { jq = 'new' }", "`jq` of `pins` cannot be `new`"),
    ] {
        refused(&step(options), &[expected]);
    }
    // All of them at once.
    let both = ["item 1 of `names` cannot be", "item 2 of `names` cannot be"];
    refused(&step("names = ['-a', '-b']"), &both);
}

#[test]
fn checks_and_waivers_are_held_to_their_rules() {
    refused("[[check]]\nuse = 'http'\nurl = 'https://localhost/'\n", &["must begin with `http://`"]);
    refused("[[check]]\nuse = 'file'\npath = 'etc'\nmode = '999'\n", &["not an absolute path", "is not a mode"]);
    refused("[[check]]\nuse = 'file'\npath = '/a'\nexists = false\nmode = '0644'\n", &["has no properties"]);
    refused("[[check]]\nuse = 'port'\nport = 0\non = []\n", &["from 1 to 65535", "the check runs nowhere"]);
    refused("[[check]]\nuse = 'service'\nname = '-x'\n", &["cannot be the `name`"]);
    refused("[[check]]\nuse = 'port'\nport = 80\nurl = 'x'\n", &["unknown key `url` in a check of `port`"]);
    refused("[[waive]]\nfinding = 'machine-id'\nreason = 'x'\n", &["there is no finding `machine-id`"]);
    refused("[[waive]]\nfinding = 'H21'\nreason = ' '\n", &["gives no reason"]);
    refused("[output]\nformats = ['vdi']\n", &["`formats` cannot be `vdi`"]);
    refused("[publish.registry]\nchannel = 'x'\n", &["unknown key `channel`"]);
    refused(
        "[builder.qemu]\ndisk = '2 GiB'\nmemory = '1 MiB'\n",
        &["`disk` must be from 2113 MiB to", "`memory` must be from"],
    );
    refused(
        "[[provision]]\nuse = 'shell'\nwhen = '1 + 1'\n",
        &["a condition must give `true` or `false`, this gives a number"],
    );
    refused("[[provision]]\nuse = 'shell'\nwhen = '{{ true }}'\n", &["an expression without `{{ }}`"]);
    refused("[[provision]]\nuse = 'shell'\nscript = '{{ image.nam }} {{ x'\n", &["this `{{` is never closed"]);
    refused("[[provision]]\nuse = 'shell'\nscript = '{{ [1] }} x'\n", &["cannot stand inside text"]);
    refused(
        "[[provision]]\nuse = 'shell'\nscript = '{{ 1 | uper }}'\n",
        &["there is no filter `uper` (did you mean `upper`?)"],
    );
}

#[test]
fn statements_and_braces_are_plain_text() {
    let text = format!(
        "{HEAD}[[provision]]\nuse = 'shell'\nscript = '{{% if x %}} {{# y #}} ${{HOME}} {{{{ \"{{{{\" }}}} {{{{ {{\"a\": {{\"b\": 1}}}}.a.b }}}}'\n"
    );
    let plans = resolve(&text).unwrap_or_else(|found| panic!("{found}"));
    assert_eq!(plans[0].steps[0].options["script"], "{% if x %} {# y #} ${HOME} {{ 1");
}

#[test]
fn amis_are_made_where_the_template_says_and_nowhere_publicly_unasked() {
    let key = "arn:aws:kms:eu-west-1:111122223333:key/1";
    let text = format!(
        "{HEAD}[publish.ami]\nshare_with = ['210987654321']\ndeprecate_after = '180 days'\nchannel = 'stable'\n\
         parameter = '/images/web/stable'\n[publish.ami.regions.eu-west-1]\nkms_key = '{key}'\n\
         [publish.ami.regions.us-east-1]\nrequired = false\n"
    );
    let plans = resolve(&text).unwrap_or_else(|found| panic!("{found}"));
    let target = plans[0].publish.ami.as_ref().expect("AMIs");
    assert_eq!(target.regions["eu-west-1"].kms_key.as_deref(), Some(key));
    assert!(target.regions["eu-west-1"].required && !target.regions["us-east-1"].required);
    assert_eq!(target.deprecate_after, Some(180 * 86_400));
    assert!(!target.public && !target.protect);
    let rendered = plans[0].render();
    let amis = rendered.split("publish ").nth(1).expect("where it goes").split("recipe").next().expect("its end");
    let expected = format!(
        "local registry\n  AMIs in eu-west-1, key {key}, us-east-1 (not required)\n    launched also by 210987654321\n    \
         deprecated 180 days after the bake\n    then channel stable\n    then parameter /images/web/stable\n"
    );
    assert_eq!(amis, expected);
    // Where it goes does not change what it is.
    assert_eq!(plans[0].recipe, resolve(HEAD).unwrap()[0].recipe);
}

#[test]
fn amis_that_cannot_be_are_refused_at_their_key() {
    let region = "[publish.ami.regions.eu-west-1]\n";
    for (body, expected) in [
        ("[publish.ami]\npublic = true\n".to_owned(), "`[publish.ami]` lacks the key `regions`"),
        ("[publish.ami.regions]\n".to_owned(), "names no region"),
        ("[publish.ami.regions.Europe]\n".to_owned(), "`Europe` is not a region"),
        (format!("{region}kms_key = 'alias/web'\n"), "`kms_key` is not the ARN of a key"),
        (format!("{region}key = 'x'\n"), "unknown key `key`"),
        (
            format!("[publish.ami]\npublic = true\n{region}kms_key = 'arn:aws:kms:1'\n"),
            "an AMI that a key encrypts cannot be public",
        ),
        (format!("[publish.ami]\nshare_with = ['1234']\n{region}"), "`1234` is nobody who could launch an AMI"),
        (format!("[publish.ami]\nparameter = '/aws/web'\n{region}"), "`/aws/web` is not the name of a parameter"),
        (format!("[publish.ami]\nchannel = 'Stable'\n{region}"), "`Stable` is not a channel name"),
        (format!("[publish.ami]\nchannel = 'latest'\n{region}"), "a channel cannot be called `latest`"),
        (format!("[publish.ami]\ntags = {{ 'kiln:disk' = 'x' }}\n{region}"), "no tag of your own begins with `kiln:`"),
        (format!("[publish.registry]\nenabled = false\n{region}"), "AMIs are made of a version in the registry"),
    ] {
        refused(&body, &[expected]);
    }
}
