//! An index in `SQLite` over the objects of a registry: what lists and pages need of many of them, found in one place.
//!
//! It is never the truth. Which versions there are, which are revoked and where channels point is always read from the heads; the
//! index adds what cannot change: what the records of versions and the log say. Only the list of images is taken from it, as long as
//! every head is in the state that was indexed. Each row carries a digest, so one that was altered counts as not there. Whatever
//! is wrong with the file, the objects are asked instead, and a file that is damaged is made anew.
//!
//! This crate must not print, and must not change anything in the registry.

mod build;
mod database;
mod history;
mod images;

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use kiln_core::Digest;
use kiln_registry::{Registry, RegistryError};
use serde::Serialize;

use self::database::Database;

pub use self::build::Build;

/// The index of one registry. Several processes may use the same file.
pub struct Index {
    registry: Registry,
    /// Where it is kept; `None`: in memory.
    path: Option<PathBuf>,
    /// Opened when it is first needed.
    database: Mutex<Option<Database>>,
}

/// What is in an index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Indexed {
    pub images: u64,
    pub builds: u64,
    /// Images whose log was gone through.
    pub histories: u64,
}

impl fmt::Debug for Index {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Index").field("registry", &self.registry).field("path", &self.path).finish_non_exhaustive()
    }
}

impl Index {
    /// The index of `registry` in the directory `cache`, or without one in memory. Nothing is opened yet.
    pub fn new(registry: Registry, cache: Option<&Path>) -> Self {
        let path = cache.map(|cache| {
            let root = std::path::absolute(registry.root()).unwrap_or_else(|_| registry.root().to_owned());
            let name = Digest::of(root.as_os_str().as_encoded_bytes()).hex();
            cache.join(format!("{}.{}.sqlite", &name[..16], database::FORMAT))
        });
        Self { registry, path, database: Mutex::default() }
    }

    pub const fn registry(&self) -> &Registry {
        &self.registry
    }

    /// The file; `None`: it is in memory.
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// Makes the index anew from the objects, all of it, and says what is in it then; `None` when it cannot be kept.
    pub fn rebuild(&self) -> Result<Option<Indexed>, RegistryError> {
        let mut database = self.database.lock().unwrap_or_else(PoisonError::into_inner);
        *database = None;
        self.path.as_deref().map(database::remove);
        drop(database);
        for summary in self.images()? {
            self.builds(&summary.image, self.registry.versions(&summary.image)?.iter());
            self.moves(&summary.image)?;
        }
        Ok(self.with(|database| database.indexed()).flatten())
    }

    /// What the database says. `None` when it has nothing to say: it is locked by somebody else, full, or made anew
    /// because it was damaged.
    fn with<T>(&self, ask: impl Fn(&mut Database) -> Result<T, database::Trouble>) -> Option<T> {
        let mut database = self.database.lock().unwrap_or_else(PoisonError::into_inner);
        if database.is_none() {
            *database = Database::open(self.path.as_deref()).ok();
        }
        match ask(database.as_mut()?) {
            Ok(answer) => Some(answer),
            Err(trouble) => {
                // It may have been removed meanwhile, or have become writable: the next one who asks opens it anew.
                *database = None;
                if trouble.is_damage() {
                    self.path.as_deref().map(database::remove);
                }
                None
            }
        }
    }
}
