//! Bodies of requests: never longer than they may be, never slower than the least pace.

use axum::{body::Body, http::StatusCode};
use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::body::Frame;
use serde::de::DeserializeOwned;

use crate::{
    pace::{PATIENCE, Pace},
    problem::Problem,
};

/// A body on its way.
#[derive(Debug)]
pub(crate) struct Coming {
    body: Body,
    pace: Pace,
}

impl Coming {
    pub(crate) const fn new(body: Body) -> Self {
        Self { body, pace: Pace::new(PATIENCE) }
    }

    /// The next bytes; `None` at the end.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, Problem> {
        loop {
            let size = |frame: &Option<Result<Frame<Bytes>, _>>| match frame {
                Some(Ok(frame)) => frame.data_ref().map_or(0, Bytes::len),
                _ => 0,
            };
            let slow = || Problem::new(StatusCode::REQUEST_TIMEOUT, "slow", "less than 16 KiB came in 30 seconds");
            match self.pace.next(self.body.frame(), size).await.ok_or_else(slow)? {
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
}

/// All of a body, when it is not longer than `limit`.
pub(crate) async fn whole(body: Body, limit: usize) -> Result<Vec<u8>, Problem> {
    let (mut all, mut coming) = (Vec::new(), Coming::new(body));
    while let Some(bytes) = coming.next().await? {
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
