//! What stands behind instances: nothing, or a real guest that a test starts.

use std::{fmt, path::PathBuf};

/// An instance that is to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Launch {
    pub instance: String,
    pub region: String,
    pub image: String,
    pub instance_type: String,
    /// Decoded.
    pub user_data: Vec<u8>,
    /// As in `authorized_keys`.
    pub public_key: Option<String>,
    /// The address in its subnet, unless [`Machines::start`] says another.
    pub address: String,
}

/// Called without any lock held, so an implementation may use the fake.
pub trait Machines: Send + Sync + fmt::Debug {
    /// Starts a guest; returns the address to report, public and private.
    fn start(&self, launch: &Launch) -> Option<String>;

    /// Stops the guest; its disk stays.
    fn stop(&self, instance: &str);

    fn terminate(&self, instance: &str);

    /// What it wrote to its console so far.
    fn console(&self, instance: &str) -> String;

    /// Its disk, a raw file, for `CreateImage`; without one the disk is that of the image.
    fn disk(&self, instance: &str) -> Option<PathBuf>;
}

/// Instances that exist on paper only.
#[derive(Debug)]
pub(crate) struct Nothing;

impl Machines for Nothing {
    fn start(&self, _: &Launch) -> Option<String> {
        None
    }

    fn stop(&self, _: &str) {}

    fn terminate(&self, _: &str) {}

    fn console(&self, _: &str) -> String {
        String::new()
    }

    fn disk(&self, _: &str) -> Option<PathBuf> {
        None
    }
}
