//! What moves: channels and revocations.

use std::{collections::BTreeMap, sync::Arc};

use axum::{
    body::Body,
    extract::{Path, State},
    http::HeaderMap,
};
use kiln_core::{ChannelName, Version};
use kiln_registry::{Intent, Parent, Selector};

use super::{Answer, allowed, body, json, parse};
use crate::{access::Scope, problem::Problem, state::App, wire};

/// Requests that say who, what and why are short.
const LONGEST: usize = 64 << 10;

pub(crate) async fn list(State(app): State<Arc<App>>, Path(image): Path<String>, headers: HeaderMap) -> Answer {
    let (_, image) = allowed(&app, &headers, Scope::Read, &image)?;
    let channels: BTreeMap<_, _> = app.on_disk(move |app| app.registry.channels(&image)).await?;
    json(&channels)
}

/// The moves of a channel, newest first.
pub(crate) async fn history(
    State(app): State<Arc<App>>,
    Path((image, channel)): Path<(String, String)>,
    headers: HeaderMap,
) -> Answer {
    let (_, image) = allowed(&app, &headers, Scope::Read, &image)?;
    let channel: ChannelName = parse(&channel)?;
    let changes = app.on_disk(move |app| app.index.history(&image, &channel)).await?;
    let rev = changes.last().map_or(0, |change| change.rev);
    json(&wire::Log { changes: changes.into_iter().rev().collect(), rev })
}

fn reason(text: Option<String>) -> Result<Option<String>, Problem> {
    if text.as_ref().is_some_and(|text| text.len() > 4096) {
        return Err(Problem::bad_request("a reason has at most 4096 bytes"));
    }
    Ok(text)
}

pub(crate) async fn promote(
    State(app): State<Arc<App>>,
    Path((image, channel)): Path<(String, String)>,
    headers: HeaderMap,
    request: Body,
) -> Answer {
    let (caller, image) = allowed(&app, &headers, Scope::Promote, &image)?;
    let channel: ChannelName = parse(&channel)?;
    let wire::Promote { version, expect, reason, by, allow_revoked } = body::json(request, LONGEST).await?;
    let selector = Selector { image, reference: parse(&version)? };
    let by = caller.signature(by.as_deref());
    let intent = Intent { by, now: app.now(), reason: self::reason(reason)?, allow_revoked };
    let moved = app.on_disk(move |app| app.registry.promote(&selector, &channel, expect.as_ref(), &intent)).await?;
    app.changed.notify_waiters();
    json(&wire::Moved { from: moved.from, to: moved.to, rev: moved.rev, already: moved.already })
}

pub(crate) async fn rollback(
    State(app): State<Arc<App>>,
    Path((image, channel)): Path<(String, String)>,
    headers: HeaderMap,
    request: Body,
) -> Answer {
    let (caller, image) = allowed(&app, &headers, Scope::Promote, &image)?;
    let channel: ChannelName = parse(&channel)?;
    let wire::Rollback { to, expect, reason, by, allow_revoked } = body::json(request, LONGEST).await?;
    let by = caller.signature(by.as_deref());
    let intent = Intent { by, now: app.now(), reason: self::reason(reason)?, allow_revoked };
    let rolled = move |app: &App| app.registry.rollback(&image, &channel, to.as_ref(), expect.as_ref(), &intent);
    let moved = app.on_disk(rolled).await?;
    app.changed.notify_waiters();
    json(&wire::Moved { from: moved.from, to: moved.to, rev: moved.rev, already: moved.already })
}

pub(crate) async fn restrict(
    State(app): State<Arc<App>>,
    Path((image, channel)): Path<(String, String)>,
    headers: HeaderMap,
    request: Body,
) -> Answer {
    let (caller, image) = allowed(&app, &headers, Scope::Restrict, &image)?;
    let channel: ChannelName = parse(&channel)?;
    let wire::Restrict { restricted, reason, by } = body::json(request, LONGEST).await?;
    let by = caller.signature(by.as_deref());
    let intent = Intent { by, now: app.now(), reason: self::reason(reason)?, allow_revoked: false };
    let changed = app.on_disk(move |app| app.registry.restrict(&image, &channel, restricted, &intent)).await?;
    app.changed.notify_waiters();
    json(&wire::Changed { changed })
}

pub(crate) async fn revoke(
    State(app): State<Arc<App>>,
    Path((image, version)): Path<(String, String)>,
    headers: HeaderMap,
    request: Body,
) -> Answer {
    let (caller, image) = allowed(&app, &headers, Scope::Revoke, &image)?;
    let version: Version = parse(&version)?;
    let wire::Revoke { reason, at, lift, by } = body::json(request, LONGEST).await?;
    if reason.is_none() && !lift {
        return Err(Problem::bad_request("a revocation needs a `reason`"));
    }
    let now = app.now();
    let from = (!lift).then(|| at.unwrap_or(now));
    let by = caller.signature(by.as_deref());
    let intent = Intent { by, now, reason: self::reason(reason)?, allow_revoked: false };
    let version = Parent { image, version };
    let mut inherited = app.on_disk(move |app| app.registry.revoke(&version, from, &intent)).await?;
    app.changed.notify_waiters();
    inherited.retain(|child| caller.may(Scope::Read, &child.image));
    json(&wire::Inherited { inherited })
}
