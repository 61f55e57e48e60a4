//! Bases, the QEMU builder, machines elsewhere, checks, hygiene and sealing: the flow of a bake.
//!
//! This crate must not print, parse arguments or know where artifacts are published.

pub mod audit;
pub mod bake;
pub mod base;
pub mod check;
pub mod checkpoint;
pub mod clean;
pub mod qemu;
pub mod remote;

/// The unit that gives every clone SSH host keys of its own; in our own base, and added to any other that has none like it.
const HOST_KEYS_UNIT: &str = include_str!("ssh-host-keys.service");
