//! `{{ expressions }}` in strings: version 1 of the language, on top of minijinja.
//!
//! Only expressions, no statements: `{% .. %}` and `{# .. #}` are plain text. Undefined names are mistakes, and so is
//! everything a hostile template could use to take time or memory: sizes are checked before the work is done.

mod filters;
mod scan;

use std::{
    cell::Cell,
    collections::{BTreeMap, BTreeSet},
    ops::Range,
};

use minijinja::{Environment, Error, ErrorKind, Value, value::ValueKind};
use serde_json::Value as Json;

pub(crate) use self::filters::{FILTERS, TESTS};
use self::{
    filters::{environment, plain},
    scan::{find_name, only_numbers_are_multiplied, segments, trimmed},
};
use crate::{diagnostic::did_you_mean, shape::list};

/// The version of the expression language; raised when an expression that was valid means something else.
pub const LANGUAGE: u32 = 1;
/// What all expressions of one image may expand to, in bytes.
pub const LARGEST_EXPANSION: usize = 1 << 20;
/// The longest single expression, in bytes.
const LONGEST_EXPRESSION: usize = 4096;
/// Bytes an expression could build up by naming a large value again and again.
const LARGEST_INTERMEDIATE: usize = 64 << 20;

/// A mistake in an expression; `range` is in the bytes of the string it stands in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mistake {
    pub(crate) range: Range<usize>,
    pub(crate) message: String,
    pub(crate) help: Option<String>,
}

impl Mistake {
    fn new(range: Range<usize>, message: impl Into<String>) -> Self {
        Self { range, message: message.into(), help: None }
    }

    fn with_help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    fn shifted(mut self, by: usize) -> Self {
        self.range = self.range.start + by..self.range.end + by;
        self
    }
}

/// What a string with expressions gives.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Rendered {
    /// There was no expression in it.
    Plain,
    Text(String),
    /// The string was exactly one expression, whose value keeps its type.
    Value(Json),
    /// It needs a value that is missing, which was reported already.
    Unknown,
}

/// The names an expression may use.
#[derive(Debug)]
pub(crate) struct Scope {
    environment: Environment<'static>,
    values: BTreeMap<String, Value>,
    /// Bytes of each value, as JSON.
    sizes: BTreeMap<String, usize>,
    sensitive: BTreeSet<String>,
    unknown: BTreeSet<String>,
    left: Cell<usize>,
}

impl Scope {
    pub(crate) fn new() -> Self {
        Self {
            environment: environment(),
            values: BTreeMap::new(),
            sizes: BTreeMap::new(),
            sensitive: BTreeSet::new(),
            unknown: BTreeSet::new(),
            left: Cell::new(LARGEST_EXPANSION),
        }
    }

    pub(crate) fn set(&mut self, name: &str, value: &Json) {
        self.sizes.insert(name.to_owned(), value.to_string().len());
        self.values.insert(name.to_owned(), jinja(value));
        self.unknown.remove(name);
    }

    /// A name whose use anywhere is a mistake.
    pub(crate) fn set_sensitive(&mut self, name: &str) {
        self.sensitive.insert(name.to_owned());
    }

    /// A name whose value is missing, which was reported: what uses it stays silent.
    pub(crate) fn set_unknown(&mut self, name: &str) {
        self.values.remove(name);
        self.unknown.insert(name.to_owned());
    }

    pub(crate) fn is_sensitive(&self, name: &str) -> bool {
        self.sensitive.contains(name)
    }

    /// Replaces the expressions of a string.
    pub(crate) fn render(&self, text: &str) -> Result<Rendered, Mistake> {
        let segments = segments(text)?;
        match segments.as_slice() {
            [] => return Ok(Rendered::Plain),
            [only] if only.outer == (0..text.len()) => {
                return Ok(
                    match self.evaluate(&text[only.inner.clone()]).map_err(|m| m.shifted(only.inner.start))? {
                        Some(value) => Rendered::Value(self.json(&value, only.inner.clone())?),
                        None => Rendered::Unknown,
                    },
                );
            }
            _ => {}
        }
        let mut result = String::new();
        let mut unknown = false;
        let mut end = 0;
        for segment in segments {
            result.push_str(&text[end..segment.outer.start]);
            end = segment.outer.end;
            let source = &text[segment.inner.clone()];
            match self.evaluate(source).map_err(|mistake| mistake.shifted(segment.inner.start))? {
                Some(value) => result.push_str(&self.inline(&value, segment.inner)?),
                None => unknown = true,
            }
        }
        result.push_str(&text[end..]);
        Ok(if unknown { Rendered::Unknown } else { Rendered::Text(result) })
    }

