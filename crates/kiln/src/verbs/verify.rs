//! `kiln verify`: whether a version is what was signed, and whether every byte of it is there.

use kiln_core::ByteSize;
use kiln_registry::{Parent, Proof, Record, Report};
use serde_json::json;

use crate::{
    arguments::Verify,
    escape::visible,
    failure::{Exit, Failure, Outcome},
    output,
    signals::Interruption,
    surroundings,
};

pub(crate) async fn run(arguments: Verify) -> Outcome {
    let registry = surroundings::reading(&arguments.registry, &arguments.image.image)?;
    let record = registry.record(&arguments.image)?;
    let name = Parent { image: record.artifact.image.clone(), version: record.artifact.version.clone() };
    registry.refuse_revoked(&name, surroundings::seconds())?;
    let proof = registry.proof(&record)?;
    let report = if arguments.quick {
        None
    } else {
        let interruption = Interruption::listen()?;
        let cancel = interruption.token().clone();
        let reading = {
            let (registry, record) = (registry.clone(), record.clone());
            tokio::task::spawn_blocking(move || registry.verify_version(&record, &|_, _| !cancel.is_cancelled()))
        };
        let read = reading.await.map_err(|error| Failure::new("the work was ended").because(error.to_string()))?;
        if interruption.happened() {
            return Err(Failure::new("stopped before everything was read").exit(Exit::Interrupted));
        }
        Some(read?)
    };
    if let Some(finding) = report.as_ref().and_then(|report| report.findings.first()) {
        return Err(Failure::new(format!("{name} is signed, but not whole")).because(finding.problem.clone()));
    }
    if arguments.json {
        output::json(&as_json(&record, &proof, report.as_ref()))?;
    } else {
        say(&name, &record, &proof, report.as_ref());
    }
    Ok(Exit::Done)
}

fn as_json(record: &Record, proof: &Proof, report: Option<&Report>) -> serde_json::Value {
    json!({
        "image": record.artifact.image,
        "version": record.artifact.version,
        "disk": record.artifact.disk.digest,
        "key": proof.key.id,
        "signer": proof.key.name,
        "builder": proof.provenance.run_details.builder.id,
        "packages": proof.sbom.as_ref().map(|bom| bom.packages().count()),
        "blobs": report.map(|report| report.blobs),
        "bytes": report.map(|report| report.bytes),
    })
}

fn say(name: &Parent, record: &Record, proof: &Proof, report: Option<&Report>) {
    let signer = visible(&proof.key.name);
    output::talk(&format!("{name} is proven"));
    output::talk(&format!("  signed by     {signer} ({})", proof.key.id.short()));
    output::talk(&format!("  disk          {}", record.artifact.disk.digest));
    output::talk(&format!("  built by      {}", visible(&proof.provenance.run_details.builder.id)));
    output::talk(&match &proof.sbom {
        Some(bom) => format!("  packages      {}", bom.packages().count()),
        None => "  packages      unknown: it has no bill of materials".to_owned(),
    });
    output::talk(&match report {
        Some(report) => {
            format!("  stored        {} blobs, {}, all whole", report.blobs, ByteSize(report.bytes).approximate())
        }
        None => "  stored        not read".to_owned(),
    });
}
