//! Options of a step, held against the provisioner's manifest and made into JSON.

use std::collections::BTreeMap;

use regex_lite::Regex;
use serde_json::{Map, Value as Json};

use crate::{
    ByteSize,
    diagnostic::{Diagnostic, did_you_mean},
    duration,
    manifest::{OptionKind, OptionSpec},
    node::{At, Entry, Node, Report, Value},
    shape::{list, unknown, wrong_kind},
};

/// A `path` option that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PathOption {
    /// JSON pointer into the options.
    pub(crate) pointer: String,
    pub(crate) path: String,
    pub(crate) at: At,
}

/// The options of a table with defaults filled in. What is unset and has no default is left out.
///
/// A `duration` becomes a number of seconds and a `size` a number of bytes; `path` and `text` stand as written.
pub(crate) fn table<'n>(
    report: &mut Report,
    at: At,
    given: impl IntoIterator<Item = (&'n String, &'n Entry)>,
    specs: &BTreeMap<String, OptionSpec>,
    what: &str,
    pointer: &str,
    paths: &mut Vec<PathOption>,
) -> Map<String, Json> {
    let mut options = Map::new();
    for (name, entry) in given {
        let Some(spec) = specs.get(name) else {
            unknown(report, entry.key, name, what, specs.keys().map(String::as_str));
            continue;
        };
        let pointer = format!("{pointer}/{}", name.replace('~', "~0").replace('/', "~1"));
        let value = value(report, &entry.node, spec, &format!("`{name}`"), &pointer, paths);
        // A mistake leaves its key behind, so that it is not called missing as well.
        options.insert(name.clone(), value.unwrap_or(Json::Null));
    }
    for (name, spec) in specs {
        if options.contains_key(name) {
            continue;
        }
        if let Some(default) = &spec.default {
            options.insert(name.clone(), default.clone());
        } else if spec.required {
            report.error_with_help(at, format!("{what} lacks the option `{name}`"), spec.doc.clone());
        }
    }
    options
}

/// One value; `None` when it was a mistake.
pub(crate) fn value(
    report: &mut Report,
    node: &Node,
    spec: &OptionSpec,
    what: &str,
    pointer: &str,
    paths: &mut Vec<PathOption>,
) -> Option<Json> {
    let value = of_kind(report, node, &spec.kind, what, pointer, paths)?;
    if let Some(text) = value.as_str()
        && !spec.one_of.is_empty()
        && !spec.one_of.iter().any(|allowed| allowed == text)
    {
        let mut diagnostic = Diagnostic::new(format!("{what} cannot be `{text}`: it is one of {}", list(&spec.one_of)));
        diagnostic.help = did_you_mean(text, spec.one_of.iter().map(String::as_str));
        report.push(diagnostic, node.at, "");
        return None;
    }
    allowed(report, node, &spec.kind, spec, what).then_some(value)
}

/// A regular expression for the whole of a text.
pub(crate) fn whole(pattern: &str) -> Result<Regex, regex_lite::Error> {
    Regex::new(&format!("^(?:{pattern})$"))
}

/// Refuses strings, keys and integers that the manifest does not allow. A table's fields have been looked at one by one.
fn allowed(report: &mut Report, node: &Node, kind: &OptionKind, spec: &OptionSpec, what: &str) -> bool {
    match kind {
        OptionKind::String | OptionKind::Text => {
            let Some(text) = node.text() else { return true };
            text_allowed(report, node.at, &text, spec.pattern.as_deref(), spec, what)
        }
        OptionKind::Integer => {
            let Value::Integer(number) = node.value else { return true };
            let (low, high) = (spec.min.is_some_and(|min| number < min), spec.max.is_some_and(|max| number > max));
            let wanted = match (spec.min, spec.max) {
                _ if !low && !high => return true,
                (Some(min), Some(max)) => format!("from {min} to {max}"),
                (Some(min), None) => format!("at least {min}"),
                (_, max) => format!("at most {}", max.unwrap_or(i64::MAX)),
            };
            report.error_with_help(node.at, format!("{what} must be {wanted}"), spec.doc.clone());
            false
        }
        OptionKind::List(item) => {
            let items = node.as_list().unwrap_or_default().iter().enumerate();
            let item = |(index, node)| allowed(report, node, item, spec, &format!("item {} of {what}", index + 1));
            items.map(item).fold(true, |all, one| all && one)
        }
        OptionKind::Map(item) => {
            let mut all = true;
            for (key, entry) in node.as_table().into_iter().flatten() {
                let (named, pattern) = (format!("a key of {what}"), spec.keys.as_deref());
                all &= text_allowed(report, entry.key, key, pattern, spec, &named);
                all &= allowed(report, &entry.node, item, spec, &format!("`{key}` of {what}"));
            }
            all
        }
        OptionKind::Bool | OptionKind::Path | OptionKind::Duration | OptionKind::Size | OptionKind::Table(_) => true,
    }
}

