//! dash
use crate::state::App;
use axum::Router;
use std::sync::Arc;
#[derive(Debug, Default)]
pub(crate) struct Sessions;
pub(crate) fn router() -> Router<Arc<App>> {
    Router::new()
}
