//! What goes over the wire as JSON, for both ends.

use std::collections::BTreeMap;

use kiln_core::{ChannelName, Digest, ImageName, Version, artifact::Artifact};
use kiln_registry::{Attestation, Channel, Descriptor, Entry, Listed, Outdated, Record, Revoked};
use serde::{Deserialize, Serialize};

/// `GET /api/v1/images`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Images {
    pub images: Vec<ImageEntry>,
    /// There are more behind this image: ask again with `?after=`. Only when a `?limit=` was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<ImageName>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageEntry {
    pub image: ImageName,
    pub versions: usize,
    pub newest: Listed,
}

/// `GET /api/v1/images/NAME`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    pub image: ImageName,
    pub rev: u64,
    pub channels: BTreeMap<ChannelName, Channel>,
    /// Newest first.
    pub versions: Vec<Entry>,
    /// There are more behind this version: ask again with `?after=`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<Version>,
}

/// `GET /api/v1/images/NAME/builds`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Builds {
    pub image: ImageName,
    /// Of the newest version first. A version whose record cannot be read has none.
    pub builds: Vec<kiln_index::Build>,
    /// There are more behind this version: ask again with `?after=`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<Version>,
}

/// `GET /api/v1/images/NAME/versions/REFERENCE`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Shown {
    #[serde(flatten)]
    pub record: Record,
    pub channels: Vec<ChannelName>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked: Option<Revoked>,
}

/// `POST /api/v1/images/NAME/channels/CHANNEL/promote`
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Promote {
    /// A version, `latest`, a disk digest, or a channel: what it points to now.
    pub version: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expect: Option<Version>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Who the client says it is; stands in the history beside the name of the token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    #[serde(default)]
    pub allow_revoked: bool,
}

/// `POST /api/v1/images/NAME/channels/CHANNEL/rollback`
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rollback {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<Version>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expect: Option<Version>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    #[serde(default)]
    pub allow_revoked: bool,
}

/// `POST /api/v1/images/NAME/channels/CHANNEL/restrict`
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Restrict {
    /// Whether the channel takes only proven versions from now on, or any again.
    pub restricted: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
}

/// Whether anything was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changed {
    pub changed: bool,
}

/// What became of a channel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moved {
    pub from: Option<Version>,
    pub to: Version,
    pub rev: u64,
    pub already: bool,
}

/// `POST /api/v1/images/NAME/versions/VERSION/revoke`
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Revoke {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Seconds since 1970, UTC; now if it is not there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<u64>,
    #[serde(default)]
    pub lift: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
}

/// What a revocation took with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inherited {
    pub inherited: Vec<kiln_registry::Parent>,
}

/// `GET /api/v1/outdated`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutdatedImages {
    pub outdated: Vec<Outdated>,
}

/// `GET /api/v1/images/NAME/records?folder=FOLDER`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Names {
    pub names: Vec<String>,
}

/// `POST /api/v1/images/NAME/missing`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Blobs {
    pub blobs: Vec<Blob>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Blob {
    pub digest: Digest,
    pub size: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Missing {
    pub missing: Vec<Digest>,
}

/// `POST /api/v1/images/NAME/versions`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Offer {
    pub manifest: Descriptor,
    pub artifact: Artifact,
    /// `auto` for the next calendar version, else this one.
    pub version: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// What is said about it where it was made.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub attestations: Vec<Attestation>,
}

/// What was published.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Published {
    pub artifact: Artifact,
    pub already: bool,
}

/// `GET /api/v1/images/NAME/log`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Log {
    pub changes: Vec<kiln_registry::Change>,
    /// Ask for what comes behind this.
    pub rev: u64,
}
