//! Statements as they are stored: a blob each, under an OCI manifest that refers to that of the version.

use kiln_core::artifact::Artifact;
use kiln_disk::inventory::Inventory;
use serde::{Deserialize, Serialize};

use super::{
    LOCAL_BUILDER, PROVENANCE, SBOM,
    envelope::{Envelope, IN_TOTO},
    provenance::Provenance,
    statement::Statement,
};
use crate::{
    Record, Registry, RegistryError,
    content::{Descriptor, MANIFEST_TYPE, descriptor},
    damage::Damage,
    sbom::Bom,
};

const ENVELOPE_TYPE: &str = "application/vnd.dsse.envelope.v1+json";
/// The empty config of the OCI image specification 1.1.
const EMPTY_TYPE: &str = "application/vnd.oci.empty.v1+json";
const EMPTY: &[u8] = b"{}";
/// As the in-toto project annotates what is in a layer.
const PREDICATE: &str = "in-toto.io/predicate-type";

/// The manifest of a statement is small.
const LONGEST_MANIFEST: u64 = 64 << 10;
/// What a disk of 4 MiB of package names and texts can lead to.
pub(crate) const LONGEST: u64 = 64 << 20;

/// A statement about a version, in its record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attestation {
    pub predicate_type: String,
    /// The OCI manifest of the statement.
    pub manifest: Descriptor,
    pub signed: bool,
}

/// A stored statement.
#[derive(Debug)]
pub(crate) enum Form {
    Signed(Envelope),
    /// Published without a key.
    Bare(Vec<u8>),
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Manifest {
    schema_version: u32,
    media_type: String,
    artifact_type: String,
    config: Descriptor,
    layers: Vec<Descriptor>,
    subject: Descriptor,
    annotations: std::collections::BTreeMap<String, String>,
}

/// Blobs that are to be stored, and what the record says of them.
#[derive(Debug, Default)]
pub(crate) struct Made {
    pub(crate) blobs: Vec<Vec<u8>>,
    pub(crate) attestations: Vec<Attestation>,
}

impl Registry {
    /// Everything to be said about `artifact`, whose disk has `inventory`, signed when there is a key.
    pub(crate) fn attest(
        &self,
        artifact: &Artifact,
        manifest: &Descriptor,
        inventory: Option<&Inventory>,
    ) -> Result<Made, RegistryError> {
        let unwritable = |source| RegistryError::Unreadable { path: self.root().to_owned(), source };
        let mut made = Made { blobs: vec![EMPTY.to_vec()], ..Made::default() };
        let bom = inventory.map(|inventory| Bom::new(artifact, inventory));
        if let Some(bom) = &bom {
            let predicate = serde_json::to_value(bom).map_err(unwritable)?;
            self.say(&Statement::new(artifact, manifest, SBOM, predicate), manifest, &mut made)?;
        }
        let sbom = bom.as_ref().map(Bom::digest).transpose().map_err(unwritable)?;
        let provenance = Provenance::new(artifact, LOCAL_BUILDER, sbom.as_ref());
        let predicate = serde_json::to_value(&provenance).map_err(unwritable)?;
        self.say(&Statement::new(artifact, manifest, PROVENANCE, predicate), manifest, &mut made)?;
        Ok(made)
    }

    fn say(&self, statement: &Statement, subject: &Descriptor, made: &mut Made) -> Result<(), RegistryError> {
        let unwritable = |source| RegistryError::Unreadable { path: self.root().to_owned(), source };
        let payload = serde_json::to_vec(statement).map_err(unwritable)?;
        let (media_type, blob) = match self.signer() {
            None => (IN_TOTO, payload),
            Some(key) => {
                let envelope = Envelope::sign(IN_TOTO, &payload, key).map_err(RegistryError::Signing)?;
                (ENVELOPE_TYPE, serde_json::to_vec(&envelope).map_err(unwritable)?)
            }
        };
        let manifest = serde_json::to_vec(&Manifest {
            schema_version: 2,
            media_type: MANIFEST_TYPE.to_owned(),
            artifact_type: IN_TOTO.to_owned(),
            config: descriptor(EMPTY_TYPE, EMPTY),
            layers: vec![descriptor(media_type, &blob)],
            subject: subject.clone(),
            annotations: [(PREDICATE.to_owned(), statement.predicate_type.clone())].into(),
        })
        .map_err(unwritable)?;
        made.attestations.push(Attestation {
            predicate_type: statement.predicate_type.clone(),
            manifest: descriptor(MANIFEST_TYPE, &manifest),
            signed: self.signer().is_some(),
        });
        made.blobs.extend([blob, manifest]);
        Ok(())
    }

