//! TOML as a tree in which every key and value knows where it was written.

use std::{collections::BTreeMap, ops::Range};

use toml::de::{DeTable, DeValue};

use crate::diagnostic::{Diagnostic, Diagnostics};

/// A place in one of the files of a [`Report`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct At {
    pub(crate) file: usize,
    pub(crate) start: usize,
    pub(crate) end: usize,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Node {
    pub(crate) value: Value,
    pub(crate) at: At,
    /// The value came out of an expression, so a scalar may stand where text is wanted.
    pub(crate) computed: bool,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value {
    /// A mistake that was reported already: whoever meets it stays silent.
    Invalid,
    String(String),
    Integer(i64),
    Float(f64),
    Bool(bool),
    List(Vec<Node>),
    Table(Table),
}

/// Keys in byte order; the order in the file carries no meaning.
pub(crate) type Table = BTreeMap<String, Entry>;

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Entry {
    pub(crate) key: At,
    pub(crate) node: Node,
}

/// The files read so far and the mistakes found in them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Report {
    files: Vec<(String, String)>,
    pub(crate) found: Diagnostics,
}

impl Node {
    pub(crate) fn new(value: Value, at: At) -> Self {
        Self { value, at, computed: false }
    }

    pub(crate) fn as_str(&self) -> Option<&str> {
        if let Value::String(text) = &self.value { Some(text) } else { None }
    }

    pub(crate) fn as_table(&self) -> Option<&Table> {
        if let Value::Table(table) = &self.value { Some(table) } else { None }
    }

    pub(crate) fn as_list(&self) -> Option<&[Self]> {
        if let Value::List(items) = &self.value { Some(items) } else { None }
    }

    /// A string, or a scalar that an expression gave.
    pub(crate) fn text(&self) -> Option<String> {
        match &self.value {
            Value::String(text) => Some(text.clone()),
            Value::Integer(number) if self.computed => Some(number.to_string()),
            Value::Float(number) if self.computed => Some(number.to_string()),
            Value::Bool(value) if self.computed => Some(value.to_string()),
            _ => None,
        }
    }

    /// With an article, for messages.
    pub(crate) fn kind(&self) -> &'static str {
        match self.value {
            Value::Invalid => "a mistake",
            Value::String(_) => "a string",
            Value::Integer(_) => "an integer",
            Value::Float(_) => "a float",
            Value::Bool(_) => "a boolean",
            Value::List(_) => "a list",
            Value::Table(_) => "a table",
        }
    }

    pub(crate) fn to_json(&self) -> serde_json::Value {
        use serde_json::Value as Json;
        match &self.value {
            Value::Invalid => Json::Null,
            Value::String(text) => Json::String(text.clone()),
            Value::Integer(number) => Json::from(*number),
            Value::Float(number) => Json::from(*number),
            Value::Bool(value) => Json::Bool(*value),
            Value::List(items) => items.iter().map(Self::to_json).collect(),
            Value::Table(table) => {
                Json::Object(table.iter().map(|(key, entry)| (key.clone(), entry.node.to_json())).collect())
            }
        }
    }
}

impl Report {
    pub(crate) fn add_file(&mut self, name: &str, text: &str) -> usize {
        self.found.add_source(name, text);
        self.files.push((name.to_owned(), text.to_owned()));
        self.files.len() - 1
    }

    pub(crate) fn file(&self, file: usize) -> &str {
        &self.files[file].0
    }

    pub(crate) fn files(&self) -> impl Iterator<Item = (&str, &str)> {
        self.files.iter().map(|(name, text)| (name.as_str(), text.as_str()))
    }

    /// The text that was written at a place.
    pub(crate) fn written(&self, at: At) -> &str {
        self.files[at.file].1.get(at.start..at.end).unwrap_or_default()
    }

    pub(crate) fn error(&mut self, at: At, message: impl Into<String>) {
        self.push(Diagnostic::new(message), at, "");
    }

    pub(crate) fn error_with_help(&mut self, at: At, message: impl Into<String>, help: impl Into<String>) {
        self.push(Diagnostic::new(message).with_help(help), at, "");
    }

    /// Adds a mistake with its place; further labels may already be on it.
    pub(crate) fn push(&mut self, mut diagnostic: Diagnostic, at: At, label: &str) {
        diagnostic = diagnostic.with_label(self.file(at.file), at.start..at.end, label);
        let last = diagnostic.labels.len() - 1;
        diagnostic.labels.swap(0, last);
        self.found.push(diagnostic);
    }

    /// The place of a byte range inside the *value* of a string written at `at`.
    pub(crate) fn inside(&self, at: At, range: Range<usize>) -> At {
        let written = self.written(at);
        let offsets = value_offsets(written);
        let place = |offset: usize| offsets.get(offset).copied().unwrap_or(written.len());
        let start = at.start + place(range.start);
        // The end is where the last character ends, not where the next begins: escapes are longer than what they mean.
        let end = at.start + place(range.end);
        At { file: at.file, start, end: end.max(start) }
    }

    /// Parses a file that was added. Mistakes are reported; what could be read is returned.
    pub(crate) fn parse(&mut self, file: usize) -> Node {
        let text = self.files[file].1.clone();
        let (root, errors) = DeTable::parse_recoverable(&text);
        for error in errors {
            let span = error.span().unwrap_or(0..0);
            let message = error.message().lines().collect::<Vec<_>>().join(", ");
            self.error(At { file, start: span.start, end: span.end }, message);
        }
        let at = At { file, start: 0, end: text.lines().next().map_or(0, str::len) };
        let table = self.table(file, root.into_inner());
        Node::new(Value::Table(table), at)
    }

