//! `{{ expressions }}` in strings: version 1 of the language, on top of minijinja.
//!
//! Only expressions, no statements: `{% .. %}` and `{# .. #}` are plain text. Undefined names are mistakes, and so is
//! everything a hostile template could use to take time or memory: sizes are checked before the work is done.

use std::{
    cell::Cell,
    collections::{BTreeMap, BTreeSet},
    ops::Range,
};

use minijinja::{
    Environment, Error, ErrorKind, UndefinedBehavior, Value, filters, tests as jinja_tests, value::ValueKind,
};
use serde_json::Value as Json;

use crate::{diagnostic::did_you_mean, shape::list};

/// The version of the expression language; raised when an expression that was valid means something else.
pub const LANGUAGE: u32 = 1;
/// What all expressions of one image may expand to, in bytes.
pub const LARGEST_EXPANSION: usize = 1 << 20;
/// The longest single expression, in bytes.
const LONGEST_EXPRESSION: usize = 4096;
/// Instructions one expression may take.
const FUEL: u64 = 100_000;
/// Bytes an expression could build up by naming a large value again and again.
const LARGEST_INTERMEDIATE: usize = 64 << 20;

/// The filters, with what they do; the reference lists them.
pub(crate) const FILTERS: &[(&str, &str)] = &[
    ("abs", "absolute value"),
    ("capitalize", "first letter upper case, the rest lower case"),
    ("default", "`x | default(\"y\")`: another value where a key is missing"),
    ("first", "first item"),
    ("float", "as a floating-point number"),
    ("int", "as an integer"),
    ("items", "a map as a list of pairs"),
    ("join", "`list | join(\", \")`: the items as one text"),
    ("last", "last item"),
    ("length", "number of items or characters"),
    ("lower", "lower case"),
    ("max", "largest item"),
    ("min", "smallest item"),
    ("quote", "as one word of a POSIX shell, in single quotes; refuses line breaks and NUL"),
    ("replace", "`text | replace(\"a\", \"b\")`"),
    ("reverse", "backwards"),
    ("round", "rounded"),
    ("sort", "sorted"),
    ("split", "`text | split(\",\")`: a list"),
    ("string", "as text"),
    ("title", "Every Word Capitalized"),
    ("tojson", "as JSON"),
    ("trim", "without white space at both ends"),
    ("unique", "without repeated items"),
    ("upper", "upper case"),
];

/// The tests, as in `x is defined`.
pub(crate) const TESTS: &[&str] = &[
    "defined",
    "undefined",
    "none",
    "string",
    "number",
    "integer",
    "boolean",
    "sequence",
    "mapping",
    "in",
    "even",
    "odd",
    "startingwith",
    "endingwith",
    "true",
    "false",
];

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

/// One expression in a string: with and without its braces.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Segment {
    outer: Range<usize>,
    inner: Range<usize>,
}

/// Finds the expressions of a string. A `}}` inside quotes or inside `{ }` does not end one.
fn segments(text: &str) -> Result<Vec<Segment>, Mistake> {
    let mut found = Vec::new();
    let mut from = 0;
    while let Some(start) = text[from..].find("{{").map(|index| from + index) {
        let inner = start + 2;
        let end = expression_end(&text[inner..]).map(|length| inner + length).ok_or_else(|| {
            Mistake::new(start..start + 2, "this `{{` is never closed")
                .with_help("close it with `}}`; literal braces are written `{{ \"{{\" }}`")
        })?;
        found.push(Segment { outer: start..end + 2, inner: inner..end });
        from = end + 2;
    }
    Ok(found)
}

fn expression_end(text: &str) -> Option<usize> {
    let mut depth = 0_usize;
    let mut chars = text.char_indices();
    while let Some((index, c)) = chars.next() {
        match c {
            '"' | '\'' => {
                while let Some((_, inside)) = chars.next() {
                    if inside == '\\' {
                        chars.next();
                    } else if inside == c {
                        break;
                    }
                }
            }
            '{' => depth += 1,
            '}' if depth > 0 => depth -= 1,
            '}' if text[index..].starts_with("}}") => return Some(index),
            _ => {}
        }
    }
    None
}

/// minijinja repeats strings and lists with `*`, up to 100 MB each; a few of them together would eat the machine.
fn only_numbers_are_multiplied(source: &str) -> Result<(), Mistake> {
    let mut quoted = None;
    let star = source.char_indices().find(|(_, c)| match (quoted, *c) {
        (None, '"' | '\'') => {
            quoted = Some(*c);
            false
        }
        (Some(open), c) if c == open => {
            quoted = None;
            false
        }
        (None, '*') => true,
        _ => false,
    });
    match star {
        Some((index, _)) if source.contains(['"', '\'', '[', '{', '|', '~']) => {
            Err(Mistake::new(index..index + 1, "`*` multiplies numbers only")
                .with_help("an expression with `*` may hold names, numbers, arithmetic and parentheses"))
        }
        _ => Ok(()),
    }
}

