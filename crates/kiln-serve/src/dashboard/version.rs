//! One version: what it is, how to fetch it, how it was built, what it comes from and what was baked on it.

use std::sync::Arc;

use axum::{
    body::Body,
    extract::{Path, State},
    http::{HeaderMap, Response},
};
use kiln_core::artifact::Artifact;
use kiln_registry::{Ami, Parent, Record, Revoked, Start};
use maud::{Markup, html};

use super::{
    log,
    page::{channel, duration, plain, revoked, size, when},
    plot::{self, Bar},
    session::Visitor,
    shown,
};
use crate::{access::Scope, api, files::selector, problem::Problem, state::App};

/// Phases of a bake, in the order they happen; what the record has beyond them follows.
const PHASES: [&str; 13] = [
    "calibrate",
    "download",
    "base",
    "boot",
    "resume",
    "provision",
    "check",
    "clean",
    "shutdown",
    "seal",
    "hygiene",
    "export",
    "boot-test",
];

#[derive(Debug)]
struct Found {
    record: Record,
    channels: Vec<String>,
    revoked: Option<Revoked>,
    /// From its base upwards.
    lineage: Vec<Parent>,
    children: Vec<Parent>,
    before: Option<String>,
    log: bool,
    amis: Vec<Ami>,
}

pub(super) async fn show(
    State(app): State<Arc<App>>,
    Path((image, reference)): Path<(String, String)>,
    headers: HeaderMap,
) -> Response<Body> {
    let title = format!("{image} {reference}");
    let (up, here) = (format!("/images/{image}"), format!("/images/{image}/{reference}"));
    let base = api::base(&app, &headers);
    let body = async |visitor: &Visitor| body(&app, visitor, &image, &reference, &base).await;
    shown(&app, &headers, body, &title, &[(&image, &up), (&reference, &here)]).await
}

async fn body(app: &Arc<App>, visitor: &Visitor, image: &str, reference: &str, base: &str) -> Result<Markup, Problem> {
    let selector = selector(image, reference)?;
    visitor.caller.require(Scope::Read, &selector.image)?;
    let now = app.now();
    let mut found = app
        .on_disk(move |app| {
            let record = app.registry.record(&selector)?;
            let version = &record.artifact.version;
            let name = Parent { image: selector.image.clone(), version: version.clone() };
            // The version and the one before it.
            let found = app.registry.page(&selector.image, Start::At(version), 2, now)?;
            let mut found = found.versions.into_iter();
            let (channels, revoked) = found.next().map(|entry| (entry.channels, entry.revoked)).unwrap_or_default();
            let before = found.next().map(|entry| entry.listed.version.to_string());
            let lineage = app.registry.lineage(&name)?;
            let children = app.registry.descendants(&name)?;
            let channels = channels.into_iter().map(|channel| channel.to_string()).collect();
            let log = log::file(app, &record).is_some_and(|file| file.is_file());
            let amis = app.registry.amis(&record.artifact.image, &record.artifact.version)?;
            Ok(Found { record, channels, revoked, lineage, children, before, log, amis })
        })
        .await?;
    visitor.caller.cut(&mut found.lineage);
    found.children.retain(|name| visitor.caller.may(Scope::Read, &name.image));
    if let Some(bad) = &mut found.revoked {
        visitor.caller.cut(&mut bad.chain);
    }
    let Artifact { image, version, description, .. } = &found.record.artifact;
    Ok(html! {
        div.title {
            h1 { (image) " " span.version { (version) } }
            div.chips {
                @for name in &found.channels { (channel(image, name)) }
                @if let Some(bad) = &found.revoked { (revoked(&bad.revocation.reason)) }
            }
        }
        @if let Some(text) = description { p.muted { (plain(text)) } }
        @if let Some(bad) = &found.revoked { (warning(bad, now)) }
        (facts(&found, now))
        @if found.revoked.is_none() { (fetch(&found.record, base)) }
        (amis(&found.amis, now))
        (building(&found.record.artifact))
        @if found.log { p { a.button href=(format!("/logs/{image}/{version}")) { "Log of the build" } } }
        (proof(&found.record.artifact))
        (lineage(&found))
    })
}

