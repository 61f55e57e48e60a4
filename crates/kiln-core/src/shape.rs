//! Holds a table against the keys it may have and reads its values.
//!
//! [`check`] reports every mistake; the getters of [`Section`] then stay silent and give `None` for what was wrong.

use std::{str::FromStr, time::Duration};

use crate::{
    ByteSize,
    diagnostic::{Diagnostic, did_you_mean},
    duration,
    keys::{Key, Kind, Need},
    node::{At, Entry, Node, Report, Table, Value},
    plan::Caching,
};

/// A table that was held against `keys`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Section<'n> {
    table: Option<&'n Table>,
    keys: &'static [Key],
}

impl<'n> Section<'n> {
    pub(crate) fn new(node: &'n Node, keys: &'static [Key]) -> Self {
        Self { table: node.as_table(), keys }
    }

    /// A table that was not written: every key has its default.
    pub(crate) fn absent(keys: &'static [Key]) -> Self {
        Self { table: None, keys }
    }

    pub(crate) fn entry(&self, name: &str) -> Option<&'n Entry> {
        debug_assert!(self.keys.iter().any(|key| key.name == name), "`{name}` is not in the table of keys");
        self.table?.get(name)
    }

    pub(crate) fn node(&self, name: &str) -> Option<&'n Node> {
        self.entry(name).map(|entry| &entry.node)
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.entry(name).is_some()
    }

    fn default(&self, name: &str) -> Option<&'static str> {
        match self.keys.iter().find(|key| key.name == name)?.need {
            Need::Default(text) => Some(text),
            _ => None,
        }
    }

    /// The value as text, or the default.
    pub(crate) fn string(&self, name: &str) -> Option<String> {
        match self.node(name) {
            Some(node) => node.text(),
            None => self.default(name).map(str::to_owned),
        }
    }

    fn parsed<T>(
        &self,
        name: &str,
        from_node: impl Fn(&Node) -> Option<T>,
        from_text: impl Fn(&str) -> Option<T>,
    ) -> Option<T> {
        match self.node(name) {
            Some(node) => from_node(node),
            None => self.default(name).and_then(from_text),
        }
    }

    pub(crate) fn bool(&self, name: &str) -> Option<bool> {
        let read = |node: &Node| if let Value::Bool(value) = node.value { Some(value) } else { None };
        self.parsed(name, read, |text| text.parse().ok())
    }

    pub(crate) fn integer<T: TryFrom<i64> + FromStr>(&self, name: &str) -> Option<T> {
        let read = |node: &Node| if let Value::Integer(value) = node.value { T::try_from(value).ok() } else { None };
        self.parsed(name, read, |text| text.parse().ok())
    }

    pub(crate) fn duration(&self, name: &str) -> Option<Duration> {
        let parse = |text: &str| duration::parse(text).ok();
        self.parsed(name, |node| node.as_str().and_then(parse), parse)
    }

    /// `false` or a duration.
    pub(crate) fn caching(&self, name: &str) -> Option<Caching> {
        let read = |node: &Node| match node.value {
            Value::Bool(false) => Some(Caching::Never),
            _ => node.as_str().and_then(|text| duration::parse(text).ok()).map(Caching::For),
        };
        self.parsed(name, read, |text| duration::parse(text).ok().map(Caching::For))
    }

    pub(crate) fn size(&self, name: &str) -> Option<ByteSize> {
        let parse = |text: &str| text.parse().ok();
        self.parsed(name, |node| node.as_str().and_then(parse), parse)
    }

    /// The texts of a list; a default is written with commas.
    pub(crate) fn strings(&self, name: &str) -> Vec<String> {
        let read = |node: &Node| node.as_list().map(|items| items.iter().filter_map(Node::text).collect());
        self.parsed(name, read, |text| Some(text.split(", ").map(str::to_owned).collect())).unwrap_or_default()
    }

    pub(crate) fn list(&self, name: &str) -> &'n [Node] {
        self.node(name).and_then(Node::as_list).unwrap_or_default()
    }

    pub(crate) fn table(&self, name: &str) -> impl Iterator<Item = (&'n String, &'n Entry)> {
        self.node(name).and_then(Node::as_table).into_iter().flatten()
    }

    /// The table under `name` with its own keys; one that was not written has only defaults.
    pub(crate) fn section(&self, name: &str, keys: &'static [Key]) -> Self {
        self.node(name).map_or(Self::absent(keys), |node| Section::new(node, keys))
    }
}