    fn table(&mut self, file: usize, table: DeTable<'_>) -> Table {
        table
            .into_iter()
            .map(|(key, value)| {
                let span = key.span();
                let key_at = At { file, start: span.start, end: span.end };
                (key.into_inner().into_owned(), Entry { key: key_at, node: self.value(file, value) })
            })
            .collect()
    }

    fn value(&mut self, file: usize, value: toml::Spanned<DeValue<'_>>) -> Node {
        let span = value.span();
        let at = At { file, start: span.start, end: span.end };
        let value = match value.into_inner() {
            DeValue::String(text) => Value::String(text.into_owned()),
            DeValue::Boolean(value) => Value::Bool(value),
            DeValue::Integer(number) => {
                if let Ok(number) = i64::from_str_radix(number.as_str(), number.radix()) {
                    Value::Integer(number)
                } else {
                    self.error(at, "the integer does not fit into 64 bits");
                    Value::Invalid
                }
            }
            DeValue::Float(number) => match number.as_str().parse::<f64>() {
                Ok(number) if number.is_finite() => Value::Float(number),
                _ => {
                    self.error(at, "the number is not finite");
                    Value::Invalid
                }
            },
            DeValue::Datetime(_) => {
                self.error_with_help(at, "a date has no meaning here", "write it as a string, in quotes");
                Value::Invalid
            }
            DeValue::Array(items) => Value::List(items.into_iter().map(|item| self.value(file, item)).collect()),
            DeValue::Table(table) => Value::Table(self.table(file, table)),
        };
        Node::new(value, at)
    }
}

/// For every byte of a TOML string's value, the offset in its written form; one more for the end.
fn value_offsets(written: &str) -> Vec<usize> {
    let quote = if written.starts_with("\"\"\"") || written.starts_with("'''") {
        3
    } else {
        usize::from(written.starts_with(['"', '\'']))
    };
    let basic = written.starts_with('"');
    let inner = &written[quote..written.len().saturating_sub(quote).max(quote)];
    let mut offsets = Vec::with_capacity(inner.len() + 1);
    let mut chars = inner.char_indices().peekable();
    if quote == 3 {
        chars.next_if(|(_, c)| *c == '\r');
        chars.next_if(|(_, c)| *c == '\n');
    }
    while let Some((index, c)) = chars.next() {
        let at = quote + index;
        if c != '\\' || !basic {
            offsets.extend((0..c.len_utf8()).map(|byte| at + byte));
            continue;
        }
        let Some((_, escape)) = chars.next() else { break };
        let digits = match escape {
            'x' => 2,
            'u' => 4,
            'U' => 8,
            c if c.is_whitespace() => {
                // A backslash at the end of a line takes the white space that follows with it.
                while chars.next_if(|(_, c)| c.is_whitespace()).is_some() {}
                continue;
            }
            _ => 0,
        };
        let code: String = (0..digits).filter_map(|_| chars.next().map(|(_, c)| c)).collect();
        let decoded = u32::from_str_radix(&code, 16).ok().and_then(char::from_u32);
        let length = if digits == 0 { 1 } else { decoded.map_or(1, char::len_utf8) };
        offsets.extend((0..length).map(|_| at));
    }
    offsets.push(chars.peek().map_or(quote + inner.len(), |(index, _)| quote + index));
    offsets
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> (Report, Node) {
        let mut report = Report::default();
        let file = report.add_file("t", text);
        let root = report.parse(file);
        (report, root)
    }

    #[test]
    fn reports_several_syntax_errors_at_once() {
        let (report, _) = parse("a = \nb = 1\nc = [\nd = 'x'\n");
        assert!(report.found.len() >= 2, "{}", report.found);
    }

    #[test]
    fn finds_a_place_inside_a_string_however_it_is_quoted() {
        for text in [
            "a = \"xx{y}\"",
            "a = 'xx{y}'",
            "a = \"\\u00e9{y}\"",
            "a = \"\\x41\\t{y}\"",
            "a = \"\"\"\nxx{y}\"\"\"",
            "a = '''\r\nxx{y}'''",
            "a = \"\"\"x\\\n   x{y}\"\"\"",
            "a = \"éx\\\\{y}\"",
        ] {
            let (report, root) = parse(text);
            assert!(report.found.is_empty(), "{}", report.found);
            let node = &root.as_table().unwrap()["a"].node;
            let value = node.as_str().unwrap();
            let start = value.find('{').unwrap();
            assert_eq!(report.written(report.inside(node.at, start..start + 3)), "{y}", "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_parse_or_are_reported(text in "\\PC{0,80}", bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            for text in [text, String::from_utf8_lossy(&bytes).into_owned()] {
                let (report, _) = parse(&text);
                report.found.render();
            }
        }

        #[test]
        fn offsets_cover_the_value(value in "\\PC{0,20}", start in 0_usize..30) {
            let written = toml::Value::String(value.clone()).to_string();
            let (report, root) = parse(&format!("a = {written}"));
            let node = &root.as_table().unwrap()["a"].node;
            prop_assert_eq!(node.as_str(), Some(value.as_str()));
            prop_assert_eq!(value_offsets(report.written(node.at)).len(), value.len() + 1);
            report.inside(node.at, start..start + 3);
        }
    }
}
