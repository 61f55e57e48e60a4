//! Every flow of kiln's own code against the fake.

#![expect(clippy::unwrap_used, reason = "tests")]

mod ami;
#[path = "../../../../crates/kiln-registry/tests/support/artifact.rs"]
mod artifact;
mod bench;
mod faults;
mod moto;
mod release;
mod retention;
mod schedules;
