//! A complete document, values and facts, made into plans.

mod base;
mod checks;
mod ec2;
mod publish;
mod steps;

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value as Json, json};

use super::{
    evaluate::evaluate,
    matrix::{self, Member},
    recipe,
    variables::{self, Values},
};
use crate::{
    Diagnostic, Diagnostics, Digest, ImageName, Version,
    expression::Scope,
    facts::{FactError, Facts, Inputs, ProvisionerFact},
    finding::{self, FINDINGS},
    keys::{IMAGE, Key, MATRIX, OUTPUT, TEMPLATE, VARIABLES, WAIVER},
    name::LATEST,
    node::{At, Entry, Node, Report, Table, Value},
    plan::{OutputFormat, Plan, VersionSpec, Waiver},
    shape::{self, Section, list},
};

pub(super) fn plans(
    mut report: Report,
    document: &Node,
    inputs: &Inputs,
    facts: &dyn Facts,
) -> Result<Vec<Plan>, Diagnostics> {
    check_declarations(&mut report, document);
    let declared = variables::declared(&mut report, document);
    let values = variables::values(&mut report, &declared, inputs);
    // Without members there is still much to find out: one with unknown values stands for them all.
    let members = matrix::members(&mut report, document);
    let known = members.is_some();
    let mut world = World { facts, provisioners: BTreeMap::new() };
    let mut plans = Vec::new();
    for member in members.unwrap_or_else(|| vec![Member::default()]) {
        let scope = scope(&values, known.then_some(&member));
        plans.extend(plan(&mut report, document, scope, &values, &member, &mut world));
    }
    distinct_names(&mut report, document, &plans);
    report.found.sort();
    report.found.into_result(plans)
}

/// Facts, asked once.
struct World<'f> {
    facts: &'f dyn Facts,
    provisioners: BTreeMap<String, Result<ProvisionerFact, FactError>>,
}

impl World<'_> {
    fn provisioner(&mut self, name: &str) -> &Result<ProvisionerFact, FactError> {
        let facts = self.facts;
        self.provisioners.entry(name.to_owned()).or_insert_with(|| facts.provisioner(name))
    }
}

fn is_declaration(key: &Key) -> bool {
    matches!(key.name, VARIABLES | MATRIX)
}

/// Holds what is not evaluated against its keys.
fn check_declarations(report: &mut Report, document: &Node) {
    let Some(table) = document.as_table() else { return };
    for key in TEMPLATE.iter().filter(|key| is_declaration(key)) {
        if let Some(entry) = table.get(key.name) {
            shape::check_kind(report, &entry.node, &key.kind, key.name);
        }
    }
}

fn scope(values: &Values, member: Option<&Member>) -> Scope {
    let mut scope = Scope::new();
    values.plain.iter().for_each(|(name, value)| scope.set(name, value));
    values.unknown.iter().for_each(|name| scope.set_unknown(name));
    values.secrets.keys().for_each(|name| scope.set_sensitive(name));
    match member {
        Some(member) if member.values.is_empty() => {}
        Some(member) => scope.set("matrix", &Json::Object(member.values.clone())),
        None => scope.set_unknown("matrix"),
    }
    scope
}

fn plan(
    report: &mut Report,
    document: &Node,
    mut scope: Scope,
    values: &Values,
    member: &Member,
    world: &mut World<'_>,
) -> Option<Plan> {
    let table = document.as_table()?;
    let name = table
        .get("image")
        .and_then(|entry| entry.node.as_table())
        .and_then(|image| image.get("name"))
        .map(|entry| evaluate(report, &scope, &entry.node));
    match name.as_ref().and_then(Node::text) {
        Some(name) => scope.set("image", &json!({ "name": name })),
        None => scope.set_unknown("image"),
    }
    let evaluated = evaluate_document(report, &scope, document, name.as_ref());
    shape::check(report, &evaluated, TEMPLATE, "the template");
    let root = Section::new(&evaluated, TEMPLATE);
    let image = image(report, root);
    let allowed = root.strings("allow_paths");
    let base = base::base(report, root, world, &allowed);
    let builder = base::builder(report, root, base.as_ref());
    let mut steps = steps::Steps { report, scope: &scope, world, allowed: &allowed };
    let steps = steps.all(root.list("provision"));
    let checks = checks::all(report, &scope, root.list("check"));
    let waivers = waivers(report, root);
    let publish = publish::publish(report, root);
    let (image, version, description) = image?;
    let mut plan = Plan {
        image,
        version,
        description,
        member: member.labels.clone(),
        member_name: member.name.clone(),
        base: base?,
        builder: builder?,
        steps: steps?,
        checks: checks?,
        waivers,
        outputs: outputs(root),
        publish: publish?,
        recipe: Digest::of(b""),
        variables: values.plain.iter().map(|(name, value)| (name.clone(), as_text(value))).collect(),
        secrets: values.secrets.clone(),
    };
    plan.recipe = recipe::digest(&plan);
    Some(plan)
}

