//! Reads `provisioner.toml`.

use std::collections::BTreeMap;

use super::{Manifest, OptionKind, OptionSpec, RunsOn};
use crate::{
    diagnostic::{Diagnostics, did_you_mean},
    keys::{MANIFEST, OPTION, STEP},
    node::{Node, Report},
    options,
    shape::{self, Section, list},
};

/// The longest manifest. The largest of the built-in set has 4 KiB.
const LARGEST: usize = 256 << 10;

const SCALARS: [(&str, OptionKind); 7] = [
    ("string", OptionKind::String),
    ("text", OptionKind::Text),
    ("integer", OptionKind::Integer),
    ("bool", OptionKind::Bool),
    ("path", OptionKind::Path),
    ("duration", OptionKind::Duration),
    ("size", OptionKind::Size),
];

/// Reads a manifest; `name` is the file name for messages. Every mistake is reported.
pub fn parse(name: &str, text: &str) -> Result<Manifest, Diagnostics> {
    let mut report = Report::default();
    if text.len() > LARGEST {
        report.found.push(crate::Diagnostic::new(format!("`{name}` is larger than {} KiB", LARGEST >> 10)));
        return Err(report.found);
    }
    let file = report.add_file(name, text);
    let root = report.parse(file);
    if report.found.is_empty() {
        shape::check(&mut report, &root, MANIFEST, "the manifest");
    }
    let manifest = read(&mut report, &root);
    match manifest {
        Some(manifest) if report.found.is_empty() => Ok(manifest),
        _ => {
            report.found.sort();
            Err(report.found)
        }
    }
}

fn read(report: &mut Report, root: &Node) -> Option<Manifest> {
    let section = Section::new(root, MANIFEST);
    if let (Some(node), Some(name)) = (section.node("name"), section.string("name"))
        && !sound_name(&name)
    {
        report.error_with_help(
            node.at,
            format!("`{name}` is not a name for a provisioner"),
            "use `a-z`, `0-9`, `-` and `_`, beginning with a letter",
        );
    }
    if let (Some(node), Some(run)) = (section.node("run"), section.string("run"))
        && (run.starts_with('/') || run.split('/').any(|part| matches!(part, "" | "." | "..")))
    {
        report.error(node.at, "`run` must name a file inside the provisioner's directory");
    }
    let mut specs = BTreeMap::new();
    for (name, entry) in section.table("options") {
        if STEP.iter().any(|key| key.name == name) {
            report.error_with_help(
                entry.key,
                format!("an option cannot be called `{name}`"),
                "every step has a key of that name",
            );
        }
        if let Some(spec) = option(report, name, &entry.node) {
            specs.insert(name.clone(), spec);
        }
    }
    Some(Manifest {
        api: section.integer("api")?,
        name: section.string("name")?,
        summary: section.string("summary")?,
        runs_on: if section.string("runs_on")? == "host" { RunsOn::Host } else { RunsOn::Guest },
        run: section.string("run")?,
        idempotent: section.bool("idempotent")?,
        reboots: section.bool("reboots")?,
        timeout_seconds: section.duration("timeout")?.as_secs(),
        supports: section.strings("supports"),
        options: specs,
    })
}

fn sound_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.len() <= 64
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_".contains(c))
}

/// Option names become parts of environment names, so they are as plain.
fn sound_option(name: &str) -> bool {
    sound_name(name) && !name.contains('-')
}

fn option(report: &mut Report, name: &str, node: &Node) -> Option<OptionSpec> {
    let table = node.as_table()?;
    if !sound_option(name) {
        report.error_with_help(
            node.at,
            format!("`{name}` is not a name for an option"),
            "use `a-z`, `0-9` and `_`, beginning with a letter",
        );
    }
    let section = Section::new(node, OPTION);
    let fields = table.get("fields").map(|entry| (entry.key, fields(report, name, &entry.node)));
    let kind_node = section.node("type")?;
    let has_fields = fields.is_some();
    let written = section.string("type")?;
    let kind = match kind(written.trim(), fields.as_ref().map(|(_, fields)| fields), 0) {
        Ok(kind) => kind,
        Err(message) => {
            report.push(message, kind_node.at, "");
            return None;
        }
    };
    if let Some((at, _)) = fields.filter(|_| !written.contains("table")) {
        report.error(at, format!("`{written}` has no fields"));
    } else if written.contains("table") && !has_fields {
        report.error_with_help(
            kind_node.at,
            "a table needs its fields",
            format!("add `[options.{name}.fields.<field>]` with a `type` and a `doc`"),
        );
    }
    let one_of = section.strings("one_of");
    if let Some(node) = section.node("one_of")
        && (kind != OptionKind::String || one_of.is_empty())
    {
        report.error(node.at, "`one_of` lists the allowed values of a `string`");
    }
    let mut spec = OptionSpec {
        required: section.bool("required")?,
        one_of,
        pattern: pattern(report, &section, "pattern", kind.holds(&[OptionKind::String, OptionKind::Text])),
        keys: pattern(report, &section, "keys", kind.has_keys()),
        min: bound(report, &section, "min", &kind),
        max: bound(report, &section, "max", &kind),
        ..OptionSpec::new(kind, section.string("doc")?)
    };
    if let (Some(min), Some(max), Some(node)) = (spec.min, spec.max, section.node("max"))
        && min > max
    {
        report.error(node.at, "`max` is less than `min`");
    }
    if let Some(entry) = section.entry("default") {
        spec.default = default(report, name, &entry.node, &spec);
        if spec.required {
            report.error(entry.key, "an option that is required has no use for a default");
        }
    }
    Some(spec)
}