fn warning(bad: &Revoked, now: u64) -> Markup {
    html! {
        section.card.warning {
            strong { "Revoked " (when(bad.revocation.at, now)) " by " (plain(&bad.revocation.by)) ": " (plain(&bad.revocation.reason)) }
            @if bad.chain.len() > 1 {
                p { "By what it was baked on: " @for (number, name) in bad.chain.iter().enumerate() { @if number > 0 { " → " } (link(name)) } }
            }
        }
    }
}

fn link(name: &Parent) -> Markup {
    html! { a href=(format!("/images/{}/{}", name.image, name.version)) { (name) } }
}

fn facts(found: &Found, now: u64) -> Markup {
    let Record { artifact, published, manifest, .. } = &found.record;
    let sum: u64 = artifact.times.values().sum();
    html! {
        dl.facts {
            div { dt { "Published" } dd { (when(*published, now)) } }
            div { dt { "Built in" } dd { (duration(sum)) } }
            div { dt { "Disk" } dd { (size(artifact.disk.size)) span.muted { ", " (size(artifact.disk.chunks << 16)) " with data" } } }
            div { dt { "Base" } dd { (plain(&artifact.base.name)) } }
            div { dt { "Machine" } dd { (plain(&artifact.machine.accelerator)) ", " (artifact.machine.cpus) @if artifact.machine.cpus == 1 { " CPU, " } @else { " CPUs, " } (size(artifact.machine.memory)) } }
            div { dt { "Build" } dd { code { (plain(&artifact.build)) } } }
            @for (axis, value) in &artifact.member { div { dt { (plain(axis)) } dd { (plain(value)) } } }
            div.wide { dt { "Disk digest" } dd { code.digest { (artifact.disk.digest) } } }
            div.wide { dt { "Manifest" } dd { code.digest { (manifest.digest) } } }
            div.wide { dt { "Recipe" } dd { code.digest { (artifact.recipe) } } }
        }
        @if let Some(before) = &found.before {
            p { a.button href=(format!("/diff/{}?from={}&to={}", artifact.image, escaped(before), escaped(artifact.version.as_str()))) { "Compare with " (before) } }
        }
    }
}

fn escaped(version: &str) -> String {
    version.replace('+', "%2B")
}

fn fetch(record: &Record, base: &str) -> Markup {
    let Artifact { image, version, files, .. } = &record.artifact;
    let file = |format: &str| format!("/images/{image}/{version}/disk.{format}");
    let host = base.split_once("://").map_or(base, |(_, host)| host);
    html! {
        section {
            h2 { "Files" }
            table.list {
                thead { tr { th { "Format" } th.number { "Size" } th { "SHA-256" } } }
                tbody {
                    @for found in files {
                        tr {
                            th scope="row" { a href=(file(&found.format)) { (plain(&found.format)) } }
                            td.number data-label="Size" { (size(found.bytes)) }
                            td data-label="SHA-256" { code.digest { (found.sha256.hex()) } }
                        }
                    }
                    @for form in ["raw", "raw.zst"] {
                        @if record.file(form).is_none() {
                            tr {
                                th scope="row" { a href=(file(form)) { (form) } }
                                td.number data-label="Size" { @if form == "raw" { (size(record.artifact.disk.size)) } }
                                td data-label="SHA-256" { a href=(format!("{}.sha256", file(form))) { "made when asked for" } }
                            }
                        }
                    }
                }
            }
            pre.commands {
                "curl -C - -O " (base) (file("qcow2")) "\n"
                "kiln pull " (image) "@" (version) " --registry " (base) "\n"
                "skopeo copy docker://" (host) "/" (image) ":" (version.as_str().replace('+', "_")) " dir:" (image)
            }
        }
    }
}

