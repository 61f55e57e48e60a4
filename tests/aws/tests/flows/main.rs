//! Every flow of kiln's own code against the fake.

#![expect(clippy::unwrap_used, reason = "tests")]

mod ami;
#[path = "../../../../crates/kiln-registry/tests/support/artifact.rs"]
mod artifact;
mod bake;
mod bench;
mod faults;
mod guest;
mod instance;
mod moto;
mod release;
mod retention;
mod schedules;
