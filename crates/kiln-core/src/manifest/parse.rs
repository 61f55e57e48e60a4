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
    let mut spec =
        OptionSpec { kind, doc: section.string("doc")?, required: section.bool("required")?, default: None, one_of };
    if let Some(entry) = section.entry("default") {
        spec.default = default(report, name, &entry.node, &spec);
        if spec.required {
            report.error(entry.key, "an option that is required has no use for a default");
        }
    }
    Some(spec)
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