    /// The statement about `record` with this predicate; the inner error says what is wrong with it.
    pub(crate) fn attestation(
        &self,
        record: &Record,
        predicate_type: &str,
    ) -> Result<Option<Result<Form, String>>, RegistryError> {
        let Some(attestation) =
            record.attestations.iter().find(|attestation| attestation.predicate_type == predicate_type)
        else {
            return Ok(None);
        };
        self.form_of(attestation).map(Some)
    }

    fn form_of(&self, attestation: &Attestation) -> Result<Result<Form, String>, RegistryError> {
        let [_, layer] = match self.try_attestation(attestation).map_err(|damage| self.set_aside(damage))? {
            Ok(blobs) => blobs,
            Err(problem) => return Ok(Err(problem)),
        };
        let bytes = self.blob_bytes(&layer).map_err(|damage| self.set_aside(damage))?;
        Ok(match layer.media_type.as_str() {
            ENVELOPE_TYPE => Envelope::parse(&bytes).map(Form::Signed),
            IN_TOTO => Ok(Form::Bare(bytes)),
            other => Err(format!("it is a `{other}`")),
        })
    }

    /// The blobs that a statement needs besides its manifest: config and layer. The inner error says what is wrong with the manifest.
    pub(crate) fn try_attestation(&self, attestation: &Attestation) -> Result<Result<[Descriptor; 2], String>, Damage> {
        if attestation.manifest.size > LONGEST_MANIFEST {
            return Ok(Err("its manifest would be longer than that of any statement".to_owned()));
        }
        let bytes = self.blob_bytes(&attestation.manifest)?;
        let manifest: Manifest = match serde_json::from_slice(&bytes) {
            Ok(manifest) => manifest,
            Err(error) => return Ok(Err(error.to_string())),
        };
        let Ok([layer]) = <[Descriptor; 1]>::try_from(manifest.layers) else {
            return Ok(Err("its manifest does not have one layer".to_owned()));
        };
        if layer.size > LONGEST || manifest.config.size > LONGEST_MANIFEST {
            return Ok(Err(format!("it would have {} bytes; {LONGEST} is the limit", layer.size)));
        }
        Ok(Ok([manifest.config, layer]))
    }

    /// Refuses statements that are about something else than the version they come with.
    pub(crate) fn refuse_other_statements(
        &self,
        artifact: &Artifact,
        manifest: &Descriptor,
        attestations: &[Attestation],
    ) -> Result<(), RegistryError> {
        for attestation in attestations {
            let refused = |problem| RegistryError::Content { blob: self.blob(&attestation.manifest.digest), problem };
            let statement = self.statement_of(attestation)?.map_err(refused)?;
            statement.is_about(artifact, manifest).map_err(refused)?;
            if statement.predicate_type != attestation.predicate_type {
                return Err(refused(format!("it is a `{}`", statement.predicate_type)));
            }
        }
        Ok(())
    }

    /// A stored statement, unverified; the inner error says what is wrong with it.
    fn statement_of(&self, attestation: &Attestation) -> Result<Result<Statement, String>, RegistryError> {
        let payload = match self.form_of(attestation)? {
            Ok(Form::Bare(bytes)) => Ok(bytes),
            Ok(Form::Signed(envelope)) => envelope.payload(),
            Err(problem) => Err(problem),
        };
        Ok(payload.and_then(|bytes| serde_json::from_slice(&bytes).map_err(|error| error.to_string())))
    }

    /// The statement of a version with this predicate, without verifying who made it. For showing and for mirrors.
    pub fn statement(&self, record: &Record, predicate_type: &str) -> Result<Option<Statement>, RegistryError> {
        let Some(attestation) =
            record.attestations.iter().find(|attestation| attestation.predicate_type == predicate_type)
        else {
            return Ok(None);
        };
        let blob = self.blob(&attestation.manifest.digest);
        let statement = self.statement_of(attestation)?;
        statement.map(Some).map_err(|problem| RegistryError::Content { blob, problem })
    }
}
