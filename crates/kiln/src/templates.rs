//! From the command line to plans: the template's file, values for its variables, the members that are meant.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet},
    env,
    path::{Path, PathBuf},
};

use kiln_core::{
    facts::{Facts as _, GivenValue, Inputs, VariableValue},
    plan::Plan,
    template::{self, Template},
};
use kiln_provision::{HostFacts, Library};
use toml::{Spanned, Value};

use crate::{
    arguments::TemplateArguments,
    bases::{InRun, Known, Shelf},
    failure::Failure,
    lock::Lock,
};

/// Variables from the environment: this and the variable's name in capital letters.
const PREFIX: &str = "KILN_VAR_";

/// What a template comes to.
#[derive(Debug, Clone)]
pub(crate) struct Planned {
    /// As it was named, or found in a directory.
    pub(crate) template: PathBuf,
    /// In the order of the matrix; only those that are meant.
    pub(crate) plans: Vec<Plan>,
    /// Where the provisioners of the plans are.
    pub(crate) library: Library,
}

/// A template that was read, before the world is asked about its bases.
struct Loaded {
    path: PathBuf,
    facts: HostFacts,
    template: Template,
    inputs: Inputs,
    /// What AMIs meant is looked up anew.
    relock: bool,
}

/// Resolves every template that is named. Without a shelf nobody looks for the bases that are images of the registry; with
/// one, those that the same run makes are awaited.
pub(crate) fn resolve(arguments: &TemplateArguments, shelf: Option<&Shelf>) -> Result<Vec<Planned>, Failure> {
    let mut loaded = Vec::new();
    for path in all(&arguments.templates)? {
        let facts = HostFacts::for_template(&path);
        let name = path.display().to_string();
        // The entry is read the way its parts are, so that it gets its name in messages the same way.
        let entry = facts.template("", &name).map_err(|error| Failure::usage(error.message))?;
        let template = template::load(&entry, &facts).map_err(|mistakes| Failure::template(&mistakes))?;
        loaded.push((path, facts, template));
    }
    let mut loaded = with_inputs(arguments, loaded)?;
    let (planned, asked) = plans(&loaded, None, &InRun::default())?;
    let planned = only(planned, &arguments.only)?;
    if !asked || shelf.is_none() {
        return Ok(planned);
    }
    // What bases are in a registry or an account is nobody's question but theirs.
    loaded.retain(|loaded| planned.iter().any(|planned| planned.template == loaded.path));
    let run = InRun::of(planned.iter().flat_map(|planned| &planned.plans));
    let (planned, _) = plans(&loaded, shelf, &run)?;
    only(planned, &arguments.only)
}

/// The plans of all templates; whether one has an image of the registry as its base. The mistakes of all at once.
fn plans(loaded: &[Loaded], shelf: Option<&Shelf>, run: &InRun) -> Result<(Vec<Planned>, bool), Failure> {
    let (mut planned, mut mistakes, mut asked) = (Vec::new(), Vec::new(), false);
    for Loaded { path, facts, template, inputs, relock } in loaded {
        let lock = RefCell::new(Lock::beside(path, *relock)?);
        let known = Known { host: facts, shelf, run, asked: Cell::new(false), lock };
        match template.plans(inputs, &known) {
            Ok(plans) => {
                planned.push(Planned { template: path.clone(), plans, library: facts.library().clone() });
            }
            Err(found) => mistakes.push(Failure::template(&found)),
        }
        asked |= known.asked.get();
        known.lock.borrow().keep()?;
    }
    match mistakes.into_iter().reduce(Failure::and) {
        Some(mistakes) => Err(mistakes),
        None => Ok((planned, asked)),
    }
}

/// Every template's own values. With several, a variable is for those that declare it.
fn with_inputs(
    arguments: &TemplateArguments,
    templates: Vec<(PathBuf, HostFacts, Template)>,
) -> Result<Vec<Loaded>, Failure> {
    let several = templates.len() > 1;
    let mut used = BTreeSet::new();
    let mut unused: Option<VariableValue> = None;
    let mut loaded = Vec::new();
    for (path, facts, template) in templates {
        let mut values = variables(arguments, &template)?;
        if several {
            let declared: BTreeSet<String> = template.variables().into_iter().map(|variable| variable.name).collect();
            let (own, others): (Vec<_>, Vec<_>) = values.into_iter().partition(|value| declared.contains(&value.name));
            unused = others.into_iter().find(|value| !used.contains(&value.name)).or(unused);
            used.extend(own.iter().map(|value| value.name.clone()));
            values = own;
        }
        let inputs = Inputs { variables: values };
        loaded.push(Loaded { path, facts, template, inputs, relock: arguments.relock });
    }
    match unused.filter(|value| !used.contains(&value.name)) {
        Some(value) => {
            Err(Failure::usage(format!("{} sets `{}`, which no template declares", value.origin, value.name)))
        }
        None => Ok(loaded),
    }
}

