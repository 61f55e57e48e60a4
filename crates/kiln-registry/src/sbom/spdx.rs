//! The same bill of materials as SPDX 2.3, for those who want that. Format: <https://spdx.github.io/spdx-spec/v2.3/>.

use serde_json::{Value, json};

use super::{Bom, Component};

/// The SPDX document that says what `bom` says.
pub fn document(bom: &Bom) -> Value {
    let image = &bom.metadata.component;
    let mut packages = vec![of_image(image)];
    let mut relationships = vec![json!({
        "spdxElementId": "SPDXRef-DOCUMENT",
        "relationshipType": "DESCRIBES",
        "relatedSpdxElement": "SPDXRef-Image",
    })];
    for (number, component) in bom.components.iter().enumerate() {
        let id = format!("SPDXRef-Package-{}", number + 1);
        relationships.push(json!({
            "spdxElementId": "SPDXRef-Image",
            "relationshipType": "CONTAINS",
            "relatedSpdxElement": id,
        }));
        packages.push(of_component(component, &id));
    }
    let tool = bom.metadata.tools.components.first();
    let tool = tool.map(|tool| format!("{}-{}", tool.name, tool.version.as_deref().unwrap_or("unknown")));
    json!({
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": "SPDXRef-DOCUMENT",
        "name": format!("{}-{}", image.name, image.version.as_deref().unwrap_or("unversioned")),
        "documentNamespace": bom.serial_number,
        "creationInfo": {
            "created": bom.metadata.timestamp,
            "creators": [format!("Tool: {}", tool.unwrap_or_else(|| "kiln".to_owned()))],
        },
        "packages": packages,
        "relationships": relationships,
    })
}

fn of_image(image: &Component) -> Value {
    let mut package = of_component(image, "SPDXRef-Image");
    package["primaryPackagePurpose"] = json!("OPERATING-SYSTEM");
    let checksums = image.hashes.iter().filter(|hash| hash.alg == "SHA-256");
    let checksums: Vec<_> =
        checksums.map(|hash| json!({ "algorithm": "SHA256", "checksumValue": hash.content })).collect();
    if !checksums.is_empty() {
        package["checksums"] = Value::Array(checksums);
    }
    package
}

fn of_component(component: &Component, id: &str) -> Value {
    let mut package = json!({
        "SPDXID": id,
        "name": component.name,
        "downloadLocation": "NOASSERTION",
        "filesAnalyzed": false,
        "licenseConcluded": "NOASSERTION",
        "licenseDeclared": "NOASSERTION",
        "copyrightText": "NOASSERTION",
    });
    if let Some(version) = &component.version {
        package["versionInfo"] = json!(version);
    }
    if let Some(summary) = &component.description {
        package["summary"] = json!(summary);
    }
    if let Some(supplier) = &component.supplier {
        package["supplier"] = json!(format!("Organization: {}", supplier.name.replace('<', "(").replace('>', ")")));
    }
    if let (Some(source), Some(version)) =
        (component.property("kiln:source"), component.property("kiln:source-version"))
    {
        package["sourceInfo"] = json!(format!("built from the source package {source} {version}"));
    }
    if let Some(purl) = &component.purl {
        package["externalRefs"] = json!([{
            "referenceCategory": "PACKAGE-MANAGER",
            "referenceType": "purl",
            "referenceLocator": purl,
        }]);
    }
    if let Some(website) = component.external_references.iter().find(|reference| reference.kind == "website") {
        package["homepage"] = json!(website.url);
    }
    licences(component, &mut package);
    package
}

/// An expression where every licence has an identifier. Names without one cannot stand in it, and are only told.
fn licences(component: &Component, package: &mut Value) {
    let licences = || component.licenses.iter().map(|choice| &choice.license);
    let names: Vec<_> = licences().filter_map(|licence| licence.name.as_deref()).collect();
    let ids: Vec<_> = licences().filter_map(|licence| licence.id.as_deref()).collect();
    if names.is_empty() && !ids.is_empty() {
        package["licenseDeclared"] = json!(ids.join(" AND "));
    } else if !names.is_empty() {
        let all: Vec<_> = ids.into_iter().chain(names).collect();
        package["licenseComments"] = json!(format!("the package names: {}", all.join(", ")));
    }
}
