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

/// `ami_eu_west_1` for each region; where several accounts have one, with the account before the region. What is not named as AWS
/// names it is left out: a server may say anything, and the names become names of variables.
pub fn ami_facts(amis: &[Ami]) -> Vec<(String, String)> {
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    let plain =
        |text: &str| text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
    let known = amis.iter().filter(|ami| digits(&ami.account) && plain(&ami.region) && plain(&ami.ami));
    let known: Vec<&Ami> = known.collect();
    let name = |ami: &Ami| {
        let region = ami.region.replace('-', "_");
        if known.iter().filter(|other| other.region == ami.region).count() > 1 {
            format!("ami_{}_{region}", ami.account)
        } else {
            format!("ami_{region}")
        }
    };
    known.iter().map(|ami| (name(ami), ami.ami.clone())).collect()
}

#[cfg(test)]
mod tests {
    use kiln_core::Digest;

    use super::*;

    #[test]
    fn an_ami_is_named_by_its_region_and_by_its_account_where_it_must_be() {
        let entry = |account: &str, region: &str, ami: &str| -> Ami {
            serde_json::from_value(serde_json::json!({
                "format": 1, "image": "web", "version": "1", "disk": Digest::of(b""), "account": account,
                "region": region, "ami": ami, "snapshot": "snap-1", "intent": "i-1", "published": 1
            }))
            .expect("an entry")
        };
        let found = ami_facts(&[
            entry("111122223333", "eu-west-1", "ami-1"),
            entry("111122223333", "us-east-1", "ami-2"),
            entry("210987654321", "us-east-1", "ami-3"),
            entry("111122223333", "eu\nwest", "ami-4"),
            entry("111122223333", "x; touch y", "ami-4"),
            entry("111122223333", "eu-west-2", "ami-$(id)"),
        ]);
        let named: Vec<_> = found.iter().map(|(name, ami)| (name.as_str(), ami.as_str())).collect();
        let expected = [
            ("ami_eu_west_1", "ami-1"),
            ("ami_111122223333_us_east_1", "ami-2"),
            ("ami_210987654321_us_east_1", "ami-3"),
        ];
        assert_eq!(named, expected);
    }
}
