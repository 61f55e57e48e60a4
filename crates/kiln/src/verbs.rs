//! One module for each verb.

pub(crate) mod build;
pub(crate) mod cache;
pub(crate) mod channel;
pub(crate) mod clean;
pub(crate) mod completions;
pub(crate) mod diff;
pub(crate) mod doctor;
pub(crate) mod export;
pub(crate) mod fmt;
pub(crate) mod guard;
pub(crate) mod images;
pub(crate) mod key;
pub(crate) mod logs;
pub(crate) mod man;
pub(crate) mod mirror;
pub(crate) mod plan;
pub(crate) mod registry;
pub(crate) mod resolve;
pub(crate) mod revoke;
pub(crate) mod sbom;
pub(crate) mod schema;
pub(crate) mod serve;
pub(crate) mod show;
pub(crate) mod ssh;
pub(crate) mod validate;
pub(crate) mod verify;
