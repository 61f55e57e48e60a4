//! Template to plan: names, digests, sizes, versions, plans and events, as plain values.
//!
//! This crate must not do I/O, read a clock, spawn anything or be async. Everything it needs
//! from the world reaches it through the [`facts::Facts`] trait.

pub mod artifact;
pub mod checkpoint;
pub mod diagnostic;
pub mod digest;
pub mod duration;
pub mod event;
pub mod expression;
pub mod facts;
pub mod finding;
pub mod format;
mod keys;
pub mod manifest;
pub mod moment;
pub mod name;
mod node;
mod options;
pub mod plan;
pub mod schema;
pub mod secret;
mod shape;
pub mod size;
pub mod template;

pub use diagnostic::{Diagnostic, Diagnostics};
pub use digest::Digest;
pub use name::{ChannelName, ImageName, Version};
pub use secret::Secret;
pub use size::ByteSize;
