//! Signed states that expire are renewed by the server that has their key, so that no nightly job is needed for it.

use std::{sync::Arc, time::Duration};

use kiln_registry::{Intent, RegistryError};
use tokio_util::sync::CancellationToken;

use crate::state::App;

/// How often it is looked whether the half of a state's time has passed.
const LOOKS_EVERY: Duration = Duration::from_mins(10);

/// Renews what is due, now and from time to time, until `stop`.
pub(crate) async fn keep_renewed(app: Arc<App>, stop: CancellationToken) {
    if app.registry.signer().is_none() {
        return;
    }
    loop {
        let renewed = app.on_disk(renew).await;
        if let Err(problem) = renewed {
            (app.log)(&format!("signed states were not looked at: {}", problem.detail));
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = app.clock.sleep(LOOKS_EVERY) => {}
        }
    }
}

/// One image that cannot be renewed does not keep the others from it.
fn renew(app: &App) -> Result<(), RegistryError> {
    let intent = Intent { by: "kiln serve".to_owned(), now: app.now(), reason: None, allow_revoked: false };
    for image in app.index.images()? {
        match app.registry.renew(&image.image, None, &intent) {
            Ok(renewed) if renewed.renewed => app.changed.notify_waiters(),
            Ok(_) => {}
            Err(error) => (app.log)(&format!("the state of `{}` was not renewed: {error}", image.image)),
        }
    }
    Ok(())
}
