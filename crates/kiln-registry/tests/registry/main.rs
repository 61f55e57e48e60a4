//! Everything a registry is trusted with, in one program: linking a program takes longer than most of these tests do.

#![expect(clippy::unwrap_used, reason = "tests")]

#[path = "../support/memory.rs"]
mod memory;
#[path = "../support/artifact.rs"]
mod support;
#[path = "../support/system.rs"]
mod system;

mod amis;
mod bucket;
mod channels;
mod compare;
mod envelope;
mod lineage;
mod parts;
mod power;
mod processes;
mod proof;
mod publish;
mod retention;
mod sbom;
mod state;
mod store;
