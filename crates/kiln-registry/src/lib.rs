//! Catalog of images and versions in a directory or a bucket: what is published, and its files.
//!
//! ```text
//! registry.json                    the format of this registry
//! oci-layout
//! blobs/sha256/<hex>               segments, configs, manifests, named by their digest, never written to again
//! images/<name>/v/<version>.json   one record for each version, written once, after the blobs it names
//! images/<name>/ami/<version>/     the AMIs that a version is: `<account>.<region>.<ami>.json`, each written once, when it is whole
//! images/<name>/log/<rev>.json     what each revision of the head changed: who, when, why. Written once, before the head
//! images/<name>/head.json          versions and channels; replaced last. What it lists is published
//! damaged/                         blobs that were not what their name said
//! ```
//!
//! A directory has `tmp/` besides, for files that are being written and the locks, and `images/<name>/lock`; a bucket has
//! `leases/` and `collecting`.
//!
//! A version is an OCI image manifest. Its layers are the 4 MiB segments of the disk in order, each 64 independent zstd
//! frames, so any two versions share the segments that they have in common, and `zstd -d` of the layers, one behind the
//! other, is the raw disk. The qcow2 is not stored: it is laid down from the same frames, always the same bytes.
//!
//! This crate must not know how an artifact is made, print, or talk to the network.

mod ami;
mod catalog;
mod change;
mod channel;
mod check;
pub mod compare;
mod content;
mod copy;
mod damage;
mod disk;
mod durable;
mod error;
mod export;
mod filesystem;
mod frames;
mod head;
mod heads;
mod lay_down;
mod lineage;
mod listing;
mod objects;
mod place;
mod probe;
pub mod proof;
mod publish;
mod raw;
mod receive;
mod renew;
mod retention;
pub mod sbom;
mod store;
mod view;

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use kiln_core::{Digest, ImageName, Version};
use kiln_io::signing::SigningKey;

use self::{
    durable::failed,
    heads::Heads,
    place::{Place, Records as _, bucket::Bucket, directory::Directory},
};

pub use self::{
    ami::Ami,
    catalog::{ImageSummary, Reference, Selector},
    change::{Action, Change},
    channel::{Intent, Moved},
    check::{Finding, Report},
    compare::Difference,
    content::{Content, Descriptor, LONGEST_CONFIG, LONGEST_MANIFEST, StoredSegment},
    copy::Copied,
    disk::StoredDisk,
    error::{RegistryError, Shortage},
    frames::Frames,
    head::{Channel, Listed, Record},
    lineage::{Outdated, Parent, Revocation, Revoked},
    listing::{Entry, Listing, Start},
    objects::{Condition, Folder, Meta, Objects, Tag},
    place::{Lease, StoredBlob},
    proof::{
        keys::{KeyStore, KeysError},
        seen::Seen,
        state::Standing,
        stored::Attestation,
        trust::{Trust, TrustedKey},
        verify::{Proof, Unproven},
    },
    publish::{Publication, Published},
    receive::{Incoming, Offer},
    renew::{Renewed, Validity},
    retention::{Pruned, Rules, Verdict},
    view::{Pieces, View},
};

/// The content of `oci-layout`, as the OCI image layout specification 1.1 wants it.
const OCI_LAYOUT: &str = "{\"imageLayoutVersion\":\"1.0.0\"}\n";

/// The content of `registry.json`: `"format"` grows when an older kiln could not read what is there.
const MARKER: &str = "{\"format\":2}\n";

/// A registry in a local directory or in a bucket. Cheap to clone; no file is held open between calls.
#[derive(Debug, Clone)]
pub struct Registry {
    root: PathBuf,
    place: Arc<dyn Place>,
    heads: Arc<Heads>,
    signer: Option<Arc<SigningKey>>,
    trust: Arc<Trust>,
}

impl Registry {
    /// The registry at `root`, which is made by the first publish. Refuses a network file system, and a directory that
    /// holds something else.
    pub fn open(root: &Path) -> Result<Self, RegistryError> {
        if let Some(existing) = root.ancestors().find(|directory| directory.is_dir()) {
            filesystem::check(existing)?;
        }
        if root.exists() {
            let mut entries = fs::read_dir(root).map_err(durable::failed("read", root))?;
            // A publish that was killed before it wrote `registry.json` leaves `tmp` and nothing else. The marker is
            // looked for after the listing: it is there before anything else is.
            let others = entries.any(|entry| entry.is_ok_and(|entry| entry.file_name() != "tmp"));
            if others && !head::is_known_format(&Directory::new(root))? {
                let path = root.to_owned();
                let first_form = root.join("oci-layout").exists() && root.join("images").exists();
                return Err(if first_form {
                    RegistryError::FirstForm { path }
                } else {
                    RegistryError::NotARegistry { path }
                });
            }
        }
        Ok(Self::at(root.to_owned(), Arc::new(Directory::new(root))))
    }

