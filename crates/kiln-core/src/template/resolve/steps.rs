//! The steps of a plan.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use super::World;
use crate::{
    diagnostic::did_you_mean,
    expression::Scope,
    keys::STEP,
    node::{Entry, Node, Report},
    options::{self, PathOption},
    plan::{Input, Step},
    shape::{self, Section, unknown},
    template::{
        evaluate::{condition, report_mistake},
        load::report_fact,
    },
};

pub(super) struct Steps<'a, 'f> {
    pub(super) report: &'a mut Report,
    pub(super) scope: &'a Scope,
    pub(super) world: &'a mut World<'f>,
    pub(super) allowed: &'a [String],
}

impl Steps<'_, '_> {
    /// All steps, or `None` when one of them has a mistake.
    pub(super) fn all(&mut self, nodes: &[Node]) -> Option<Vec<Step>> {
        let mut taken: BTreeSet<String> =
            nodes.iter().filter_map(|node| Section::new(node, STEP).string("as")).collect();
        let steps: Vec<Option<Step>> =
            nodes.iter().enumerate().map(|(index, node)| self.step(index + 1, node, &mut taken)).collect();
        steps.into_iter().collect()
    }

    fn step(&mut self, number: usize, node: &Node, taken: &mut BTreeSet<String>) -> Option<Step> {
        let before = self.report.found.len();
        shape::check_listed(self.report, node, STEP, "`[[provision]]`");
        let section = Section::new(node, STEP);
        let skipped = self.skipped(section);
        let env = self.env(section);
        let secrets = self.secrets(section, &env);
        let provisioner = section.string("use")?;
        let use_node = section.node("use")?;
        let fact = match self.world.provisioner(&provisioner) {
            Ok(fact) => fact.clone(),
            Err(error) => {
                let mut error = error.clone();
                let names = self.world.facts.provisioner_names();
                if !names.contains(&provisioner) {
                    error.hint = error.hint.or_else(|| did_you_mean(&provisioner, names.iter().map(String::as_str)));
                }
                report_fact(self.report, use_node.at, &error);
                return None;
            }
        };
        let retries = section.integer("retries")?;
        if let Some(node) = section.node("retries")
            && retries > 0
            && !fact.manifest.idempotent
        {
            let message = format!("`{provisioner}` does not declare that repeating it is safe, so it has no `retries`");
            self.report.error_with_help(node.at, message, "a provisioner says `idempotent = true` in its manifest");
        }
        let (options, paths) = self.options(node, &provisioner, &fact.manifest.options);
        let inputs = paths.iter().filter_map(|path| self.input(path)).collect();
        if self.report.found.len() != before {
            return None;
        }
        Some(Step {
            number,
            name: section.string("as").unwrap_or_else(|| unique(&provisioner, taken)),
            provisioner,
            provisioner_digest: fact.digest,
            origin: fact.origin,
            runs_on: fact.manifest.runs_on,
            reboots: fact.manifest.reboots,
            skipped,
            options,
            inputs,
            env,
            secrets,
            timeout: section.duration("timeout").unwrap_or(Duration::from_secs(fact.manifest.timeout_seconds)),
            retries,
            cache: section.caching("cache")?,
            manifest: fact.manifest,
        })
    }

    /// Why the step does not run. A condition with a mistake is reported.
    fn skipped(&mut self, section: Section<'_>) -> Option<String> {
        let node = section.node("when")?;
        let holds = condition(self.report, self.scope, node).unwrap_or(true);
        let written = node.as_str().map_or("`when` is false".to_owned(), |text| format!("`when = {text:?}` is false"));
        (!holds).then_some(written)
    }

    fn options(
        &mut self,
        node: &Node,
        provisioner: &str,
        specs: &BTreeMap<String, crate::manifest::OptionSpec>,
    ) -> (serde_json::Value, Vec<PathOption>) {
        let what = format!("`{provisioner}`");
        let mut given: Vec<(&String, &Entry)> = Vec::new();
        for (name, entry) in node.as_table().into_iter().flatten() {
            if STEP.iter().any(|key| key.name == name) {
                continue;
            }
            if specs.contains_key(name) {
                given.push((name, entry));
            } else {
                // A misspelt `timeout` is as likely as a misspelt option.
                let known = specs.keys().map(String::as_str).chain(STEP.iter().map(|key| key.name));
                unknown(self.report, entry.key, name, &what, known);
            }
        }
        let mut paths = Vec::new();
        let options = options::table(self.report, node.at, given, specs, &what, "", &mut paths);
        (serde_json::Value::Object(options), paths)
    }

    fn input(&mut self, path: &PathOption) -> Option<Input> {
        let from = self.report.file(path.at.file).to_owned();
        match self.world.facts.input(&from, &path.path, self.allowed) {
            Ok(fact) => Some(Input {
                option: path.pointer.clone(),
                path: path.path.clone(),
                resolved: fact.path,
                directory: fact.directory,
                digest: fact.digest,
                bytes: fact.bytes,
            }),
            Err(error) => {
                report_fact(self.report, path.at, &error);
                None
            }
        }
    }

    fn env(&mut self, section: Section<'_>) -> BTreeMap<String, String> {
        let mut env = BTreeMap::new();
        for (name, entry) in section.table("env") {
            self.check_name(name, entry);
            if let Some(value) = entry.node.text() {
                env.insert(name.clone(), value);
            }
        }
        env
    }

    fn secrets(&mut self, section: Section<'_>, env: &BTreeMap<String, String>) -> BTreeMap<String, String> {
        let mut secrets = BTreeMap::new();
        for (name, entry) in section.table("secrets") {
            self.check_name(name, entry);
            if env.contains_key(name) {
                self.report.error(entry.key, format!("`{name}` stands in both `env` and `secrets`"));
            }
            let Some(text) = entry.node.as_str() else { continue };
            match Scope::single_name(text) {
                Some(variable) if self.scope.is_sensitive(variable) => {
                    secrets.insert(name.clone(), variable.to_owned());
                }
                // An undefined name is told as such; a variable that is not sensitive as what it is.
                Some(variable) => match self.scope.render(text) {
                    Err(mistake) => report_mistake(self.report, entry.node.at, mistake),
                    Ok(crate::expression::Rendered::Unknown) => {}
                    Ok(_) => self.report.error_with_help(
                        entry.node.at,
                        format!("`{variable}` is not sensitive"),
                        format!("set `sensitive = true` in `[variables.{variable}]`, or use `env`"),
                    ),
                },
                None => self.report.error_with_help(
                    entry.node.at,
                    "a secret is exactly one sensitive variable",
                    "write `{ TOKEN = \"{{ token }}\" }`, so that no secret stands in a template or in a longer text",
                ),
            }
        }
        secrets
    }

    fn check_name(&mut self, name: &str, entry: &Entry) {
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
        if name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) || !name.chars().all(plain) {
            self.report.error(entry.key, format!("`{}` cannot name an environment variable", name.escape_debug()));
        } else if name.starts_with("KILN_") {
            self.report.error(entry.key, format!("`{name}` is kiln's own: names that begin with `KILN_` are taken"));
        }
    }
}

/// `name`, or `name-2` and so on.
pub(super) fn unique(name: &str, taken: &mut BTreeSet<String>) -> String {
    let mut candidate = name.to_owned();
    let mut number = 2;
    while !taken.insert(candidate.clone()) {
        candidate = format!("{name}-{number}");
        number += 1;
    }
    candidate
}