fn as_text(value: &serde_json::Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// Everything but declarations, with expressions replaced. Conditions and secrets stay as written: whoever reads
/// them evaluates them in his own way.
fn evaluate_document(report: &mut Report, scope: &Scope, document: &Node, name: Option<&Node>) -> Node {
    let mut table = Table::new();
    for (key, entry) in document.as_table().into_iter().flatten() {
        if TEMPLATE.iter().any(|known| known.name == key && is_declaration(known)) {
            continue;
        }
        let node = match (&entry.node.value, key.as_str()) {
            (Value::List(items), "provision" | "check") => {
                let items =
                    items.iter().map(|item| evaluate_except(report, scope, item, &["when", "secrets"])).collect();
                Node::new(Value::List(items), entry.node.at)
            }
            (Value::Table(_), "image") => {
                let mut image = evaluate_except(report, scope, &entry.node, &["name"]);
                if let (Value::Table(image), Some(name)) = (&mut image.value, name)
                    && let Some(entry) = image.get_mut("name")
                {
                    entry.node = name.clone();
                }
                image
            }
            _ => evaluate(report, scope, &entry.node),
        };
        table.insert(key.clone(), Entry { key: entry.key, node });
    }
    Node::new(Value::Table(table), document.at)
}

fn evaluate_except(report: &mut Report, scope: &Scope, node: &Node, except: &[&str]) -> Node {
    let Some(table) = node.as_table() else { return evaluate(report, scope, node) };
    let entries = table.iter().map(|(key, entry)| {
        let node =
            if except.contains(&key.as_str()) { entry.node.clone() } else { evaluate(report, scope, &entry.node) };
        (key.clone(), Entry { key: entry.key, node })
    });
    Node::new(Value::Table(entries.collect()), node.at)
}

fn image(report: &mut Report, root: Section<'_>) -> Option<(ImageName, VersionSpec, Option<String>)> {
    let image = root.section("image", IMAGE);
    let name = parsed(report, image, "name", str::parse::<ImageName>);
    let version = match image.string("version")?.as_str() {
        "auto" => Some(VersionSpec::Auto),
        LATEST => {
            let help = "`latest` always means the newest one; `auto` takes the day and a counter";
            if let Some(node) = image.node("version") {
                report.error_with_help(node.at, "a version cannot be called `latest`", help);
            }
            None
        }
        _ => parsed(report, image, "version", str::parse::<Version>).map(VersionSpec::Fixed),
    };
    if let (Some(node), Some(text)) = (image.node("description"), image.string("description"))
        && text.contains('\n')
    {
        report.error(node.at, "`description` is one line");
    }
    Some((name?, version?, image.string("description")))
}

/// A text that must parse as something; a failure is reported at its place.
fn parsed<T, E: std::fmt::Display>(
    report: &mut Report,
    section: Section<'_>,
    name: &str,
    parse: impl Fn(&str) -> Result<T, E>,
) -> Option<T> {
    let node = section.node(name)?;
    let text = node.text()?;
    parse(&text).map_err(|error| report.error(node.at, error.to_string())).ok()
}

fn waivers(report: &mut Report, root: Section<'_>) -> Vec<Waiver> {
    let mut waivers: Vec<Waiver> = Vec::new();
    for node in root.list("waive") {
        let section = Section::new(node, WAIVER);
        let (Some(finding), Some(reason)) = (section.string("finding"), section.string("reason")) else { continue };
        let at = section.node("finding").map_or(node.at, |node| node.at);
        if !finding::is_known(&finding) {
            let names: Vec<_> = FINDINGS.iter().map(|(name, _)| *name).collect();
            report.error_with_help(
                at,
                format!("there is no finding `{finding}`"),
                format!("they are {}", list(&names)),
            );
        } else if reason.trim().is_empty() {
            report.error(at, format!("the waiver of {finding} gives no reason"));
        } else if waivers.iter().any(|waiver| waiver.finding == finding) {
            report.error(at, format!("{finding} is waived twice"));
        }
        waivers.push(Waiver { finding, reason });
    }
    waivers.sort_by(|a, b| a.finding.cmp(&b.finding));
    waivers
}

fn outputs(root: Section<'_>) -> Vec<OutputFormat> {
    let formats: BTreeSet<OutputFormat> = root
        .section("output", OUTPUT)
        .strings("formats")
        .iter()
        .filter_map(|format| match format.as_str() {
            "raw" => Some(OutputFormat::Raw),
            "raw.zst" => Some(OutputFormat::RawZstd),
            "vmdk" => Some(OutputFormat::Vmdk),
            "vhd" => Some(OutputFormat::Vhd),
            _ => None,
        })
        .collect();
    formats.into_iter().collect()
}

/// Two members of one name would be two images that publish over each other.
fn distinct_names(report: &mut Report, document: &Node, plans: &[Plan]) {
    let mut seen: BTreeMap<&ImageName, &str> = BTreeMap::new();
    for plan in plans {
        let Some(first) = seen.insert(&plan.image, &plan.member_name) else { continue };
        let image = document.as_table().and_then(|table| table.get("image"));
        let name = image.and_then(|entry| entry.node.as_table()).and_then(|image| image.get("name"));
        let at: At = name.map_or(document.at, |entry| entry.node.at);
        let message = format!("the members `{first}` and `{}` are both called `{}`", plan.member_name, plan.image);
        let axes: Vec<String> = plan.member.keys().map(|axis| format!("{{{{ matrix.{axis} }}}}")).collect();
        let help = format!("put the axes into the name, such as {}", shape::list(&axes));
        report.push(Diagnostic::new(message).with_help(help), at, "");
        return;
    }
}
