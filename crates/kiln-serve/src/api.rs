//! `/api/v1/`: the registry as JSON, with the errors of RFC 9457. `openapi.json` is its description.

pub(crate) mod body;
mod channels;
mod events;
mod publish;
pub(crate) mod query;
mod records;

use std::sync::Arc;

use axum::{
    Router,
    body::Body,
    extract::{Path, RawQuery, State},
    http::{HeaderMap, HeaderValue, Response, header},
    response::IntoResponse as _,
    routing::{get, post, put},
};
use kiln_core::{ImageName, Version};
use kiln_registry::{Entry, Listing, Start};
use serde::Serialize;

use self::query::Query;
use crate::{
    access::{Caller, Scope},
    facts::{ami_facts, facts},
    files,
    problem::Problem,
    state::App,
    wire,
};

const OPENAPI: &str = include_str!("api/openapi.json");
/// Versions in one answer, unless fewer are asked for.
const PAGE: usize = 1000;
/// The same of builds, which are longer.
const BUILDS: usize = 100;

pub(crate) type Answer = Result<Response<Body>, Problem>;

pub(crate) fn router() -> Router<Arc<App>> {
    Router::new()
        .route("/openapi.json", get(|| async { ([(header::CONTENT_TYPE, "application/json")], OPENAPI) }))
        .route("/images", get(images))
        .route("/outdated", get(outdated))
        .route("/images/{image}", get(image))
        .route("/images/{image}/builds", get(builds))
        .route("/images/{image}/versions/{reference}", get(version))
        .route("/images/{image}/resolve/{reference}", get(resolve))
        .route("/images/{image}/channels", get(channels::list))
        .route("/images/{image}/channels/{channel}", get(channels::history))
        .route("/images/{image}/channels/{channel}/promote", post(channels::promote))
        .route("/images/{image}/channels/{channel}/rollback", post(channels::rollback))
        .route("/images/{image}/channels/{channel}/restrict", post(channels::restrict))
        .route("/images/{image}/versions/{version}/revoke", post(channels::revoke))
        .route("/images/{image}/records", get(records::names))
        .route("/images/{image}/records/{*key}", get(records::record).put(records::enter))
        .route("/images/{image}/log", get(events::log))
        .route("/events", get(events::stream))
        .route("/images/{image}/missing", post(publish::missing))
        .route("/images/{image}/blobs/{digest}", put(publish::blob).get(publish::sent))
        .route("/images/{image}/versions", post(publish::version))
}

pub(crate) fn json(value: &impl Serialize) -> Answer {
    let body = serde_json::to_vec(value).map_err(|error| Problem::internal(error.to_string()))?;
    let mut response = body.into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    Ok(response)
}

pub(crate) fn parse<T: std::str::FromStr>(text: &str) -> Result<T, Problem>
where
    T::Err: std::fmt::Display,
{
    text.parse().map_err(|error: T::Err| Problem::bad_request(error.to_string()))
}

/// Who asks, when it may do `scope` with `image`.
pub(crate) fn allowed(
    app: &App,
    headers: &HeaderMap,
    scope: Scope,
    image: &str,
) -> Result<(Caller, ImageName), Problem> {
    let image: ImageName = parse(image)?;
    let caller = app.tokens.caller(headers)?;
    caller.require(scope, &image)?;
    Ok((caller, image))
}

/// The address under which clients know this server.
pub(crate) fn base(app: &App, headers: &HeaderMap) -> String {
    if let Some(url) = &app.url {
        return url.trim_end_matches('/').to_owned();
    }
    let plain = |host: &&str| host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-:[]".contains(&byte));
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).filter(plain).unwrap_or("localhost");
    format!("{}://{host}", if app.tls { "https" } else { "http" })
}

async fn images(State(app): State<Arc<App>>, RawQuery(query): RawQuery, headers: HeaderMap) -> Answer {
    let caller = app.tokens.caller(&headers)?;
    caller.require_any()?;
    let images = app.on_disk(|app| app.index.images()).await?;
    let query = Query::parse(query.as_deref());
    let after = query.get("after").map(parse::<ImageName>).transpose()?;
    let limit = query.number("limit").and_then(|limit| usize::try_from(limit).ok()).unwrap_or(usize::MAX).max(1);
    let mut images = images
        .into_iter()
        .filter(|summary| after.as_ref().is_none_or(|after| summary.image > *after))
        .filter(|summary| caller.may(Scope::Read, &summary.image))
        .map(|summary| wire::ImageEntry { image: summary.image, versions: summary.versions, newest: summary.newest });
    let page: Vec<_> = images.by_ref().take(limit).collect();
    let next = images.next().and(page.last()).map(|last| last.image.clone());
    json(&wire::Images { images: page, next })
}

