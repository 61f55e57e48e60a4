//! Whether a version is proven: signed by a believed key, about exactly this disk, by a builder that the key may speak for.

use kiln_core::{ChannelName, Digest, ImageName};

use super::{
    PROVENANCE, SBOM,
    provenance::Provenance,
    statement::Statement,
    stored::Form,
    trust::{Trust, TrustedKey},
};
use crate::{
    Record, Registry, RegistryError,
    head::Listed,
    lineage::Parent,
    sbom::{Bom, text_of},
};

/// Why a version is not proven.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unproven {
    #[error("no key is trusted here, so no signature can be verified")]
    NoTrust,
    #[error("it has no signature: it was published without a key")]
    Unsigned,
    #[error("it has no provenance statement")]
    NoStatement,
    #[error("it is signed by a key that is not trusted here ({})", keys.join(", "))]
    UnknownKey { keys: Vec<String> },
    #[error("it is signed by the key {} ({name}), which is revoked: {reason}", key.short())]
    RevokedKey { key: Digest, name: String, reason: String },
    #[error("what was signed by {name} has been altered: the signature does not fit")]
    Altered { name: String },
    #[error("a statement with it cannot be read: {0}")]
    Unreadable(String),
    #[error("its statement is about something else: {0}")]
    WrongSubject(String),
    #[error("its statement contradicts the record: {0}")]
    Contradicts(String),
    #[error("it was built by `{builder}`, for which the key of {name} may not speak")]
    WrongBuilder { builder: String, name: String },
}

impl Unproven {
    /// The next thing to try.
    pub fn hint(&self) -> String {
        match self {
            Self::NoTrust => {
                "`kiln key init` makes a key, `kiln key trust FILE` trusts that of somebody else".to_owned()
            }
            Self::Unsigned | Self::NoStatement => {
                "bake it again where there is a key, or use it unproven with `--allow-unproven`".to_owned()
            }
            Self::UnknownKey { .. } => "`kiln key trust FILE` with the public key, if you know whose it is".to_owned(),
            Self::RevokedKey { .. } => {
                "use a version that was signed with another key; `kiln key list` has them".to_owned()
            }
            Self::WrongBuilder { builder, .. } => {
                format!("if the key may speak for it: `kiln key trust FILE --builder {builder}`")
            }
            Self::Altered { .. } | Self::Unreadable(_) | Self::WrongSubject(_) | Self::Contradicts(_) => {
                "do not use it; bake the image again, and find out who can write to the registry".to_owned()
            }
        }
    }
}

/// What was proven of a version.
#[derive(Debug, Clone, PartialEq)]
pub struct Proof {
    pub key: TrustedKey,
    pub provenance: Provenance,
    /// The bill of materials, if the version has one; signed too.
    pub sbom: Option<Bom>,
}

impl Registry {
    /// Verifies what is said about a version with the keys this registry was opened with. Its blobs are verified when they are read.
    pub fn proof(&self, record: &Record) -> Result<Proof, RegistryError> {
        let refused = |why| {
            let Record { artifact, .. } = record;
            let version = Parent { image: artifact.image.clone(), version: artifact.version.clone() };
            RegistryError::Unproven { version, why: Box::new(why) }
        };
        if self.trust().is_empty() {
            return Err(refused(Unproven::NoTrust));
        }
        let (provenance, key) = self.provenance(record, self.trust())?.map_err(refused)?;
        let mut sbom = None;
        if record.attestations.iter().any(|attestation| attestation.predicate_type == SBOM) {
            sbom = Some(self.signed_sbom(record, self.trust(), &provenance)?.map_err(refused)?);
        }
        Ok(Proof { key, provenance, sbom })
    }

    /// Refuses what a restricted channel does not take: a version that is not proven, or of which not everything held.
    pub(crate) fn refuse_unworthy(
        &self,
        image: &ImageName,
        channel: &ChannelName,
        listed: &Listed,
    ) -> Result<(), RegistryError> {
        let refused = |problem: String| {
            let version = Parent { image: image.clone(), version: listed.version.clone() };
            RegistryError::Restricted { channel: channel.clone(), version, problem }
        };
        let proof = match self.proof(&self.listed_record(image, listed)?) {
            Err(RegistryError::Unproven { why, .. }) => return Err(refused(why.to_string())),
            proof => proof?,
        };
        proof.provenance.holds().map_err(refused)
    }

    fn provenance(
        &self,
        record: &Record,
        trust: &Trust,
    ) -> Result<Result<(Provenance, TrustedKey), Unproven>, RegistryError> {
        let (statement, key) = match self.signed_statement(record, PROVENANCE, trust)? {
            Ok(signed) => signed,
            Err(why) => return Ok(Err(why)),
        };
        Ok((|| {
            let provenance: Provenance =
                serde_json::from_value(statement.predicate).map_err(|error| Unproven::Unreadable(error.to_string()))?;
            let builder = &provenance.run_details.builder.id;
            if !key.builders.contains(builder) {
                return Err(Unproven::WrongBuilder { builder: builder.clone(), name: key.name });
            }
            provenance.agrees(&record.artifact).map_err(Unproven::Contradicts)?;
            Ok((provenance, key))
        })())
    }

    /// The bill of materials must be the one that the provenance names, or its key could be another's.
    fn signed_sbom(
        &self,
        record: &Record,
        trust: &Trust,
        provenance: &Provenance,
    ) -> Result<Result<Bom, Unproven>, RegistryError> {
        let (statement, _) = match self.signed_statement(record, SBOM, trust)? {
            Ok(signed) => signed,
            Err(why) => return Ok(Err(why)),
        };
        Ok((|| {
            let unreadable = |error: serde_json::Error| Unproven::Unreadable(error.to_string());
            let text = text_of(&statement.predicate).map_err(unreadable)?;
            let digest = Digest::of(text.as_bytes()).hex();
            let bom: Bom = serde_json::from_value(statement.predicate).map_err(unreadable)?;
            let named = provenance
                .run_details
                .byproducts
                .iter()
                .any(|byproduct| byproduct.digest.values().any(|named| *named == digest));
            if named {
                Ok(bom)
            } else {
                Err(Unproven::Contradicts("its bill of materials is not the one that was signed for".to_owned()))
            }
        })())
    }

    fn signed_statement(
        &self,
        record: &Record,
        predicate_type: &str,
        trust: &Trust,
    ) -> Result<Result<(Statement, TrustedKey), Unproven>, RegistryError> {
        let envelope = match self.attestation(record, predicate_type)? {
            None if record.attestations.is_empty() => return Ok(Err(Unproven::Unsigned)),
            None => return Ok(Err(Unproven::NoStatement)),
            Some(Err(problem)) => return Ok(Err(Unproven::Unreadable(problem))),
            Some(Ok(Form::Bare(_))) => return Ok(Err(Unproven::Unsigned)),
            Some(Ok(Form::Signed(envelope))) => envelope,
        };
        Ok((|| {
            let (payload, key) = trust.open(&envelope)?;
            let statement: Statement =
                serde_json::from_slice(&payload).map_err(|error| Unproven::Unreadable(error.to_string()))?;
            statement.is_about(&record.artifact, &record.manifest).map_err(Unproven::WrongSubject)?;
            if statement.predicate_type != predicate_type {
                return Err(Unproven::WrongSubject(format!("it is a `{}`", statement.predicate_type)));
            }
            Ok((statement, key.clone()))
        })())
    }
}