/// A regular expression for the strings or keys of an option, if it has some.
fn pattern(report: &mut Report, section: &Section<'_>, key: &str, fits: bool) -> Option<String> {
    let (node, written) = (section.node(key)?, section.string(key)?);
    if !fits {
        let of = if key == "keys" { "the keys of a `map`" } else { "a `string` or `text`, also in a list or map" };
        report.error(node.at, format!("`{key}` is for {of}"));
        return None;
    }
    match options::whole(&written) {
        Ok(_) => Some(written),
        Err(error) => {
            report.error(node.at, format!("`{key}` is not a regular expression: {error}"));
            None
        }
    }
}

fn bound(report: &mut Report, section: &Section<'_>, key: &str, kind: &OptionKind) -> Option<i64> {
    let (node, bound) = (section.node(key)?, section.integer::<i64>(key)?);
    if !kind.holds(&[OptionKind::Integer]) {
        report.error(node.at, format!("`{key}` is for an `integer`, also in a list or map"));
    }
    Some(bound)
}

fn default(report: &mut Report, name: &str, node: &Node, spec: &OptionSpec) -> Option<serde_json::Value> {
    let mut paths = Vec::new();
    let value = options::value(report, node, spec, &format!("the default of `{name}`"), "", &mut paths);
    if !paths.is_empty() {
        report.error(node.at, "a path has no default: it would name a file of whoever uses the provisioner");
    }
    value
}

fn fields(report: &mut Report, name: &str, node: &Node) -> BTreeMap<String, OptionSpec> {
    let mut specs = BTreeMap::new();
    let what = format!("`{name}.fields`");
    for (field, entry) in shape::table(report, node, &what).into_iter().flatten() {
        shape::check(report, &entry.node, OPTION, &format!("`[options.{name}.fields.{field}]`"));
        if let Some(spec) = option(report, field, &entry.node) {
            specs.insert(field.clone(), spec);
        }
    }
    specs
}

