//! One image: channels, plots over its versions, the list of versions.

use std::sync::Arc;

use axum::{
    body::Body,
    extract::{Path, RawQuery, State},
    http::{HeaderMap, Response},
};
use kiln_core::ImageName;
use kiln_registry::{Entry, Listing, Record, Reference, Selector};
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
    let after = query.get("after").map(str::to_owned);
    let (listing, start, records) = app
        .on_disk(move |app| {
            let listing = app.registry.listing(&name, now)?;
            let after = after
                .and_then(|after| listing.versions.iter().position(|entry| entry.listed.version.as_str() == after));
            let start = after.map_or(0, |place| place + 1);
            let record = |entry: &Entry| {
                let reference = Reference::Named(entry.listed.version.clone());
                app.registry.record(&Selector { image: name.clone(), reference }).ok()
            };
            let records: Vec<_> = listing.versions.iter().skip(start).take(PAGE).map(record).collect();
            Ok((listing, start, records))
        })
        .await?;
    let shown = &listing.versions[start..(start + records.len()).min(listing.versions.len())];
    let description = records.iter().flatten().next().and_then(|record| record.artifact.description.clone());
    let more = listing.versions.len() > start + records.len();
    Ok(html! {
        div.title {
            h1 { (image) }
            @if let Some(text) = &description { p.muted { (plain(text)) } }
        }
        (channels(&listing, now))
        div.plots {
            (plots(&image, &records))
        }
        section {
            form action=(format!("/diff/{image}")) {
                div.title {
                    h2 { "Versions " span.count { (listing.versions.len()) } }
                    @if shown.len() > 1 { button type="submit" { "Compare" } }
                }
                table.list {
                    thead { tr {
                        @if shown.len() > 1 { th.pick { "From" } th.pick { "To" } }
                        th { "Version" } th { "Marks" } th.number { "Size" } th.number { "Built in" } th { "Baked on" } th { "Published" }
                    } }
                    tbody {
                        @for (number, (entry, record)) in shown.iter().zip(&records).enumerate() {
                            (line(&image, entry, record.as_ref(), (number, shown.len()), now))
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

fn channels(listing: &Listing, now: u64) -> Markup {
    let image = &listing.image;
    html! {
        @if listing.channels.is_empty() {
            p.muted { "No channel points to a version yet: " code { "kiln promote " (image) " VERSION --to stable" } }
        } @else {
            div.cards {
                @for (name, found) in &listing.channels {
                    @let bad = listing.versions.iter().find(|entry| entry.listed.version == found.version).and_then(|entry| entry.revoked.as_ref());
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

fn plots(image: &ImageName, records: &[Option<Record>]) -> Markup {
    let points = |value: fn(&Record) -> Option<u64>| -> Vec<Point> {
        let point = |record: &Record| {
            let version = &record.artifact.version;
            let href = format!("/images/{image}/{version}");
            value(record).map(|value| Point { label: version.to_string(), value, href })
        };
        records.iter().rev().flatten().filter_map(point).collect()
    };
    let sizes = points(|record| record.file("qcow2").map(|file| file.bytes));
    let times = points(|record| Some(record.artifact.times.values().sum::<u64>()).filter(|sum| *sum > 0));
    html! {
        (plot::line("Size of the qcow2", &sizes, Scale::Bytes, size))
        (plot::line("Duration of the build", &times, Scale::Time, duration))
    }
}

fn line(
    image: &ImageName,
    entry: &Entry,
    record: Option<&Record>,
    (number, count): (usize, usize),
    now: u64,
) -> Markup {
    let version = &entry.listed.version;
    let built = record.map_or(0, |record| record.artifact.times.values().sum::<u64>());
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
            td.number data-label="Size" { (record.and_then(|record| record.file("qcow2")).map_or_else(String::new, |file| size(file.bytes))) }
            td.number data-label="Built in" { @if built > 0 { (duration(built)) } }
            td data-label="Baked on" {
                @match &entry.listed.parent {
                    Some(parent) => a href=(format!("/images/{}/{}", parent.image, parent.version)) { (parent) },
                    None => span.muted { (record.map_or_else(String::new, |record| plain(&record.artifact.base.name))) },
                }
            }
            td data-label="Published" { (when(entry.listed.published, now)) }
        }
    }
}
