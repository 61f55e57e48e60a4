//! Blobs that are not what their name says: never used, set aside, and named with the versions they harm.

use std::{
    fs,
    io::{self, Read as _},
    os::unix::fs::MetadataExt as _,
    path::PathBuf,
};

use kiln_core::Digest;
use kiln_io::random::nonce;

use crate::{
    Registry, RegistryError,
    content::{Content, Descriptor},
    durable::{self, failed},
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
    /// Its bytes are not those that its name says. With the inode that was read.
    Altered {
        what: String,
        inode: u64,
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
pub(crate) struct OpenBlob {
    pub(crate) file: fs::File,
    digest: Digest,
    inode: u64,
}

impl OpenBlob {
    /// It could not be read.
    pub(crate) fn unread(&self, error: io::Error) -> Damage {
        unread(self.digest, error)
    }

    /// Whether the digest that its bytes have is the one that it is named by.
    pub(crate) fn judge(&self, found: Digest) -> Result<(), Damage> {
        if found == self.digest {
            return Ok(());
        }
        let problem = Problem::Altered { what: format!("it has the digest {found}"), inode: self.inode };
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
    pub(crate) fn open_blob(&self, blob: &Descriptor) -> Result<OpenBlob, Damage> {
        let failed = |error| unread(blob.digest, error);
        let file = fs::File::open(self.blob(&blob.digest)).map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        if metadata.len() != blob.size {
            let what = format!("it has {} bytes instead of {}", metadata.len(), blob.size);
            return Err(Damage { blob: blob.digest, problem: Problem::Altered { what, inode: metadata.ino() } });
        }
        Ok(OpenBlob { file, digest: blob.digest, inode: metadata.ino() })
    }

    /// The bytes of a blob, when they are what its name says. Reads no more than its size.
    pub(crate) fn blob_bytes(&self, blob: &Descriptor) -> Result<Vec<u8>, Damage> {
        let mut open = self.open_blob(blob)?;
        let mut bytes = vec![0; usize::try_from(blob.size).unwrap_or(usize::MAX)];
        let read = open.file.read_exact(&mut bytes);
        read.map_err(|error| open.unread(error))?;
        open.judge(Digest::of(&bytes))?;
        Ok(bytes)
    }

    /// Renames a bad blob, so that nobody uses it and the next publish of the same bytes brings it again. Names the
    /// versions that need it.
    pub(crate) fn set_aside(&self, damage: Damage) -> RegistryError {
        let blob = self.blob(&damage.blob);
        let harmed = self.versions_with(&damage.blob);
        let problem = match damage.problem {
            Problem::Unread(error) => return failed("read", &blob)(error),
            Problem::Missing => "it is missing".to_owned(),
            Problem::Contradicts(what) => what,
            Problem::Altered { what, inode } => match self.move_aside(&damage.blob, inode) {
                Ok(Some(to)) => format!("{what}; it was moved to `{}`", to.display()),
                Ok(None) => what,
                Err(error) => format!("{what}; it could not be moved aside: {error}"),
            },
        };
        RegistryError::Damaged { blob, problem, harmed }
    }

    /// Only the file that was read is moved: meanwhile a sound one may have taken its place.
    fn move_aside(&self, digest: &Digest, inode: u64) -> Result<Option<PathBuf>, RegistryError> {
        let blob = self.blob(digest);
        let directory = self.root().join("damaged");
        durable::directory(&directory)?;
        let _alone = crate::publish::lock(&directory.join("lock"))?;
        match fs::symlink_metadata(&blob) {
            Ok(metadata) if metadata.ino() == inode => {}
            _ => return Ok(None),
        }
        let to = directory.join(format!("{}.{}", digest.hex(), &nonce()[..8]));
        fs::rename(&blob, &to).map_err(failed("move aside", &blob))?;
        durable::sync_directory_of(&blob)?;
        Ok(Some(to))
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
