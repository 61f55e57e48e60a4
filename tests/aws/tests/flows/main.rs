//! Every flow of kiln's own code against the fake.

#![expect(clippy::unwrap_used, reason = "tests")]
#![expect(clippy::disallowed_methods, reason = "tests drive stock programs and the real binary")]
#![expect(clippy::cast_possible_truncation, reason = "small random numbers")]

mod ami;
#[path = "../../../../crates/kiln-registry/tests/support/artifact.rs"]
mod artifact;
mod bake;
mod bench;
mod elsewhere;
mod faults;
mod guest;
mod instance;
mod moto;
mod release;
mod retention;
mod schedules;
