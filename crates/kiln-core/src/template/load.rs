//! Reads a template with its parents and parts, within limits.

use super::{LARGEST_TEMPLATE, MOST_INCLUDES, Template, merge};
use crate::{
    Diagnostic, Diagnostics,
    facts::{FactError, Facts, TemplateText},
    keys::{EXTENDS, INCLUDE, TEMPLATE},
    node::{At, Node, Report, Value},
    shape,
};

pub(super) fn load(entry: &TemplateText, facts: &dyn Facts) -> Result<Template, Diagnostics> {
    let mut reader =
        Reader { report: Report::default(), facts, parts: Vec::new(), open: Vec::new(), seen: Vec::new(), bytes: 0 };
    reader.read(entry, None);
    let Reader { mut report, parts, .. } = reader;
    if !report.found.is_empty() {
        report.found.sort();
        return Err(report.found);
    }
    let document = merge::merge(&mut report, parts);
    Ok(Template { report, document })
}

struct Reader<'f> {
    report: Report,
    facts: &'f dyn Facts,
    /// Documents in the order in which they count, the entry last.
    parts: Vec<Node>,
    /// Files being read, outermost first.
    open: Vec<String>,
    seen: Vec<String>,
    bytes: usize,
}

impl Reader<'_> {
    fn read(&mut self, text: &TemplateText, asked: Option<At>) {
        self.bytes += text.text.len();
        if self.bytes > LARGEST_TEMPLATE {
            let message = format!("`{}` makes the template larger than {} KiB", text.name, LARGEST_TEMPLATE >> 10);
            let help = "put large content into a file and name it in the step";
            match asked {
                Some(at) => self.report.error_with_help(at, message, help),
                None => self.report.found.push(Diagnostic::new(message).with_help(help)),
            }
            return;
        }
        let file = self.report.add_file(&text.name, &text.text);
        let before = self.report.found.len();
        let root = self.report.parse(file);
        let readable = self.report.found.len() == before;
        self.open.push(text.name.clone());
        self.seen.push(text.name.clone());
        let table = root.as_table();
        if let Some(entry) = table.and_then(|table| table.get(EXTENDS)) {
            self.follow(&text.name, &entry.node, EXTENDS);
        }
        if let Some(entry) = table.and_then(|table| table.get(INCLUDE)) {
            match &entry.node.value {
                Value::List(items) => items.iter().for_each(|item| self.follow(&text.name, item, INCLUDE)),
                _ => shape::wrong_kind(&mut self.report, &entry.node, "`include`", "a list of paths"),
            }
        }
        if !readable {
            self.unknown_keys(&root);
        }
        self.open.pop();
        self.parts.push(root);
    }

    /// A file that does not parse is not looked at further, except for what is wrong in any case.
    fn unknown_keys(&mut self, root: &Node) {
        for (name, entry) in root.as_table().into_iter().flatten() {
            if !TEMPLATE.iter().any(|key| key.name == name) {
                shape::unknown(&mut self.report, entry.key, name, "the template", TEMPLATE.iter().map(|key| key.name));
            }
        }
    }

    fn follow(&mut self, from: &str, node: &Node, key: &str) {
        let Some(path) = node.as_str() else {
            shape::wrong_kind(&mut self.report, node, &format!("`{key}`"), "a path in quotes");
            return;
        };
        if path.contains("{{") {
            self.report.error(node.at, format!("`{key}` takes no expressions: it is read before there are values"));
            return;
        }
        match self.facts.template(from, path) {
            Err(error) => report_fact(&mut self.report, node.at, &error),
            Ok(text) if self.open.contains(&text.name) => {
                let chain = self.open.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
                self.report
                    .error(node.at, format!("`{path}` leads back to `{}`, which is being read: {chain}", text.name));
            }
            Ok(text) if self.seen.contains(&text.name) => {}
            Ok(_) if self.seen.len() > MOST_INCLUDES => {
                self.report.error(node.at, format!("a template takes in at most {MOST_INCLUDES} files"));
            }
            Ok(text) => self.read(&text, Some(node.at)),
        }
    }
}

/// A fact that could not be had, at the place that asked for it.
pub(super) fn report_fact(report: &mut Report, at: At, error: &FactError) {
    let mut diagnostic = Diagnostic::new(error.message.clone());
    diagnostic.help.clone_from(&error.hint);
    report.push(diagnostic, at, "");
    report.found.append(error.details.clone());
}
