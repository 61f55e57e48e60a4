//! The template reference: `docs/template.md`.

use std::fmt::Write as _;

use super::subtables;
use crate::{
    expression::{FILTERS, TESTS},
    finding::FINDINGS,
    keys::{CHECKS, Key, Kind, Need, TEMPLATE},
    shape::list,
};

const INTRODUCTION: &str = "\
# Template reference

<!-- Made by kiln from the same table that the parser and the JSON Schema use. Do not edit:
     `KILN_UPDATE_GOLDENS=1 cargo test -p kiln-tests` writes it anew. -->

A template is a directory with a `template.toml`, or a `.toml` file. `kiln validate` reports every mistake in it at once,
`kiln plan` shows what would run, `kiln schema` prints a JSON Schema for editors, `kiln fmt` brings it into the standard
layout.

A key with a default may be left out. Durations are written `\"90s\"`, `\"10 min\"`, `\"1h 30m\"`; sizes `\"512 MiB\"`, `\"4 GiB\"`.
Paths are relative to the file they stand in and stay inside its directory unless `allow_paths` names another.

";

const EXPRESSIONS: &str = "\
## Expressions

Every string may hold `{{ expressions }}`, except the names of tables and keys and what stands in `extends`, `include`,
`remove`, `variables` and `matrix`. They see the variables by their names, the matrix member as `matrix.<axis>` and the
image's name as `image.name`. An undefined name is a mistake.

- A string that is exactly one expression keeps the type of its value: `install = \"{{ packages }}\"` is a list if the variable is.
- Inside longer text, strings, numbers and booleans may stand; lists and maps need `join` or `tojson`.
- A condition (`when`, `condition`) is an expression without braces that gives `true` or `false`.
- There are comparisons (`==`, `!=`, `<`), `and`, `or`, `not`, `in`, arithmetic, `~` (joins texts and numbers), `x if y else z`, lists and maps,
  `a.b` and `a[\"b\"]`. `*` multiplies numbers only.
- `{% %}` and `{# #}` have no meaning. Literal braces are written `{{ \"{{\" }}`, which stands in single quotes in TOML.
- Values are never evaluated again: a variable that holds `{{ x }}` gives these very characters.
- A value that goes into a shell script as text takes `| quote`. Better, hand it over in `env`.
- Limits: 4096 bytes for one expression, 1 MiB for what all expressions of an image give.

";

const SHARING: &str = "\
## Sharing parts

`extends` names one template to build on, `include` any number of parts. A file takes part once, at its first place. They are put together in
this order: what `extends` names, every `include` in its order, the file itself. What comes later wins:

| what | rule |
|---|---|
| tables | put together key by key, at every depth |
| values and lists of values | replaced |
| `[base]`, `[builder]` | of the same kind: key by key; of another kind: replaced |
| `[[provision]]`, `[[check]]` | appended; one with the same name (`as`; for a step without it the provisioner's name) takes the earlier one's place |
| `[[waive]]` | appended; the same finding replaced |
| `[remove]` | drops steps and checks of earlier files by name, before the file's own are added |

A template with what it extends and includes has at most 33 files and 1 MiB.

";

const VARIABLES: &str = "\
### Where values come from

From low to high precedence: the `default`, `KILN_VAR_<NAME>` in the environment, `--var-file` (TOML) in the given order, `--var name=value`. Text from the command
line and the environment is read by the variable's type; lists and maps are written as JSON or TOML: `--var 'packages=[\"curl\"]'`.

";

/// The reference as Markdown.
pub fn reference() -> String {
    let mut text = INTRODUCTION.to_owned();
    text.push_str("## The file\n\n");
    text.push_str(&rows(TEMPLATE));
    for key in TEMPLATE {
        section(&mut text, key, key.name, 2);
    }
    text.push_str(SHARING);
    text.push_str(EXPRESSIONS);
    text.push_str("Filters:\n\n| filter | gives |\n|---|---|\n");
    for (name, doc) in FILTERS {
        let _ = writeln!(text, "| `{name}` | {} |", cell(doc));
    }
    let _ = writeln!(text, "\nTests (`x is defined`): {}.", list(TESTS));
    text
}

fn section(text: &mut String, key: &Key, path: &str, depth: usize) {
    let Some((keys, array)) = subtables(&key.kind) else { return };
    let hashes = "#".repeat(depth);
    let name = if matches!(key.kind, Kind::Named(_)) { format!("{path}.<name>") } else { path.to_owned() };
    let heading = if array { format!("[[{name}]]") } else { format!("[{name}]") };
    let _ = write!(text, "{hashes} `{heading}`\n\n{}\n\n{}", key.doc, rows(keys));
    if let Kind::Variants(_, variants) = key.kind {
        for variant in variants {
            let _ = write!(text, "{hashes}# `use = \"{}\"`\n\n{}\n\n{}", variant.name, variant.doc, rows(variant.keys));
        }
        debug_assert_eq!(variants.len(), CHECKS.len());
    }
    for key in keys {
        section(text, key, &format!("{name}.{}", key.name), depth + 1);
    }
    if path == "variables" {
        text.push_str(VARIABLES);
    }
    if path == "waive" {
        text.push_str("| finding | what was found on the finished disk |\n|---|---|\n");
        for (name, meaning) in FINDINGS {
            let _ = writeln!(text, "| `{name}` | {meaning} |");
        }
        text.push('\n');
    }
}

/// A table of keys.
pub(super) fn rows(keys: &[Key]) -> String {
    let mut text = "| key | type | default | |\n|---|---|---|---|\n".to_owned();
    for key in keys {
        let default = match key.need {
            Need::Required => "required".to_owned(),
            Need::Optional => String::new(),
            Need::Default(default) => format!("`{default}`"),
        };
        let _ = writeln!(text, "| `{}` | {} | {default} | {} |", key.name, cell(&kind(&key.kind)), cell(key.doc));
    }
    text.push('\n');
    text
}

fn kind(kind: &Kind) -> String {
    match kind {
        Kind::String => "string".to_owned(),
        Kind::Bool => "boolean".to_owned(),
        Kind::Integer(i64::MIN, i64::MAX) => "integer".to_owned(),
        Kind::Integer(least, most) => format!("integer, {least} to {most}"),
        Kind::Duration => "duration".to_owned(),
        Kind::Caching => "duration or `false`".to_owned(),
        Kind::Size => "size".to_owned(),
        Kind::Word(words) => words.iter().map(|word| format!("`{word}`")).collect::<Vec<_>>().join(", "),
        Kind::Words(words) => {
            format!("list of {}", words.iter().map(|word| format!("`{word}`")).collect::<Vec<_>>().join(", "))
        }
        Kind::Strings => "list of strings".to_owned(),
        Kind::StringMap => "table of strings".to_owned(),
        Kind::Condition => "condition".to_owned(),
        Kind::Any => "any".to_owned(),
        Kind::Table(_) | Kind::Named(_) | Kind::Axes => "table".to_owned(),
        Kind::Tables(_) | Kind::Steps(_) | Kind::Variants(..) => "list of tables".to_owned(),
    }
}

/// A bar would end the cell.
fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}
