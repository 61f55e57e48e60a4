//! `kiln show`: one version of an image.

use std::fmt::Write as _;

use kiln_core::{ByteSize, artifact::Artifact};
use kiln_registry::{Ami, Parent, RegistryError};
use serde::Serialize;

use crate::{
    arguments::Show,
    calendar::Moment,
    escape::visible,
    failure::{Exit, Outcome},
    output,
    render::duration,
    surroundings::{self, Place},
};

/// The record of a version, and what came to it later.
#[derive(Debug, Serialize)]
struct Shown {
    #[serde(flatten)]
    artifact: Artifact,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    amis: Vec<Ami>,
}

pub(crate) fn run(arguments: &Show) -> Outcome {
    let place = surroundings::place(&arguments.registry)?;
    let (artifact, revoked) = match &place {
        Place::Here(registry) => {
            let artifact = registry.record(&arguments.image)?.artifact;
            let name = Parent { image: artifact.image.clone(), version: artifact.version.clone() };
            let revoked = registry.revoked(&name, surroundings::seconds())?;
            (artifact, revoked)
        }
        Place::There(remote) => {
            let shown = surroundings::wait(remote.shown(&arguments.image))?;
            (shown.record.artifact, shown.revoked)
        }
    };
    if let Some(revoked) = revoked {
        let revoked = RegistryError::Revoked { revoked: Box::new(revoked) };
        output::talk(&visible(&revoked.to_string()));
    }
    let amis = place.reading(&artifact.image)?.amis(&artifact.image, &artifact.version)?;
    let shown = Shown { artifact, amis };
    if arguments.json {
        output::json(&shown)?;
    } else {
        output::data(&describe(&shown))?;
    }
    Ok(Exit::Done)
}

fn describe(Shown { artifact, amis }: &Shown) -> String {
    let mut text = String::new();
    let mut line = |label: &str, value: String| {
        let _ = writeln!(text, "{label:<13}{}", visible(&value));
    };
    line("image", format!("{} {}", artifact.image, artifact.version));
    if let Some(description) = &artifact.description {
        line("", description.clone());
    }
    for (axis, value) in &artifact.member {
        line(axis, value.clone());
    }
    line("created", format!("{} UTC by build {}", Moment::of_seconds(artifact.created).minute(), artifact.build));
    line("recipe", artifact.recipe.to_string());
    line("disk", artifact.disk.digest.to_string());
    line("", format!("{} virtual, {} chunks with data", ByteSize(artifact.disk.size), artifact.disk.chunks));
    line("base", format!("{} ({})", artifact.base.name, artifact.base.digest.short()));
    let machine = &artifact.machine;
    line(
        "baked with",
        format!("{}, {}, {} CPUs, {}", machine.builder, machine.accelerator, machine.cpus, ByteSize(machine.memory)),
    );
    line("", machine.reason.clone());
    text.push_str("\nfiles\n");
    for file in &artifact.files {
        let size = ByteSize(file.bytes).approximate();
        let _ = writeln!(text, "  {:<9}{size:>11}  {}", file.format, file.sha256);
    }
    if !amis.is_empty() {
        text.push_str("\nAMIs\n");
    }
    for Ami { region, ami, account, .. } in amis {
        let _ = writeln!(text, "  {}", visible(&format!("{region:<15} {ami} of {account}")));
    }
    section(&mut text, "steps", artifact.steps.iter().map(|step| (&step.name, &step.outcome, step.milliseconds)));
    let verdict = |passed| if passed { "passed" } else { "FAILED" };
    let checks: Vec<_> = artifact
        .checks
        .iter()
        .map(|check| (check.name.clone(), format!("{} on the {}", verdict(check.passed), check.on), check.milliseconds))
        .collect();
    section(&mut text, "checks", checks.iter().map(|(name, outcome, time)| (name, outcome, *time)));
    if !artifact.hygiene.is_empty() {
        text.push_str("\nhygiene\n");
    }
    for finding in &artifact.hygiene {
        let waived = finding.waived.as_ref().map(|reason| format!(" (waived: {reason})")).unwrap_or_default();
        let found = format!("{} {} {}: {}{waived}", finding.id, finding.level, finding.path, finding.detail);
        let _ = writeln!(text, "  {}", visible(&found));
    }
    text.push_str("\ntools\n");
    for (tool, version) in &artifact.tools {
        let _ = writeln!(text, "  {tool:<13}{}", visible(version));
    }
    text
}

fn section<'a>(text: &mut String, title: &str, rows: impl Iterator<Item = (&'a String, &'a String, u64)>) {
    let rows: Vec<_> = rows.collect();
    if rows.is_empty() {
        return;
    }
    let _ = writeln!(text, "\n{title}");
    let width = rows.iter().map(|(name, ..)| name.chars().count()).max().unwrap_or(0);
    for (name, outcome, milliseconds) in rows {
        let _ = writeln!(text, "  {:<width$}  {:>9}  {}", visible(name), duration(milliseconds), visible(outcome));
    }
}
