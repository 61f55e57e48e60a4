//! A server with a registry in it, asked by stock programs; one program, since linking one takes longer than most of these tests.

#![expect(clippy::unwrap_used, reason = "tests")]
#![expect(clippy::disallowed_methods, reason = "tests drive stock programs as a user would")]

#[path = "../../../kiln-registry/tests/support/artifact.rs"]
mod artifacts;
#[path = "../support/chromium.rs"]
mod chromium;
#[path = "../support/serving.rs"]
mod serving;
#[path = "../support/showcase.rs"]
mod showcase;
#[path = "../../../kiln-registry/tests/support/system.rs"]
mod system;

mod api;
mod browser;
mod dashboard;
mod files;
mod meantime;
mod openapi;

use artifacts as support;
