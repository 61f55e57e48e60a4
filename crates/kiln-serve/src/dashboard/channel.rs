//! A channel: where it points, how it came there, and the way back.

use std::sync::Arc;

use axum::{
    body::Body,
    extract::{Path, State},
    http::{HeaderMap, Response, StatusCode},
};
use kiln_core::{ChannelName, ImageName, Version};
use kiln_registry::{Action, Change, Intent, Listing};
use maud::{Markup, html};

use super::{
    form,
    page::{failed, page, plain, revoked, see, when},
    session::{Session, Visitor},
    shown,
};
use crate::{access::Scope, api::parse, api::query::Query, problem::Problem, state::App};

/// Moves on the page; the API has all.
const MOST: usize = 200;

pub(super) async fn show(
    State(app): State<Arc<App>>,
    Path((image, channel)): Path<(String, String)>,
    headers: HeaderMap,
) -> Response<Body> {
    let title = format!("{image}@{channel}");
    let (up, here) = (format!("/images/{image}"), format!("/channels/{image}/{channel}"));
    let body = async |visitor: &Visitor| body(&app, visitor, &image, &channel).await;
    shown(&app, &headers, body, &title, &[(&image, &up), (&channel, &here)]).await
}

async fn body(app: &Arc<App>, visitor: &Visitor, image: &str, channel: &str) -> Result<Markup, Problem> {
    let (image, channel): (ImageName, ChannelName) = (parse(image)?, parse(channel)?);
    visitor.caller.require(Scope::Read, &image)?;
    let now = app.now();
    let (name, wanted) = (image.clone(), channel.clone());
    let (listing, mut changes) = app
        .on_disk(move |app| {
            let changes = app.index.history(&name, &wanted)?;
            Ok((app.registry.listing(&name, now)?, changes))
        })
        .await?;
    changes.reverse();
    let Some(found) = listing.channels.get(&channel) else { return Err(Problem::not_found()) };
    let session = visitor.session.as_ref().filter(|_| visitor.caller.may(Scope::Promote, &image));
    let bad = mark(&listing, &found.version);
    Ok(html! {
        div.title { h1 { (image) "@" (channel) } }
        section.card.channel {
            p.muted { "points to" }
            a.version.large href=(format!("/images/{image}/{}", found.version)) { (found.version) }
            @if let Some(reason) = bad { " " (revoked(reason)) }
            p.muted { "since " (when(found.since, now)) ", moved by " (plain(&found.by)) }
        }
        @if session.is_none() {
            p.muted { "To move it: " code { "kiln rollback " (image) " " (channel) } @if !app.tokens.is_empty() { ", or " a href="/login" { "log in" } " with a token that may promote" } }
        }
        section {
            h2 { "History" }
            table.list {
                thead { tr { th { "Revision" } th { "Version" } th { "How" } th { "Who" } th { "Why" } th { "When" } @if session.is_some() { th { "" } } } }
                tbody { @for change in changes.iter().take(MOST) { (line(&listing, &channel, &found.version, change, session, now)) } }
            }
        }
    })
}

fn mark<'a>(listing: &'a Listing, version: &Version) -> Option<&'a str> {
    let entry = listing.versions.iter().find(|entry| entry.listed.version == *version)?;
    entry.revoked.as_ref().map(|revoked| revoked.revocation.reason.as_str())
}

fn line(
    listing: &Listing,
    channel: &ChannelName,
    current: &Version,
    change: &Change,
    session: Option<&Session>,
    now: u64,
) -> Markup {
    let (how, from, to) = match &change.action {
        Action::Promote { from, to, .. } => ("promoted", from, to),
        Action::Rollback { from, to, .. } => ("rolled back", from, to),
        _ => return html! {},
    };
    let image = &listing.image;
    let usable = listing.versions.iter().any(|entry| entry.listed.version == *to && entry.revoked.is_none());
    html! {
        tr {
            td.number data-label="Revision" { (change.rev) }
            th scope="row" { a.version href=(format!("/images/{image}/{to}")) { (to) } @if let Some(reason) = mark(listing, to) { " " (revoked(reason)) } }
            td data-label="How" { span.chip.good[how == "promoted"].warn[how != "promoted"] { (how) } @if let Some(from) = from { span.muted { " from " (from) } } }
            td data-label="Who" { (plain(&change.by)) }
            td data-label="Why" { (change.reason.as_deref().map(plain).unwrap_or_default()) }
            td data-label="When" { (when(change.at, now)) }
            @if let Some(session) = session {
                td.action {
                    @if to != current && usable {
                        details.confirm {
                            summary { "Roll back to this" }
                            form method="post" action=(format!("/channels/{image}/{channel}/rollback")) {
                                input type="hidden" name="form" value=(session.form);
                                input type="hidden" name="to" value=(to);
                                input type="hidden" name="expect" value=(current);
                                label { "Why" input type="text" name="reason" maxlength="500" required; }
                                button.danger type="submit" { "Point " (channel) " to " (to) }
                            }
                        }
                    } @else if to == current { span.muted { "now" } }
                }
            }
        }
    }
}

pub(super) async fn rollback(
    State(app): State<Arc<App>>,
    Path((image, channel)): Path<(String, String)>,
    headers: HeaderMap,
    body: Body,
) -> Response<Body> {
    let visitor = match Visitor::of(&app, &headers) {
        Ok(visitor) => visitor,
        Err(problem) => return crate::dashboard::problem_page(&app, problem),
    };
    let moved = async {
        let sent = form(body).await?;
        visitor.require_form(&headers, sent.get("form"))?;
        let (image, channel): (ImageName, ChannelName) = (parse(&image)?, parse(&channel)?);
        visitor.caller.require(Scope::Promote, &image)?;
        move_back(&app, &visitor, image, channel, &sent).await
    };
    match moved.await {
        Ok(()) => see(&format!("/channels/{image}/{channel}")),
        Err(problem) if problem.status() == StatusCode::CONFLICT => {
            let body = html! {
                section.card.problem {
                    h1 { "Nothing was changed" }
                    p { (problem.detail) }
                    p { a href=(format!("/channels/{image}/{channel}")) { "Look at the channel again and decide" } }
                }
            };
            let mut response = page(&app, &visitor, "Nothing was changed", &[], &body);
            *response.status_mut() = StatusCode::CONFLICT;
            response
        }
        Err(problem) => failed(&app, &visitor, problem),
    }
}

async fn move_back(
    app: &Arc<App>,
    visitor: &Visitor,
    image: ImageName,
    channel: ChannelName,
    sent: &Query,
) -> Result<(), Problem> {
    let version = |name: &str| sent.get(name).filter(|text| !text.is_empty()).map(parse::<Version>).transpose();
    let (to, expect) = (version("to")?, version("expect")?);
    let reason = sent.get("reason").map(|reason| reason.chars().take(500).collect());
    let by = visitor.caller.signature(None);
    let intent = Intent { by, now: app.now(), reason, allow_revoked: false };
    let roll = move |app: &App| app.registry.rollback(&image, &channel, to.as_ref(), expect.as_ref(), &intent);
    app.on_disk(roll).await?;
    app.changed.notify_waiters();
    Ok(())
}
