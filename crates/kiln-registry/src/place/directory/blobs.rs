//! Blobs as files of a directory, never written to again.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use kiln_core::{ByteSize, Digest};
use kiln_io::{fs::free_space, random::nonce};

use super::{
    super::{Batch, Blobs, Lease, Mark, Spool, SpoolName, StoredBlob, blob_key, digest_of_name},
    Directory, lock,
};
use crate::{
    RegistryError, Shortage,
    durable::{self, Temporary, failed},
};

impl Directory {
    fn blob(&self, digest: &Digest) -> PathBuf {
        self.root.join(blob_key(digest))
    }
}

impl Blobs for Directory {
    fn are_near(&self) -> bool {
        true
    }

    fn open(&self, digest: &Digest) -> io::Result<Option<StoredBlob>> {
        let file = match File::open(self.blob(digest)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let metadata = file.metadata()?;
        Ok(Some(StoredBlob::file(file, metadata.len(), mark(&metadata))))
    }

    fn size(&self, digest: &Digest) -> io::Result<Option<u64>> {
        match fs::metadata(self.blob(digest)) {
            Ok(metadata) if metadata.is_file() => Ok(Some(metadata.len())),
            Ok(_) => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn all(&self) -> Result<Vec<(Digest, u64)>, RegistryError> {
        let directory = self.root.join("blobs/sha256");
        let entries = match fs::read_dir(&directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failed("read", &directory)(error)),
        };
        let mut blobs = Vec::new();
        for entry in entries {
            let entry = entry.map_err(failed("read", &directory))?;
            let digest = entry.file_name().to_str().and_then(digest_of_name);
            blobs.extend(digest.map(|digest| (digest, entry.metadata().map_or(0, |metadata| metadata.len()))));
        }
        Ok(blobs)
    }

    fn batch(&self) -> Box<dyn Batch + '_> {
        Box::new(Files { directory: self, written: Vec::new(), bytes: 0 })
    }

    fn spool(&self, digest: &Digest, size: u64) -> Result<Spool, RegistryError> {
        let free = free_space(&self.temporary()).unwrap_or(u64::MAX);
        if free < size {
            let shortage = Shortage::Bytes { needed: ByteSize(size), free: ByteSize(free) };
            return Err(RegistryError::Full { operation: "store", path: self.blob(digest), shortage });
        }
        let temporary = Temporary::in_directory(&self.temporary());
        let file = OpenOptions::new().write(true).create_new(true).mode(0o444).open(temporary.path());
        let file = file.map_err(failed("create", temporary.path()))?;
        Ok(Spool { file, name: SpoolName::Temporary(temporary) })
    }

    fn finish(&self, spool: Spool, digest: &Digest, _size: u64) -> Result<(), RegistryError> {
        let SpoolName::Temporary(temporary) = spool.name else { return Ok(()) };
        spool.file.sync_all().map_err(failed("sync", temporary.path()))?;
        temporary.replace(&self.blob(digest))
    }

    fn bring(&self, source: &Path, digest: &Digest, size: u64) -> Result<u64, RegistryError> {
        let blob = self.blob(digest);
        if blob.exists() {
            durable::sync_directory_of(&blob)?;
            return Ok(0);
        }
        durable::bring(source, &self.temporary(), *digest, &|_| true)?.replace(&blob)?;
        Ok(size)
    }

    fn remove(&self, unneeded: &[(Digest, u64)], _alone: &Lease) -> Result<(), RegistryError> {
        for (digest, _) in unneeded {
            let blob = self.blob(digest);
            fs::remove_file(&blob).map_err(failed("remove", &blob))?;
        }
        if unneeded.is_empty() { Ok(()) } else { durable::sync_directory_of(&self.blob(&Digest::of(b""))) }
    }

    /// Only the file that was read is moved: meanwhile a sound one may have taken its place.
    fn set_aside(&self, digest: &Digest, read: &Mark) -> Result<Option<PathBuf>, RegistryError> {
        let blob = self.blob(digest);
        let directory = self.root.join("damaged");
        durable::directory(&directory)?;
        let _alone = lock(&directory.join("lock"))?;
        match fs::symlink_metadata(&blob) {
            Ok(metadata) if mark(&metadata) == *read => {}
            _ => return Ok(None),
        }
        let to = directory.join(format!("{}.{}", digest.hex(), &nonce()[..8]));
        fs::rename(&blob, &to).map_err(failed("move aside", &blob))?;
        durable::sync_directory_of(&blob)?;
        Ok(Some(to))
    }
}

/// The inode tells one file of a name from the next.
fn mark(metadata: &fs::Metadata) -> Mark {
    Mark(Some(metadata.ino().to_string()))
}

/// Files on their way: written first, then all synced, then all named.
struct Files<'a> {
    directory: &'a Directory,
    written: Vec<(Temporary, Digest)>,
    bytes: u64,
}

impl Batch for Files<'_> {
    /// Writes the blob unless it is there. A blob gets its name when its bytes were synced, so the name is proof enough.
    fn add(&mut self, digest: Digest, bytes: &[u8]) -> Result<(), RegistryError> {
        if self.directory.blob(&digest).exists() {
            return Ok(());
        }
        let temporary = durable::write_unsynced(&self.directory.temporary(), bytes)?;
        self.bytes += bytes.len() as u64;
        self.written.push((temporary, digest));
        Ok(())
    }

    fn commit(self: Box<Self>) -> Result<u64, RegistryError> {
        for (temporary, _) in &self.written {
            // The kernel reports an error of the write-back to whoever syncs first, also through another descriptor.
            let synced = File::open(temporary.path()).and_then(|file| file.sync_all());
            synced.map_err(failed("sync", temporary.path()))?;
        }
        for (temporary, digest) in self.written {
            temporary.rename(&self.directory.blob(&digest))?;
        }
        // Also for the blobs that were there: their names may be younger than the last sync.
        durable::sync_directory_of(&self.directory.blob(&Digest::of(b"")))?;
        Ok(self.bytes)
    }
}
