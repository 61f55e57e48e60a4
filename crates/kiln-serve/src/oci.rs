//! `/v2/`: the read half of the OCI distribution specification 1.1, so that skopeo, oras and their kin fetch a version.
//!
//! A repository is an image; its tags are the versions and channels. `+` cannot stand in a tag and is written `_`.

use std::sync::Arc;

use axum::{
    body::Body,
    extract::{Path, RawQuery, State},
    http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header},
    response::IntoResponse,
};
use bytes::Bytes;
use kiln_core::{Digest, ImageName};
use kiln_registry::{Record, Reference, Selector};
use serde_json::json;

use crate::{
    access::Scope,
    api::query::Query,
    problem::Problem,
    state::App,
    stream::{Representation, Source},
};

const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX_TYPE: &str = "application/vnd.oci.image.index.v1+json";
/// Signed statements, as the in-toto project names them.
const STATEMENT_TYPE: &str = "application/vnd.in-toto+json";
/// Blobs up to this are compared before the first byte is sent; larger ones before the last.
const SMALL: u64 = 16 << 20;

/// An error as the specification has it.
#[derive(Debug)]
struct Refusal {
    status: StatusCode,
    code: &'static str,
    message: String,
    problem: Option<Problem>,
}

type Answer = Result<Response<Body>, Refusal>;

fn refusal(status: StatusCode, code: &'static str, message: impl Into<String>) -> Refusal {
    Refusal { status, code, message: message.into(), problem: None }
}

impl From<Problem> for Refusal {
    fn from(problem: Problem) -> Self {
        let code = match problem.kind.trim_start_matches("urn:kiln:problem:") {
            "unknown-image" => "NAME_UNKNOWN",
            "unknown-version" | "revoked" | "retired" => "MANIFEST_UNKNOWN",
            "token-needed" | "unknown-token" => "UNAUTHORIZED",
            "not-allowed" => "DENIED",
            "busy" => "TOOMANYREQUESTS",
            "bad-request" => "NAME_INVALID",
            _ => "UNKNOWN",
        };
        Self { status: problem.status(), code, message: problem.detail.clone(), problem: Some(problem) }
    }
}

pub(crate) async fn root(State(app): State<Arc<App>>, headers: HeaderMap) -> Response<Body> {
    let allowed = app.tokens.caller(&headers).and_then(|caller| caller.require_any());
    finish(
        allowed.map_err(Refusal::from).map(|()| ([(header::CONTENT_TYPE, "application/json")], "{}").into_response()),
    )
}

