//! How a version was made: a SLSA provenance predicate of facts that kiln saw. Format: <https://slsa.dev/provenance/v1>.
//!
//! Values of sensitive variables are never part of it: a plan does not hold them.

use std::collections::{BTreeMap, BTreeSet};

use kiln_core::{
    Digest,
    artifact::{Artifact, CheckRecord, FindingRecord},
    moment::Moment,
};
use serde::{Deserialize, Serialize};

/// The phase of a bake as its record names it.
const BOOT_TEST: &str = "boot-test";

/// What kind of build it is: a template of kiln.
const BUILD_TYPE: &str = "urn:kiln:build:template:v1";

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Provenance {
    pub build_definition: BuildDefinition,
    pub run_details: RunDetails,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BuildDefinition {
    pub build_type: String,
    pub external_parameters: External,
    pub internal_parameters: Internal,
    pub resolved_dependencies: Vec<Resource>,
}

/// What whoever asked for the build chose. A parameter that is not known here may have changed what was built, so a
/// statement with one is refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct External {
    pub image: String,
    pub version: String,
    /// Over everything that can change the image: template, variables, provisioners, base.
    pub recipe: Digest,
    /// Without the sensitive ones.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub variables: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub member: BTreeMap<String, String>,
}

/// What kiln chose, and what it saw.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Internal {
    pub builder: String,
    pub accelerator: String,
    pub accelerator_reason: String,
    pub memory: u64,
    pub cpus: u32,
    pub steps: Vec<StepFact>,
    pub checks: Vec<CheckRecord>,
    pub hygiene: Vec<FindingRecord>,
    /// The sealed image was booted, and the checks meant for it ran there.
    pub boot_tested: bool,
}

/// A step: what ran, and how it ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepFact {
    pub name: String,
    pub provisioner: String,
    pub outcome: String,
    /// When it ran, if it came from a checkpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cached: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunDetails {
    pub builder: Builder,
    pub metadata: Metadata,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub byproducts: Vec<Resource>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Builder {
    pub id: String,
    #[serde(default)]
    pub version: BTreeMap<String, String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Metadata {
    pub invocation_id: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_on: Option<String>,
    pub finished_on: String,
}

/// Something by name and digest.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Resource {
    pub name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uri: Option<String>,
    pub digest: BTreeMap<String, String>,
}

impl Resource {
    fn new(name: impl Into<String>, uri: Option<String>, digest: &Digest) -> Self {
        Self { name: name.into(), uri, digest: BTreeMap::from([("sha256".to_owned(), digest.hex())]) }
    }
}

impl Provenance {
    /// The statement about `artifact`, with the digest of its bill of materials.
    pub fn new(artifact: &Artifact, builder: &str, sbom: Option<&Digest>) -> Self {
        Self {
            build_definition: BuildDefinition {
                build_type: BUILD_TYPE.to_owned(),
                external_parameters: External {
                    image: artifact.image.to_string(),
                    version: artifact.version.to_string(),
                    recipe: artifact.recipe,
                    variables: artifact.variables.clone(),
                    member: artifact.member.clone(),
                },
                internal_parameters: internal(artifact),
                resolved_dependencies: dependencies(artifact),
            },
            run_details: RunDetails {
                builder: Builder { id: builder.to_owned(), version: artifact.tools.clone() },
                metadata: Metadata {
                    invocation_id: artifact.build.clone(),
                    started_on: artifact.started.map(second),
                    finished_on: second(artifact.created),
                },
                byproducts: sbom.map(|digest| Resource::new("sbom.cdx.json", None, digest)).into_iter().collect(),
            },
        }
    }

    /// Whether everything that was to hold of the image did. The error says what did not.
    pub(crate) fn holds(&self) -> Result<(), String> {
        let seen = &self.build_definition.internal_parameters;
        if let Some(failed) = seen.checks.iter().find(|check| !check.passed) {
            return Err(format!("the check `{}` did not pass", failed.name));
        }
        if let Some(finding) = seen.hygiene.iter().find(|finding| finding.level == "fail" && finding.waived.is_none()) {
            return Err(format!("the hygiene finding {} is not waived", finding.id));
        }
        if seen.boot_tested { Ok(()) } else { Err("the sealed image was not boot-tested".to_owned()) }
    }

    /// Whether it says of the build what the record says. The error names what differs.
    pub(crate) fn agrees(&self, artifact: &Artifact) -> Result<(), String> {
        let told = &self.build_definition.external_parameters;
        if self.build_definition.build_type != BUILD_TYPE {
            return Err(format!("it is about a build of another kind: `{}`", self.build_definition.build_type));
        }
        let differs = [
            ("image", told.image != artifact.image.as_str()),
            ("version", told.version != artifact.version.as_str()),
            ("recipe", told.recipe != artifact.recipe),
            ("build", self.run_details.metadata.invocation_id != artifact.build),
            ("checks", self.build_definition.internal_parameters.checks != artifact.checks),
            ("boot test", self.build_definition.internal_parameters.boot_tested != boot_tested(artifact)),
            ("hygiene findings", self.build_definition.internal_parameters.hygiene != artifact.hygiene),
            ("base and provisioners", self.build_definition.resolved_dependencies != dependencies(artifact)),
        ];
        match differs.iter().find(|(_, differs)| *differs) {
            Some((what, _)) => Err(format!("its {what} are not those in the record")),
            None => Ok(()),
        }
    }
}

fn internal(artifact: &Artifact) -> Internal {
    let machine = &artifact.machine;
    let steps = artifact.steps.iter().map(|step| StepFact {
        name: step.name.clone(),
        provisioner: step.provisioner.clone(),
        outcome: step.outcome.clone(),
        cached: step.cached.map(second),
    });
    Internal {
        builder: machine.builder.clone(),
        accelerator: machine.accelerator.clone(),
        accelerator_reason: machine.reason.clone(),
        memory: machine.memory,
        cpus: machine.cpus,
        steps: steps.collect(),
        checks: artifact.checks.clone(),
        hygiene: artifact.hygiene.clone(),
        boot_tested: boot_tested(artifact),
    }
}

fn boot_tested(artifact: &Artifact) -> bool {
    artifact.times.contains_key(BOOT_TEST)
}

/// The base, then each provisioner once.
fn dependencies(artifact: &Artifact) -> Vec<Resource> {
    let uri = |name: &str| name.contains("://").then(|| name.to_owned());
    let base = Resource::new("base", uri(&artifact.base.name), &artifact.base.digest);
    let provisioners: BTreeSet<_> = artifact
        .steps
        .iter()
        .map(|step| Resource::new(format!("provisioner {}", step.provisioner), None, &step.provisioner_digest))
        .collect();
    std::iter::once(base).chain(provisioners).collect()
}

/// As documents write a moment.
fn second(seconds: u64) -> String {
    Moment::of_seconds(seconds).second()
}
