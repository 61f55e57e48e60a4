//! Leases in a bucket: objects that their holders renew, and the mark of a collection, which needs to be alone.
//!
//! ```text
//! leases/<nonce>     somebody publishes, reads or changes a head; renewed every minute, over after ten
//! collecting         somebody removes what is not needed; the same
//! ```
//!
//! Whoever takes a lease writes it first and looks for a collection then; a collector writes its mark first and looks for
//! leases then. So one of them sees the other, whatever the order: a publisher waits, a collector gives up. What is
//! over is judged by the store's clock alone. A holder that was stopped for long finds its lease gone, and does not go on:
//! renewing is a conditional write, which brings nothing back that was removed.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        mpsc::{RecvTimeoutError, Sender, channel},
    },
    thread,
    time::{Duration, Instant},
};

use kiln_io::{random::nonce, time::done_within};

use crate::{
    RegistryError,
    durable::failed,
    objects::{Condition, Objects, Tag},
};

/// What is not renewed for so long is over, in seconds.
const LASTS: u64 = 600;
const RENEWED_EVERY: Duration = Duration::from_mins(1);
/// A collector looks again whether it is alone when it did so this long ago.
const RECENT: Duration = Duration::from_secs(5);
/// How long a publisher waits for a collection, and a collection for publishers and readers.
const PUBLISHER_WAITS: Duration = Duration::from_mins(2);
const COLLECTOR_WAITS: Duration = Duration::from_secs(3);

const LEASES: &str = "leases";
const COLLECTING: &str = "collecting";

/// An object that is renewed until it is dropped, and removed then.
#[derive(Debug)]
pub(crate) struct Renewed {
    shared: Arc<Shared>,
    /// Dropped, it ends the thread that renews.
    _stop: Sender<()>,
}

#[derive(Debug)]
struct Shared {
    objects: Arc<dyn Objects>,
    key: String,
    body: String,
    /// Its last state, and when it was renewed; `None` when it was lost.
    state: Mutex<Option<(Tag, Instant)>>,
}

/// Says that somebody publishes or reads. Waits while there is a collection.
pub(crate) fn take(objects: &Arc<dyn Objects>) -> Result<Renewed, RegistryError> {
    let nonce = nonce();
    let key = format!("{LEASES}/{nonce}");
    let mut taken = None;
    let free = done_within(PUBLISHER_WAITS, || -> Result<bool, RegistryError> {
        let tag = write(&**objects, &key, &nonce, Condition::Always)?.unwrap_or_else(|| Tag(String::new()));
        let Some(collection) = stat(&**objects, COLLECTING)? else {
            taken = Some(tag);
            return Ok(true);
        };
        let ours = stat(&**objects, &key)?.map_or(0, |meta| meta.modified);
        if collection.modified.saturating_add(LASTS) < ours {
            // Its collector looks for leases before it goes on, if it ever does.
            taken = Some(tag);
            return Ok(true);
        }
        remove(&**objects, &key)?;
        Ok(false)
    })?;
    match taken.filter(|_| free) {
        Some(tag) => Ok(Renewed::start(objects, key, nonce, tag)),
        None => Err(RegistryError::Collecting { path: objects.location().into() }),
    }
}

/// Says that somebody collects, when nobody else does and nobody publishes or reads.
pub(crate) fn alone(objects: &Arc<dyn Objects>) -> Result<Renewed, RegistryError> {
    let nonce = nonce();
    let busy = || RegistryError::Busy { path: objects.location().into() };
    let mut tag = write(&**objects, COLLECTING, &nonce, Condition::Absent)?;
    if tag.is_none()
        && let Some(other) = stat(&**objects, COLLECTING)?
        && other.modified.saturating_add(LASTS) < store_time(&**objects)?
    {
        tag = write(&**objects, COLLECTING, &nonce, Condition::Unchanged(&other.tag))?;
    }
    let tag = tag.ok_or_else(busy)?;
    let mark = Renewed::start(objects, COLLECTING.to_owned(), nonce, tag);
    if done_within(COLLECTOR_WAITS, || nobody_else(&**objects))? { Ok(mark) } else { Err(busy()) }
}