/// The TOML files that are meant: a directory without a `template.toml` stands for those of its subdirectories.
fn all(paths: &[PathBuf]) -> Result<Vec<PathBuf>, Failure> {
    let mut files = Vec::new();
    for path in paths {
        match beneath(path) {
            Some(found) if !found.is_empty() => files.extend(found),
            _ => files.push(file(path)?),
        }
    }
    let mut seen = BTreeSet::new();
    files.retain(|file| seen.insert(file.clone()));
    Ok(files)
}

/// `None` for what is not a directory of templates.
fn beneath(path: &Path) -> Option<Vec<PathBuf>> {
    if !path.is_dir() || path.join("template.toml").is_file() {
        return None;
    }
    let entries = std::fs::read_dir(path).ok()?.flatten().map(|entry| entry.path().join("template.toml"));
    let mut found: Vec<_> = entries.filter(|file| file.is_file()).collect();
    found.sort();
    Some(found)
}

/// The TOML file that is meant by a directory or a file.
pub(crate) fn file(path: &Path) -> Result<PathBuf, Failure> {
    if path.is_dir() {
        let inside = path.join("template.toml");
        if !inside.is_file() {
            let failure = Failure::usage(format!("there is no `template.toml` in `{}`", path.display()));
            return Err(failure.hint("name the directory of a template, or its TOML file"));
        }
        return Ok(inside);
    }
    if !path.exists() {
        let failure = Failure::usage(format!("there is no template `{}`", path.display()));
        return Err(failure.hint("name the directory of a template, or its TOML file"));
    }
    Ok(path.to_owned())
}

/// Values in rising precedence: environment, files in their order, command line.
fn variables(arguments: &TemplateArguments, template: &Template) -> Result<Vec<VariableValue>, Failure> {
    // The environment may hold values for other templates; what this one does not declare is none of its business.
    let declared = template.variables().into_iter().map(|variable| variable.name);
    let mut values = from_environment(declared, |name| env::var(name).ok());
    for path in &arguments.variable_files {
        values.extend(from_file(path)?);
    }
    for given in &arguments.variables {
        let Some((name, value)) = given.split_once('=').filter(|(name, _)| !name.is_empty()) else {
            // The text may be a secret that lost its name: it is not repeated.
            return Err(
                Failure::usage("`--var` takes `NAME=VALUE`").hint("for instance `--var greeting='hello there'`")
            );
        };
        values.push(VariableValue {
            name: name.to_owned(),
            value: GivenValue::Text(value.to_owned()),
            origin: "`--var`".to_owned(),
        });
    }
    Ok(values)
}

fn from_environment(
    declared: impl Iterator<Item = String>,
    variable: impl Fn(&str) -> Option<String>,
) -> Vec<VariableValue> {
    let value = |name: String| {
        let found = [name.to_uppercase(), name.clone()]
            .into_iter()
            .map(|name| format!("{PREFIX}{name}"))
            .find_map(|key| variable(&key).map(|value| (key, value)));
        found.map(|(key, text)| VariableValue { name, value: GivenValue::Text(text), origin: format!("`{key}`") })
    };
    declared.filter_map(value).collect()
}

fn from_file(path: &Path) -> Result<Vec<VariableValue>, Failure> {
    let text = kiln_io::fs::read_text(path).map_err(|error| Failure::from(error).exit(crate::failure::Exit::Usage))?;
    let table: BTreeMap<Spanned<String>, Value> = toml::from_str(&text).map_err(|error| {
        let line = error.span().map_or(1, |span| line_of(&text, span.start));
        Failure::usage(format!("`{}` cannot be read as TOML", path.display()))
            .because(format!("line {line}: {}", error.message()))
    })?;
    table
        .into_iter()
        .map(|(name, value)| {
            let origin = format!("`{}:{}`", path.display(), line_of(&text, name.span().start));
            let value = json(value).ok_or_else(|| {
                Failure::usage(format!("{origin}: `{}` holds a date or a number that is not finite", name.get_ref()))
                    .hint("write it as a string")
            })?;
            Ok(VariableValue { name: name.into_inner(), value: GivenValue::Typed(value), origin })
        })
        .collect()
}

