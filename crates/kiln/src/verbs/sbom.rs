//! `kiln sbom`: the packages on the disk of a version, as a document for scanners.

use kiln_registry::{
    Record, Registry,
    proof::SBOM,
    sbom::{Bom, spdx},
};

use crate::{
    arguments::{Sbom, SbomFormat},
    escape::visible,
    failure::{Exit, Failure, Outcome},
    output, surroundings,
};

pub(crate) fn run(arguments: &Sbom) -> Outcome {
    let registry = surroundings::reading(&arguments.registry, &arguments.image.image)?;
    let record = registry.record(&arguments.image)?;
    // What was recorded when it was published; a version from before kiln did so is read now.
    let bom = match registry.statement(&record, SBOM)? {
        Some(statement) => serde_json::from_value(statement.predicate).map_err(|error| Failure::of(&error))?,
        None => read(&registry, &record)?,
    };
    if let Some(unread) = bom.metadata.component.property("kiln:unread") {
        output::talk(&format!("the list is not complete: {}", visible(unread)));
    }
    match arguments.format {
        SbomFormat::Cyclonedx => output::data(&bom.text().map_err(|error| Failure::of(&error))?)?,
        SbomFormat::Spdx => output::json(&spdx::document(&bom))?,
    }
    Ok(Exit::Done)
}

fn read(registry: &Registry, record: &Record) -> Result<Bom, Failure> {
    let inventory = registry.inventory(record)?.map_err(|problem| {
        let version = format!("{} {}", record.artifact.image, record.artifact.version);
        Failure::new(format!("the packages of {version} cannot be read")).because(problem)
    })?;
    Ok(Bom::new(&record.artifact, &inventory))
}
