//! The filters and tests of expressions: few, and none that could take much time or memory.

use minijinja::{
    Environment, Error, ErrorKind, UndefinedBehavior, Value, filters, tests as jinja_tests, value::ValueKind,
};

use super::LARGEST_EXPANSION;

/// Instructions one expression may take.
const FUEL: u64 = 100_000;

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

/// Strict, without escaping, with what is listed above and nothing else.
pub(super) fn environment() -> Environment<'static> {
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
pub(super) fn plain(value: &Value) -> String {
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
