//! What a consumer of a version may want to know, by name: a flat list of texts, because Terraform takes nothing else.

use kiln_core::moment::Moment;
use kiln_registry::{Ami, Record, Reference, Selector};

/// The facts of `record`, which `selector` meant. `registry` says where it was found; of a server, its URL gives those of files.
pub fn facts(selector: &Selector, record: &Record, registry: &str) -> Vec<(&'static str, String)> {
    let artifact = &record.artifact;
    let channel = match &selector.reference {
        Reference::Named(name) if *name != artifact.version => name.to_string(),
        _ => String::new(),
    };
    let mut facts = vec![
        ("id", format!("{}@{}", artifact.image, artifact.version)),
        ("image", artifact.image.to_string()),
        ("version", artifact.version.to_string()),
        ("channel", channel),
        ("disk", artifact.disk.digest.to_string()),
        ("disk_bytes", artifact.disk.size.to_string()),
        ("manifest", record.manifest.digest.to_string()),
        ("published", Moment::of_seconds(record.published).rfc3339()),
        ("registry", registry.to_owned()),
    ];
    if let Some(qcow2) = record.file("qcow2") {
        facts.push(("qcow2_sha256", qcow2.sha256.hex()));
        facts.push(("qcow2_bytes", qcow2.bytes.to_string()));
    }
    if registry.starts_with("http://") || registry.starts_with("https://") {
        let base = registry.trim_end_matches('/');
        let file = |format| format!("{base}/images/{}/{}/disk.{format}", artifact.image, artifact.version);
        facts.push(("qcow2_url", file("qcow2")));
        facts.push(("raw_url", file("raw")));
        let host = base.split_once("://").map_or(base, |(_, host)| host);
        facts.push(("oci", format!("{host}/{}@{}", artifact.image, record.manifest.digest)));
    }
    facts
}

/// `ami_eu_west_1` for each region; where several accounts have one, with the account before the region.
pub fn ami_facts(amis: &[Ami]) -> Vec<(String, String)> {
    let name = |ami: &Ami| {
        let region = ami.region.replace('-', "_");
        if amis.iter().filter(|other| other.region == ami.region).count() > 1 {
            format!("ami_{}_{region}", ami.account)
        } else {
            format!("ami_{region}")
        }
    };
    amis.iter().map(|ami| (name(ami), ami.ami.clone())).collect()
}