fn line_of(text: &str, offset: usize) -> usize {
    text.bytes().take(offset).filter(|byte| *byte == b'\n').count() + 1
}

fn json(value: Value) -> Option<serde_json::Value> {
    Some(match value {
        Value::String(text) => text.into(),
        Value::Integer(number) => number.into(),
        Value::Float(number) => serde_json::Number::from_f64(number)?.into(),
        Value::Boolean(flag) => flag.into(),
        Value::Datetime(_) => return None,
        Value::Array(items) => serde_json::Value::Array(items.into_iter().map(json).collect::<Option<_>>()?),
        Value::Table(table) => {
            let entries = table.into_iter().map(|(key, value)| json(value).map(|value| (key, value)));
            serde_json::Value::Object(entries.collect::<Option<_>>()?)
        }
    })
}

/// The members that a pattern names, by the image's name or the member's.
fn only(planned: Vec<Planned>, patterns: &[String]) -> Result<Vec<Planned>, Failure> {
    if patterns.is_empty() {
        return Ok(planned);
    }
    let means = |pattern: &str, plan: &Plan| {
        matches(pattern, plan.image.as_str()) || (!plan.member_name.is_empty() && matches(pattern, &plan.member_name))
    };
    let plans = || planned.iter().flat_map(|planned| &planned.plans);
    for pattern in patterns {
        if !plans().any(|plan| means(pattern, plan)) {
            let known: Vec<_> = plans().map(|plan| format!("`{}`", plan.image)).collect();
            let of = if planned.len() == 1 { "this template" } else { "these templates" };
            let has = if planned.len() == 1 { "it has" } else { "they have" };
            return Err(Failure::usage(format!("no image of {of} is called `{pattern}`"))
                .hint(format!("{has} {}", known.join(", "))));
        }
    }
    let meant = |plan: &Plan| patterns.iter().any(|pattern| means(pattern, plan));
    let of = |planned: Planned| Planned { plans: planned.plans.into_iter().filter(meant).collect(), ..planned };
    Ok(planned.into_iter().map(of).filter(|planned| !planned.plans.is_empty()).collect())
}

/// Whether `text` fits `pattern`, in which `*` stands for any characters and `?` for one.
fn matches(pattern: &str, text: &str) -> bool {
    let (pattern, text): (Vec<char>, Vec<char>) = (pattern.chars().collect(), text.chars().collect());
    let (mut at, mut here) = (0, 0);
    // Where to go on when the last `*` has to take one character more.
    let mut retry = None;
    while here < text.len() {
        match pattern.get(at) {
            Some('*') => {
                retry = Some((at + 1, here));
                at += 1;
            }
            Some(wanted) if *wanted == '?' || *wanted == text[here] => {
                at += 1;
                here += 1;
            }
            _ => {
                let Some((after, taken)) = retry else { return false };
                retry = Some((after, taken + 1));
                at = after;
                here = taken + 1;
            }
        }
    }
    pattern[at..].iter().all(|rest| *rest == '*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_whole_names() {
        for (pattern, text, expected) in [
            ("web", "web", true),
            ("web", "webs", false),
            ("base-*", "base-trixie-small", true),
            ("*-small", "base-trixie-small", true),
            ("*trixie*", "base-trixie-small", true),
            ("*-s*l", "base-trixie-small", true),
            ("base-?", "base-1", true),
            ("base-?", "base-12", false),
            ("", "web", false),
            ("*", "", true),
            ("a*b*c", "aXbXb", false),
        ] {
            assert_eq!(matches(pattern, text), expected, "{pattern} {text}");
        }
    }

    #[test]
    fn the_environment_only_gives_what_is_declared() {
        let set =
            BTreeMap::from([("KILN_VAR_GREETING", "big"), ("KILN_VAR_greeting", "small"), ("KILN_VAR_OTHER", "x")]);
        let values = from_environment(["greeting".to_owned(), "unset".to_owned()].into_iter(), |name| {
            set.get(name).map(|value| (*value).to_owned())
        });
        assert_eq!(values.len(), 1);
        assert_eq!((values[0].name.as_str(), values[0].origin.as_str()), ("greeting", "`KILN_VAR_GREETING`"));
    }
}
