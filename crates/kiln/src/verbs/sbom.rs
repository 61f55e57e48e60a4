//! `kiln sbom`: the packages on the disk of a version, as a document for scanners.

use kiln_registry::sbom::{Bom, spdx};

use crate::{
    arguments::{Sbom, SbomFormat},
    escape::visible,
    failure::{Exit, Failure, Outcome},
    output, surroundings,
};

pub(crate) fn run(arguments: &Sbom) -> Outcome {
    let registry = surroundings::registry(&arguments.registry)?;
    let record = registry.record(&arguments.image)?;
    let inventory = registry.inventory(&record)?.map_err(|problem| {
        let version = format!("{} {}", record.artifact.image, record.artifact.version);
        Failure::new(format!("the packages of {version} cannot be read")).because(problem)
    })?;
    let bom = Bom::new(&record.artifact, &inventory);
    for unread in &inventory.unread {
        output::talk(&format!("the list is not complete: {}", visible(unread)));
    }
    match arguments.format {
        SbomFormat::Cyclonedx => output::json(&bom)?,
        SbomFormat::Spdx => output::json(&spdx::document(&bom))?,
    }
    Ok(Exit::Done)
}
