//! Proof: signed statements about a version, whose keys are believed, and what is refused and why.
//!
//! A statement (in-toto, version 1) names the disk, the manifest and the files of a version by their digests and says something about
//! them: what is on the disk ([`crate::sbom`]) or how it was made ([`provenance`]). Signed, it stands in an [`envelope`]. Each
//! is a blob under an OCI manifest whose `subject` is the manifest of the version, so stock clients find it too.

pub mod envelope;
pub mod keys;
pub mod provenance;
pub mod seen;
pub mod state;
pub mod statement;
pub(crate) mod stored;
pub mod trust;
pub mod verify;

/// The builder that this kiln is when somebody runs it on a machine of his own: SLSA Build level 1.
pub const LOCAL_BUILDER: &str = "urn:kiln:builder:local:v1";

/// The predicate of a bill of materials, as the in-toto project names it.
pub const SBOM: &str = "https://cyclonedx.org/bom";

/// The predicate of a provenance statement.
pub const PROVENANCE: &str = "https://slsa.dev/provenance/v1";