/// Whether there is no lease. One that is over is removed, and its holder given time to see it: then we are not alone yet.
fn nobody_else(objects: &dyn Objects) -> Result<bool, RegistryError> {
    let leases = objects.list(LEASES).map_err(failed("list", &path(objects, LEASES)))?.objects;
    if leases.is_empty() {
        return Ok(true);
    }
    let now = store_time(objects)?;
    for (name, meta) in leases {
        if meta.modified.saturating_add(LASTS) < now {
            remove(objects, &format!("{LEASES}/{name}"))?;
        }
    }
    Ok(false)
}

/// The time of the store's clock, which is that of what was written last.
fn store_time(objects: &dyn Objects) -> Result<u64, RegistryError> {
    write(objects, "clock", "", Condition::Always)?;
    Ok(stat(objects, "clock")?.map_or(0, |meta| meta.modified))
}

impl Renewed {
    fn start(objects: &Arc<dyn Objects>, key: String, body: String, tag: Tag) -> Self {
        let state = Mutex::new(Some((tag, Instant::now())));
        let shared = Arc::new(Shared { objects: Arc::clone(objects), key, body, state });
        let (stop, stopped) = channel::<()>();
        let renewing = Arc::clone(&shared);
        thread::spawn(move || {
            while stopped.recv_timeout(RENEWED_EVERY) == Err(RecvTimeoutError::Timeout) {
                // What could not be renewed now is tried again, and missed by `check` at the latest.
                let _ = renewing.renew();
            }
        });
        Self { shared, _stop: stop }
    }

    /// Fails when it was lost.
    pub(crate) fn check(&self) -> Result<(), RegistryError> {
        self.shared.renew()
    }

    /// The same, when that was not looked at just now.
    pub(crate) fn check_step(&self) -> Result<(), RegistryError> {
        let recent = self.shared.state().as_ref().is_some_and(|(_, renewed)| renewed.elapsed() < RECENT);
        if recent { Ok(()) } else { self.shared.renew() }
    }
}

impl Drop for Renewed {
    fn drop(&mut self) {
        // One that was lost may be another's by now. One that stays is over in ten minutes.
        if let Some(_held) = self.shared.state().take() {
            let _ = self.shared.objects.remove(&self.shared.key);
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, Option<(Tag, Instant)>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn renew(&self) -> Result<(), RegistryError> {
        let lost = || RegistryError::LeaseLost { path: self.objects.location().into() };
        let mut state = self.state();
        let Some((tag, since)) = state.take() else { return Err(lost()) };
        let written = match write(&*self.objects, &self.key, &self.body, Condition::Unchanged(&tag)) {
            Ok(written) => written,
            Err(error) => {
                *state = Some((tag, since));
                return Err(error);
            }
        };
        // Somebody who took our mark for that of a dead collector has a lease by now.
        if self.key == COLLECTING && written.is_some() && !nobody_else(&*self.objects)? {
            remove(&*self.objects, COLLECTING)?;
            return Err(lost());
        }
        *state = Some((written.ok_or_else(lost)?, Instant::now()));
        Ok(())
    }
}

fn path(objects: &dyn Objects, key: &str) -> std::path::PathBuf {
    std::path::PathBuf::from(objects.location()).join(key)
}

fn write(objects: &dyn Objects, key: &str, body: &str, condition: Condition<'_>) -> Result<Option<Tag>, RegistryError> {
    objects.write(key, body.as_bytes(), condition).map_err(failed("write", &path(objects, key)))
}

fn stat(objects: &dyn Objects, key: &str) -> Result<Option<crate::objects::Meta>, RegistryError> {
    objects.stat(key).map_err(failed("examine", &path(objects, key)))
}

fn remove(objects: &dyn Objects, key: &str) -> Result<(), RegistryError> {
    objects.remove(key).map_err(failed("remove", &path(objects, key)))
}
