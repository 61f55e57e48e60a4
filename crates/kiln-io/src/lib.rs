//! The only door to processes, files, the clock and the guest over SSH.
//!
//! This crate must not know what an image, a template or a builder is. Whoever waits, spawns, reads the time or
//! talks to a guest does it through here; a lint (`clippy.toml`) keeps the rest of the workspace honest.

pub mod dirs;
pub mod download;
pub mod error;
pub mod fs;
pub mod guard;
pub mod guest;
pub mod keys;
pub mod ledger;
pub mod memory;
pub mod process;
pub mod random;
pub mod signing;
pub mod ssh;
pub mod time;
pub mod tree;