/// `?channel=stable`: compared with what this channel of the base points to.
async fn outdated(State(app): State<Arc<App>>, RawQuery(query): RawQuery, headers: HeaderMap) -> Answer {
    let caller = app.tokens.caller(&headers)?;
    caller.require_any()?;
    let channel = Query::parse(query.as_deref()).get("channel").map(parse::<kiln_core::ChannelName>).transpose()?;
    let now = app.now();
    let mut outdated = app.on_disk(move |app| app.registry.outdated(channel.as_ref(), now)).await?;
    outdated.retain(|one| caller.may(Scope::Read, &one.image.image) && caller.may(Scope::Read, &one.base.image));
    json(&wire::OutdatedImages { outdated })
}

async fn image(
    State(app): State<Arc<App>>,
    Path(image): Path<String>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Answer {
    let (caller, image) = allowed(&app, &headers, Scope::Read, &image)?;
    let query = Query::parse(query.as_deref());
    let Listing { image, rev, channels, count, start, mut versions } = page(&app, image, &query, PAGE).await?;
    versions.iter_mut().filter_map(|entry| entry.revoked.as_mut()).for_each(|revoked| caller.cut(&mut revoked.chain));
    let next = next(&versions, count - start);
    json(&wire::Image { image, rev, channels, versions, next })
}

/// The versions that `after` and `limit` ask for, at most `most`.
async fn page(app: &Arc<App>, image: ImageName, query: &Query, most: usize) -> Result<Listing, Problem> {
    let limit = query.number("limit").and_then(|limit| usize::try_from(limit).ok()).unwrap_or(most).clamp(1, most);
    let after: Option<Version> = query.get("after").map(parse).transpose()?;
    let (now, name) = (app.now(), image.clone());
    let asked = after.clone();
    let page = app.on_disk(move |app| {
        let start = asked.as_ref().map_or(Start::Newest, Start::After);
        app.registry.page(&name, start, limit, now)
    });
    page.await.map_err(|problem| match after {
        Some(after) if problem.kind.ends_with(":unknown-version") => {
            Problem::bad_request(format!("`{after}` is not a version of `{image}`"))
        }
        _ => problem,
    })
}

/// Where the next page begins, if there are more than `versions` of the `left` ones.
fn next(versions: &[Entry], left: usize) -> Option<Version> {
    versions.last().filter(|_| versions.len() < left).map(|entry| entry.listed.version.clone())
}

/// How versions were built, with steps and times, newest first.
async fn builds(
    State(app): State<Arc<App>>,
    Path(image): Path<String>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Answer {
    let (_, image) = allowed(&app, &headers, Scope::Read, &image)?;
    let Listing { image, count, start, versions, .. } =
        page(&app, image, &Query::parse(query.as_deref()), BUILDS).await?;
    let next = next(&versions, count - start);
    let name = image.clone();
    let builds =
        app.on_disk(move |app| Ok(app.index.builds(&name, versions.iter().map(|entry| &entry.listed)))).await?;
    json(&wire::Builds { image, builds: builds.into_iter().flatten().collect(), next })
}

async fn version(
    State(app): State<Arc<App>>,
    Path((image, reference)): Path<(String, String)>,
    headers: HeaderMap,
) -> Answer {
    let (caller, _) = allowed(&app, &headers, Scope::Read, &image)?;
    let (selector, now) = (files::selector(&image, &reference)?, app.now());
    let mut shown = app
        .on_disk(move |app| {
            let record = app.registry.record(&selector)?;
            let artifact = &record.artifact;
            let name = kiln_registry::Parent { image: artifact.image.clone(), version: artifact.version.clone() };
            let channels = app.registry.channels(&artifact.image)?;
            let here = channels.into_iter().filter(|(_, channel)| channel.version == artifact.version);
            let channels = here.map(|(channel, _)| channel).collect();
            Ok(wire::Shown { revoked: app.registry.revoked(&name, now)?, channels, record })
        })
        .await?;
    if let Some(revoked) = &mut shown.revoked {
        caller.cut(&mut revoked.chain);
    }
    json(&shown)
}

async fn resolve(
    State(app): State<Arc<App>>,
    Path((image, reference)): Path<(String, String)>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Answer {
    let (caller, _) = allowed(&app, &headers, Scope::Read, &image)?;
    let (selector, now) = (files::selector(&image, &reference)?, app.now());
    let forced = Query::parse(query.as_deref()).get("allow_revoked") == Some("true");
    let asked = selector.clone();
    let found = move |app: &App| {
        let record = app.registry.usable(&selector, now, forced)?;
        let amis = app.registry.amis(&record.artifact.image, &record.artifact.version)?;
        Ok((record, amis))
    };
    let (record, amis) = app.on_disk_for(&caller, found).await?;
    let facts = facts(&asked, &record, &base(&app, &headers)).into_iter().map(|(name, value)| (name.to_owned(), value));
    let facts: serde_json::Map<_, _> =
        facts.chain(ami_facts(&amis)).map(|(name, value)| (name, value.into())).collect();
    json(&facts)
}