fn amis(amis: &[Ami], now: u64) -> Markup {
    html! {
        @if !amis.is_empty() {
            section {
                h2 { "AMIs" }
                table.list {
                    thead { tr { th { "Region" } th { "AMI" } th { "Snapshot" } th { "Account" } th { "Published" } } }
                    tbody {
                        @for ami in amis {
                            tr {
                                th scope="row" { (plain(&ami.region)) }
                                td data-label="AMI" { code { (plain(&ami.ami)) } }
                                td data-label="Snapshot" { code { (plain(&ami.snapshot)) } @if ami.kms_key.is_some() { span.muted { ", encrypted" } } }
                                td data-label="Account" { (plain(&ami.account)) }
                                td data-label="Published" { (when(ami.published, now)) }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn building(artifact: &Artifact) -> Markup {
    let steps: Vec<_> = artifact
        .steps
        .iter()
        .map(|step| {
            let note = match step.cached {
                Some(_) => "from a checkpoint".to_owned(),
                None => format!("{}: {}", plain(&step.provisioner), plain(&step.outcome)),
            };
            let failed = step.outcome.contains("fail");
            let (name, milliseconds) = (plain(&step.name), step.milliseconds);
            Bar { name, note, milliseconds, faint: step.cached.is_some(), failed }
        })
        .collect();
    let bar = |name: &str, milliseconds: u64| Bar {
        name: plain(name),
        note: String::new(),
        milliseconds,
        faint: false,
        failed: false,
    };
    let known = PHASES.iter().filter_map(|phase| artifact.times.get(*phase).map(|time| bar(phase, *time)));
    let others = artifact.times.iter().filter(|(phase, _)| !PHASES.contains(&phase.as_str()));
    let phases: Vec<_> = known.chain(others.map(|(phase, time)| bar(phase, *time))).collect();
    html! {
        @if !phases.is_empty() {
            section { h2 { "The build" } (plot::timeline(&phases, duration)) }
        }
        @if !steps.is_empty() {
            section { h2 { "Steps" } (plot::timeline(&steps, duration)) }
        }
    }
}

fn proof(artifact: &Artifact) -> Markup {
    html! {
        @if !artifact.checks.is_empty() {
            section {
                h2 { "Checks" }
                ul.checks {
                    @for check in &artifact.checks {
                        li.bad[!check.passed] {
                            span.mark { @if check.passed { "✓" } @else { "✗" } }
                            span { (plain(&check.name)) }
                            span.muted { "on the " (plain(&check.on)) ", " (duration(check.milliseconds)) }
                        }
                    }
                }
            }
        }
        @if !artifact.hygiene.is_empty() {
            section {
                h2 { "Hygiene of the finished disk" }
                ul.checks {
                    @for finding in &artifact.hygiene {
                        li {
                            span.mark { "!" }
                            span { code { (plain(&finding.path)) } " " (plain(&finding.detail)) }
                            span.muted { (plain(&finding.id)) ", " (plain(&finding.level)) @if let Some(reason) = &finding.waived { ", waived: " (plain(reason)) } }
                        }
                    }
                }
            }
        }
        @if !artifact.tools.is_empty() {
            details {
                summary { "Tools that took part" }
                dl.facts { @for (tool, version) in &artifact.tools { div { dt { (plain(tool)) } dd { (plain(version)) } } } }
            }
        }
    }
}

fn lineage(found: &Found) -> Markup {
    html! {
        @if !found.lineage.is_empty() || !found.children.is_empty() {
            section {
                h2 { "Lineage" }
                @if !found.lineage.is_empty() {
                    p { "Baked on " @for (number, name) in found.lineage.iter().enumerate() { @if number > 0 { ", which was baked on " } (link(name)) } }
                }
                @if !found.children.is_empty() {
                    p { "Baked on it:" }
                    ul { @for name in found.children.iter().take(100) { li { (link(name)) } } }
                    @if found.children.len() > 100 { p.muted { "and " (found.children.len() - 100) " more" } }
                }
            }
        }
    }
}