fn trimmed(source: &str) -> Range<usize> {
    let start = source.len() - source.trim_start().len();
    start..start + source.trim().len()
}

/// Where a name stands as a whole word, outside of attributes.
fn find_name(source: &str, name: &str) -> Range<usize> {
    let word = |c: char| c.is_alphanumeric() || c == '_';
    source
        .match_indices(name)
        .find(|(index, _)| {
            let before = source[..*index].chars().next_back();
            let after = source[index + name.len()..].chars().next();
            !before.is_some_and(|c| word(c) || c == '.') && !after.is_some_and(word)
        })
        .map_or_else(|| trimmed(source), |(index, _)| index..index + name.len())
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

fn environment() -> Environment<'static> {
    let mut environment = Environment::empty();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    environment.set_debug(true);
    environment.set_fuel(Some(FUEL));
    add_filters(&mut environment);
    environment.add_test("defined", jinja_tests::is_defined);
    environment.add_test("undefined", jinja_tests::is_undefined);
    environment.add_test("none", jinja_tests::is_none);
    environment.add_test("string", jinja_tests::is_string);
    environment.add_test("number", jinja_tests::is_number);
    environment.add_test("integer", jinja_tests::is_integer);
    environment.add_test("boolean", jinja_tests::is_boolean);
    environment.add_test("sequence", jinja_tests::is_sequence);
    environment.add_test("mapping", jinja_tests::is_mapping);
    environment.add_test("in", jinja_tests::is_in);
    environment.add_test("even", jinja_tests::is_even);
    environment.add_test("odd", jinja_tests::is_odd);
    environment.add_test("startingwith", jinja_tests::is_startingwith);
    environment.add_test("endingwith", jinja_tests::is_endingwith);
    environment.add_test("true", jinja_tests::is_true);
    environment.add_test("false", jinja_tests::is_false);
    environment
}

fn add_filters(environment: &mut Environment<'static>) {
    environment.add_filter("abs", filters::abs);
    environment.add_filter("capitalize", filters::capitalize);
    environment.add_filter("default", filters::default);
    environment.add_filter("first", filters::first);
    environment.add_filter("float", filters::float);
    environment.add_filter("int", filters::int);
    environment.add_filter("items", filters::items);
    environment.add_filter("join", join);
    environment.add_filter("last", filters::last);
    environment.add_filter("length", filters::length);
    environment.add_filter("lower", filters::lower);
    environment.add_filter("max", filters::max);
    environment.add_filter("min", filters::min);
    environment.add_filter("quote", quote);
    environment.add_filter("replace", replace);
    environment.add_filter("reverse", filters::reverse);
    environment.add_filter("round", filters::round);
    environment.add_filter("sort", filters::sort);
    environment.add_filter("split", filters::split);
    environment.add_filter("string", |value: &Value| match value.kind() {
        ValueKind::String | ValueKind::Number | ValueKind::Bool => Ok(plain(value)),
        kind => Err(invalid(format!("`string` takes texts, numbers and booleans, this is a {kind}"))),
    });
    environment.add_filter("title", filters::title);
    environment.add_filter("tojson", |value: &Value| {
        serde_json::to_string(value).map_err(|error| invalid(format!("cannot be written as JSON: {error}")))
    });
    environment.add_filter("trim", filters::trim);
    environment.add_filter("unique", filters::unique);
    environment.add_filter("upper", filters::upper);
}

/// A scalar as text. minijinja would write `True`, as Python does.
fn plain(value: &Value) -> String {
    if value.kind() == ValueKind::Bool { value.is_true().to_string() } else { value.to_string() }
}

fn invalid(message: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidOperation, message)
}

fn replace(text: &str, from: &str, to: &str) -> Result<String, Error> {
    let count = text.matches(from).count();
    if count.saturating_mul(to.len()).saturating_add(text.len()) > LARGEST_EXPANSION {
        return Err(invalid("the replaced text is too large"));
    }
    Ok(text.replace(from, to))
}

fn join(items: &Value, separator: Option<&str>) -> Result<String, Error> {
    let mut text = String::new();
    for (index, item) in items.try_iter()?.enumerate() {
        if index > 0 {
            text.push_str(separator.unwrap_or_default());
        }
        if !matches!(item.kind(), ValueKind::String | ValueKind::Number | ValueKind::Bool) {
            return Err(invalid(format!("`join` takes texts and numbers, item {} is a {}", index + 1, item.kind())));
        }
        text.push_str(&plain(&item));
        if text.len() > LARGEST_EXPANSION {
            return Err(invalid("the joined text is too large"));
        }
    }
    Ok(text)
}

/// Single quotes: nothing in between has a meaning to a POSIX shell except the quote itself.
fn quote(text: &str) -> Result<String, Error> {
    if text.contains(['\n', '\r', '\0']) {
        return Err(invalid("a text with line breaks or NUL cannot be quoted; hand it over in `env`"));
    }
    Ok(format!("'{}'", text.replace('\'', r"'\''")))
}