    /// The registry in a bucket. Refuses one that `kiln registry init` did not make a registry.
    pub fn in_bucket(objects: Arc<dyn Objects>) -> Result<Self, RegistryError> {
        let root = PathBuf::from(objects.location());
        let bucket = Bucket::new(objects);
        if !head::is_known_format(&bucket)? {
            return Err(RegistryError::NotInitialised { path: root });
        }
        Ok(Self::at(root, Arc::new(bucket)))
    }

    /// Makes a directory a registry, when its file system keeps writers apart. One that is a registry is tried again.
    pub fn init(root: &Path) -> Result<Self, RegistryError> {
        let registry = Self::open(root)?;
        let shared = registry.place.share()?;
        registry.place.prepare(None)?;
        probe::directory(root)?;
        drop(shared);
        Ok(registry)
    }

    /// Makes a bucket a registry, when its store keeps writers apart that have the different `connections`. One that is a
    /// registry is tried again.
    pub fn init_in_bucket(connections: &[Arc<dyn Objects>]) -> Result<Self, RegistryError> {
        probe::bucket(connections)?;
        let first = connections.first().ok_or_else(|| RegistryError::NotInitialised { path: PathBuf::new() })?;
        let bucket = Bucket::new(Arc::clone(first));
        bucket.create("oci-layout", OCI_LAYOUT.as_bytes())?;
        bucket.create("registry.json", MARKER.as_bytes())?;
        Self::in_bucket(Arc::clone(first))
    }

    fn at(root: PathBuf, place: Arc<dyn Place>) -> Self {
        Self { root, place, heads: Arc::default(), signer: None, trust: Arc::default() }
    }

    /// The same registry, where what is published is signed with `key`.
    #[must_use]
    pub fn signing(self, key: SigningKey) -> Self {
        Self { signer: Some(Arc::new(key)), ..self }
    }

    /// The same registry, where proof is judged by `trust`.
    #[must_use]
    pub fn trusting(self, trust: Trust) -> Self {
        Self { trust: Arc::new(trust), ..self }
    }

    /// The key that signs what is published.
    pub fn signer(&self) -> Option<&SigningKey> {
        self.signer.as_deref()
    }

    /// The keys that are believed.
    pub fn trust(&self) -> &Trust {
        &self.trust
    }

    /// The directory; of a bucket its name, as people write it.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where the blob `digest` is or would be, for messages.
    pub fn blob(&self, digest: &Digest) -> PathBuf {
        self.place.path(&place::blob_key(digest))
    }

    /// A blob, for reading; its bytes are still to be judged.
    pub fn open_blob(&self, digest: &Digest) -> Result<StoredBlob, RegistryError> {
        let found = self.place.open(digest).and_then(|blob| blob.ok_or_else(|| io::ErrorKind::NotFound.into()));
        found.map_err(failed("open", &self.blob(digest)))
    }

    /// Keeps a version from being removed until it is dropped, also when this process is killed; all else may be collected. `None` in a
    /// bucket, where nobody can say that. Fails for a version that was removed, or is being removed.
    pub fn hold(&self, record: &Record) -> Result<Option<Lease>, RegistryError> {
        let (image, version) = (&record.artifact.image, &record.artifact.version);
        let held = self.place.hold(&record_key(image, version))?;
        // It may have been removed between being found and being held.
        if held.is_some() && self.read_head(image)?.lists(version).is_none() {
            return Err(RegistryError::Retired { image: image.clone(), version: version.clone() });
        }
        Ok(held)
    }

    /// Keeps collection away until it is dropped, also when this process is killed. `None` where that needs no saying.
    pub fn lease(&self) -> Result<Option<Lease>, RegistryError> {
        self.place.lease()
    }
}

/// Where everything of an image lies.
pub(crate) fn image_key(image: &ImageName) -> String {
    format!("images/{image}")
}

pub(crate) fn record_key(image: &ImageName, version: &Version) -> String {
    format!("images/{image}/v/{version}.json")
}

pub(crate) fn head_key(image: &ImageName) -> String {
    format!("images/{image}/head.json")
}
