//! Replaces the expressions of a tree of values.

use serde_json::Value as Json;

use crate::{
    Diagnostic,
    expression::{Mistake, Rendered, Scope},
    node::{At, Entry, Node, Report, Value},
};

/// The tree with every string rendered. What could not be becomes [`Value::Invalid`].
pub(super) fn evaluate(report: &mut Report, scope: &Scope, node: &Node) -> Node {
    let value = match &node.value {
        Value::String(text) => match scope.render(text) {
            Ok(Rendered::Plain) => return node.clone(),
            Ok(Rendered::Text(text)) => Value::String(text),
            Ok(Rendered::Value(json)) => return computed(&json, node.at),
            Ok(Rendered::Unknown) => Value::Invalid,
            Err(mistake) => {
                report_mistake(report, node.at, mistake);
                Value::Invalid
            }
        },
        Value::List(items) => Value::List(items.iter().map(|item| evaluate(report, scope, item)).collect()),
        Value::Table(table) => Value::Table(
            table
                .iter()
                .map(|(name, entry)| {
                    let node = evaluate(report, scope, &entry.node);
                    (name.clone(), Entry { key: entry.key, node })
                })
                .collect(),
        ),
        _ => return node.clone(),
    };
    Node::new(value, node.at)
}

/// A condition: a boolean, or an expression without braces. `None` after a mistake.
pub(super) fn condition(report: &mut Report, scope: &Scope, node: &Node) -> Option<bool> {
    match &node.value {
        Value::Bool(value) => Some(*value),
        Value::String(text) => match scope.condition(text) {
            Ok(value) => value,
            Err(mistake) => {
                report_mistake(report, node.at, mistake);
                None
            }
        },
        // The wrong kind is reported where the keys are checked.
        _ => None,
    }
}

pub(super) fn report_mistake(report: &mut Report, at: At, mistake: Mistake) {
    let place = report.inside(at, mistake.range);
    let mut diagnostic = Diagnostic::new(mistake.message);
    diagnostic.help = mistake.help;
    report.push(diagnostic, place, "");
}

/// A value that came from elsewhere, at the place that asked for it.
pub(super) fn computed(json: &Json, at: At) -> Node {
    let value = match json {
        Json::Null => Value::Invalid,
        Json::Bool(value) => Value::Bool(*value),
        Json::Number(number) => {
            number.as_i64().map_or_else(|| Value::Float(number.as_f64().unwrap_or(0.0)), Value::Integer)
        }
        Json::String(text) => Value::String(text.clone()),
        Json::Array(items) => Value::List(items.iter().map(|item| computed(item, at)).collect()),
        Json::Object(map) => Value::Table(
            map.iter().map(|(name, value)| (name.clone(), Entry { key: at, node: computed(value, at) })).collect(),
        ),
    };
    Node { value, at, computed: true }
}
