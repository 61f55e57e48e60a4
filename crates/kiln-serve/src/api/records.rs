//! The records of an image as they are stored: who gets the very bytes judges channels, revocations and signatures himself.

use std::sync::Arc;

use axum::{
    extract::{Path, RawQuery, State},
    http::{HeaderMap, HeaderValue, header},
    response::IntoResponse as _,
};

use super::{Answer, allowed, json, query::Query};
use crate::{access::Scope, problem::Problem, state::App, wire};

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
