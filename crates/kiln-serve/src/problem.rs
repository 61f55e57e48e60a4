//! Errors as RFC 9457 has them: `application/problem+json` with a type that programs can rely on.

use axum::{
    body::Body,
    http::{Response, StatusCode, header},
    response::IntoResponse,
};
use kiln_core::Digest;
use kiln_registry::RegistryError;
use serde::{Deserialize, Serialize};

use crate::access::{Caller, Scope};

/// A request that was not done.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Problem {
    /// `urn:kiln:problem:unknown-image`
    #[serde(rename = "type")]
    pub(crate) kind: String,
    pub(crate) title: String,
    pub(crate) status: u16,
    pub(crate) detail: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) hint: Option<String>,
    /// Blobs that must be sent first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) missing: Vec<Digest>,
    /// For the server's log; never sent.
    #[serde(skip)]
    pub(crate) inside: Option<String>,
}

impl Problem {
    pub(crate) fn new(status: StatusCode, kind: &str, detail: impl Into<String>) -> Self {
        Self {
            kind: format!("urn:kiln:problem:{kind}"),
            title: status.canonical_reason().unwrap_or("Error").to_owned(),
            status: status.as_u16(),
            detail: detail.into(),
            hint: None,
            missing: Vec::new(),
            inside: None,
        }
    }

    pub(crate) fn bad_request(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "bad-request", detail)
    }

    pub(crate) fn not_found() -> Self {
        Self::new(StatusCode::NOT_FOUND, "not-found", "there is nothing at this address")
    }

    pub(crate) fn busy() -> Self {
        let detail = "too many downloads are running; try again in a moment";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "busy", detail)
    }

    /// A failure of the server itself: what it was stays in the log.
    pub(crate) fn internal(inside: impl Into<String>) -> Self {
        let detail = "the server could not do this; its log says why";
        let mut problem = Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", detail);
        problem.inside = Some(inside.into());
        problem
    }

    /// What went wrong, without the names of images that the caller may not read.
    pub(crate) fn for_caller(error: RegistryError, caller: &Caller) -> Self {
        match &error {
            RegistryError::Revoked { revoked }
                if !revoked.chain.iter().all(|on| caller.may(Scope::Read, &on.image)) =>
            {
                Self::new(StatusCode::GONE, "revoked", "it was baked on a version that is revoked")
            }
            _ => error.into(),
        }
    }

    pub(crate) fn status(&self) -> StatusCode {
        StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }
}

impl From<RegistryError> for Problem {
    fn from(error: RegistryError) -> Self {
        use RegistryError as E;
        let text = error.to_string();
        let of = |status, kind: &str| Self::new(status, kind, text.clone());
        let mut problem = match &error {
            E::UnknownImage { image, .. } => {
                return Self::new(StatusCode::NOT_FOUND, "unknown-image", format!("there is no image `{image}`"));
            }
            E::UnknownVersion { .. } => of(StatusCode::NOT_FOUND, "unknown-version"),
            E::UnknownChannel { .. } => of(StatusCode::NOT_FOUND, "unknown-channel"),
            E::UnknownFormat { .. } => of(StatusCode::NOT_FOUND, "unknown-format"),
            E::Revoked { .. } => of(StatusCode::GONE, "revoked"),
            E::Retired { .. } => of(StatusCode::GONE, "retired"),
            E::Conflict { .. } => of(StatusCode::CONFLICT, "version-exists"),
            E::Moved { .. } => of(StatusCode::CONFLICT, "moved"),
            E::NothingBefore { .. } => of(StatusCode::CONFLICT, "nothing-before"),
            E::NameTaken { .. } => of(StatusCode::CONFLICT, "name-taken"),
            E::NotAChannel { .. }
            | E::NotAVersion { .. }
            | E::NotAnAmi { .. }
            | E::FileName { .. }
            | E::Date { .. } => of(StatusCode::BAD_REQUEST, "bad-request"),
            E::Altered { .. } => {
                let detail = "the bytes are not those that their digest names";
                return Self::new(StatusCode::UNPROCESSABLE_ENTITY, "digest", detail);
            }
            E::Content { problem, .. } => {
                let detail = format!("this is not the content of a version: {problem}");
                return Self::new(StatusCode::UNPROCESSABLE_ENTITY, "content", detail);
            }
            E::NoQcow2 { .. } => of(StatusCode::UNPROCESSABLE_ENTITY, "content"),
            E::Incomplete { missing, .. } => {
                let mut problem = of(StatusCode::CONFLICT, "missing-blobs");
                problem.missing.clone_from(missing);
                problem
            }
            E::Full { .. } => {
                let detail = "the server has no space left for this";
                let mut problem = Self::new(StatusCode::INSUFFICIENT_STORAGE, "full", detail);
                problem.inside = Some(chain(&error));
                return problem;
            }
            E::Locked { .. } => {
                let detail = "another process on the server holds this image";
                let mut problem = Self::new(StatusCode::SERVICE_UNAVAILABLE, "busy", detail);
                problem.inside = Some(chain(&error));
                return problem;
            }
            E::Damaged { problem: what, .. } => {
                let detail = "a blob of this version is damaged on the server; it is not sent";
                let mut problem = Self::new(StatusCode::BAD_GATEWAY, "damaged", detail);
                problem.inside = Some(format!("{text} ({what})"));
                return problem;
            }
            E::Restricted { .. } => of(StatusCode::CONFLICT, "restricted"),
            E::Unproven { .. } => of(StatusCode::FORBIDDEN, "unproven"),
            E::Busy { .. } | E::Raced { .. } | E::Collecting { .. } | E::LeaseLost { .. } => {
                of(StatusCode::SERVICE_UNAVAILABLE, "busy")
            }
            _ => return Self::internal(chain(&error)),
        };
        problem.hint = error.hint().filter(|_| !matches!(error, E::Incomplete { .. } | E::Conflict { .. }));
        problem
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}

/// What the log of the server says about an answer.
#[derive(Debug, Clone)]
pub(crate) struct Inside(pub(crate) String);

impl IntoResponse for Problem {
    fn into_response(self) -> Response<Body> {
        let status = self.status();
        let body = serde_json::to_vec(&self).unwrap_or_default();
        let mut response = Response::new(Body::from(body));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/problem+json"));
        headers.insert(header::CACHE_CONTROL, header::HeaderValue::from_static("no-store"));
        if status == StatusCode::UNAUTHORIZED {
            let challenge = header::HeaderValue::from_static("Bearer realm=\"kiln\", Basic realm=\"kiln\"");
            headers.insert(header::WWW_AUTHENTICATE, challenge);
        }
        if status == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(header::RETRY_AFTER, header::HeaderValue::from_static("5"));
        }
        if let Some(inside) = self.inside {
            response.extensions_mut().insert(Inside(inside));
        }
        response
    }
}
