//! Versions as plain files: `/images/web/stable/disk.qcow2`, for every client that can GET.

use std::{fmt::Write as _, sync::Arc, time::Duration};

use axum::{
    body::Body,
    extract::{Path, State},
    http::{HeaderMap, Method, Response, header},
    response::IntoResponse as _,
};
use bytes::Bytes;
use kiln_core::Digest;
use kiln_registry::{Record, Reference, RegistryError, Selector};
use sha2::{Digest as _, Sha256};

use crate::{
    access::Scope,
    problem::Problem,
    state::App,
    stream::{Representation, Source, insert},
};

/// What is laid down for the asking, whether a record names it or not.
const FORMS: [&str; 3] = ["qcow2", "raw", "raw.zst"];
/// For the sums before to be made.
const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) async fn file(
    State(app): State<Arc<App>>,
    Path((image, reference, file)): Path<(String, String, String)>,
    method: Method,
    headers: HeaderMap,
) -> Result<Response<Body>, Problem> {
    let record = record(&app, &headers, &image, &reference).await?;
    let (name, sum) = match file.strip_suffix(".sha256") {
        Some(name) => (name, true),
        None => (file.as_str(), false),
    };
    let format = name.strip_prefix("disk.").ok_or_else(Problem::not_found)?.to_owned();
    let Selected { record, immutable } = record;
    if sum {
        return checksum(&app, record, format, &method, &headers, immutable).await;
    }
    let held = if method == Method::HEAD { None } else { app.hold(&record).await? };
    let found = app.on_disk(move |app| representation(app, &record, &format, immutable)).await?;
    let found = Representation { held, ..found };
    let mut response = found.answer(&app, &method, &headers).await?;
    insert(response.headers_mut(), header::X_CONTENT_TYPE_OPTIONS, "nosniff")?;
    Ok(response)
}

/// A record, and whether its address is a digest of it. A version's name is none: who has it from a cache must hear of a revocation.
#[derive(Debug)]
pub(crate) struct Selected {
    pub(crate) record: Record,
    pub(crate) immutable: bool,
}

/// The version that an address means, when the caller may read it and it is not revoked.
pub(crate) async fn record(
    app: &Arc<App>,
    headers: &HeaderMap,
    image: &str,
    reference: &str,
) -> Result<Selected, Problem> {
    let selector = selector(image, reference)?;
    let caller = app.tokens.caller(headers)?;
    caller.require(Scope::Read, &selector.image)?;
    let now = app.now();
    let immutable = matches!(selector.reference, Reference::Disk(_));
    let record = app.on_disk_for(&caller, move |app| app.registry.usable(&selector, now, false)).await?;
    Ok(Selected { record, immutable })
}

pub(crate) fn selector(image: &str, reference: &str) -> Result<Selector, Problem> {
    let unreadable = |error: kiln_core::name::InvalidName| Problem::bad_request(error.to_string());
    Ok(Selector { image: image.parse().map_err(unreadable)?, reference: reference.parse().map_err(unreadable)? })
}

fn representation(app: &App, record: &Record, format: &str, immutable: bool) -> Result<Representation, RegistryError> {
    let sha256 = app.known_sum(record, format);
    let artifact = &record.artifact;
    let file_name = Some(format!("{}-{}.{format}", artifact.image, artifact.version));
    if FORMS.contains(&format) {
        let view = app.view(record, format)?;
        // The same segments make the same bytes; only the qcow2's SHA-256 is sure to be recorded.
        let etag = sha256.map_or_else(|| format!("{}.{format}", record.manifest.digest.hex()), |sum| sum.hex());
        let size = view.size();
        let source = Source::View(view);
        // A sum that is learned later must not change the tag.
        let etag =
            if record.file(format).is_some() { etag } else { format!("{}.{format}", record.manifest.digest.hex()) };
        let content_type = if format == "raw.zst" { "application/zstd" } else { "application/octet-stream" };
        let modified = record.published;
        return Ok(Representation {
            source,
            size,
            etag,
            sha256,
            content_type,
            modified,
            immutable,
            file_name,
            held: None,
            permit: None,
        });
    }
    let Some(stored) = record.file(format) else {
        // Says which formats there are.
        app.registry.view(record, format)?;
        return Err(RegistryError::NoQcow2 { image: artifact.image.clone() });
    };
    let blob = app.registry.open_blob(&stored.sha256)?;
    Ok(Representation {
        source: Source::Blob(Arc::new(blob), stored.sha256),
        size: stored.bytes,
        etag: stored.sha256.hex(),
        sha256,
        content_type: "application/octet-stream",
        modified: record.published,
        immutable,
        file_name,
        held: None,
        permit: None,
    })
}

/// `<hex>  <name>`, as `sha256sum -c` reads it. Of a file that no record has, it is made once, by reading all of it.
async fn checksum(
    app: &Arc<App>,
    record: Record,
    format: String,
    method: &Method,
    headers: &HeaderMap,
    immutable: bool,
) -> Result<Response<Body>, Problem> {
    let modified = record.published;
    let known = app.known_sum(&record, &format);
    let name = format!("disk.{format}");
    let sum = match known {
        Some(sum) => sum,
        None if method == Method::HEAD => return Ok(().into_response()),
        None => {
            let turn = tokio::time::timeout(PATIENCE, Arc::clone(&app.summing).acquire_owned()).await;
            let turn = turn.map_err(|_| Problem::busy())?.map_err(|_| Problem::busy())?;
            // The turn goes along: who asked may be gone before the disk is read.
            app.on_disk(move |app| {
                let _turn = turn;
                // Whoever had the turn before may have made this very sum.
                if let Some(sum) = app.known_sum(&record, &format) {
                    return Ok(sum);
                }
                let sum = digest(app, &record, &format)?;
                app.learn_sum(&record, &format, sum);
                Ok(sum)
            })
            .await?
        }
    };
    let mut text = String::new();
    let _ = writeln!(text, "{}  {name}", sum.hex());
    let found = Representation {
        size: text.len() as u64,
        etag: Digest::of(text.as_bytes()).hex(),
        source: Source::Memory(Bytes::from(text)),
        sha256: None,
        content_type: "text/plain; charset=utf-8",
        modified,
        immutable,
        file_name: None,
        held: None,
        permit: None,
    };
    found.answer(app, method, headers).await
}

fn digest(app: &App, record: &Record, format: &str) -> Result<Digest, RegistryError> {
    let view = app.view(record, format)?;
    let (mut hasher, mut at) = (Sha256::new(), 0);
    while at < view.size() {
        let bytes = view.read(at, 4 << 20, &app.pieces)?;
        if bytes.is_empty() {
            break;
        }
        hasher.update(&bytes);
        at += bytes.len() as u64;
    }
    Ok(Digest::from_bytes(hasher.finalize().into()))
}
