//! `cases/*.toml` of a provisioner: options in; calls, files and words out, on a fake guest.

use std::fmt::Write as _;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use kiln_core::{
    event::{Event, Events},
    facts::{GivenValue, Inputs, TemplateText, VariableValue},
    plan::{Plan, Step},
    template,
};
use kiln_io::time::SystemClock;
use serde::Deserialize;
use tokio_util::sync::CancellationToken;

use crate::{HostFacts, Library, StepRun, fake::FakeGuest, run_step};

/// One case, as written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    /// What it shows.
    summary: String,
    /// The step's options, as in a template.
    #[serde(default)]
    options: toml::Table,
    #[serde(default)]
    env: BTreeMap<String, String>,
    /// Environment name to secret value.
    #[serde(default)]
    secrets: BTreeMap<String, String>,
    #[serde(default)]
    guest: Machine,
    expect: Expect,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Machine {
    /// Tools the guest has, besides the basic ones: name to the shell text that the fake runs.
    #[serde(default)]
    commands: BTreeMap<String, String>,
    /// Files the guest has.
    #[serde(default)]
    files: BTreeMap<String, String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Expect {
    /// Texts of the refusal, where the manifest does not allow these options and nothing runs.
    #[serde(default)]
    refused: Vec<String>,
    /// Whether the step fails.
    #[serde(default)]
    fails: bool,
    /// Texts that the output or the error must contain.
    #[serde(default)]
    says: Vec<String>,
    /// All calls of fake tools, in order; `*` stands for anything.
    commands: Option<Vec<String>>,
    #[serde(default)]
    files: BTreeMap<String, FileExpect>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileExpect {
    content: Option<String>,
    contains: Option<String>,
    mode: Option<String>,
    link: Option<String>,
    #[serde(default)]
    absent: bool,
}

/// What was otherwise than the case says, one line a difference.
#[derive(Debug, thiserror::Error)]
#[error("{}: {summary}\n  {}", case.display(), differences.join("\n  "))]
pub struct CaseFailure {
    pub case: PathBuf,
    pub summary: String,
    pub differences: Vec<String>,
}

/// The case files of the provisioner in `directory`, sorted.
pub fn find(directory: &Path) -> Vec<PathBuf> {
    let listed = fs::read_dir(directory.join("cases")).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut cases: Vec<PathBuf> =
        listed.filter(|path| path.extension().is_some_and(|ending| ending == "toml")).collect();
    cases.sort();
    cases
}

/// Runs one case of the provisioner in `directory`. `work` is an empty directory.
pub async fn run(directory: &Path, case: &Path, work: &Path) -> Result<(), CaseFailure> {
    let failure = |summary: &str, differences: Vec<String>| CaseFailure {
        case: case.to_owned(),
        summary: summary.to_owned(),
        differences,
    };
    let broken = |what: String| failure("the case cannot be run", vec![what]);
    let text = fs::read_to_string(case).map_err(|error| broken(error.to_string()))?;
    let wanted: Case = toml::from_str(&text).map_err(|error| broken(error.to_string()))?;
    let root = directory.parent().unwrap_or(directory);
    let name = directory.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let facts = HostFacts::with_library(Library::at(vec![root.to_owned()]));
    let mut plan = match plan(&wanted, &name, case, &facts) {
        Err(refusal) if !wanted.expect.refused.is_empty() => {
            let missing = wanted.expect.refused.iter().filter(|text| !refusal.contains(*text));
            let differences: Vec<_> = missing.map(|text| format!("`{text}` was not said, but:\n{refusal}")).collect();
            return if differences.is_empty() { Ok(()) } else { Err(failure(&wanted.summary, differences)) };
        }
        Ok(_) if !wanted.expect.refused.is_empty() => {
            return Err(failure(&wanted.summary, vec!["the options were not refused".to_owned()]));
        }
        plan => plan.map_err(broken)?,
    };
    let machine = work.join("guest");
    let guest = FakeGuest::new(&machine, &wanted.guest.commands, &wanted.guest.files)
        .map_err(|error| broken(error.to_string()))?;
    let step = &mut plan.steps[0];
    if step.runs_on == kiln_core::manifest::RunsOn::Host {
        step.env.insert("PATH".to_owned(), format!("{}:/usr/bin:/bin", guest.tools().display()));
    }
    let seen = observe(&guest, &plan, facts.library(), work).await;
    let differences = compare(&wanted, &guest, &plan.steps[0], &seen);
    if differences.is_empty() { Ok(()) } else { Err(failure(&wanted.summary, differences)) }
}

/// A real plan, made by resolving a template with this one step.
fn plan(case: &Case, name: &str, path: &Path, facts: &HostFacts) -> Result<Plan, String> {
    let mut text = String::from("[image]\nname = \"case\"\n[base.debian]\nsuite = \"bookworm\"\n");
    let mut inputs = Inputs::default();
    let mut secrets = Vec::new();
    for (index, (env, value)) in case.secrets.iter().enumerate() {
        let _ = write!(text, "[variables.secret{index}]\ntype = \"string\"\nsensitive = true\n");
        secrets.push(format!("{} = \"{{{{ secret{index} }}}}\"", quoted(env)));
        let value = GivenValue::Text(value.clone());
        inputs.variables.push(VariableValue { name: format!("secret{index}"), value, origin: "case".to_owned() });
    }
    let _ = write!(text, "[[provision]]\nuse = {}\n", quoted(name));
    for (name, value) in &case.options {
        let _ = writeln!(text, "{} = {}", quoted(name), inline(value));
    }
    let env: Vec<String> =
        case.env.iter().map(|(name, value)| format!("{} = {}", quoted(name), quoted(value))).collect();
    let _ = write!(text, "env = {{ {} }}\nsecrets = {{ {} }}\n", env.join(", "), secrets.join(", "));
    let entry = TemplateText { name: path.display().to_string(), text };
    let plans = template::load(&entry, facts).and_then(|template| template.plans(&inputs, facts));
    plans
        .map_err(|mistakes| mistakes.render())?
        .into_iter()
        .next()
        .ok_or_else(|| "the template has no image".to_owned())
}

/// A TOML value on one line.
fn inline(value: &toml::Value) -> String {
    match value {
        toml::Value::String(text) => quoted(text),
        toml::Value::Array(items) => format!("[{}]", items.iter().map(inline).collect::<Vec<_>>().join(", ")),
        toml::Value::Table(table) => {
            let fields = table.iter().map(|(name, value)| format!("{} = {}", quoted(name), inline(value)));
            format!("{{ {} }}", fields.collect::<Vec<_>>().join(", "))
        }
        scalar => scalar.to_string(),
    }
}

/// A basic string of TOML: JSON's escapes are a subset of TOML's, which wants DEL escaped as well.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string().replace('\u{7f}', "\\u007f")
}

struct Seen {
    error: Option<String>,
    output: String,
}

#[derive(Debug, Default)]
struct Log(Mutex<String>);

impl Events for Log {
    fn emit(&self, event: Event) {
        let text = match event {
            Event::Output { text, .. } => text,
            other => format!("{other:?}\n"),
        };
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push_str(&text);
    }
}

async fn observe(guest: &FakeGuest, plan: &Plan, library: &Library, work: &Path) -> Seen {
    let log = Log::default();
    let result = run_step(StepRun {
        guest,
        step: &plan.steps[0],
        total: 1,
        library,
        secrets: &plan.secrets,
        events: &log,
        clock: &SystemClock::new(),
        cancel: &CancellationToken::new(),
        work: &work.join("host"),
    })
    .await;
    let error = result.err().map(|error| format!("{error}: {}", error.fault));
    Seen { error, output: log.0.into_inner().unwrap_or_else(PoisonError::into_inner) }
}

fn compare(case: &Case, guest: &FakeGuest, step: &Step, seen: &Seen) -> Vec<String> {
    let mut differences = Vec::new();
    match &seen.error {
        Some(error) if !case.expect.fails => differences.push(format!("the step failed: {error}")),
        None if case.expect.fails => differences.push("the step did not fail".to_owned()),
        _ => {}
    }
    let words = format!("{}{}", seen.output, seen.error.as_deref().unwrap_or_default());
    for text in &case.expect.says {
        if !words.contains(text) {
            differences.push(format!("`{text}` was not said, but:\n{words}"));
        }
    }
    let calls = guest.calls();
    if let Some(expected) = &case.expect.commands {
        let same =
            expected.len() == calls.len() && expected.iter().zip(&calls).all(|(pattern, call)| matches(pattern, call));
        if !same {
            differences.push(format!(
                "expected these calls:\n    {}\n  but saw:\n    {}",
                expected.join("\n    "),
                calls.join("\n    ")
            ));
        }
    }
    for (path, expected) in &case.expect.files {
        differences.extend(file(guest, path, expected));
    }
    for value in case.secrets.values() {
        if words.contains(value.as_str()) {
            differences.push("the value of a secret is in the output".to_owned());
        }
        if calls.iter().any(|call| call.contains(value.as_str())) {
            differences.push("the value of a secret is on a command line".to_owned());
        }
    }
    let directories =
        BTreeSet::from([format!("/run/kiln/step-{}", step.number), format!("/var/tmp/kiln-step-{}", step.number)]);
    for directory in directories.iter().filter(|directory| guest.path(directory).exists()) {
        differences.push(format!("the step left {directory}"));
    }
    differences
}

fn file(guest: &FakeGuest, path: &str, expected: &FileExpect) -> Vec<String> {
    let place = guest.path(path);
    let Ok(meta) = fs::symlink_metadata(&place) else {
        return if expected.absent { Vec::new() } else { vec![format!("{path} is not there")] };
    };
    let mut differences = Vec::new();
    if expected.absent {
        differences.push(format!("{path} is there"));
    }
    if let Some(mode) = &expected.mode {
        let seen = format!("{:04o}", meta.permissions().mode() & 0o7777);
        if *mode != seen {
            differences.push(format!("{path} has mode {seen}, not {mode}"));
        }
    }
    if let Some(link) = &expected.link {
        let seen = fs::read_link(&place).unwrap_or_default();
        if Path::new(link) != seen {
            differences.push(format!("{path} links to `{}`, not to `{link}`", seen.display()));
        }
    }
    if expected.content.is_some() || expected.contains.is_some() {
        let seen = fs::read(&place).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
        let equal = expected.content.as_ref().is_none_or(|content| *content == seen);
        let holds = expected.contains.as_ref().is_none_or(|text| seen.contains(text.as_str()));
        if !equal || !holds {
            differences.push(format!("{path} holds:\n{seen}"));
        }
    }
    differences
}

/// Whether `text` is `pattern`, in which `*` stands for any text.
fn matches(pattern: &str, text: &str) -> bool {
    let Some((first, rest)) = pattern.split_once('*') else { return pattern == text };
    let Some(mut left) = text.strip_prefix(first) else { return false };
    let mut parts: Vec<&str> = rest.split('*').collect();
    let last = parts.pop().unwrap_or_default();
    for part in parts {
        let Some(at) = left.find(part) else { return false };
        left = &left[at + part.len()..];
    }
    left.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::matches;

    #[test]
    fn a_star_stands_for_any_text() {
        for (pattern, text, same) in [
            ("a b", "a b", true),
            ("a", "a b", false),
            ("a *", "a b c", true),
            ("a * c", "a b c", true),
            ("a * d", "a b c", false),
            ("* c", "a b c", true),
            ("a*a", "a", false),
        ] {
            assert_eq!(matches(pattern, text), same, "{pattern:?} {text:?}");
        }
    }
}
