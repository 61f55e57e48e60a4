//! Bodies of requests: never longer than they may be, never slower than the server waits.

use std::time::Duration;

use axum::{body::Body, http::StatusCode};
use bytes::Bytes;
use http_body_util::BodyExt as _;
use serde::de::DeserializeOwned;

use crate::problem::Problem;

/// A client that sends nothing for so long has gone.
const SILENCE: Duration = Duration::from_secs(30);

/// The next bytes of a body; `None` at its end.
pub(crate) async fn next(body: &mut Body) -> Result<Option<Bytes>, Problem> {
    loop {
        let frame = tokio::time::timeout(SILENCE, body.frame()).await;
        let slow = |_| Problem::new(StatusCode::REQUEST_TIMEOUT, "slow", "nothing came for 30 seconds");
        match frame.map_err(slow)? {
            None => return Ok(None),
            Some(Err(_)) => return Err(Problem::bad_request("the body ends before its length")),
            Some(Ok(frame)) => {
                if let Ok(bytes) = frame.into_data() {
                    return Ok(Some(bytes));
                }
            }
        }
    }
}

/// All of a body, when it is not longer than `limit`.
pub(crate) async fn whole(mut body: Body, limit: usize) -> Result<Vec<u8>, Problem> {
    let mut all = Vec::new();
    while let Some(bytes) = next(&mut body).await? {
        if all.len() + bytes.len() > limit {
            let detail = format!("more than {limit} bytes are not taken here");
            return Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "too-large", detail));
        }
        all.extend_from_slice(&bytes);
    }
    Ok(all)
}

/// A body of JSON; an empty one counts as `{}`.
pub(crate) async fn json<T: DeserializeOwned>(body: Body, limit: usize) -> Result<T, Problem> {
    let bytes = whole(body, limit).await?;
    let bytes = if bytes.is_empty() { b"{}" } else { bytes.as_slice() };
    serde_json::from_slice(bytes).map_err(|error| Problem::bad_request(format!("the body: {error}")))
}
