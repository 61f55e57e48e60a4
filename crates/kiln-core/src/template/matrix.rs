//! The members of a template's matrix: every combination of its axes' values.

use std::collections::BTreeMap;

use serde_json::{Map, Value as Json};

use super::MOST_MEMBERS;
use crate::{
    keys::MATRIX,
    node::{At, Node, Report, Value},
};

/// One combination.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Member {
    /// Axis to the label of its value.
    pub(super) labels: BTreeMap<String, String>,
    /// The labels in the order of the axes as written, joined by `-`.
    pub(super) name: String,
    /// What expressions see as `matrix`.
    pub(super) values: Map<String, Json>,
}

struct Axis {
    name: String,
    key: At,
    values: Vec<(String, Json)>,
}

/// The members; a single unnamed one without a matrix. `None` after a mistake.
pub(super) fn members(report: &mut Report, document: &Node) -> Option<Vec<Member>> {
    let Some(entry) = document.as_table().and_then(|table| table.get(MATRIX)) else {
        return Some(vec![Member::default()]);
    };
    let before = report.found.len();
    let table = crate::shape::table(report, &entry.node, "`[matrix]`")?;
    let mut axes: Vec<Axis> =
        table.iter().filter_map(|(name, entry)| axis(report, name, entry.key, &entry.node)).collect();
    // Later files come first in the list of files: an axis of a parent stands before those of its child.
    axes.sort_by_key(|axis| (std::cmp::Reverse(axis.key.file), axis.key.start));
    if axes.is_empty() && report.found.len() == before {
        report.error(entry.key, "the matrix has no axes");
    }
    if report.found.len() != before {
        return None;
    }
    let count = axes.iter().try_fold(1_usize, |count, axis| count.checked_mul(axis.values.len()));
    if count.is_none_or(|count| count > MOST_MEMBERS) {
        report.error(entry.key, format!("the matrix has more than {MOST_MEMBERS} members"));
        return None;
    }
    let mut members = vec![Member::default()];
    for axis in axes {
        members =
            members.iter().flat_map(|member| axis.values.iter().map(|value| member.with(&axis.name, value))).collect();
    }
    Some(members)
}

impl Member {
    fn with(&self, axis: &str, (label, value): &(String, Json)) -> Self {
        let mut member = self.clone();
        member.labels.insert(axis.to_owned(), label.clone());
        member.name = if self.name.is_empty() { label.clone() } else { format!("{}-{label}", self.name) };
        member.values.insert(axis.to_owned(), value.clone());
        member
    }
}

fn axis(report: &mut Report, name: &str, key: At, node: &Node) -> Option<Axis> {
    if !super::variables::sound_name(name) {
        report.error_with_help(
            key,
            format!("`{name}` is not a name for an axis"),
            "use `a-z`, `0-9` and `_`, beginning with a letter",
        );
        return None;
    }
    let Some(items) = node.as_list() else {
        crate::shape::wrong_kind(report, node, &format!("the axis `{name}`"), "a list of values");
        return None;
    };
    if items.is_empty() {
        report.error(node.at, format!("the axis `{name}` has no values"));
        return None;
    }
    let mut values: Vec<(String, Json)> = Vec::new();
    for item in items {
        let label = match &item.value {
            Value::String(text) => Some(text.clone()),
            Value::Integer(number) => Some(number.to_string()),
            Value::Bool(value) => Some(value.to_string()),
            Value::Table(table) => table.get("name").and_then(|entry| entry.node.as_str()).map(str::to_owned),
            _ => None,
        };
        let Some(label) = label else {
            let message =
                format!("a value of the axis `{name}` is a string, an integer, a boolean or a table with a `name`");
            report.error(item.at, message);
            continue;
        };
        let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        if label.is_empty() || !label.chars().all(plain) {
            let help = "it names the member: use letters, digits, `.`, `_` and `-`";
            report.error_with_help(item.at, format!("`{}` cannot name a value of an axis", label.escape_debug()), help);
        } else if values.iter().any(|(known, _)| *known == label) {
            report.error(item.at, format!("the axis `{name}` has the value `{label}` twice"));
        } else {
            values.push((label, item.to_json()));
        }
    }
    Some(Axis { name: name.to_owned(), key, values })
}
