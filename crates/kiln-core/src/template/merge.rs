//! Puts the documents of a template together: later ones win.

use std::collections::BTreeSet;

use crate::{
    keys::{EXTENDS, INCLUDE, REMOVE, TEMPLATE},
    node::{Entry, Node, Report, Table, Value},
    shape,
};

/// Lists whose items have names: the key of the list and what names an item, best first.
const NAMED_LISTS: [(&str, &[&str]); 3] = [("provision", &["as", "use"]), ("check", &["as"]), ("waive", &["finding"])];
/// Tables that hold one of several kinds.
const CHOICES: [&str; 2] = ["base", "builder"];

/// `parts` in the order in which they count; there is at least one.
pub(super) fn merge(report: &mut Report, parts: Vec<Node>) -> Node {
    let at = parts.last().map(|node| node.at);
    let mut document = Table::new();
    for part in parts {
        if let Value::Table(table) = part.value {
            add(report, &mut document, table);
        }
    }
    let at = at.unwrap_or(crate::node::At { file: 0, start: 0, end: 0 });
    Node::new(Value::Table(document), at)
}

fn add(report: &mut Report, document: &mut Table, mut part: Table) {
    if let Some(entry) = part.remove(REMOVE) {
        remove(report, document, &entry.node);
    }
    for (name, entry) in part {
        if name == EXTENDS || name == INCLUDE {
            continue;
        }
        if let Some((_, names)) = NAMED_LISTS.iter().find(|(list, _)| *list == name) {
            append(report, document, &name, entry, names);
        } else if let Some(earlier) = document.get_mut(&name) {
            if CHOICES.contains(&name.as_str()) && other_kind(&earlier.node, &entry.node) {
                *earlier = entry;
            } else {
                overlay(earlier, entry);
            }
        } else {
            document.insert(name, entry);
        }
    }
}

/// Tables are put together key by key; anything else is replaced.
fn overlay(earlier: &mut Entry, later: Entry) {
    match (&mut earlier.node.value, later.node.value) {
        (Value::Table(table), Value::Table(more)) => {
            for (name, entry) in more {
                match table.get_mut(&name) {
                    Some(earlier) => overlay(earlier, entry),
                    None => _ = table.insert(name, entry),
                }
            }
            earlier.node.at = later.node.at;
        }
        (_, value) => earlier.node = Node { value, ..later.node },
    }
    earlier.key = later.key;
}

fn other_kind(earlier: &Node, later: &Node) -> bool {
    match (earlier.as_table(), later.as_table()) {
        (Some(earlier), Some(later)) => !later.is_empty() && later.keys().all(|key| !earlier.contains_key(key)),
        _ => false,
    }
}

fn append(report: &mut Report, document: &mut Table, list: &str, entry: Entry, names: &[&str]) {
    let Value::List(items) = entry.node.value else {
        // The wrong kind is reported with everything else, once the document is complete.
        document.insert(list.to_owned(), entry);
        return;
    };
    let slot = document
        .entry(list.to_owned())
        .or_insert_with(|| Entry { key: entry.key, node: Node::new(Value::List(Vec::new()), entry.node.at) });
    let Value::List(known) = &mut slot.node.value else { return };
    let mut here = BTreeSet::new();
    let earlier = known.len();
    for item in items {
        let explicit = names.first().and_then(|key| field(&item, key)).map(str::to_owned);
        let Some(name) = explicit else {
            known.push(item);
            continue;
        };
        if !here.insert(name.clone()) {
            report.error(item.at, format!("there are two of the name `{name}` in `[[{list}]]`"));
            continue;
        }
        match known[..earlier].iter_mut().find(|known| name_of(known, names) == Some(name.as_str())) {
            Some(known) => *known = item,
            None => known.push(item),
        }
    }
}

fn field<'n>(item: &'n Node, key: &str) -> Option<&'n str> {
    item.as_table()?.get(key)?.node.as_str()
}

fn name_of<'n>(item: &'n Node, names: &[&str]) -> Option<&'n str> {
    names.iter().find_map(|key| field(item, key))
}

fn remove(report: &mut Report, document: &mut Table, removals: &Node) {
    let Some(keys) = TEMPLATE.iter().find(|key| key.name == REMOVE) else { return };
    if let crate::keys::Kind::Table(keys) = keys.kind {
        shape::check(report, removals, keys, "`[remove]`");
    }
    for (list, names) in NAMED_LISTS {
        let wanted = removals.as_table().and_then(|table| table.get(list)).and_then(|entry| entry.node.as_list());
        for node in wanted.unwrap_or_default() {
            let Some(name) = node.as_str() else { continue };
            let items = document.get_mut(list).map(|entry| &mut entry.node.value);
            let Some(Value::List(items)) = items else {
                report.error(node.at, format!("there is no `{name}` in `[[{list}]]` to remove"));
                continue;
            };
            let before = items.len();
            items.retain(|item| name_of(item, names) != Some(name));
            if items.len() == before {
                let known: Vec<String> =
                    items.iter().filter_map(|item| name_of(item, names)).map(str::to_owned).collect();
                let mut diagnostic = crate::Diagnostic::new(format!("there is no `{name}` in `[[{list}]]` to remove"));
                diagnostic.help = crate::diagnostic::did_you_mean(name, known.iter().map(String::as_str));
                report.push(diagnostic, node.at, "");
            }
        }
    }
}
