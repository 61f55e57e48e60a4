//! Declared variables and their values.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use serde_json::Value as Json;

use super::evaluate;
use crate::{
    Diagnostic, Secret,
    diagnostic::did_you_mean,
    expression::Scope,
    facts::{GivenValue, Inputs, VariableValue},
    keys::{VALIDATION, VARIABLE, VARIABLES},
    node::{At, Node, Report},
    shape::{Section, list},
};

/// A variable as the template declares it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Variable {
    pub name: String,
    #[serde(rename = "type")]
    pub kind: VariableType,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    pub sensitive: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default: Option<Json>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum VariableType {
    String,
    Number,
    Bool,
    List,
    Map,
}

pub(super) struct Declared {
    pub(super) variable: Variable,
    key: At,
    validations: Vec<Validation>,
}

struct Validation {
    condition: Node,
    message: String,
}

/// The values that expressions and secrets take.
#[derive(Debug, Default)]
pub(super) struct Values {
    pub(super) plain: BTreeMap<String, Json>,
    pub(super) secrets: BTreeMap<String, Secret>,
    /// Declared, but without a usable value; that was reported.
    pub(super) unknown: BTreeSet<String>,
}

/// Words of the expression language and names that kiln defines.
const RESERVED: [&str; 15] =
    ["matrix", "image", "true", "false", "none", "not", "and", "or", "in", "is", "if", "else", "True", "False", "None"];

pub(super) fn sound_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.len() <= 64
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
}

/// Reads the declarations. Their shape has been checked.
pub(super) fn declared(report: &mut Report, document: &Node) -> Vec<Declared> {
    let table = document.as_table().and_then(|table| table.get(VARIABLES)).and_then(|entry| entry.node.as_table());
    table.into_iter().flatten().filter_map(|(name, entry)| declare(report, name, entry.key, &entry.node)).collect()
}

fn declare(report: &mut Report, name: &str, key: At, node: &Node) -> Option<Declared> {
    if !sound_name(name) || RESERVED.contains(&name) {
        let help = "use `a-z`, `0-9` and `_`, beginning with a letter, and no word that expressions know already";
        report.error_with_help(key, format!("`{name}` is not a name for a variable"), help);
        return None;
    }
    let section = Section::new(node, VARIABLE);
    let kind = match section.string("type")?.as_str() {
        "number" => VariableType::Number,
        "bool" => VariableType::Bool,
        "list" => VariableType::List,
        "map" => VariableType::Map,
        _ => VariableType::String,
    };
    let sensitive = section.bool("sensitive")?;
    if sensitive && kind != VariableType::String {
        report.error(
            key,
            format!("the sensitive variable `{name}` must be a string: it becomes the environment of a step"),
        );
    }
    let default = section.node("default").map(|node| (node.at, node.to_json()));
    if let Some((at, default)) = &default {
        if let Err(found) = fits(kind, default) {
            report.error(*at, format!("the default of `{name}` must be {}, this is {found}", article(kind)));
        } else if sensitive && default.as_str() != Some("") {
            let help = "leave the default out, or make it the empty string";
            report.error_with_help(
                *at,
                format!("the value of the sensitive variable `{name}` stands in the template"),
                help,
            );
        }
    }
    let validations = section
        .list("validation")
        .iter()
        .filter_map(|node| {
            let section = Section::new(node, VALIDATION);
            Some(Validation { condition: section.node("condition")?.clone(), message: section.string("message")? })
        })
        .collect();
    let default = default.map(|(_, default)| default).filter(|default| fits(kind, default).is_ok());
    let variable =
        Variable { name: name.to_owned(), kind, description: section.string("description"), sensitive, default };
    Some(Declared { variable, key, validations })
}

/// The value of every declared variable. Missing ones, unknown ones and wrong ones are all reported.
pub(super) fn values(report: &mut Report, declared: &[Declared], inputs: &Inputs) -> Values {
    let names: Vec<&str> = declared.iter().map(|declared| declared.variable.name.as_str()).collect();
    for given in &inputs.variables {
        if !names.contains(&given.name.as_str()) {
            let message = format!("{} sets `{}`, which the template does not declare", given.origin, given.name);
            let mut diagnostic = Diagnostic::new(message);
            diagnostic.help = did_you_mean(&given.name, names.iter().copied()).or_else(|| {
                Some(if names.is_empty() {
                    "it has no variables".to_owned()
                } else {
                    format!("it has {}", list(&names))
                })
            });
            report.found.push(diagnostic);
        }
    }
    let mut values = Values::default();
    let mut scope = Scope::new();
    let mut origins = BTreeMap::new();
    for declared in declared {
        let name = &declared.variable.name;
        let given = inputs.variables.iter().rev().find(|given| given.name == *name);
        origins.insert(name.clone(), given.map_or("its default", |given| given.origin.as_str()));
        if let Some(value) = value(report, declared, given) {
            scope.set(name, &value);
            values.plain.insert(name.clone(), value);
        } else {
            scope.set_unknown(name);
            values.unknown.insert(name.clone());
        }
    }
    for declared in declared {
        let name = &declared.variable.name;
        for validation in &declared.validations {
            if evaluate::condition(report, &scope, &validation.condition) == Some(false) {
                let message = format!("`{name}` from {} is refused: {}", origins[name], validation.message);
                report.push(Diagnostic::new(message), validation.condition.at, "this does not hold");
            }
        }
        if declared.variable.sensitive
            && let Some(Json::String(secret)) = values.plain.remove(name)
        {
            values.secrets.insert(name.clone(), Secret::new(secret));
        }
    }
    values
}

