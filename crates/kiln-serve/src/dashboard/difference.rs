//! What differs between two versions of an image.

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
use kiln_registry::{Content, Record, RegistryError, Selector, proof, sbom::Bom};
use maud::{Markup, html};

use super::{
    page::{duration, plain, size},
    session::Visitor,
    shown,
};
use crate::{access::Scope, api::parse, api::query::Query, files::selector, problem::Problem, state::App};

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

#[derive(Debug)]
struct Side {
    record: Record,
    content: Option<Content>,
    packages: BTreeMap<String, String>,
}

async fn body(app: &Arc<App>, visitor: &Visitor, image: &str, (from, to): (&str, &str)) -> Result<Markup, Problem> {
    let name: ImageName = parse(image)?;
    visitor.caller.require(Scope::Read, &name)?;
    let (old, new) = (selector(image, from)?, selector(image, to)?);
    let (old, new) = app.on_disk(move |app| Ok((side(app, &old)?, side(app, &new)?))).await?;
    let (a, b) = (&old.record.artifact, &new.record.artifact);
    Ok(html! {
        div.title {
            h1 { (name) ": " a.version href=(format!("/images/{name}/{}", a.version)) { (a.version) } " → " a.version href=(format!("/images/{name}/{}", b.version)) { (b.version) } }
            a.button href=(format!("/diff/{name}?from={}&to={}", to.replace('+', "%2B"), from.replace('+', "%2B"))) { "The other way round" }
        }
        (disk(&old, &new))
        (numbers(&old.record, &new.record))
        (named("Packages", &old.packages, &new.packages))
        (named("Steps", &steps(a), &steps(b)))
        (named("Checks", &checks(a), &checks(b)))
        (named("Tools", &a.tools, &b.tools))
    })
}

fn side(app: &App, selector: &Selector) -> Result<Side, RegistryError> {
    let record = app.registry.record(selector)?;
    let content = app.registry.content(&record).ok();
    let packages = packages(app, &record).unwrap_or_default();
    Ok(Side { record, content, packages })
}

/// What the bill of materials lists, if the version has one.
fn packages(app: &App, record: &Record) -> Option<BTreeMap<String, String>> {
    let statement = app.registry.statement(record, proof::SBOM).ok()??;
    let bom: Bom = serde_json::from_value(statement.predicate).ok()?;
    Some(bom.components.into_iter().map(|part| (part.name, part.version.unwrap_or_default())).collect())
}

fn disk(old: &Side, new: &Side) -> Markup {
    let same = old.record.artifact.disk.digest == new.record.artifact.disk.digest;
    let (Some(a), Some(b)) = (&old.content, &new.content) else {
        return html! { section.card.warning { p { "A manifest cannot be read; how much of the disk is shared is not known." } } };
    };
    let had: BTreeSet<_> = a.segments.iter().map(|segment| segment.blob.digest).collect();
    let whole: u64 = b.segments.iter().map(|segment| segment.blob.size).sum();
    let added: u64 =
        b.segments.iter().filter(|segment| !had.contains(&segment.blob.digest)).map(|segment| segment.blob.size).sum();
    let changed = b.chunks().zip(a.chunks()).filter(|(new, old)| new.digest != old.digest).count();
    let share = (added * 1000).checked_div(whole).unwrap_or(0);
    html! {
        section.card {
            @if same { h2 { "The same disk, bit for bit" } } @else {
                h2 { (size(added)) " of segments are new" span.muted { " of " (size(whole)) } }
                svg.bar.share viewBox="0 0 1000 8" preserveAspectRatio="none" aria-hidden="true" {
                    rect.track x="0" y="0" width="1000" height="8" {}
                    rect.run x="0" y="0" width=(share) height="8" {}
                }
                p.muted { (changed) " of " (b.chunks().count()) " chunks of 64 KiB differ in their place" }
            }
        }
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
                            @match (old.get(*name), new.get(*name)) {
                                (Some(old), Some(new)) => td { span.chip.warn { "changed" } " " (plain(old)) " → " (plain(new)) },
                                (None, Some(new)) => td { span.chip.good { "added" } " " (plain(new)) },
                                (Some(old), None) => td { span.chip.bad { "removed" } " " (plain(old)) },
                                (None, None) => td {},
                            }
                        }
                    } } }
                }
            }
        }
    }
}
