//! A registry over HTTP.
//!
//! ```text
//! /images/NAME/REFERENCE/disk.qcow2     a version as one file, laid down on the fly: ranges, digests, `curl -C -`
//! /v2/                                  the read half of the OCI distribution specification 1.1
//! /api/v1/                              list, resolve, publish, promote, roll back, revoke, events
//! /                                     the dashboard
//! /healthz /readyz /metrics
//! ```
//!
//! The truth stays in the registry's directory: several servers, and kiln beside them, may use the same one. Whatever a
//! request holds in memory is bounded, and what is read from the disk is compared with its digest before it is sent.
//!
//! This crate must not print, and must not know how an image is made.

mod access;
mod again;
mod api;
pub mod client;
mod comparisons;
mod dashboard;
mod error;
mod facts;
mod files;
mod holds;
mod metrics;
pub mod mirror;
mod oci;
mod pace;
mod paced;
mod problem;
mod proven;
mod ranges;
mod renew;
mod server;
mod state;
mod stream;
mod tokens;
pub mod wire;

pub use self::{
    access::{Scope, Token, Tokens, new_token},
    error::ServeError,
    facts::{ami_facts, facts},
    server::{Options, Server},
};
