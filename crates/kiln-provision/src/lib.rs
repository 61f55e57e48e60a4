//! Provisioners: finding them, packing a step for the guest, running it and telling what happened.
//!
//! This crate must not know how a guest is booted, reached or sealed: it sees the [`kiln_io::guest::Guest`] trait.

pub mod bundle;
pub mod cases;
mod encode;
pub mod error;
pub mod facts;
pub mod fake;
pub mod library;
mod output;
mod redact;
mod script;
pub mod step;

pub use facts::HostFacts;
pub use library::{Library, Provisioner};
pub use step::{StepRun, run_step};