/// Reports what is unknown, missing or of the wrong kind in a table.
pub(crate) fn check(report: &mut Report, node: &Node, keys: &'static [Key], what: &str) {
    let Some(table) = table(report, node, what) else { return };
    for (name, entry) in table {
        match keys.iter().find(|key| key.name == name) {
            Some(Key { kind: kind @ Kind::Table(_), .. }) => check_kind(report, &entry.node, kind, &within(what, name)),
            Some(key) => check_kind(report, &entry.node, &key.kind, name),
            None => unknown(report, entry.key, name, what, keys.iter().map(|key| key.name)),
        }
    }
    missing(report, node.at, table, keys, what);
}

/// The name of a table as its header has it: `builder.qemu` inside `` `[builder]` ``.
fn within(what: &str, name: &str) -> String {
    let parent =
        what.strip_prefix("`[").and_then(|rest| rest.strip_suffix("]`")).filter(|parent| !parent.contains('['));
    parent.map_or_else(|| name.to_owned(), |parent| format!("{parent}.{name}"))
}

/// Reports a key that nobody knows.
pub(crate) fn unknown<'a>(
    report: &mut Report,
    at: At,
    name: &str,
    what: &str,
    known: impl IntoIterator<Item = &'a str> + Clone,
) {
    let mut diagnostic = Diagnostic::new(format!("unknown key `{name}` in {what}"));
    diagnostic.help = did_you_mean(name, known.clone()).or_else(|| {
        let mut names: Vec<&str> = known.into_iter().collect();
        names.sort_unstable();
        (!names.is_empty()).then(|| format!("{what} takes {}", list(&names)))
    });
    report.push(diagnostic, at, "");
}

/// `` `a`, `b` and `c` ``
pub(crate) fn list<S: AsRef<str>>(names: &[S]) -> String {
    let quoted: Vec<String> = names.iter().map(|name| format!("`{}`", name.as_ref())).collect();
    match quoted.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} and {last}", rest.join(", ")),
        _ => quoted.concat(),
    }
}

pub(crate) fn missing(report: &mut Report, at: At, table: &Table, keys: &'static [Key], what: &str) {
    for key in keys.iter().filter(|key| key.need == Need::Required && !table.contains_key(key.name)) {
        report.error_with_help(at, format!("{what} lacks the key `{}`", key.name), key.doc);
    }
}

pub(crate) fn table<'n>(report: &mut Report, node: &'n Node, what: &str) -> Option<&'n Table> {
    if node.as_table().is_none() {
        wrong_kind(report, node, what, "a table");
    }
    node.as_table()
}

pub(crate) fn wrong_kind(report: &mut Report, node: &Node, what: &str, wanted: &str) {
    if node.value != Value::Invalid {
        report.error(node.at, format!("{what} must be {wanted}, this is {}", node.kind()));
    }
}

