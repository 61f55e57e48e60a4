//! The AMIs of versions.

use crate::support::{Scratch, artifact, fixed};
use kiln_core::{Digest, ImageName};
use kiln_io::guest::Quiet;
use kiln_registry::{Ami, Registry};

fn ami(version: &str, region: &str) -> Ami {
    Ami {
        format: Ami::FORMAT,
        image: "web".parse().unwrap(),
        version: version.parse().unwrap(),
        disk: Digest::of(version.as_bytes()),
        account: "123456789012".to_owned(),
        region: region.to_owned(),
        ami: format!("ami-{region}"),
        snapshot: "snap-1".to_owned(),
        kms_key: None,
        wanted_key: None,
        intent: "i".to_owned(),
        published: 1,
    }
}

fn published(scratch: &Scratch) -> (Registry, ImageName) {
    let registry = scratch.registry();
    let built = artifact(&scratch.0.join("build"), "b-1", "one");
    registry.publish(&built, &scratch.0.join("build"), &fixed("1.0.0"), &Quiet).unwrap();
    (registry, "web".parse().unwrap())
}

#[test]
fn an_ami_is_entered_once_for_each_region() {
    let scratch = Scratch::new("amis");
    let (registry, web) = published(&scratch);
    let (first, second) = (ami("1.0.0", "eu-west-1"), ami("1.0.0", "us-east-1"));
    assert!(registry.enter_ami(&first).unwrap());
    assert!(registry.enter_ami(&second).unwrap());
    assert!(!registry.enter_ami(&first).unwrap());
    assert_eq!(registry.amis(&web, &first.version).unwrap(), [first.clone(), second.clone()]);
    registry.forget_ami(&first).unwrap();
    registry.forget_ami(&first).unwrap();
    assert_eq!(registry.amis_of(&web).unwrap(), [second]);
}

#[test]
fn a_version_without_amis_has_none() {
    let scratch = Scratch::new("no-amis");
    let (registry, web) = published(&scratch);
    assert!(registry.amis(&web, &"1.0.0".parse().unwrap()).unwrap().is_empty());
    assert!(registry.amis_of(&web).unwrap().is_empty());
}
