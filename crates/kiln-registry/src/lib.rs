//! Catalog of images and versions in a directory: what is published, and its files.
//!
//! ```text
//! registry.json                    the format of this registry
//! oci-layout
//! blobs/sha256/<hex>               segments, configs, manifests, named by their digest, never written to again
//! images/<name>/v/<version>.json   one record for each version, written once, after the blobs it names
//! images/<name>/log/<rev>.json     what each revision of the head changed: who, when, why. Written once, before the head
//! images/<name>/head.json          versions and channels; replaced last. What it lists is published
//! images/<name>/lock               held while a record and the head are written
//! damaged/                         blobs that were not what their name said
//! tmp/                             files that are being written; `tmp/lock` is shared by all who publish or export
//! ```
//!
//! A version is an OCI image manifest. Its layers are the 4 MiB segments of the disk in order, each 64 independent zstd
//! frames, so any two versions share the segments that they have in common, and `zstd -d` of the layers, one behind the
//! other, is the raw disk. The qcow2 is not stored: it is laid down from the same frames, always the same bytes.
//!
//! This crate must not know how an artifact is made, print, or talk to the network.

mod catalog;
mod change;
mod channel;
mod check;
pub mod compare;
mod content;
mod damage;
mod disk;
mod durable;
mod error;
mod export;
mod filesystem;
mod head;
mod lay_down;
mod lineage;
mod listing;
pub mod proof;
mod publish;
mod receive;
mod retention;
pub mod sbom;
mod store;
mod view;

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use kiln_core::{Digest, ImageName, Version};
use kiln_io::signing::SigningKey;

pub use self::{
    catalog::{ImageSummary, Reference, Selector},
    change::{Action, Change},
    channel::{Intent, Moved},
    check::{Finding, Report},
    compare::Difference,
    content::{Content, Descriptor, LONGEST_CONFIG, LONGEST_MANIFEST, StoredSegment},
    disk::StoredDisk,
    error::{RegistryError, Shortage},
    head::{Channel, Listed, Record},
    lineage::{Outdated, Parent, Revocation, Revoked},
    listing::{Entry, Listing},
    proof::{
        keys::{KeyStore, KeysError},
        stored::Attestation,
        trust::{Trust, TrustedKey},
        verify::{Proof, Unproven},
    },
    publish::{Publication, Published},
    receive::{Incoming, Offer},
    retention::{Pruned, Rules, Verdict},
    view::{Pieces, View},
};

/// The content of `oci-layout`, as the OCI image layout specification 1.1 wants it.
const OCI_LAYOUT: &str = "{\"imageLayoutVersion\":\"1.0.0\"}\n";

/// The content of `registry.json`: `"format"` grows when an older kiln could not read what is there.
const MARKER: &str = "{\"format\":2}\n";

/// A registry in a local directory. Cheap to clone; nothing is held open between calls.
#[derive(Debug, Clone)]
pub struct Registry {
    root: PathBuf,
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
            if others && !head::is_known_format(&root.join("registry.json"))? {
                let path = root.to_owned();
                let first_form = root.join("oci-layout").exists() && root.join("images").exists();
                return Err(if first_form {
                    RegistryError::FirstForm { path }
                } else {
                    RegistryError::NotARegistry { path }
                });
            }
        }
        Ok(Self { root: root.to_owned(), signer: None, trust: Arc::default() })
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

    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where the blob `digest` is or would be.
    pub fn blob(&self, digest: &Digest) -> PathBuf {
        self.root.join("blobs/sha256").join(digest.hex())
    }

    fn temporary(&self) -> PathBuf {
        self.root.join("tmp")
    }

    fn image(&self, image: &ImageName) -> PathBuf {
        self.root.join("images").join(image.as_str())
    }

    fn record_path(&self, image: &ImageName, version: &Version) -> PathBuf {
        self.image(image).join("v").join(format!("{version}.json"))
    }
}
