//! The bill of materials of a version, `CycloneDX` 1.6: the packages that its finished disk has.
//!
//! Nothing in it is random or the clock's: the serial number comes from the disk digest, the time from the artifact. The same
//! version always gives the same bytes. Format: <https://cyclonedx.org/docs/1.6/json/>.

use std::sync::Arc;

use kiln_core::{Digest, artifact::Artifact, moment::Moment};
use kiln_disk::{
    ReadAt,
    inventory::{Inventory, Package, System, licence},
    tree::Files,
};
use serde::{Deserialize, Serialize};

use crate::{Record, Registry, RegistryError};

mod purl;
pub mod spdx;

/// The image in the list of references.
const IMAGE: &str = "image";

/// A `CycloneDX` document, as far as kiln writes it. Reading takes no more than that either.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Bom {
    #[serde(rename = "$schema")]
    pub schema: String,
    pub bom_format: String,
    pub spec_version: String,
    pub serial_number: String,
    pub version: u32,
    pub metadata: Metadata,
    pub components: Vec<Component>,
    pub dependencies: Vec<Dependency>,
    pub compositions: Vec<Composition>,
}

/// What the document is about, and what made it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Metadata {
    pub timestamp: String,
    pub tools: Tools,
    pub component: Component,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tools {
    pub components: Vec<Component>,
}

