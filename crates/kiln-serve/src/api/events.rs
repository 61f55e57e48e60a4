//! What happens: the log of one image, waited for; and everything, as server-sent events.

use std::{
    collections::{BTreeMap, VecDeque},
    io,
    sync::Arc,
    time::{Duration, SystemTime},
};

use axum::{
    body::Body,
    extract::{Path, RawQuery, State},
    http::{HeaderMap, HeaderValue, Response, StatusCode, header},
};
use bytes::Bytes;
use futures_util::stream::try_unfold;
use kiln_core::ImageName;
use kiln_registry::{Change, RegistryError};
use serde_json::json;

use super::{Answer, allowed, json, query::Query};
use crate::{
    access::{Caller, Scope},
    problem::Problem,
    state::App,
    wire,
};

/// How long a request for the log may wait.
const LONGEST_WAIT: u64 = 60;
/// Other processes write to the registry too: it is looked at this often.
const LOOK: Duration = Duration::from_secs(1);
/// Without news a line keeps the connection alive.
const SIGN_OF_LIFE: u32 = 15;

/// `?after=REV&wait=SECONDS`
pub(crate) async fn log(
    State(app): State<Arc<App>>,
    Path(image): Path<String>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Answer {
    let (_, image) = allowed(&app, &headers, Scope::Read, &image)?;
    let query = Query::parse(query.as_deref());
    let after = query.number("after").unwrap_or(0);
    let wait = Duration::from_secs(query.number("wait").unwrap_or(0).min(LONGEST_WAIT));
    let end = app.clock.monotonic() + wait;
    loop {
        let image = image.clone();
        let changed = app.changed.notified();
        let found = app.on_disk(move |app| app.registry.changes_after(&image, after, 1000)).await?;
        let rest = end.saturating_sub(app.clock.monotonic());
        if !found.is_empty() || rest.is_zero() {
            let rev = found.last().map_or(after, |change| change.rev);
            return json(&wire::Log { changes: found, rev });
        }
        tokio::select! {
            () = changed => {}
            () = app.clock.sleep(rest.min(LOOK)) => {}
        }
    }
}

/// Where one listener is.
struct Listening {
    app: Arc<App>,
    caller: Caller,
    stamps: BTreeMap<ImageName, SystemTime>,
    revisions: BTreeMap<ImageName, u64>,
    waiting: VecDeque<(ImageName, Change)>,
    silent: u32,
}

/// Every change of every image the caller may read, from now on.
pub(crate) async fn stream(State(app): State<Arc<App>>, headers: HeaderMap) -> Answer {
    let caller = app.tokens.caller(&headers)?;
    caller.require_any()?;
    let (stamps, revisions) = app
        .on_disk(|app| {
            let stamps = app.registry.stamps()?;
            let revisions = stamps.keys().map(|image| Ok((image.clone(), app.registry.revision(image)?)));
            let revisions = revisions.collect::<Result<BTreeMap<_, _>, RegistryError>>()?;
            Ok((stamps, revisions))
        })
        .await?;
    let listening = Listening { app, caller, stamps, revisions, waiting: VecDeque::new(), silent: 0 };
    let first = Some(Bytes::from_static(b": kiln\n\n"));
    let events = try_unfold((listening, first), |(mut listening, first)| async move {
        let bytes = match first {
            Some(bytes) => bytes,
            None => listening.next().await.map_err(|problem| io::Error::other(problem.detail))?,
        };
        Ok::<_, io::Error>(Some((bytes, (listening, None))))
    });
    let mut response = Response::new(Body::from_stream(events));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

impl Listening {
    async fn next(&mut self) -> Result<Bytes, Problem> {
        loop {
            if let Some((image, change)) = self.waiting.pop_front() {
                self.silent = 0;
                let data = json!({ "image": image, "change": change });
                return Ok(format!("event: change\ndata: {data}\n\n").into());
            }
            self.look().await?;
            if self.waiting.is_empty() {
                self.silent += 1;
                if self.silent >= SIGN_OF_LIFE {
                    self.silent = 0;
                    return Ok(Bytes::from_static(b": alive\n\n"));
                }
                let app = Arc::clone(&self.app);
                tokio::select! {
                    () = app.changed.notified() => {}
                    () = app.clock.sleep(LOOK) => {}
                }
            }
        }
    }

    async fn look(&mut self) -> Result<(), Problem> {
        let gone = || Problem::new(StatusCode::UNAUTHORIZED, "unknown-token", "this token is not known any more");
        self.caller = self.app.tokens.again(&self.caller).ok_or_else(gone)?;
        self.caller.require_any()?;
        let (before, revisions) = (self.stamps.clone(), self.revisions.clone());
        let (stamps, found) = self
            .app
            .on_disk(move |app| {
                let stamps = app.registry.stamps()?;
                let mut found = Vec::new();
                for (image, _) in stamps.iter().filter(|(image, stamp)| before.get(*image) != Some(*stamp)) {
                    let rev = revisions.get(image).copied().unwrap_or(0);
                    found.push((image.clone(), app.registry.changes_after(image, rev, 1000)?));
                }
                Ok((stamps, found))
            })
            .await?;
        self.stamps = stamps;
        for (image, changes) in found {
            if let Some(last) = changes.last() {
                self.revisions.insert(image.clone(), last.rev);
            }
            if self.caller.may(Scope::Read, &image) {
                self.waiting.extend(changes.into_iter().map(|change| (image.clone(), change)));
            }
        }
        Ok(())
    }
}
