//! The qcow2 format: headers of unknown origin, kiln's canonical form, and reading images kiln or QEMU wrote.

pub mod canonical;
pub mod header;
pub mod image;