    /// Evaluates an expression without braces that must give a boolean; `None` when it needs a missing value.
    pub(crate) fn condition(&self, text: &str) -> Result<Option<bool>, Mistake> {
        if text.contains("{{") {
            return Err(Mistake::new(0..text.len(), "a condition is an expression without `{{ }}`"));
        }
        let Some(value) = self.evaluate(text)? else { return Ok(None) };
        bool::try_from(value.clone()).ok().filter(|_| value.kind() == ValueKind::Bool).map(Some).ok_or_else(|| {
            Mistake::new(
                0..text.len(),
                format!("a condition must give `true` or `false`, this gives a {}", value.kind()),
            )
            .with_help("compare it with something: `x == \"y\"`")
        })
    }

    /// The name when the whole string is `{{ name }}`.
    pub(crate) fn single_name(text: &str) -> Option<&str> {
        let name = text.trim().strip_prefix("{{")?.strip_suffix("}}")?.trim();
        let sound = !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        sound.then_some(name)
    }

    fn evaluate(&self, source: &str) -> Result<Option<Value>, Mistake> {
        let whole = trimmed(source);
        if source.len() > LONGEST_EXPRESSION {
            return Err(Mistake::new(whole, format!("the expression is longer than {LONGEST_EXPRESSION} bytes")));
        }
        if source[whole.clone()].is_empty() {
            return Err(Mistake::new(0..source.len(), "the expression is empty")
                .with_help("literal braces are written `{{ \"{{\" }}`"));
        }
        only_numbers_are_multiplied(source)?;
        let expression = self
            .environment
            .compile_expression_owned(source.to_owned())
            .map_err(|error| self.mistake(&error, source, &[]))?;
        let names = expression.undeclared_variables(false);
        let mut sorted: Vec<&String> = names.iter().collect();
        sorted.sort();
        if let Some(mistake) = sorted.iter().find_map(|name| self.bad_name(name, source)) {
            return Err(mistake);
        }
        let largest = sorted.iter().filter_map(|name| self.sizes.get(*name)).max().copied().unwrap_or(0);
        if largest.saturating_mul(source.len() / 2) > LARGEST_INTERMEDIATE {
            return Err(Mistake::new(whole, "a value in this expression is too large to compute with"));
        }
        if sorted.iter().any(|name| self.unknown.contains(*name)) {
            return Ok(None);
        }
        let dotted: Vec<String> = expression.undeclared_variables(true).into_iter().collect();
        let value = expression
            .eval(Value::from_pairs(self.values.iter().map(|(name, value)| (name.clone(), value.clone()))))
            .map_err(|error| self.mistake(&error, source, &dotted))?;
        if value.is_undefined() {
            return Err(self.undefined(whole, &dotted));
        }
        if value.is_none() {
            return Err(Mistake::new(whole, "the expression gives nothing"));
        }
        Ok(Some(value))
    }

    fn bad_name(&self, name: &str, source: &str) -> Option<Mistake> {
        let range = find_name(source, name);
        if self.is_sensitive(name) {
            let help =
                format!("use `secrets = {{ NAME = \"{{{{ {name} }}}}\" }}` of a step; its environment gets the value");
            return Some(Mistake::new(range, format!("`{name}` is sensitive and cannot be used here")).with_help(help));
        }
        if self.values.contains_key(name) || self.unknown.contains(name) {
            return None;
        }
        let mut mistake = Mistake::new(range, format!("`{name}` is not defined"));
        mistake.help = did_you_mean(name, self.values.keys().chain(&self.unknown).map(String::as_str));
        Some(mistake)
    }

    fn mistake(&self, error: &Error, source: &str, dotted: &[String]) -> Mistake {
        let range =
            error.range().filter(|r| r.start < r.end && r.end <= source.len()).unwrap_or_else(|| trimmed(source));
        match error.kind() {
            ErrorKind::UndefinedError => self.undefined(range, dotted),
            ErrorKind::OutOfFuel => Mistake::new(range, "the expression takes too long"),
            ErrorKind::UnknownFilter | ErrorKind::UnknownTest => {
                let name = source[range.clone()].trim_start_matches(['|', ' ']).to_owned();
                let filter = error.kind() == ErrorKind::UnknownFilter;
                let known: Vec<&str> =
                    if filter { FILTERS.iter().map(|(name, _)| *name).collect() } else { TESTS.to_vec() };
                let word: &str = name.split(|c: char| !c.is_alphanumeric()).find(|w| !w.is_empty()).unwrap_or_default();
                let mut mistake =
                    Mistake::new(range, format!("there is no {} `{word}`", if filter { "filter" } else { "test" }));
                mistake.help =
                    did_you_mean(word, known.iter().copied()).or_else(|| Some(format!("there are {}", list(&known))));
                mistake
            }
            _ => Mistake::new(range, error.detail().map_or_else(|| error.kind().to_string(), str::to_owned)),
        }
    }

