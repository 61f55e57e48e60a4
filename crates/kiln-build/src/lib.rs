//! Bases, the QEMU builder, checks, hygiene and sealing: the flow of a bake.
//!
//! This crate must not print, parse arguments or know where artifacts are published.

pub mod bake;
pub mod base;
pub mod check;
pub mod clean;
pub mod qemu;