fn kind(
    text: &str,
    fields: Option<&BTreeMap<String, OptionSpec>>,
    depth: usize,
) -> Result<OptionKind, crate::Diagnostic> {
    if let Some((_, kind)) = SCALARS.iter().find(|(name, _)| *name == text) {
        return Ok(kind.clone());
    }
    if text == "table" {
        return Ok(OptionKind::Table(fields.cloned().unwrap_or_default()));
    }
    let inner = |prefix: &str| text.strip_prefix(prefix).and_then(|rest| rest.strip_suffix('>')).map(str::trim);
    // Three levels are enough for a list of maps of lists; the limit keeps the recursion bounded.
    if depth < 3 {
        if let Some(item) = inner("list<") {
            return Ok(OptionKind::List(Box::new(kind(item, fields, depth + 1)?)));
        }
        if let Some(item) = inner("map<") {
            return Ok(OptionKind::Map(Box::new(kind(item, fields, depth + 1)?)));
        }
    }
    let names: Vec<&str> = SCALARS.iter().map(|(name, _)| *name).chain(["table", "list<..>", "map<..>"]).collect();
    let mut diagnostic = crate::Diagnostic::new(format!("`{text}` is not a type: it is one of {}", list(&names)));
    diagnostic.help = did_you_mean(text, names);
    Err(diagnostic)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "api = 1\nname = 'x'\nsummary = 's'\n";

    fn mistakes(text: &str) -> Vec<String> {
        let found = parse("provisioner.toml", text).expect_err("mistakes");
        assert!(found.iter().all(|mistake| !mistake.labels.is_empty()), "{found}");
        found
            .iter()
            .map(|mistake| format!("{} ({})", mistake.message, mistake.help.as_deref().unwrap_or_default()))
            .collect()
    }

    #[test]
    fn reads_options_of_every_kind() {
        let text = format!(
            "{HEAD}{}",
            r#"
runs_on = "host"
run = "bin/run"
idempotent = true
timeout = "1 h"
supports = ["debian"]
[options.wait]
type = "duration"
doc = "d"
default = "2 min"
[options.room]
type = "list<size>"
doc = "d"
default = ["1 KiB"]
[options.rules]
type = "map<list<table>>"
doc = "d"
[options.rules.fields.file]
type = "path"
doc = "d"
required = true
"#
        );
        let manifest = parse("provisioner.toml", &text).unwrap_or_else(|found| panic!("{found}"));
        assert_eq!(
            (manifest.runs_on, manifest.timeout_seconds, manifest.run.as_str()),
            (RunsOn::Host, 3600, "bin/run")
        );
        assert_eq!(manifest.options["wait"].default, Some(120.into()));
        assert_eq!(manifest.options["room"].default, Some(serde_json::json!([1024])));
        let OptionKind::Map(list) = &manifest.options["rules"].kind else { panic!("{manifest:?}") };
        let OptionKind::List(table) = list.as_ref() else { panic!("{manifest:?}") };
        assert!(matches!(table.as_ref(), OptionKind::Table(fields) if fields["file"].required));
    }

    #[test]
    fn refuses_what_it_does_not_know() {
        for (text, expected) in [
            ("api = 2\nname = 'x'\nsummary = 's'\n".to_owned(), "`api` must be from 1 to 1"),
            ("api = 1\nname = 'x'\n".to_owned(), "lacks the key `summary`"),
            (format!("{HEAD}timeut = '1 h'\n"), "did you mean `timeout`?"),
            (format!("{HEAD}run = '../run'\n"), "inside the provisioner's directory"),
            (format!("{HEAD}run = '/bin/sh'\n"), "inside the provisioner's directory"),
            ("api = 1\nname = '../x'\nsummary = 's'\n".to_owned(), "is not a name for a provisioner"),
            (format!("{HEAD}[options.when]\ntype = 'string'\ndoc = 'd'\n"), "cannot be called `when`"),
            (format!("{HEAD}[options.A]\ntype = 'string'\ndoc = 'd'\n"), "is not a name for an option"),
            (format!("{HEAD}[options.a]\ntype = 'sting'\ndoc = 'd'\n"), "did you mean `string`?"),
            (format!("{HEAD}[options.a]\ntype = 'string'\n"), "lacks the key `doc`"),
            (format!("{HEAD}[options.a]\ntype = 'table'\ndoc = 'd'\n"), "a table needs its fields"),
            (format!("{HEAD}[options.a]\ntype = 'bool'\ndoc = 'd'\ndefault = 'no'\n"), "the default of `a` must be"),
            (format!("{HEAD}[options.a]\ntype = 'path'\ndoc = 'd'\ndefault = 'x'\n"), "a path has no default"),
            (format!("{HEAD}[options.a]\ntype = 'bool'\ndoc = 'd'\none_of = ['x']\n"), "allowed values of a `string`"),
            (
                format!("{HEAD}[options.a]\ntype = 'string'\ndoc = 'd'\ndefault = 'z'\none_of = ['x']\n"),
                "cannot be `z`",
            ),
            (
                format!("{HEAD}[options.a]\ntype = 'string'\ndoc = 'd'\nrequired = true\ndefault = 'z'\n"),
                "no use for a default",
            ),
            (format!("{HEAD}[options.a]\ntype = 'string'\ndoc = 'd'\npattern = '['\n"), "is not a regular expression"),
            (format!("{HEAD}[options.a]\ntype = 'bool'\ndoc = 'd'\npattern = 'x'\n"), "`pattern` is for a `string`"),
            (
                format!("{HEAD}[options.a]\ntype = 'string'\ndoc = 'd'\nkeys = 'x'\n"),
                "`keys` is for the keys of a `map`",
            ),
            (format!("{HEAD}[options.a]\ntype = 'string'\ndoc = 'd'\nmin = 1\n"), "`min` is for an `integer`"),
            (
                format!("{HEAD}[options.a]\ntype = 'integer'\ndoc = 'd'\nmax = 4\ndefault = 5\n"),
                "the default of `a` must be at most 4",
            ),
            (format!("{HEAD}[options.a]\ntype = 'list<list<list<list<string>>>>'\ndoc = 'd'\n"), "is not a type"),
        ] {
            let found = mistakes(&text);
            assert!(found.iter().any(|line| line.contains(expected)), "{text}: {found:#?}");
        }
        assert!(parse("x", &"#".repeat(LARGEST + 1)).is_err());
    }
}
