//! What differs between two versions of an image: the registry's own comparison, and what the records say besides.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use axum::{
    body::Body,
    extract::{Path, RawQuery, State},
    http::{HeaderMap, Response},
};
use kiln_core::{ImageName, artifact::Artifact};
use kiln_registry::{
    Record,
    compare::{Changes, FileChange, FileFacts, PackageChange, Sizes},
};
use maud::{Markup, html};

use super::{
    page::{duration, plain, size},
    session::Visitor,
    shown,
};
use crate::{
    access::Scope,
    api::{parse, query::Query},
    comparisons::{Compared, Comparisons},
    files::selector,
    problem::Problem,
    state::App,
};

/// Files that stand on the page; `kiln diff` has all.
const FILES: usize = 200;

pub(super) async fn show(
    State(app): State<Arc<App>>,
    Path(image): Path<String>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Response<Body> {
    let query = Query::parse(query.as_deref());
    let (from, to) = (query.get("from").unwrap_or_default(), query.get("to").unwrap_or_default());
    let (title, up) = (format!("{image}: {from} to {to}"), format!("/images/{image}"));
    let body = async |visitor: &Visitor| body(&app, visitor, &image, (from, to)).await;
    shown(&app, &headers, body, &title, &[(&image, &up), ("compare", "#")]).await
}

async fn body(app: &Arc<App>, visitor: &Visitor, image: &str, (from, to): (&str, &str)) -> Result<Markup, Problem> {
    let name: ImageName = parse(image)?;
    visitor.caller.require(Scope::Read, &name)?;
    let (old, new) = (selector(image, from)?, selector(image, to)?);
    let (old, new) = app.on_disk(move |app| Ok((app.registry.record(&old)?, app.registry.record(&new)?))).await?;
    // Disks that cannot be read are no reason to say nothing about the records.
    let compared = Comparisons::of(app, &old, &new).await;
    let (a, b) = (&old.artifact, &new.artifact);
    Ok(html! {
        div.title {
            h1 { (name) ": " a.version href=(format!("/images/{name}/{}", a.version)) { (a.version) } " → " a.version href=(format!("/images/{name}/{}", b.version)) { (b.version) } }
            a.button href=(format!("/diff/{name}?from={}&to={}", to.replace('+', "%2B"), from.replace('+', "%2B"))) { "The other way round" }
        }
        @match &compared {
            Ok(compared) => (disks(compared, &old, &new)),
            Err(problem) => section.card.warning { p { "The disks cannot be compared: " (plain(&problem.detail)) } },
        }
        (numbers(&old, &new))
        (named("Steps", &steps(a), &steps(b)))
        (named("Checks", &checks(a), &checks(b)))
        (named("Tools", &a.tools, &b.tools))
    })
}

/// What was read from both disks.
fn disks(compared: &Compared, old: &Record, new: &Record) -> Markup {
    let difference = &compared.difference;
    let same = old.artifact.disk.digest == new.artifact.disk.digest;
    html! {
        (summary(compared, same))
        @if !difference.unread.is_empty() {
            section.card.warning {
                strong { "Not compared" }
                @for problem in &difference.unread { p { (plain(problem)) } }
            }
        }
        @if !same {
            (packages(&difference.packages))
            (units(&difference.units))
            (files("Set-uid and set-gid files", &difference.set_id, difference.set_id.len()))
            (files("Files", &difference.files, compared.added + compared.removed + compared.changed))
        }
    }
}

fn summary(compared: &Compared, same: bool) -> Markup {
    let Compared { difference, added, removed, changed } = compared;
    let Sizes { chunks, shared, new_bytes, .. } = difference.sizes;
    let fresh = ((chunks - shared.min(chunks)) * 1000).checked_div(chunks).unwrap_or(0);
    html! {
        section.card {
            @if same { h2 { "The same disk, bit for bit" } } @else {
                h2 { (size(new_bytes)) span.muted { " to fetch onto a machine that has the older version" } }
                svg.bar.share viewBox="0 0 1000 8" preserveAspectRatio="none" aria-hidden="true" {
                    rect.track x="0" y="0" width="1000" height="8" {}
                    rect.run x="0" y="0" width=(fresh) height="8" {}
                }
                p.muted { (chunks - shared.min(chunks)) " of " (chunks) " chunks of 64 KiB are new" }
                div.chips {
                    (count(difference.packages.len(), "package"))
                    (count(added + removed + changed, "file"))
                    (count(difference.units.added.len() + difference.units.removed.len(), "unit"))
                    @if !difference.set_id.is_empty() { span.chip.warn { (difference.set_id.len()) " set-uid or set-gid" } }
                }
            }
        }
    }
}

fn count(number: usize, what: &str) -> Markup {
    html! { span.chip { (number) " " (what) @if number != 1 { "s" } } }
}

fn packages(changes: &[PackageChange]) -> Markup {
    html! {
        @if !changes.is_empty() {
            section {
                h2 { "Packages " span.count { (changes.len()) } }
                table.list {
                    thead { tr { th { "Package" } th { "Change" } th { "Source" } } }
                    tbody { @for change in changes {
                        tr {
                            th scope="row" { (plain(&change.name)) " " span.muted { (plain(&change.architecture)) } }
                            td data-label="Change" { (change_of(change.from.as_deref(), change.to.as_deref())) }
                            td data-label="Source" { (plain(&change.source)) }
                        }
                    } }
                }
            }
        }
    }
}

fn change_of(from: Option<&str>, to: Option<&str>) -> Markup {
    html! {
        @match (from, to) {
            (Some(from), Some(to)) => { span.chip.warn { "changed" } " " (plain(from)) " → " (plain(to)) }
            (None, Some(to)) => { span.chip.good { "added" } " " (plain(to)) }
            (Some(from), None) => { span.chip.bad { "removed" } " " (plain(from)) }
            (None, None) => {}
        }
    }
}

fn units(changes: &Changes) -> Markup {
    let lines = changes.added.iter().map(|unit| (unit, true)).chain(changes.removed.iter().map(|unit| (unit, false)));
    let lines: Vec<_> = lines.collect();
    html! {
        @if !lines.is_empty() {
            section {
                h2 { "Units that are started " span.count { (lines.len()) } }
                table.list { tbody { @for (unit, added) in lines {
                    tr {
                        th scope="row" { (plain(unit)) }
                        td { span.chip.good[added].bad[!added] { @if added { "enabled" } @else { "not any more" } } }
                    }
                } } }
            }
        }
    }
}

fn files(title: &str, changes: &[FileChange], all: usize) -> Markup {
    let shown = &changes[..changes.len().min(FILES)];
    html! {
        @if all > 0 {
            section {
                h2 { (title) " " span.count { (all) } }
                table.list.paths { tbody { @for change in shown {
                    tr {
                        th scope="row" { code.path { (plain(&change.path)) } }
                        td { (file(change)) }
                    }
                } } }
                @if all > shown.len() { p.muted { "and " (all - shown.len()) " more, which " code { "kiln diff --all" } " lists" } }
            }
        }
    }
}

fn file(change: &FileChange) -> Markup {
    match (&change.from, &change.to) {
        (Some(from), Some(to)) if from == to => {
            html! { span.chip.warn { "changed" } " contents, " span.muted { (facts(to)) } }
        }
        (from, to) => change_of(from.as_ref().map(facts).as_deref(), to.as_ref().map(facts).as_deref()),
    }
}

/// `0644 root, 1.2 KiB`
fn facts(facts: &FileFacts) -> String {
    let FileFacts { kind, mode, uid, gid, size: bytes } = facts;
    let owner = if (*uid, *gid) == (0, 0) { "root".to_owned() } else { format!("{uid}:{gid}") };
    match *kind {
        "file" => format!("{mode} {owner}, {}", size(*bytes)),
        kind => format!("{kind} {mode} {owner}"),
    }
}

fn numbers(old: &Record, new: &Record) -> Markup {
    let (a, b) = (&old.artifact, &new.artifact);
    let qcow2 = |record: &Record| record.file("qcow2").map_or(0, |file| file.bytes);
    let time = |artifact: &Artifact| artifact.times.values().sum::<u64>();
    let rows = [
        ("Size of the qcow2", size(qcow2(old)), size(qcow2(new))),
        ("Size of the disk", size(a.disk.size), size(b.disk.size)),
        ("Duration of the build", duration(time(a)), duration(time(b))),
        ("Base", plain(&a.base.name), plain(&b.base.name)),
        ("Bytes of the base", a.base.digest.short(), b.base.digest.short()),
        ("Recipe", a.recipe.short(), b.recipe.short()),
        ("Machine", plain(&a.machine.accelerator), plain(&b.machine.accelerator)),
    ];
    html! {
        section {
            h2 { "In numbers" }
            table.list {
                thead { tr { th { "" } th { (a.version) } th { (b.version) } } }
                tbody { @for (name, old, new) in rows {
                    tr.same[old == new] { th scope="row" { (name) } td data-label=(a.version) { (old) } td data-label=(b.version) { (new) } }
                } }
            }
        }
    }
}

fn steps(artifact: &Artifact) -> BTreeMap<String, String> {
    let what =
        |step: &kiln_core::artifact::StepRecord| format!("{} {}", step.provisioner, step.provisioner_digest.short());
    let named = |(number, step): (usize, &kiln_core::artifact::StepRecord)| {
        (format!("{:>2} {}", number + 1, step.name), what(step))
    };
    artifact.steps.iter().enumerate().map(named).collect()
}

fn checks(artifact: &Artifact) -> BTreeMap<String, String> {
    let verdict = |passed| if passed { "passed" } else { "failed" }.to_owned();
    artifact.checks.iter().map(|check| (format!("{} on the {}", check.name, check.on), verdict(check.passed))).collect()
}

/// What was added, removed, or changed among things with names.
fn named(title: &str, old: &BTreeMap<String, String>, new: &BTreeMap<String, String>) -> Markup {
    let names: BTreeSet<_> = old.keys().chain(new.keys()).collect();
    let differ: Vec<_> = names.iter().filter(|name| old.get(**name) != new.get(**name)).collect();
    html! {
        @if !names.is_empty() {
            section {
                h2 { (title) }
                @if differ.is_empty() { p.muted { "The same " (names.len()) } } @else {
                    table.list { tbody { @for name in differ {
                        tr {
                            th scope="row" { (plain(name)) }
                            td { (change_of(old.get(*name).map(String::as_str), new.get(*name).map(String::as_str))) }
                        }
                    } } }
                }
            }
        }
    }
}
