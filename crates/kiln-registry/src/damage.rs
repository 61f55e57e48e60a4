//! Blobs that are not what their name says: never used, set aside, and named with the versions they harm.

use std::io;

use kiln_core::Digest;

use crate::{
    Registry, RegistryError,
    content::{Content, Descriptor},
    durable::failed,
    place::{Mark, StoredBlob},
};

/// What is wrong with a blob.
#[derive(Debug)]
pub(crate) struct Damage {
    pub(crate) blob: Digest,
    pub(crate) problem: Problem,
}

#[derive(Debug)]
pub(crate) enum Problem {
    Missing,
    /// The file system cannot read it now; it may be able to later.
    Unread(io::Error),
    /// Its bytes are not those that its name says. With the mark of what was read.
    Altered {
        what: String,
        mark: Mark,
    },
    /// The blob is what its name says, but what it holds is not what the version says.
    Contradicts(String),
}

impl Damage {
    /// A chunk that is not what the config says, though the blob is.
    pub(crate) fn chunk(blob: &Descriptor, chunk: usize) -> Self {
        let problem = Problem::Contradicts(format!("its chunk {chunk} is not the one that the version names"));
        Self { blob: blob.digest, problem }
    }
}

/// A blob of the right length, open for reading; its bytes are still to be judged.
#[derive(Debug)]
pub(crate) struct SizedBlob {
    pub(crate) stored: StoredBlob,
    digest: Digest,
}

impl SizedBlob {
    /// It could not be read.
    pub(crate) fn unread(&self, error: io::Error) -> Damage {
        unread(self.digest, error)
    }

    /// Whether the digest that its bytes have is the one that it is named by.
    pub(crate) fn judge(&self, found: Digest) -> Result<(), Damage> {
        if found == self.digest {
            return Ok(());
        }
        let problem = Problem::Altered { what: format!("it has the digest {found}"), mark: self.stored.mark().clone() };
        Err(Damage { blob: self.digest, problem })
    }
}

fn unread(blob: Digest, error: io::Error) -> Damage {
    let problem = match error.kind() {
        io::ErrorKind::NotFound => Problem::Missing,
        _ => Problem::Unread(error),
    };
    Damage { blob, problem }
}

impl Registry {
    /// Opens a blob; one of another length is not looked at any further.
    pub(crate) fn sized_blob(&self, blob: &Descriptor) -> Result<SizedBlob, Damage> {
        let opened =
            self.place.open(&blob.digest).and_then(|stored| stored.ok_or_else(|| io::ErrorKind::NotFound.into()));
        let stored = opened.map_err(|error| unread(blob.digest, error))?;
        if stored.size() != blob.size {
            let what = format!("it has {} bytes instead of {}", stored.size(), blob.size);
            return Err(Damage { blob: blob.digest, problem: Problem::Altered { what, mark: stored.mark().clone() } });
        }
        Ok(SizedBlob { stored, digest: blob.digest })
    }

    /// The bytes of a blob, when they are what its name says. Reads no more than its size.
    pub(crate) fn blob_bytes(&self, blob: &Descriptor) -> Result<Vec<u8>, Damage> {
        let open = self.sized_blob(blob)?;
        let mut bytes = vec![0; usize::try_from(blob.size).unwrap_or(usize::MAX)];
        let read = open.stored.read_exact_at(&mut bytes, 0);
        read.map_err(|error| open.unread(error))?;
        open.judge(Digest::of(&bytes))?;
        Ok(bytes)
    }

    /// Takes a bad blob out of use, so that nobody reads it and the next publish of the same bytes brings it again. Names the
    /// versions that need it.
    pub(crate) fn set_aside(&self, damage: Damage) -> RegistryError {
        let blob = self.blob(&damage.blob);
        let harmed = self.versions_with(&damage.blob);
        let problem = match damage.problem {
            Problem::Unread(error) => return failed("read", &blob)(error),
            Problem::Missing => "it is missing".to_owned(),
            Problem::Contradicts(what) => what,
            Problem::Altered { what, mark } => match self.place.set_aside(&damage.blob, &mark) {
                Ok(Some(to)) => format!("{what}; it was moved to `{}`", to.display()),
                Ok(None) => what,
                Err(error) => format!("{what}; it could not be moved aside: {error}"),
            },
        };
        RegistryError::Damaged { blob, problem, harmed }
    }

    /// The versions whose manifest, config or segments are the blob `digest`, as far as they can be read.
    fn versions_with(&self, digest: &Digest) -> Vec<String> {
        let mut harmed = Vec::new();
        for record in self.records().unwrap_or_default() {
            let file = record.artifact.files.iter().any(|file| file.sha256 == *digest);
            let named = || {
                let manifest = self.blob_bytes(&record.manifest).ok()?;
                Some(Content::blobs_of(&manifest).ok()?.iter().any(|blob| blob.digest == *digest))
            };
            let said = record.attestations.iter().any(|attestation| {
                let blobs = || self.try_attestation(attestation).ok()?.ok();
                attestation.manifest.digest == *digest
                    || blobs().is_some_and(|blobs| blobs.iter().any(|blob| blob.digest == *digest))
            });
            if file || said || record.manifest.digest == *digest || named().unwrap_or(false) {
                harmed.push(format!("{}@{}", record.artifact.image, record.artifact.version));
            }
        }
        harmed
    }
}
