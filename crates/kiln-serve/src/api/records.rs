//! The records of an image as they are stored: who gets the very bytes judges channels, revocations and signatures himself. Those of AMIs
//! are entered here, since it is not the server that makes them.

use std::sync::Arc;

use axum::{
    body::Body,
    extract::{Path, RawQuery, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::IntoResponse as _,
};

use super::{Answer, allowed, body, json, query::Query};
use crate::{access::Scope, problem::Problem, state::App, wire};

/// A record of an AMI has a dozen short fields.
const LONGEST_AMI: usize = 64 << 10;

/// `?folder=log`: what lies there.
pub(crate) async fn names(
    State(app): State<Arc<App>>,
    Path(image): Path<String>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Answer {
    let (_, image) = allowed(&app, &headers, Scope::Read, &image)?;
    let folder = Query::parse(query.as_deref()).get("folder").unwrap_or_default().to_owned();
    let names = app.on_disk(move |app| app.registry.raw_names(&image, &folder)).await?;
    let unknown = || Problem::bad_request("`folder` is `v`, `log`, `ami` or `ami/VERSION`");
    json(&wire::Names { names: names.ok_or_else(unknown)? })
}

/// `head.json`, `v/1.4.0.json`, `log/12.json`: the bytes.
pub(crate) async fn record(
    State(app): State<Arc<App>>,
    Path((image, key)): Path<(String, String)>,
    headers: HeaderMap,
) -> Answer {
    let (_, image) = allowed(&app, &headers, Scope::Read, &image)?;
    let bytes = app.on_disk(move |app| app.registry.raw_record(&image, &key)).await?;
    let mut response = bytes.ok_or_else(Problem::not_found)?.into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    Ok(response)
}

/// `PUT` of `ami/1.4.0/NAME.json`, and of its empty `.gone`. Once more is as good as once.
pub(crate) async fn enter(
    State(app): State<Arc<App>>,
    Path((image, key)): Path<(String, String)>,
    headers: HeaderMap,
    request: Body,
) -> Answer {
    let (_, image) = allowed(&app, &headers, Scope::Publish, &image)?;
    let bytes = body::whole(request, LONGEST_AMI).await?;
    let new = app.on_disk(move |app| app.registry.enter_raw_ami(&image, &key, &bytes)).await?;
    Ok(if new { StatusCode::CREATED } else { StatusCode::OK }.into_response())
}