pub(crate) async fn answer(
    State(app): State<Arc<App>>,
    Path(path): Path<String>,
    RawQuery(query): RawQuery,
    method: Method,
    headers: HeaderMap,
) -> Response<Body> {
    if method != Method::GET && method != Method::HEAD {
        let message = "this endpoint is for reading; `kiln push` publishes";
        return finish(Err(refusal(StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED", message)));
    }
    let query = Query::parse(query.as_deref());
    let parts: Vec<_> = path.split('/').collect();
    finish(match parts[..] {
        ["_catalog"] => catalog(&app, &headers, &query).await,
        [image, "tags", "list"] => tags(&app, &headers, image, &query).await,
        [image, "manifests", reference] => manifest(&app, &headers, &method, image, reference).await,
        [image, "blobs", digest] => blob(&app, &headers, &method, image, digest).await,
        [image, "referrers", digest] => referrers(&app, &headers, image, digest, &query).await,
        _ => Err(refusal(StatusCode::NOT_FOUND, "NAME_UNKNOWN", "names of images have no `/`")),
    })
}

/// The headers that every answer has, and the body of an error.
fn finish(answer: Answer) -> Response<Body> {
    let mut response = answer.unwrap_or_else(|refusal| {
        let body = json!({ "errors": [{ "code": refusal.code, "message": refusal.message }] }).to_string();
        // For the challenge, the time to wait, and the log.
        let mut response = refusal.problem.map_or_else(|| ().into_response(), IntoResponse::into_response);
        *response.status_mut() = refusal.status;
        *response.body_mut() = Body::from(body);
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if refusal.status == StatusCode::UNAUTHORIZED {
            // Clients of registries ask a `Bearer` realm for a token of its own kind; the password of `Basic` is ours.
            let basic = HeaderValue::from_static("Basic realm=\"kiln\"");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, basic);
        }
        response
    });
    let version = HeaderValue::from_static("registry/2.0");
    response.headers_mut().insert("docker-distribution-api-version", version);
    response
}

fn readable(app: &App, headers: &HeaderMap, image: &str) -> Result<ImageName, Refusal> {
    let image: ImageName = image.parse().map_err(|error: kiln_core::name::InvalidName| {
        refusal(StatusCode::NOT_FOUND, "NAME_UNKNOWN", error.to_string())
    })?;
    app.tokens.caller(headers)?.require(Scope::Read, &image)?;
    Ok(image)
}

async fn catalog(app: &Arc<App>, headers: &HeaderMap, query: &Query) -> Answer {
    let caller = app.tokens.caller(headers)?;
    caller.require_any()?;
    let images = app.on_disk(|app| app.index.images()).await?;
    let names = images.into_iter().map(|summary| summary.image).filter(|image| caller.may(Scope::Read, image));
    let (names, next) = page(names.map(|image| image.to_string()).collect(), query);
    let link = next.map(|(n, last)| format!("</v2/_catalog?n={n}&last={last}>; rel=\"next\""));
    Ok(listing(&json!({ "repositories": names }), link))
}

async fn tags(app: &Arc<App>, headers: &HeaderMap, image: &str, query: &Query) -> Answer {
    let image = readable(app, headers, image)?;
    let (name, now) = (image.clone(), app.now());
    let tags = app
        .on_disk(move |app| {
            let mut tags: Vec<_> = app.registry.channels(&image)?.keys().map(ToString::to_string).collect();
            for listed in app.registry.versions(&image)? {
                let version = kiln_registry::Parent { image: image.clone(), version: listed.version };
                if app.registry.revoked(&version, now)?.is_none() {
                    tags.push(version.version.to_string().replace('+', "_"));
                }
            }
            tags.push("latest".to_owned());
            tags.sort();
            Ok(tags)
        })
        .await?;
    let (tags, next) = page(tags, query);
    let link = next.map(|(n, last)| format!("</v2/{name}/tags/list?n={n}&last={last}>; rel=\"next\""));
    Ok(listing(&json!({ "name": name, "tags": tags }), link))
}

/// The sorted `names` behind `last`, at most `n`; and what asks for the rest.
fn page(names: Vec<String>, query: &Query) -> (Vec<String>, Option<(usize, String)>) {
    let last = query.get("last").unwrap_or_default().to_owned();
    let n = query.number("n").and_then(|n| usize::try_from(n).ok()).unwrap_or(usize::MAX);
    let mut names: Vec<_> = names.into_iter().filter(|name| *name > last).collect();
    let more = names.len() > n;
    names.truncate(n);
    let next = names.last().filter(|_| more).map(|last| (n, last.replace('+', "%2B")));
    (names, next)
}

fn listing(body: &serde_json::Value, link: Option<String>) -> Response<Body> {
    let mut response = ([(header::CONTENT_TYPE, "application/json")], body.to_string()).into_response();
    if let Some(link) = link.and_then(|link| HeaderValue::from_str(&link).ok()) {
        response.headers_mut().insert(header::LINK, link);
    }
    response
}

async fn manifest(app: &Arc<App>, headers: &HeaderMap, method: &Method, image: &str, reference: &str) -> Answer {
    let image = readable(app, headers, image)?;
    let unknown = || refusal(StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN", format!("`{image}` has no such manifest"));
    let (digest, immutable) = match reference.parse::<Digest>() {
        Ok(digest) if reference.starts_with("sha256:") => (digest, true),
        _ => {
            let selector = image_tag(app, &image, reference).await?.ok_or_else(unknown)?;
            let now = app.now();
            let caller = app.tokens.caller(headers)?;
            let usable = app.on_disk_for(&caller, move |app| app.registry.usable(&selector, now, false));
            let record: Record = usable.await?;
            // The blobs are asked for by their digests alone.
            app.hold(&record).await?;
            (record.manifest.digest, false)
        }
    };
    let (name, closed) = (image.clone(), !app.tokens.public());
    let bytes = app
        .on_disk(move |app| {
            app.registry.versions(&name)?;
            if closed && !app.names_blob(&name, &digest)? {
                return Ok(None);
            }
            let bytes = app.registry.small_blob(&digest, kiln_registry::LONGEST_MANIFEST)?;
            Ok(bytes.filter(|bytes| app.registry.blobs_of(bytes).is_ok() || is_manifest(bytes)))
        })
        .await?
        .ok_or_else(unknown)?;
    let size = bytes.len() as u64;
    let source = Source::Memory(Bytes::from(bytes));
    send(app, headers, method, source, (digest, size), MANIFEST_TYPE, immutable).await
}

/// What a tag means: a channel or a version, with `_` where its name has `+`.
async fn image_tag(app: &Arc<App>, image: &ImageName, tag: &str) -> Result<Option<Selector>, Refusal> {
    let Ok(reference) = tag.parse::<Reference>() else { return Ok(None) };
    let Reference::Named(named) = &reference else {
        return Ok(Some(Selector { image: image.clone(), reference }));
    };
    let (name, tag, exact) = (image.clone(), tag.to_owned(), named.clone());
    let found = app
        .on_disk(move |app| {
            let versions = app.registry.versions(&name)?;
            let direct = versions.iter().any(|listed| listed.version == exact)
                || app.registry.channels(&name)?.keys().any(|channel| channel.as_str() == tag);
            let escaped = || versions.iter().find(|listed| listed.version.as_str().replace('+', "_") == tag);
            Ok(if direct { Some(exact) } else { escaped().map(|listed| listed.version.clone()) })
        })
        .await?;
    Ok(found.map(|version| Selector { image: image.clone(), reference: Reference::Named(version) }))
}

/// A blob of an image, for this endpoint and for `kiln pull`.
pub(crate) async fn blob_of(
    app: &Arc<App>,
    headers: &HeaderMap,
    method: &Method,
    image: ImageName,
    digest: Digest,
) -> Result<Option<Response<Body>>, Problem> {
    let (blob, closed) = (digest, !app.tokens.public());
    let found = app
        .on_disk(move |app| {
            if closed && !app.names_blob(&image, &blob)? {
                return Ok(None);
            }
            Ok(app.registry.open_blob(&blob).ok())
        })
        .await?;
    let Some(stored) = found else { return Ok(None) };
    let size = stored.size();
    let (mut source, mut permit) = (Source::Blob(Arc::new(stored), blob), None);
    // A small one is compared before its first byte is sent, and held in memory as a whole. Nothing of it goes out for a HEAD, and
    // seldom for who has it already.
    if size <= SMALL && *method == Method::GET && !headers.contains_key(header::IF_NONE_MATCH) {
        permit = Some(app.place_to_download().await?);
        let Some(bytes) = app.on_disk(move |app| app.registry.small_blob(&blob, SMALL)).await? else { return Ok(None) };
        source = Source::Memory(Bytes::from(bytes));
    }
    let answer = representation(source, (digest, size), "application/octet-stream", true);
    let answer = Representation { permit, ..answer };
    let mut response = answer.answer(app, method, headers).await?;
    content_digest(&mut response, &digest);
    Ok(Some(response))
}

async fn blob(app: &Arc<App>, headers: &HeaderMap, method: &Method, image: &str, digest: &str) -> Answer {
    let image = readable(app, headers, image)?;
    let unreadable =
        |error: kiln_core::digest::InvalidDigest| refusal(StatusCode::BAD_REQUEST, "DIGEST_INVALID", error.to_string());
    let digest: Digest = digest.parse().map_err(unreadable)?;
    let unknown = || refusal(StatusCode::NOT_FOUND, "BLOB_UNKNOWN", format!("there is no blob {digest}"));
    blob_of(app, headers, method, image, digest).await?.ok_or_else(unknown)
}

async fn referrers(app: &Arc<App>, headers: &HeaderMap, image: &str, digest: &str, query: &Query) -> Answer {
    let image = readable(app, headers, image)?;
    let unreadable =
        |error: kiln_core::digest::InvalidDigest| refusal(StatusCode::BAD_REQUEST, "DIGEST_INVALID", error.to_string());
    let digest = digest.parse::<Digest>().map_err(unreadable)?;
    let found = app.on_disk(move |app| app.registry.attestations_of(&image, &digest)).await?;
    let wanted = query.get("artifactType");
    let filtered = wanted.is_some_and(|wanted| wanted != STATEMENT_TYPE);
    let manifests = found.iter().filter(|_| !filtered).map(|said| {
        json!({
            "mediaType": said.manifest.media_type,
            "digest": said.manifest.digest,
            "size": said.manifest.size,
            "artifactType": STATEMENT_TYPE,
            "annotations": { "in-toto.io/predicate-type": said.predicate_type },
        })
    });
    let manifests: Vec<_> = manifests.collect();
    let index = json!({ "schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": manifests });
    let mut response = ([(header::CONTENT_TYPE, INDEX_TYPE)], index.to_string()).into_response();
    if wanted.is_some() {
        response.headers_mut().insert("oci-filters-applied", HeaderValue::from_static("artifactType"));
    }
    Ok(response)
}

/// Whether these are the bytes of an OCI image manifest, such as that of a statement.
fn is_manifest(bytes: &[u8]) -> bool {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Kind {
        schema_version: u32,
        media_type: String,
    }
    bytes.len() <= 64 << 10
        && serde_json::from_slice::<Kind>(bytes)
            .is_ok_and(|kind| kind.schema_version == 2 && kind.media_type == MANIFEST_TYPE)
}

fn representation(
    source: Source,
    (digest, size): (Digest, u64),
    content_type: &'static str,
    immutable: bool,
) -> Representation {
    Representation {
        source,
        size,
        etag: digest.to_string(),
        sha256: Some(digest),
        content_type,
        modified: 0,
        immutable,
        file_name: None,
        held: None,
        permit: None,
    }
}

async fn send(
    app: &Arc<App>,
    headers: &HeaderMap,
    method: &Method,
    source: Source,
    named: (Digest, u64),
    content_type: &'static str,
    immutable: bool,
) -> Answer {
    let mut response = representation(source, named, content_type, immutable).answer(app, method, headers).await?;
    content_digest(&mut response, &named.0);
    Ok(response)
}

fn content_digest(response: &mut Response<Body>, digest: &Digest) {
    if let Ok(value) = HeaderValue::from_str(&digest.to_string()) {
        response.headers_mut().insert("docker-content-digest", value);
    }
}
