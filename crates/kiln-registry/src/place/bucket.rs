//! A registry in a bucket: objects that are created once, heads that move by conditional writes, leases that are renewed.
//!
//! An object is there as a whole or not at all, and stays once its writing was answered; that is the store's promise. That
//! of two conditional writes only one is done is what `kiln registry init` proves before it makes a bucket a registry.

mod blobs;
pub(crate) mod lease;

use std::{
    io,
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use kiln_core::ImageName;

use super::{Held, Lease, Leases, Mark, Records};
use crate::{
    RegistryError,
    durable::failed,
    objects::{Condition, Objects, Tag},
};

/// A head that is overtaken again and again: each time, somebody else got on.
const ATTEMPTS: usize = 1000;

#[derive(Debug)]
pub(crate) struct Bucket {
    objects: Arc<dyn Objects>,
}

impl Bucket {
    pub(crate) const fn new(objects: Arc<dyn Objects>) -> Self {
        Self { objects }
    }

    fn failed(&self, operation: &'static str, key: &str) -> impl FnOnce(io::Error) -> RegistryError + use<> {
        failed(operation, &self.path(key))
    }
}

impl Records for Bucket {
    fn path(&self, key: &str) -> PathBuf {
        PathBuf::from(self.objects.location()).join(key)
    }

    fn read(&self, key: &str, longest: u64) -> io::Result<Option<(Vec<u8>, Mark)>> {
        let found = self.objects.read(key, longest)?;
        Ok(found.map(|(bytes, meta)| (bytes, Mark(Some(meta.tag.0)))))
    }

    fn create(&self, key: &str, bytes: &[u8]) -> Result<bool, RegistryError> {
        let written = self.objects.write(key, bytes, Condition::Absent).map_err(self.failed("create", key))?;
        Ok(written.is_some())
    }

    fn replace(&self, key: &str, bytes: &[u8], mark: &Mark) -> Result<Option<Mark>, RegistryError> {
        let tag = mark.0.clone().map(Tag);
        let condition = tag.as_ref().map_or(Condition::Absent, Condition::Unchanged);
        let written = self.objects.write(key, bytes, condition).map_err(self.failed("replace", key))?;
        Ok(written.map(|tag| Mark(Some(tag.0))))
    }

    fn names(&self, folder: &str) -> io::Result<Vec<String>> {
        let found = self.objects.list(folder)?;
        Ok(found.folders.into_iter().chain(found.objects.into_iter().map(|(name, _)| name)).collect())
    }

    fn mark(&self, key: &str) -> io::Result<Mark> {
        Ok(Mark(self.objects.stat(key)?.map(|meta| meta.tag.0)))
    }

    fn modified(&self, key: &str) -> Option<SystemTime> {
        let meta = self.objects.stat(key).ok()??;
        Some(SystemTime::UNIX_EPOCH + Duration::from_secs(meta.modified))
    }

    /// What a bucket lists, it keeps.
    fn settle(&self, _folder: &str) -> Result<(), RegistryError> {
        Ok(())
    }
}

impl Leases for Bucket {
    /// `kiln registry init` made everything that is needed.
    fn prepare(&self, _image: Option<&ImageName>) -> Result<(), RegistryError> {
        Ok(())
    }

    fn share(&self) -> Result<Lease, RegistryError> {
        lease::take(&self.objects).map(|renewed| Lease(Held::Object(renewed)))
    }

    /// Who may only read cannot say that he does: then bytes that are collected meanwhile are missed, never taken for others.
    fn lease(&self) -> Result<Option<Lease>, RegistryError> {
        match self.share() {
            Ok(lease) => Ok(Some(lease)),
            Err(RegistryError::Io { source, .. }) if source.kind() == io::ErrorKind::PermissionDenied => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn alone(&self) -> Result<Option<Lease>, RegistryError> {
        lease::alone(&self.objects).map(|renewed| Some(Lease(Held::Object(renewed))))
    }

    /// Nobody is kept away; who is overtaken tries again.
    fn lock(&self, _image: &ImageName) -> Result<Option<Lease>, RegistryError> {
        Ok(None)
    }

    /// Objects have no locks. What is removed while it is read is missed, never taken for something else.
    fn hold(&self, _key: &str) -> Result<Option<Lease>, RegistryError> {
        Ok(None)
    }

    fn claim(&self, _key: &str) -> Result<Option<Lease>, RegistryError> {
        Ok(Some(Lease(Held::Nothing)))
    }

    fn attempts(&self) -> usize {
        ATTEMPTS
    }
}
