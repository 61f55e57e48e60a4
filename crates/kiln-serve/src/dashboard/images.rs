//! The first page: every image.

use std::sync::Arc;

use axum::{
    body::Body,
    extract::{RawQuery, State},
    http::{HeaderMap, Response},
};
use kiln_index::Build;
use kiln_registry::{Listing, RegistryError, Start};
use maud::{Markup, html};

use super::{
    page::{channel, revoked, size, when},
    plot,
    session::Visitor,
    shown,
};
use crate::{access::Scope, api::query::Query, problem::Problem, state::App};

/// Images on one page.
const PAGE: usize = 50;
/// Versions that the small line shows.
const SPARK: usize = 12;

#[derive(Debug)]
struct Row {
    listing: Listing,
    newest: Option<Build>,
    sizes: Vec<u64>,
}

pub(super) async fn show(State(app): State<Arc<App>>, RawQuery(query): RawQuery, headers: HeaderMap) -> Response<Body> {
    let query = Query::parse(query.as_deref());
    shown(&app, &headers, async |visitor| body(&app, visitor, &query).await, "Images", &[]).await
}

async fn body(app: &Arc<App>, visitor: &Visitor, query: &Query) -> Result<Markup, Problem> {
    visitor.caller.require_any()?;
    let wanted = query.get("q").unwrap_or_default().trim().to_lowercase();
    let caller = visitor.caller.clone();
    let number = query.number("page").and_then(|page| usize::try_from(page).ok()).unwrap_or(1).max(1);
    let (now, text) = (app.now(), wanted.clone());
    let (rows, count) = app
        .on_disk(move |app| {
            let names = app.registry.names()?.into_iter();
            let mut names: Vec<_> =
                names.filter(|name| caller.may(Scope::Read, name) && name.as_str().contains(&text)).collect();
            let count = names.len();
            names = names.into_iter().skip((number - 1).saturating_mul(PAGE)).take(PAGE).collect();
            let row = |name| match app.registry.page(&name, Start::Newest, SPARK, now) {
                Ok(listing) => Some(Ok(row(app, listing))),
                // Its first publish is under way.
                Err(RegistryError::UnknownImage { .. }) => None,
                Err(error) => Some(Err(error)),
            };
            let rows = names.into_iter().filter_map(row).collect::<Result<Vec<_>, _>>()?;
            Ok((rows, count))
        })
        .await?;
    Ok(html! {
        div.title {
            h1 { "Images" }
            @if count > PAGE || !wanted.is_empty() {
                form.search action="/" { input type="search" name="q" value=(wanted) placeholder="Filter by name" aria-label="Filter by name"; }
            }
        }
        @if rows.is_empty() {
            section.card.empty {
                h2 { @if wanted.is_empty() { "Nothing is published yet" } @else { "No image has this in its name" } }
                p { "Publish one with " code { "kiln build templates/web" } ", or send one here with " code { "kiln push web@1.0.0 --registry URL" } "." }
            }
        } @else {
            table.list {
                thead { tr { th { "Image" } th { "Newest" } th { "Channels" } th.number { "Size" } th.wide { "" } th.number { "Versions" } th { "Published" } } }
                tbody { @for row in &rows { (line(row, now)) } }
            }
        }
        (pages(number, count.div_ceil(PAGE), &wanted))
    })
}

fn row(app: &App, listing: Listing) -> Row {
    let builds = app.index.builds(&listing.image, listing.versions.iter().map(|entry| &entry.listed));
    let mut sizes: Vec<_> = builds.iter().flatten().filter_map(|build| build.qcow2).collect();
    sizes.reverse();
    Row { newest: builds.into_iter().next().flatten(), sizes, listing }
}

fn line(row: &Row, now: u64) -> Markup {
    let Listing { image, channels, versions, .. } = &row.listing;
    let Some(newest) = versions.first() else { return html! {} };
    html! {
        tr {
            th scope="row" {
                a href=(format!("/images/{image}")) { (image) }
                @if let Some(text) = row.newest.as_ref().and_then(|build| build.description.as_ref()) {
                    span.muted.description { (super::page::plain(text)) }
                }
            }
            td data-label="Newest" {
                a.version href=(format!("/images/{image}/{}", newest.listed.version)) { (newest.listed.version) }
                @if let Some(found) = &newest.revoked { " " (revoked(&found.revocation.reason)) }
            }
            td data-label="Channels" {
                div.chips {
                    @for (name, found) in channels { span.pair { (channel(image, name.as_str())) span.muted { (found.version) } } }
                    @if channels.is_empty() { span.muted { "none" } }
                }
            }
            td.number data-label="Size" { (row.sizes.last().map_or_else(String::new, |bytes| size(*bytes))) }
            td.wide { (plot::spark(&row.sizes)) }
            td.number data-label="Versions" { (row.listing.count) }
            td data-label="Published" { (when(newest.listed.published, now)) }
        }
    }
}

fn pages(number: usize, last: usize, wanted: &str) -> Markup {
    let wanted = percent_encoding::utf8_percent_encode(wanted, percent_encoding::NON_ALPHANUMERIC);
    let link = |number: usize| format!("/?page={number}&q={wanted}");
    html! {
        @if last > 1 {
            nav.pages aria-label="Pages" {
                @if number > 1 { a href=(link(number - 1)) { "← Before" } }
                span.muted { "Page " (number) " of " (last) }
                @if number < last { a href=(link(number + 1)) { "Next →" } }
            }
        }
    }
}