    /// Names the first dotted name that leads nowhere.
    fn undefined(&self, range: Range<usize>, dotted: &[String]) -> Mistake {
        let mut names: Vec<&String> = dotted.iter().collect();
        names.sort();
        for name in names {
            let mut parts = name.split('.');
            let Some(mut value) = parts.next().and_then(|first| self.values.get(first)).cloned() else { continue };
            for part in parts {
                let next = value.get_attr(part).unwrap_or(Value::UNDEFINED);
                if next.is_undefined() {
                    let known: Vec<String> = value
                        .try_iter()
                        .into_iter()
                        .flatten()
                        .filter_map(|key| key.as_str().map(str::to_owned))
                        .collect();
                    let mut mistake = Mistake::new(range, format!("`{name}` is not defined"));
                    mistake.help = did_you_mean(part, known.iter().map(String::as_str))
                        .or_else(|| (!known.is_empty()).then(|| format!("it has {}", list(&known))));
                    return mistake;
                }
                value = next;
            }
        }
        Mistake::new(range, "the expression gives no value")
    }

    /// A value inside text.
    fn inline(&self, value: &Value, range: Range<usize>) -> Result<String, Mistake> {
        match value.kind() {
            ValueKind::String | ValueKind::Number | ValueKind::Bool => {
                let text = plain(value);
                self.spend(text.len(), &range)?;
                Ok(text)
            }
            kind => Err(Mistake::new(range, format!("a {kind} cannot stand inside text"))
                .with_help("use `| join(\", \")` or `| tojson`, or let the expression be the whole string")),
        }
    }

    fn json(&self, value: &Value, range: Range<usize>) -> Result<Json, Mistake> {
        self.spend(1, &range)?;
        Ok(match value.kind() {
            ValueKind::Bool => Json::Bool(value.is_true()),
            ValueKind::Number => match i64::try_from(value.clone()) {
                Ok(number) if value.is_integer() => Json::from(number),
                _ => Json::from(f64::try_from(value.clone()).unwrap_or(f64::NAN)),
            },
            ValueKind::String => {
                let text = value.to_string();
                self.spend(text.len(), &range)?;
                Json::String(text)
            }
            ValueKind::Seq | ValueKind::Iterable => {
                let items = value.try_iter().map_err(|error| Mistake::new(range.clone(), error.to_string()))?;
                Json::Array(items.map(|item| self.json(&item, range.clone())).collect::<Result<_, _>>()?)
            }
            ValueKind::Map => {
                let mut map = serde_json::Map::new();
                for key in value.try_iter().map_err(|error| Mistake::new(range.clone(), error.to_string()))? {
                    let item = value.get_item(&key).map_err(|error| Mistake::new(range.clone(), error.to_string()))?;
                    self.spend(key.to_string().len(), &range)?;
                    map.insert(key.to_string(), self.json(&item, range.clone())?);
                }
                Json::Object(map)
            }
            kind => return Err(Mistake::new(range, format!("the expression gives a value of kind {kind}"))),
        })
    }

    fn spend(&self, bytes: usize, range: &Range<usize>) -> Result<(), Mistake> {
        let left = self.left.get().checked_sub(bytes).ok_or_else(|| {
            Mistake::new(
                range.clone(),
                format!("the expressions of this image expand to more than {LARGEST_EXPANSION} bytes"),
            )
        })?;
        self.left.set(left);
        Ok(())
    }
}

fn jinja(value: &Json) -> Value {
    match value {
        Json::Null => Value::from(()),
        Json::Bool(value) => Value::from(*value),
        Json::Number(number) => number
            .as_i64()
            .map(Value::from)
            .or_else(|| number.as_f64().map(Value::from))
            .unwrap_or_else(|| Value::from(number.to_string())),
        Json::String(text) => Value::from(text.as_str()),
        Json::Array(items) => items.iter().map(jinja).collect(),
        Json::Object(map) => Value::from_pairs(map.iter().map(|(key, value)| (key.clone(), jinja(value)))),
    }
}
