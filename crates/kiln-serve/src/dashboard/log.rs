//! What a build said: text of strangers, shown as text.

use std::{
    fs::File,
    io::{Read as _, Seek as _, SeekFrom},
    path::PathBuf,
    sync::Arc,
};

use axum::{
    body::Body,
    extract::{Path, State},
    http::{HeaderMap, Response},
};
use kiln_registry::{Record, RegistryError};
use maud::{Markup, html};

use super::{
    page::{plain, size},
    session::Visitor,
    shown,
};
use crate::{access::Scope, files::selector, problem::Problem, state::App};

/// The end of a log that is shown.
const SHOWN: u64 = 1 << 20;

/// Where the log of the build of `record` would be. The name of a build may come from a stranger.
pub(super) fn file(app: &App, record: &Record) -> Option<PathBuf> {
    let build = &record.artifact.build;
    let named = build.starts_with("b-") && build.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    app.builds.as_ref().filter(|_| named).map(|builds| builds.join(build).join("log"))
}

pub(super) async fn show(
    State(app): State<Arc<App>>,
    Path((image, reference)): Path<(String, String)>,
    headers: HeaderMap,
) -> Response<Body> {
    let title = format!("Log of {image} {reference}");
    let (up, version) = (format!("/images/{image}"), format!("/images/{image}/{reference}"));
    let body = async |visitor: &Visitor| body(&app, visitor, &image, &reference).await;
    shown(&app, &headers, body, &title, &[(&image, &up), (&reference, &version), ("log", "#")]).await
}

async fn body(app: &Arc<App>, visitor: &Visitor, image: &str, reference: &str) -> Result<Markup, Problem> {
    let selector = selector(image, reference)?;
    visitor.caller.require(Scope::Read, &selector.image)?;
    let (record, text, whole) = app
        .on_disk(move |app| {
            let record = app.registry.record(&selector)?;
            let Some(path) = file(app, &record).filter(|path| path.is_file()) else {
                return Ok((record, None, 0));
            };
            let mut bytes = Vec::new();
            let read = File::open(&path).and_then(|mut file| {
                let length = file.metadata()?.len();
                file.seek(SeekFrom::Start(length.saturating_sub(SHOWN)))?;
                file.take(SHOWN).read_to_end(&mut bytes)?;
                Ok(length)
            });
            let whole = read.map_err(|source| RegistryError::Io { operation: "read", path, source })?;
            Ok((record, Some(String::from_utf8_lossy(&bytes).into_owned()), whole))
        })
        .await?;
    let text = text.ok_or_else(Problem::not_found)?;
    let artifact = &record.artifact;
    Ok(html! {
        div.title { h1 { "Log of " (artifact.image) " " span.version { (artifact.version) } } span.muted { "build " (plain(&artifact.build)) } }
        @if whole > SHOWN { p.muted { "The last " (size(SHOWN)) " of " (size(whole)) } }
        pre.log { (plain(&text)) }
    })
}