/// A package, the system, the image, or a tool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Component {
    #[serde(rename = "type")]
    pub kind: String,
    #[serde(rename = "bom-ref", default, skip_serializing_if = "Option::is_none")]
    pub reference: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub supplier: Option<Supplier>,
    pub name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hashes: Vec<Hash>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub licenses: Vec<LicenceChoice>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub purl: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub external_references: Vec<ExternalReference>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub properties: Vec<Property>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Supplier {
    pub name: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hash {
    pub alg: String,
    pub content: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LicenceChoice {
    pub license: Licence,
}

/// By its SPDX identifier where it has one, else by its name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Licence {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    pub acknowledgement: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExternalReference {
    #[serde(rename = "type")]
    pub kind: String,
    pub url: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Property {
    pub name: String,
    pub value: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Dependency {
    #[serde(rename = "ref")]
    pub of: String,
    pub depends_on: Vec<String>,
}

/// Whether the list is known to be complete.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Composition {
    pub aggregate: String,
    pub assemblies: Vec<String>,
}

impl Registry {
    /// The packages of a version, read from its stored disk now. The error says what of the disk cannot be read.
    pub fn inventory(&self, record: &Record) -> Result<Result<Inventory, String>, RegistryError> {
        let disk: Arc<dyn ReadAt> = Arc::new(self.disk(record)?);
        Ok(Files::with_root(&disk, Inventory::read))
    }
}

impl Bom {
    /// The document of `artifact`, whose disk has `inventory`.
    pub fn new(artifact: &Artifact, inventory: &Inventory) -> Self {
        let mut components: Vec<_> = inventory.system.iter().map(system).collect();
        components.extend(inventory.packages.iter().map(|package| self::package(package, inventory.system.as_ref())));
        // A hostile database may list a package twice; a reference must be one.
        let mut seen = std::collections::BTreeSet::new();
        components.retain(|component| seen.insert(component.reference.clone()));
        let aggregate = if inventory.unread.is_empty() { "complete" } else { "incomplete" };
        let references: Vec<_> = components.iter().filter_map(|component| component.reference.clone()).collect();
        Self {
            schema: "http://cyclonedx.org/schema/bom-1.6.schema.json".to_owned(),
            bom_format: "CycloneDX".to_owned(),
            spec_version: "1.6".to_owned(),
            serial_number: format!("urn:uuid:{}", uuid(artifact)),
            version: 1,
            metadata: Metadata {
                timestamp: Moment::of_seconds(artifact.created).second(),
                tools: Tools { components: vec![tool(artifact)] },
                component: image(artifact, inventory),
            },
            components,
            dependencies: vec![Dependency { of: IMAGE.to_owned(), depends_on: references }],
            compositions: vec![Composition { aggregate: aggregate.to_owned(), assemblies: vec![IMAGE.to_owned()] }],
        }
    }

    /// The document as it is given out: its keys in order, so the same document is the same bytes.
    pub fn text(&self) -> serde_json::Result<String> {
        serde_json::to_value(self).and_then(|value| text_of(&value))
    }

    /// The SHA-256 of [`Self::text`].
    pub fn digest(&self) -> serde_json::Result<Digest> {
        self.text().map(|text| Digest::of(text.as_bytes()))
    }

    /// The packages, without the system.
    pub fn packages(&self) -> impl Iterator<Item = &Component> {
        self.components.iter().filter(|component| component.purl.is_some())
    }
}

/// Any document as it is given out.
pub(crate) fn text_of(document: &serde_json::Value) -> serde_json::Result<String> {
    serde_json::to_string_pretty(document).map(|text| text + "\n")
}

impl Component {
    fn new(kind: &str, name: &str, version: Option<&str>) -> Self {
        Self {
            kind: kind.to_owned(),
            reference: None,
            supplier: None,
            name: name.to_owned(),
            version: version.map(str::to_owned),
            description: None,
            hashes: Vec::new(),
            licenses: Vec::new(),
            purl: None,
            external_references: Vec::new(),
            properties: Vec::new(),
        }
    }

    /// The value of one of kiln's properties.
    pub fn property(&self, name: &str) -> Option<&str> {
        self.properties.iter().find(|property| property.name == name).map(|property| property.value.as_str())
    }
}

fn property(name: &str, value: impl Into<String>) -> Property {
    Property { name: name.to_owned(), value: value.into() }
}

fn tool(artifact: &Artifact) -> Component {
    Component::new("application", "kiln", artifact.tools.get("kiln").map(String::as_str))
}

fn image(artifact: &Artifact, inventory: &Inventory) -> Component {
    let mut component = Component::new("operating-system", artifact.image.as_str(), Some(artifact.version.as_str()));
    component.reference = Some(IMAGE.to_owned());
    component.description.clone_from(&artifact.description);
    let qcow2 = artifact.files.iter().find(|file| file.format == "qcow2");
    component.hashes =
        qcow2.map(|file| Hash { alg: "SHA-256".to_owned(), content: file.sha256.hex() }).into_iter().collect();
    component.properties = vec![
        property("kiln:disk", artifact.disk.digest.to_string()),
        property("kiln:recipe", artifact.recipe.to_string()),
        property("kiln:build", &artifact.build),
    ];
    component.properties.extend(inventory.unread.iter().map(|unread| property("kiln:unread", unread)));
    component
}

fn system(system: &System) -> Component {
    let mut component = Component::new("operating-system", &system.id, system.version.as_deref());
    component.reference = Some("system".to_owned());
    component.description = Some(system.name.clone());
    component
}

fn package(package: &Package, system: Option<&System>) -> Component {
    let mut component = Component::new("library", &package.name, Some(&package.version));
    let purl = purl::of(package, system);
    component.reference = Some(purl.clone());
    component.purl = Some(purl);
    component.supplier = package.supplier.clone().map(|name| Supplier { name });
    component.description.clone_from(&package.summary);
    component.licenses = package.licences.iter().map(|name| choice(name)).collect();
    let website = package.homepage.as_ref().filter(|url| is_plain_url(url));
    component.external_references =
        website.map(|url| ExternalReference { kind: "website".to_owned(), url: url.clone() }).into_iter().collect();
    component.properties = vec![
        property("kiln:architecture", &package.architecture),
        property("kiln:source", &package.source.0),
        property("kiln:source-version", &package.source.1),
    ];
    component
}

fn choice(name: &str) -> LicenceChoice {
    let (id, name) =
        if licence::is_identifier(name) { (Some(name.to_owned()), None) } else { (None, Some(name.to_owned())) };
    LicenceChoice { license: Licence { id, name, acknowledgement: "declared".to_owned() } }
}

fn is_plain_url(url: &str) -> bool {
    let plain = |c: char| c.is_ascii_graphic() && !"<>\"{}|\\^`[]".contains(c);
    (url.starts_with("https://") || url.starts_with("http://")) && url.chars().all(plain)
}

/// A UUID of version 8 (RFC 9562) from what the document is about: the same version, the same number.
fn uuid(artifact: &Artifact) -> String {
    let name = format!("kiln sbom\n{}\n{}\n{}\n", artifact.image, artifact.version, artifact.disk.digest);
    let mut bytes = *Digest::of(name.as_bytes()).as_bytes();
    bytes[6] = bytes[6] & 0x0f | 0x80;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex = Digest::from_bytes(bytes).hex();
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..32])
}
