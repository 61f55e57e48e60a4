//! The objects of a registry in a bucket of S3, or of a store that speaks its protocol.
//!
//! Signatures, retries and paging are `object_store`'s, over the TLS and the hashes that the rest of kiln uses. What is added
//! here is the answer to one question: whether a conditional write whose answer was lost took place.
//!
//! This crate must not know what the objects mean.

mod address;
mod crypto;
mod error;
mod objects;

pub use self::{address::Address, error::BucketError, objects::S3};