/// Holds one value against the kind it must have.
pub(crate) fn check_kind(report: &mut Report, node: &Node, kind: &'static Kind, name: &str) {
    if node.value == Value::Invalid {
        return;
    }
    let what = format!("`{name}`");
    match kind {
        Kind::String => _ = text(report, node, &what),
        Kind::Bool if !matches!(node.value, Value::Bool(_)) => wrong_kind(report, node, &what, "`true` or `false`"),
        Kind::Condition if !matches!(node.value, Value::Bool(_) | Value::String(_)) => {
            wrong_kind(report, node, &what, "an expression in quotes, or `true` or `false`");
        }
        Kind::Any | Kind::Bool | Kind::Condition => {}
        Kind::Integer(least, most) => match node.value {
            Value::Integer(number) if number < *least || number > *most => {
                report.error(node.at, format!("{what} must be from {least} to {most}"));
            }
            Value::Integer(_) => {}
            _ => wrong_kind(report, node, &what, "an integer"),
        },
        Kind::Duration => parse(report, node, &what, "a duration in quotes, for instance `\"10 min\"`", |text| {
            duration::parse(text).map(|_| ()).map_err(|error| error.to_string())
        }),
        Kind::Caching => match node.value {
            Value::Bool(false) => {}
            Value::String(_) => check_kind(report, node, &Kind::Duration, name),
            _ => wrong_kind(report, node, &what, "`false`, or a duration in quotes, for instance `\"7 days\"`"),
        },
        Kind::Size => parse(report, node, &what, "a size in quotes, for instance `\"4 GiB\"`", |text| {
            text.parse::<ByteSize>().map(|_| ()).map_err(|error| error.to_string())
        }),
        Kind::Word(words) => word(report, node, &what, words),
        Kind::Words(words) => each(report, node, &what, |report, item| word(report, item, &what, words)),
        Kind::Strings => {
            each(report, node, &what, |report, item| _ = text(report, item, &format!("an item of {what}")));
        }
        Kind::StringMap => {
            for (key, entry) in table(report, node, &what).into_iter().flatten() {
                text(report, &entry.node, &format!("`{name}.{key}`"));
            }
        }
        Kind::Table(keys) => check(report, node, keys, &format!("`[{name}]`")),
        Kind::Named(keys) => {
            for (key, entry) in table(report, node, &what).into_iter().flatten() {
                check(report, &entry.node, keys, &format!("`[{name}.{key}]`"));
            }
        }
        Kind::Tables(keys) => {
            each(report, node, &what, |report, item| check(report, item, keys, &format!("`[[{name}]]`")));
        }
        // These depend on more than the table itself; `resolve` holds them against what `use` names.
        Kind::Steps(_) | Kind::Variants(..) => each(report, node, &what, |report, item| {
            table(report, item, &format!("`[[{name}]]`"));
        }),
        Kind::Axes => _ = table(report, node, &what),
    }
}

/// Holds a table against common keys and those of one variant.
pub(crate) fn check_open(report: &mut Report, node: &Node, common: &'static [Key], more: &'static [Key], what: &str) {
    let Some(table) = table(report, node, what) else { return };
    for (name, entry) in table {
        match common.iter().chain(more).find(|key| key.name == name) {
            Some(key) => check_kind(report, &entry.node, &key.kind, name),
            None => unknown(report, entry.key, name, what, common.iter().chain(more).map(|key| key.name)),
        }
    }
    missing(report, node.at, table, common, what);
    missing(report, node.at, table, more, what);
}

/// Holds only those keys of a table that are listed; the others belong to somebody else.
pub(crate) fn check_listed(report: &mut Report, node: &Node, keys: &'static [Key], what: &str) {
    let Some(table) = table(report, node, what) else { return };
    for key in keys {
        if let Some(entry) = table.get(key.name) {
            check_kind(report, &entry.node, &key.kind, key.name);
        }
    }
    missing(report, node.at, table, keys, what);
}

fn text(report: &mut Report, node: &Node, what: &str) -> Option<String> {
    let text = node.text();
    match &text {
        None => wrong_kind(report, node, what, "a string"),
        Some(text) if text.contains('\0') => report.error(node.at, format!("{what} contains a NUL character")),
        Some(_) => {}
    }
    text
}

fn parse(report: &mut Report, node: &Node, what: &str, wanted: &str, parse: impl Fn(&str) -> Result<(), String>) {
    match node.as_str() {
        None => wrong_kind(report, node, what, wanted),
        Some(text) => {
            if let Err(message) = parse(text) {
                report.error(node.at, format!("{what}: {message}"));
            }
        }
    }
}

fn word(report: &mut Report, node: &Node, what: &str, words: &[&'static str]) {
    let Some(text) = text(report, node, what) else { return };
    if !words.contains(&text.as_str()) {
        let mut diagnostic = Diagnostic::new(format!("{what} cannot be `{text}`: it is one of {}", list(words)));
        diagnostic.help = did_you_mean(&text, words.iter().copied());
        report.push(diagnostic, node.at, "");
    }
}

fn each(report: &mut Report, node: &Node, what: &str, mut check: impl FnMut(&mut Report, &Node)) {
    match node.as_list() {
        Some(items) => items.iter().for_each(|item| check(report, item)),
        None => wrong_kind(report, node, what, "a list"),
    }
}
