//! `kiln provisioners`: what `use` can name, and what each of them takes.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    path::{Path, PathBuf},
};

use kiln_core::{
    diagnostic::did_you_mean,
    duration,
    manifest::{Manifest, OptionKind, OptionSpec, RunsOn},
};
use kiln_provision::{Library, Provisioner};
use serde_json::json;

use crate::{
    arguments::Provisioners,
    escape::visible,
    failure::{Exit, Failure, Outcome},
    output,
};

pub(crate) fn run(arguments: &Provisioners) -> Outcome {
    let library = Library::for_template(&directory(&arguments.template));
    match &arguments.name {
        Some(name) => one(&library, name, arguments.json),
        None => all(&library, arguments.json),
    }
}

/// That of a template, which may be named by its file.
fn directory(template: &Path) -> PathBuf {
    let file = template.extension().is_some_and(|ending| ending == "toml");
    let parent = template.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if file { parent.to_owned() } else { template.to_owned() }
}

/// One that cannot be read is named and hides no other.
fn all(library: &Library, json: bool) -> Outcome {
    let (mut found, mut broken) = (Vec::new(), 0);
    for name in library.names() {
        match library.find(&name) {
            Ok(provisioner) => found.push(provisioner),
            Err(error) => {
                broken += 1;
                output::complain(&Failure::of(&error));
            }
        }
    }
    if json {
        output::json(&found.iter().map(as_json).collect::<Vec<_>>())?;
    } else {
        let heading = ["NAME", "FROM", "SUMMARY"].map(str::to_owned).to_vec();
        let rows = found
            .iter()
            .map(|found| vec![found.manifest.name.clone(), visible(&found.origin), visible(&found.manifest.summary)]);
        output::data(&output::table(&std::iter::once(heading).chain(rows).collect::<Vec<_>>()))?;
    }
    Ok(if broken == 0 { Exit::Done } else { Exit::Failed })
}

fn one(library: &Library, name: &str, json: bool) -> Outcome {
    let provisioner = library.find(name).map_err(|error| {
        let names = library.names();
        let near = did_you_mean(name, names.iter().map(String::as_str));
        let failure = Failure::of(&error).exit(Exit::Usage);
        match near.filter(|_| !names.iter().any(|known| known == name)) {
            Some(near) => failure.hint(near),
            None => failure,
        }
    })?;
    if json {
        output::json(&as_json(&provisioner))?;
    } else {
        output::data(&described(&provisioner))?;
    }
    Ok(Exit::Done)
}

fn as_json(provisioner: &Provisioner) -> serde_json::Value {
    json!({ "origin": provisioner.origin, "digest": provisioner.digest, "manifest": provisioner.manifest })
}

fn described(provisioner: &Provisioner) -> String {
    let manifest = &provisioner.manifest;
    let mut text = format!("{}: {}\n", manifest.name, visible(&manifest.summary));
    let _ = writeln!(text, "{}; {}", visible(&provisioner.origin), traits(manifest));
    list(&mut text, &manifest.options, "");
    text
}

fn traits(manifest: &Manifest) -> String {
    let mut traits = vec![match manifest.runs_on {
        RunsOn::Guest => "runs in the guest".to_owned(),
        RunsOn::Host => "runs on the build host".to_owned(),
    }];
    if !manifest.supports.is_empty() {
        traits.push(format!("for {}", manifest.supports.join(", ")));
    }
    traits.push(if manifest.idempotent { "can be repeated" } else { "cannot be repeated" }.to_owned());
    let limit = std::time::Duration::from_secs(manifest.timeout_seconds);
    traits.push(format!("time limit {}", duration::format(limit)));
    traits.join("; ")
}

/// Options one below the other, the fields of a table further in.
fn list(text: &mut String, options: &BTreeMap<String, OptionSpec>, indent: &str) {
    for (name, spec) in options {
        let _ = writeln!(text, "\n{indent}{name}  {}", facts(spec).join(", "));
        let _ = writeln!(text, "{indent}    {}", visible(&spec.doc));
        if let Some(fields) = fields(&spec.kind) {
            list(text, fields, &format!("{indent}    "));
        }
    }
}

fn facts(spec: &OptionSpec) -> Vec<String> {
    let mut facts = vec![spec.kind.to_string()];
    if spec.required {
        facts.push("required".to_owned());
    }
    facts.extend(spec.default.as_ref().map(|default| format!("default {}", visible(&default.to_string()))));
    if !spec.one_of.is_empty() {
        facts.push(format!("one of {}", visible(&spec.one_of.join(", "))));
    }
    facts.extend(spec.min.map(|min| format!("at least {min}")));
    facts.extend(spec.max.map(|max| format!("at most {max}")));
    facts.extend(spec.pattern.as_ref().map(|pattern| format!("matches {}", visible(pattern))));
    facts.extend(spec.keys.as_ref().map(|pattern| format!("keys match {}", visible(pattern))));
    facts
}

fn fields(kind: &OptionKind) -> Option<&BTreeMap<String, OptionSpec>> {
    match kind {
        OptionKind::List(item) | OptionKind::Map(item) => fields(item),
        OptionKind::Table(fields) => Some(fields),
        _ => None,
    }
}
