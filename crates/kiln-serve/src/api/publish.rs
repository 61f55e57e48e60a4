//! Publishing: which blobs are missing, the blobs, then the version. Nothing is remembered between the requests but, where not
//! everybody reads, who sent which blob.

use std::sync::{Arc, atomic::Ordering};

use axum::{
    body::Body,
    extract::{Path, RawQuery, State},
    http::{HeaderMap, Method, Response, StatusCode, header},
    response::IntoResponse as _,
};
use bytes::Bytes;
use kiln_core::{Digest, moment::Moment, plan::VersionSpec};
use kiln_registry::{Offer, Publication};
use tokio::sync::mpsc;

use super::{Answer, allowed, body, json, parse, query::Query};
use crate::{access::Scope, oci, problem::Problem, state::App, wire};

/// 100 bytes for each blob of the largest disk are more than enough.
const LONGEST_QUESTION: usize = 64 << 20;
/// A record with its steps, checks and findings.
const LONGEST_OFFER: usize = 16 << 20;
/// The largest file beside a disk: a VMDK of it, for instance.
const LARGEST_BLOB: u64 = 1 << 40;

pub(crate) async fn missing(
    State(app): State<Arc<App>>,
    Path(image): Path<String>,
    headers: HeaderMap,
    request: Body,
) -> Answer {
    let (caller, image) = allowed(&app, &headers, Scope::Publish, &image)?;
    let wire::Blobs { blobs } = body::json(request, LONGEST_QUESTION).await?;
    let blobs: Vec<_> = blobs.into_iter().map(|blob| (blob.digest, blob.size)).collect();
    let _turn = app.asking.acquire().await.map_err(|_| Problem::busy())?;
    let missing = app.on_disk(move |app| app.lacking(&caller, &image, &blobs)).await?;
    json(&wire::Missing { missing })
}

/// `PUT` of a blob: its name is its SHA-256, and nothing else gets that name.
pub(crate) async fn blob(
    State(app): State<Arc<App>>,
    Path((image, digest)): Path<(String, String)>,
    headers: HeaderMap,
    request: Body,
) -> Answer {
    let (caller, _) = allowed(&app, &headers, Scope::Publish, &image)?;
    let digest: Digest = parse(&digest)?;
    let length = headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    let needed = || Problem::new(StatusCode::LENGTH_REQUIRED, "length", "a blob is sent with its `Content-Length`");
    let size = length.ok_or_else(needed)?;
    if size > LARGEST_BLOB {
        let detail = "no blob of this size is taken";
        return Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "too-large", detail));
    }
    let sender = caller.clone();
    if app.on_disk(move |app| Ok(app.has_from(&sender, digest, size))).await? {
        return Ok(StatusCode::OK.into_response());
    }
    // What cannot be stored is refused before it is sent.
    let mut incoming = app.on_disk(move |app| app.registry.receive(digest, size)).await?;
    // The client is read here, the disk is written there; little waits in between.
    let (sender, mut receiver) = mpsc::channel::<Bytes>(4);
    let writer = Arc::clone(&app);
    let written = tokio::task::spawn_blocking(move || {
        while let Some(bytes) = receiver.blocking_recv() {
            incoming.write(&bytes)?;
            writer.metrics.received.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        }
        incoming.finish()
    });
    let (mut failed, mut coming) = (None, body::Coming::new(request));
    loop {
        match coming.next().await {
            Ok(Some(bytes)) => {
                // Gone when the disk refused; it says why below.
                if sender.send(bytes).await.is_err() {
                    break;
                }
            }
            Ok(None) => break,
            Err(problem) => {
                failed = Some(problem);
                break;
            }
        }
    }
    drop(sender);
    let written = written.await.map_err(|error| Problem::internal(error.to_string()))?;
    if let Some(problem) = failed {
        return Err(problem);
    }
    written?;
    app.note_sent(&caller, digest);
    Ok(StatusCode::CREATED.into_response())
}

pub(crate) async fn sent(
    State(app): State<Arc<App>>,
    Path((image, digest)): Path<(String, String)>,
    method: Method,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Answer {
    let (_, image) = allowed(&app, &headers, Scope::Read, &image)?;
    let digest: Digest = parse(&digest)?;
    // Who fetches a version blob by blob says which: it is held until he has not been heard of for a while.
    if let Some(version) = Query::parse(query.as_deref()).get("version") {
        app.hold_named(&image, &parse(version)?).await?;
    }
    let found = oci::blob_of(&app, &headers, &method, image, digest).await?;
    found.ok_or_else(Problem::not_found)
}

pub(crate) async fn version(
    State(app): State<Arc<App>>,
    Path(image): Path<String>,
    headers: HeaderMap,
    request: Body,
) -> Result<Response<Body>, Problem> {
    let (caller, image) = allowed(&app, &headers, Scope::Publish, &image)?;
    let wire::Offer { manifest, artifact, version, by, attestations } = body::json(request, LONGEST_OFFER).await?;
    if artifact.image != image {
        return Err(Problem::bad_request(format!("this is a version of `{}`, not of `{image}`", artifact.image)));
    }
    let version = if version == "auto" { VersionSpec::Auto } else { VersionSpec::Fixed(parse(&version)?) };
    let now = app.now();
    let date = Moment::of_seconds(now).date();
    let publication = Publication { version, date, now, by: caller.signature(by.as_deref()), allow_revoked: false };
    let offer = Offer { manifest, artifact, attestations };
    // Reads every new blob: two at once are enough for any disk.
    let permit = Arc::clone(&app.streams).acquire_owned().await.map_err(|_| Problem::busy())?;
    let publisher = caller.clone();
    let published = app
        .on_disk_for(&publisher, move |app| {
            let _permit = permit;
            app.refuse_lacking(&caller, &offer)?;
            app.registry.enter_offer(&offer, &publication)
        })
        .await?;
    if !published.already {
        app.metrics.published.fetch_add(1, Ordering::Relaxed);
        app.changed.notify_waiters();
    }
    let mut response = json(&wire::Published { artifact: published.artifact, already: published.already })?;
    if !published.already {
        *response.status_mut() = StatusCode::CREATED;
    }
    Ok(response)
}
