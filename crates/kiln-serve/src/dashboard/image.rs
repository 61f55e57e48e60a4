//! One image: channels, plots over its versions, the list of versions.

use std::sync::Arc;

use axum::{
    body::Body,
    extract::{Path, RawQuery, State},
    http::{HeaderMap, Response},
};
use kiln_core::{ImageName, Version};
use kiln_index::Build;
use kiln_registry::{Entry, Listing, Parent, RegistryError, Revoked, Start};
use maud::{Markup, html};

use super::{
    page::{channel, duration, plain, revoked, size, when},
    plot::{self, Point, Scale},
    session::Visitor,
    shown,
};
use crate::{
    access::Scope,
    api::{parse, query::Query},
    problem::Problem,
    state::App,
};

/// Versions on one page, and in the plots.
const PAGE: usize = 50;

pub(super) async fn show(
    State(app): State<Arc<App>>,
    Path(image): Path<String>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Response<Body> {
    let query = Query::parse(query.as_deref());
    let path = format!("/images/{image}");
    let body = async |visitor: &Visitor| body(&app, visitor, &image, &query).await;
    shown(&app, &headers, body, &image, &[(&image, &path)]).await
}

async fn body(app: &Arc<App>, visitor: &Visitor, image: &str, query: &Query) -> Result<Markup, Problem> {
    let image: ImageName = parse(image)?;
    visitor.caller.require(Scope::Read, &image)?;
    let (now, name) = (app.now(), image.clone());
    let after = query.get("after").map(parse::<Version>).transpose()?;
    let (listing, builds, pointed) = app
        .on_disk(move |app| {
            let start = after.as_ref().map_or(Start::Newest, Start::After);
            let listing = match app.registry.page(&name, start, PAGE, now) {
                // The version was removed since the page before was made.
                Err(RegistryError::UnknownVersion { .. }) => app.registry.page(&name, Start::Newest, PAGE, now),
                page => page,
            }?;
            let builds = app.index.builds(&name, listing.versions.iter().map(|entry| &entry.listed));
            let pointed = listing
                .channels
                .values()
                .map(|channel| Parent { image: name.clone(), version: channel.version.clone() });
            let pointed = app.registry.revocations(pointed, now)?;
            Ok((listing, builds, pointed))
        })
        .await?;
    let shown = &listing.versions;
    let description = builds.iter().flatten().next().and_then(|build| build.description.clone());
    let more = listing.count > listing.start + shown.len();
    Ok(html! {
        div.title {
            h1 { (image) }
            @if let Some(text) = &description { p.muted { (plain(text)) } }
        }
        (channels(&listing, &pointed, now))
        div.plots {
            (plots(&image, &builds))
        }
        section {
            form action=(format!("/diff/{image}")) {
                div.title {
                    h2 { "Versions " span.count { (listing.count) } }
                    @if shown.len() > 1 { button type="submit" { "Compare" } }
                }
                table.list {
                    thead { tr {
                        @if shown.len() > 1 { th.pick { "From" } th.pick { "To" } }
                        th { "Version" } th { "Marks" } th.number { "Size" } th.number { "Built in" } th { "Baked on" } th { "Published" }
                    } }
                    tbody {
                        @for (number, (entry, build)) in shown.iter().zip(&builds).enumerate() {
                            (line(&image, entry, build.as_ref(), (number, shown.len()), now))
                        }
                    }
                }
            }
            @if more {
                @let last = shown.last().map(|entry| entry.listed.version.to_string()).unwrap_or_default();
                nav.pages { a href=(format!("/images/{image}?after={}", last.replace('+', "%2B"))) { "Older versions →" } }
            }
        }
    })
}

fn channels(listing: &Listing, pointed: &[Option<Revoked>], now: u64) -> Markup {
    let image = &listing.image;
    html! {
        @if listing.channels.is_empty() {
            p.muted { "No channel points to a version yet: " code { "kiln promote " (image) " VERSION --to stable" } }
        } @else {
            div.cards {
                @for ((name, found), bad) in listing.channels.iter().zip(pointed) {
                    section.card.channel {
                        div { (channel(image, name.as_str())) @if let Some(bad) = bad { " " (revoked(&bad.revocation.reason)) } }
                        a.version.large href=(format!("/images/{image}/{}", found.version)) { (found.version) }
                        p.muted { (when(found.since, now)) " by " (plain(&found.by)) }
                    }
                }
            }
        }
    }
}

fn plots(image: &ImageName, builds: &[Option<Build>]) -> Markup {
    let points = |value: fn(&Build) -> Option<u64>| -> Vec<Point> {
        let point = |build: &Build| {
            let version = &build.version;
            let href = format!("/images/{image}/{version}");
            value(build).map(|value| Point { label: version.to_string(), value, href })
        };
        builds.iter().rev().flatten().filter_map(point).collect()
    };
    let sizes = points(|build| build.qcow2);
    let times = points(|build| Some(build.duration()).filter(|sum| *sum > 0));
    html! {
        (plot::line("Size of the qcow2", &sizes, Scale::Bytes, size))
        (plot::line("Duration of the build", &times, Scale::Time, duration))
    }
}

fn line(image: &ImageName, entry: &Entry, build: Option<&Build>, (number, count): (usize, usize), now: u64) -> Markup {
    let version = &entry.listed.version;
    let built = build.map_or(0, Build::duration);
    html! {
        tr.revoked[entry.revoked.is_some()] {
            @if count > 1 {
                td.pick data-name="from" { input type="radio" name="from" value=(version) checked[number == 1] aria-label=(format!("Compare from {version}")); }
                td.pick data-name="to" { input type="radio" name="to" value=(version) checked[number == 0] aria-label=(format!("Compare to {version}")); }
            }
            th scope="row" { a.version href=(format!("/images/{image}/{version}")) { (version) } }
            td data-label="Marks" {
                div.chips {
                    @for name in &entry.channels { (channel(image, name.as_str())) }
                    @if let Some(found) = &entry.revoked { (revoked(&found.revocation.reason)) }
                }
            }
            td.number data-label="Size" { (build.and_then(|build| build.qcow2).map_or_else(String::new, size)) }
            td.number data-label="Built in" { @if built > 0 { (duration(built)) } }
            td data-label="Baked on" {
                @match &entry.listed.parent {
                    Some(parent) => a href=(format!("/images/{}/{}", parent.image, parent.version)) { (parent) },
                    None => span.muted { (build.map_or_else(String::new, |build| plain(&build.base))) },
                }
            }
            td data-label="Published" { (when(entry.listed.published, now)) }
        }
    }
}