fn value(report: &mut Report, declared: &Declared, given: Option<&VariableValue>) -> Option<Json> {
    let Variable { name, kind, default, sensitive, .. } = &declared.variable;
    let Some(given) = given else {
        if default.is_none() {
            let upper = name.to_uppercase();
            let help = format!("set it with `--var {name}=..`, in a `--var-file`, or as `KILN_VAR_{upper}`");
            report.error_with_help(declared.key, format!("the variable `{name}` has no value and no default"), help);
        }
        return default.clone();
    };
    let parsed = match &given.value {
        GivenValue::Typed(value) => fits(*kind, value).map(|()| value.clone()).map_err(str::to_owned),
        GivenValue::Text(text) => from_text(*kind, text).ok_or_else(|| {
            let shown = if *sensitive { "***".to_owned() } else { format!("`{}`", shortened(text)) };
            format!("{shown}{}", example(*kind))
        }),
    };
    let message = |found: String| format!("`{name}` from {} must be {}, this is {found}", given.origin, article(*kind));
    parsed.map_err(|found| report.push(Diagnostic::new(message(found)), declared.key, "declared here")).ok()
}

fn shortened(text: &str) -> String {
    let short: String = text.chars().take(60).collect();
    let dots = if short.len() < text.len() { ".." } else { "" };
    format!("{}{dots}", short.escape_debug())
}

fn article(kind: VariableType) -> &'static str {
    match kind {
        VariableType::String => "a string",
        VariableType::Number => "a number",
        VariableType::Bool => "`true` or `false`",
        VariableType::List => "a list",
        VariableType::Map => "a map",
    }
}

fn example(kind: VariableType) -> &'static str {
    match kind {
        VariableType::List => "; write for instance `[\"a\", \"b\"]`",
        VariableType::Map => "; write for instance `{\"a\": \"b\"}`",
        _ => "",
    }
}

/// What the value is instead.
fn fits(kind: VariableType, value: &Json) -> Result<(), &'static str> {
    if holds_null(value) {
        return Err("or holds nothing");
    }
    match (kind, value) {
        (VariableType::String, Json::String(_))
        | (VariableType::Number, Json::Number(_))
        | (VariableType::Bool, Json::Bool(_))
        | (VariableType::List, Json::Array(_))
        | (VariableType::Map, Json::Object(_)) => Ok(()),
        (_, Json::String(_)) => Err("a string"),
        (_, Json::Number(_)) => Err("a number"),
        (_, Json::Bool(_)) => Err("a boolean"),
        (_, Json::Array(_)) => Err("a list"),
        (_, Json::Object(_)) => Err("a map"),
        (_, Json::Null) => Err("nothing"),
    }
}

fn holds_null(value: &Json) -> bool {
    match value {
        Json::Null => true,
        Json::Array(items) => items.iter().any(holds_null),
        Json::Object(map) => map.values().any(holds_null),
        _ => false,
    }
}

/// Lists and maps are written as JSON or as TOML.
fn from_text(kind: VariableType, text: &str) -> Option<Json> {
    let value = match kind {
        VariableType::String => Json::String(text.to_owned()),
        VariableType::Bool => Json::Bool(text.parse().ok()?),
        VariableType::Number => match text.parse::<i64>() {
            Ok(number) => Json::from(number),
            Err(_) => text.parse::<f64>().ok().filter(|number| number.is_finite()).map(Json::from)?,
        },
        VariableType::List | VariableType::Map => serde_json::from_str(text)
            .ok()
            .or_else(|| toml::de::ValueDeserializer::parse(text).ok().and_then(from_toml))?,
    };
    fits(kind, &value).ok().map(|()| value)
}

fn from_toml(deserializer: toml::de::ValueDeserializer<'_>) -> Option<Json> {
    serde::Deserialize::deserialize(deserializer).ok()
}
