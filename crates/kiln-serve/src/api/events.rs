//! What happens: the log of one image, waited for; and everything, as server-sent events.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
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
use kiln_registry::Change;
use serde_json::json;
use tokio::sync::OwnedSemaphorePermit;

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
/// Changes of one image that are read in one look.
const MOST: usize = 1000;
/// File systems count time in ticks of some milliseconds: until then a second change may have the stamp of the first.
const SETTLED: Duration = Duration::from_secs(3);
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
        let found = app.on_disk(move |app| app.registry.changes_after(&image, after, MOST)).await?;
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
    /// What was told of each image, and of one that could not be read when the stream began, nothing yet.
    revisions: BTreeMap<ImageName, Option<u64>>,
    /// Said once in the log, not every second.
    unreadable: BTreeSet<ImageName>,
    waiting: VecDeque<(ImageName, Change)>,
    silent: u32,
    _place: OwnedSemaphorePermit,
}

/// Every change of every image the caller may read, from now on.
pub(crate) async fn stream(State(app): State<Arc<App>>, headers: HeaderMap) -> Answer {
    let caller = app.tokens.caller(&headers)?;
    caller.require_any()?;
    let place = Arc::clone(&app.listeners).try_acquire_owned().map_err(|_| {
        let detail = "too many listen to events; try again in a moment";
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, "busy", detail)
    })?;
    let (stamps, revisions) = app
        .on_disk(|app| {
            let mut stamps = app.registry.stamps()?;
            let revisions: BTreeMap<_, _> =
                stamps.keys().map(|image| (image.clone(), app.registry.revision(image).ok())).collect();
            stamps.retain(|image, _| revisions.get(image).is_some_and(Option::is_some));
            Ok((stamps, revisions))
        })
        .await?;
    let (unreadable, waiting) = (BTreeSet::new(), VecDeque::new());
    let listening = Listening { app, caller, stamps, revisions, unreadable, waiting, silent: 0, _place: place };
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
        let (mut stamps, found) = self
            .app
            .on_disk(move |app| {
                let stamps = app.registry.stamps()?;
                let mut found = Vec::new();
                let now = app.clock.wall();
                let fresh = |stamp: SystemTime| now.duration_since(stamp).map_or(true, |age| age < SETTLED);
                let changed = |image: &ImageName, stamp: SystemTime| before.get(image) != Some(&stamp) || fresh(stamp);
                for (image, _) in stamps.iter().filter(|(image, stamp)| changed(image, **stamp)) {
                    let news = match revisions.get(image).copied().unwrap_or(Some(0)) {
                        Some(rev) => app.registry.changes_after(image, rev, MOST).map(|changes| (rev, changes)),
                        None => app.registry.revision(image).map(|rev| (rev, Vec::new())),
                    };
                    found.push((image.clone(), news));
                }
                Ok((stamps, found))
            })
            .await?;
        for (image, news) in found {
            let (rev, changes) = match news {
                Ok(news) => news,
                // One image that cannot be read does not keep the others from being told. It is looked at again.
                Err(error) => {
                    keep(&mut stamps, &self.stamps, &image);
                    if self.unreadable.insert(image.clone()) {
                        (self.app.log)(&format!("the changes of `{image}` are not told: {error}"));
                    }
                    continue;
                }
            };
            self.unreadable.remove(&image);
            // There may be more: with the stamp of before, the next look goes on from here.
            if changes.len() >= MOST {
                keep(&mut stamps, &self.stamps, &image);
            }
            self.revisions.insert(image.clone(), Some(changes.last().map_or(rev, |last| last.rev)));
            if self.caller.may(Scope::Read, &image) {
                self.waiting.extend(changes.into_iter().map(|change| (image.clone(), change)));
            }
        }
        self.stamps = stamps;
        Ok(())
    }
}

/// Puts the stamp that `image` had `before` back, so that it counts as changed.
fn keep(stamps: &mut BTreeMap<ImageName, SystemTime>, before: &BTreeMap<ImageName, SystemTime>, image: &ImageName) {
    match before.get(image) {
        Some(stamp) => stamps.insert(image.clone(), *stamp),
        None => stamps.remove(image),
    };
}