fn text_allowed(report: &mut Report, at: At, text: &str, pattern: Option<&str>, spec: &OptionSpec, what: &str) -> bool {
    let Some(pattern) = pattern else { return true };
    if whole(pattern).is_ok_and(|pattern| pattern.is_match(text)) {
        return true;
    }
    let shown: String = text.chars().take(80).collect();
    let message = format!("{what} cannot be `{}`: it must match `{pattern}`", shown.escape_debug());
    report.error_with_help(at, message, spec.doc.clone());
    false
}

fn of_kind(
    report: &mut Report,
    node: &Node,
    kind: &OptionKind,
    what: &str,
    pointer: &str,
    paths: &mut Vec<PathOption>,
) -> Option<Json> {
    match kind {
        OptionKind::String | OptionKind::Text => text(report, node, what).map(Json::String),
        OptionKind::Path => {
            let path = text(report, node, what)?;
            paths.push(PathOption { pointer: pointer.to_owned(), path: path.clone(), at: node.at });
            Some(Json::String(path))
        }
        OptionKind::Integer => match node.value {
            Value::Integer(number) => Some(Json::from(number)),
            _ => refuse(report, node, what, "an integer"),
        },
        OptionKind::Bool => match node.value {
            Value::Bool(value) => Some(Json::Bool(value)),
            _ => refuse(report, node, what, "`true` or `false`"),
        },
        OptionKind::Duration => {
            let Some(text) = node.as_str() else {
                return refuse(report, node, what, "a duration in quotes, for instance `\"10 min\"`");
            };
            parsed(report, node, what, duration::parse(text).map(|duration| Json::from(duration.as_secs())))
        }
        OptionKind::Size => {
            let Some(text) = node.as_str() else {
                return refuse(report, node, what, "a size in quotes, for instance `\"512 MiB\"`");
            };
            parsed(report, node, what, text.parse::<ByteSize>().map(|size| Json::from(size.bytes())))
        }
        OptionKind::List(item) => {
            let Some(items) = node.as_list() else { return refuse(report, node, what, "a list") };
            let values = items.iter().enumerate().map(|(index, node)| {
                of_kind(
                    report,
                    node,
                    item,
                    &format!("item {} of {what}", index + 1),
                    &format!("{pointer}/{index}"),
                    paths,
                )
            });
            // Every item is looked at, so that all mistakes are found.
            let values: Vec<Option<Json>> = values.collect();
            values.into_iter().collect()
        }
        OptionKind::Map(item) => {
            let Some(entries) = node.as_table() else { return refuse(report, node, what, "a table") };
            let mut map = Map::new();
            for (key, entry) in entries {
                let pointer = format!("{pointer}/{}", key.replace('~', "~0").replace('/', "~1"));
                let value = of_kind(report, &entry.node, item, &format!("`{key}` of {what}"), &pointer, paths);
                map.insert(key.clone(), value.unwrap_or(Json::Null));
            }
            Some(Json::Object(map))
        }
        OptionKind::Table(fields) => {
            let Some(entries) = node.as_table() else { return refuse(report, node, what, "a table") };
            Some(Json::Object(table(report, node.at, entries, fields, what, pointer, paths)))
        }
    }
}

/// A NUL can stand neither in an environment nor in a file name, and a file with one is not text.
fn text(report: &mut Report, node: &Node, what: &str) -> Option<String> {
    let Some(text) = node.text() else { return refuse(report, node, what, "a string") };
    if text.contains('\0') {
        report.error(node.at, format!("{what} contains a NUL character"));
        return None;
    }
    Some(text)
}

fn refuse<T>(report: &mut Report, node: &Node, what: &str, wanted: &str) -> Option<T> {
    wrong_kind(report, node, what, wanted);
    None
}

fn parsed<E: std::fmt::Display>(report: &mut Report, node: &Node, what: &str, value: Result<Json, E>) -> Option<Json> {
    value.map_err(|error| report.error(node.at, format!("{what}: {error}"))).ok()
}
