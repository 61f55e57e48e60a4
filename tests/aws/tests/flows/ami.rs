//! A version becomes an AMI: right, complete, and only what changed is sent.

use std::collections::BTreeMap;

use kiln_aws::{AwsError, Place, Sharing};
use kiln_aws_tests::{Fake, Fault, Pace, Schedule};

use crate::bench::{self, Bench, REGIONS};

#[tokio::test]
async fn an_ami_has_every_byte_of_the_sealed_disk() {
    let bench = Bench::new("whole");
    let disk = bench.publish("1.0.0", &bench::disk(1, 31));
    let published = bench.ami("1.0.0").await.unwrap();
    assert!(!published.already);
    // Zeros, too: a volume that is encrypted does not have them where nobody wrote.
    assert_eq!(published.blocks, disk.len().div_ceil(bench::BLOCK));
    assert_eq!(bench.calls("PutSnapshotBlock"), published.blocks);
    bench.holds(&published, &disk);
    let amis = bench.registry.amis(&"web".parse().unwrap(), &"1.0.0".parse().unwrap()).unwrap();
    assert_eq!(amis.iter().map(|ami| ami.ami.as_str()).collect::<Vec<_>>(), [published.ami.as_str()]);
    let image = bench.fake.living().into_iter().find(|living| living.kind == "image").unwrap();
    assert_eq!(image.tags["kiln:version"], "1.0.0");
    assert_eq!(image.tags["kiln:disk"], amis[0].disk.to_string());
    assert_eq!(bench.outstanding(), 0);
}

#[tokio::test]
async fn a_further_version_sends_what_differs_and_zeros_where_it_became_zero() {
    let bench = Bench::new("delta");
    let first = bench.publish("1.0.0", &bench::disk(1, 31));
    bench.ami("1.0.0").await.unwrap();
    let mut second = first;
    second[20 * bench::BLOCK..22 * bench::BLOCK].fill(0);
    second[30 * bench::BLOCK + 5] ^= 1;
    let second = bench.publish("1.1.0", &second);
    let before = bench.calls("PutSnapshotBlock");
    let published = bench.ami("1.1.0").await.unwrap();
    assert_eq!(published.blocks, 3);
    assert_eq!(bench.calls("PutSnapshotBlock") - before, 3);
    bench.holds(&published, &second);
}

#[tokio::test]
async fn what_was_tried_is_not_sent_again_and_is_gone_in_the_end() {
    let bench = Bench::new("tried");
    let mut disk = bench.publish("1.0.0", &bench::disk(1, 31));
    let first = bench.ami("1.0.0").await.unwrap();
    disk[20 * bench::BLOCK..22 * bench::BLOCK].fill(0);
    disk[30 * bench::BLOCK + 5] ^= 1;
    bench.publish("1.1.0", &disk);
    let put = bench.calls("PutSnapshotBlock");
    let published = bench.ami_after_trial("1.1.0", &disk).await.unwrap();
    assert_eq!((published.blocks, bench.calls("PutSnapshotBlock") - put), (0, 3));
    bench.holds(&published, &disk);
    assert_eq!((bench.living(), bench.outstanding()), ((2, 2), 0));
    // The next one stands on it all the same.
    disk[7 * bench::BLOCK] ^= 1;
    bench.publish("1.2.0", &disk);
    let next = bench.ami("1.2.0").await.unwrap();
    assert_eq!(next.blocks, 1);
    bench.holds(&next, &disk);
    bench.holds(&first, &bench::disk(1, 31));
}

#[tokio::test]
async fn random_disks_on_each_other_are_read_back_as_sealed() {
    for seed in 0..12 {
        let bench = Bench::new(&format!("random-{seed}"));
        let mut disk = bench::disk(seed, 16);
        for step in 0..3 {
            bench::mutate(&mut disk, seed * 16 + step);
            let version = format!("1.{step}.0");
            let sealed = bench.publish(&version, &disk);
            let key = (seed % 3 == 0).then(|| bench::KEY.to_owned());
            let place = Place { region: REGIONS[0].to_owned(), kms_key: key };
            let report = bench.report(&version, &[place], &Sharing::default()).await;
            let published = report.regions.into_values().next().unwrap().unwrap();
            bench.holds(&published, &sealed);
        }
    }
}

#[tokio::test]
async fn an_encrypted_snapshot_is_written_in_full_because_the_rest_is_not_zero() {
    let bench = Bench::new("encrypted");
    let disk = bench.publish("1.0.0", &bench::disk(1, 10));
    let place = Place { region: REGIONS[0].to_owned(), kms_key: Some(bench::KEY.to_owned()) };
    let report = bench.report("1.0.0", &[place], &Sharing::default()).await;
    let published = report.regions.into_values().next().unwrap().unwrap();
    assert_eq!(published.blocks, disk.len().div_ceil(bench::BLOCK));
    bench.holds(&published, &disk);
}

#[tokio::test]
async fn what_was_made_without_a_key_is_not_taken_for_what_is_wanted_with_one() {
    let bench = Bench::new("other-key");
    let disk = bench.publish("1.0.0", &bench::disk(1, 5));
    let place = |key: Option<&str>| [Place { region: REGIONS[0].to_owned(), kms_key: key.map(str::to_owned) }];
    let of = |report: kiln_aws::Report| report.regions.into_values().next().unwrap();
    // A snapshot that an interrupted run left, then an AMI that could not be shared.
    bench.fake.schedule(Schedule::new().at("PutSnapshotBlock", 3, Fault::AccessDenied));
    of(bench.report("1.0.0", &place(None), &Sharing::default()).await).unwrap_err();
    bench.die();
    let published = of(bench.report("1.0.0", &place(Some(bench::KEY)), &Sharing::default()).await).unwrap();
    bench.holds(&published, &disk);
    let ami = &bench.registry.amis(&"web".parse().unwrap(), &"1.0.0".parse().unwrap()).unwrap()[0];
    assert_eq!((ami.kms_key.as_deref(), ami.wanted_key.as_deref()), (Some(bench::KEY), Some(bench::KEY)));
    // Without a key it is as good; with another one it is refused.
    assert!(of(bench.report("1.0.0", &place(None), &Sharing::default()).await).unwrap().already);
    let other = format!("{}-other", bench::KEY);
    let refused = of(bench.report("1.0.0", &place(Some(&other)), &Sharing::default()).await);
    assert!(matches!(refused, Err(AwsError::OtherKey { .. })), "{refused:?}");
    bench.die();
    bench.clean().await;
    assert_eq!((bench.living(), bench.outstanding()), ((1, 1), 0));
}

/// Somebody deregisters it, it comes back from its snapshot, and somebody deregisters that one, too.
#[tokio::test]
async fn an_ami_that_came_back_from_its_snapshot_comes_back_once_more() {
    let bench = Bench::new("once-more");
    let disk = bench.publish("1.0.0", &bench::disk(1, 5));
    let first = bench.ami("1.0.0").await.unwrap();
    for _ in 0..2 {
        let ami = bench.registry.amis(&"web".parse().unwrap(), &"1.0.0".parse().unwrap()).unwrap().remove(0).ami;
        bench.fake.ec2(Fake::ACCOUNT, REGIONS[0], "DeregisterImage", &[("ImageId", &ami)]).unwrap();
        let back = bench.ami("1.0.0").await.unwrap();
        assert_eq!((back.blocks, &back.snapshot, bench.living()), (0, &first.snapshot, (1, 1)));
        bench.holds(&back, &disk);
    }
}

#[tokio::test]
async fn the_same_version_again_changes_nothing() {
    let bench = Bench::new("again");
    bench.publish("1.0.0", &bench::disk(1, 10));
    let first = bench.ami("1.0.0").await.unwrap();
    let second = bench.ami("1.0.0").await.unwrap();
    assert!(second.already);
    assert_eq!(second.ami, first.ami);
    assert_eq!(bench.living(), (1, 1));
}

#[tokio::test]
async fn an_ami_that_somebody_deregistered_is_made_again() {
    let bench = Bench::new("deregistered");
    let disk = bench.publish("1.0.0", &bench::disk(1, 10));
    let first = bench.ami("1.0.0").await.unwrap();
    // For a while it is still listed, and so it is nothing.
    bench.fake.pace(Pace { hidden: 3, ..Pace::default() });
    bench.fake.ec2(Fake::ACCOUNT, REGIONS[0], "DeregisterImage", &[("ImageId", &first.ami)]).unwrap();
    let second = bench.ami("1.0.0").await.unwrap();
    assert_ne!(second.ami, first.ami);
    bench.holds(&second, &disk);
    // Its snapshot was still there, and proven.
    assert_eq!((second.blocks, &second.snapshot, bench.living()), (0, &first.snapshot, (1, 1)));
    let third = bench.ami("1.0.0").await.unwrap();
    assert_eq!((third.already, third.ami), (true, second.ami));
}

#[tokio::test]
async fn an_ami_that_was_withdrawn_is_not_published_again_by_itself() {
    let bench = Bench::new("withdrawn");
    bench.publish("1.0.0", &bench::disk(1, 3));
    let first = bench.ami("1.0.0").await.unwrap();
    let image = [("ImageId", first.ami.as_str())];
    bench.fake.ec2(Fake::ACCOUNT, REGIONS[0], "DisableImage", &image).unwrap();
    let error = bench.ami("1.0.0").await.unwrap_err();
    assert!(error.hint().unwrap().contains("enable-image"), "{error}");
    bench.fake.ec2(Fake::ACCOUNT, REGIONS[0], "EnableImage", &image).unwrap();
    assert_eq!(bench.ami("1.0.0").await.unwrap().ami, first.ami);
}

/// An account that begins to encrypt takes no unencrypted snapshot as a parent any more.
#[tokio::test]
async fn where_encryption_by_default_was_switched_on_the_next_version_is_sent_in_full() {
    let bench = Bench::new("by-default");
    let mut disk = bench.publish("1.0.0", &bench::disk(1, 10));
    bench.ami("1.0.0").await.unwrap();
    bench.fake.encrypt_by_default(REGIONS[0], "alias/aws/ebs");
    for (version, blocks) in [("1.1.0", disk.len().div_ceil(bench::BLOCK)), ("1.2.0", 1)] {
        disk[5 * bench::BLOCK] ^= 1;
        let disk = bench.publish(version, &disk);
        let published = bench.ami(version).await.unwrap();
        assert_eq!(published.blocks, blocks, "{version}");
        bench.holds(&published, &disk);
    }
    assert_eq!((bench.living(), bench.outstanding()), ((3, 3), 0));
}

#[tokio::test]
async fn what_could_never_be_shared_is_refused_before_anything_is_sent() {
    let bench = Bench::new("unshareable");
    bench.publish("1.0.0", &bench::disk(1, 5));
    let place = [Place { region: REGIONS[0].to_owned(), kms_key: None }];
    let with = Sharing { with: vec!["210987654321".to_owned()], ..Sharing::default() };
    let public = Sharing { public: true, ..Sharing::default() };
    let of = |report: kiln_aws::Report| report.regions.into_values().next().unwrap();
    bench.fake.encrypt_by_default(REGIONS[0], "alias/aws/ebs");
    for sharing in [&with, &public] {
        let refused = of(bench.report("1.0.0", &place, sharing).await);
        assert!(matches!(refused, Err(AwsError::NotShareable { .. })), "{refused:?}");
    }
    bench.fake.encrypt_by_default(REGIONS[0], bench::KEY);
    let refused = of(bench.report("1.0.0", &place, &public).await);
    assert!(matches!(refused, Err(AwsError::NotShareable { meant: "public", .. })), "{refused:?}");
    assert_eq!((bench.calls("StartSnapshot"), bench.living()), (0, (0, 0)));
    // A key of one's own may be open to them.
    of(bench.report("1.0.0", &place, &with).await).unwrap();
    // Nothing that is under a key is public, and nothing that is to be shared stands on what is under another one.
    let keyed = [Place { region: REGIONS[0].to_owned(), kms_key: Some(bench::KEY.to_owned()) }];
    let refused = of(bench.report("1.0.0", &keyed, &public).await);
    assert!(refused.is_err(), "{refused:?}");
    bench.fake.encrypt_by_default(REGIONS[0], "alias/aws/ebs");
    let mut disk = bench.publish("1.1.0", &bench::disk(1, 6));
    of(bench.report("1.1.0", &place, &Sharing::default()).await).unwrap();
    bench.fake.encrypt_by_default(REGIONS[0], &format!("{}-two", bench::KEY));
    disk[5 * bench::BLOCK] ^= 1;
    bench.publish("1.2.0", &disk);
    let shared = of(bench.report("1.2.0", &place, &with).await).unwrap();
    assert_eq!(shared.blocks, disk.len().div_ceil(bench::BLOCK), "in full, under the key of today");
}

#[tokio::test]
async fn a_region_that_fails_takes_no_other_with_it() {
    let bench = Bench::new("partial");
    bench.publish("1.0.0", &bench::disk(1, 5));
    let places: Vec<_> = REGIONS.iter().map(|region| Place { region: (*region).to_owned(), kms_key: None }).collect();
    bench.fake.schedule(Schedule::new().at("RegisterImage", 2, Fault::AccessDenied));
    let report = bench.report("1.0.0", &places, &Sharing::default()).await;
    assert_eq!(report.complete(), REGIONS.len() - 1);
    let failed = report.regions.values().filter_map(|outcome| outcome.as_ref().err()).collect::<Vec<_>>();
    assert!(matches!(failed[..], [AwsError::Refused { code, .. }] if code == "UnauthorizedOperation"), "{failed:?}");
    bench.die();
    let report = bench.report("1.0.0", &places, &Sharing::default()).await;
    assert_eq!(report.complete(), REGIONS.len());
    assert_eq!(bench.living(), (REGIONS.len(), REGIONS.len()));
}

#[tokio::test]
async fn a_region_that_is_not_enabled_fails_alone() {
    let bench = Bench::new("not-enabled");
    bench.publish("1.0.0", &bench::disk(1, 3));
    bench.fake.disable(REGIONS[0]);
    let places: Vec<_> = REGIONS.iter().map(|region| Place { region: (*region).to_owned(), kms_key: None }).collect();
    let report = bench.report("1.0.0", &places, &Sharing::default()).await;
    assert_eq!(report.complete(), REGIONS.len() - 1);
    assert!(matches!(&report.regions[REGIONS[0]], Err(AwsError::Refused { code, .. }) if code == "AuthFailure"));
    // Where none is enabled, nobody can say whose account it is.
    REGIONS.iter().for_each(|region| bench.fake.disable(region));
    let refused = bench.try_report("1.0.0", &places, &Sharing::default()).await;
    assert!(matches!(refused, Err(AwsError::Refused { code, .. }) if code == "InvalidClientTokenId"));
}

#[tokio::test]
async fn two_registries_with_the_same_disk_share_the_ami() {
    let (bench, other) = (Bench::new("first"), Bench::new("second"));
    let disk = bench.publish("1.0.0", &bench::disk(1, 5));
    other.publish("1.0.0", &bench::disk(1, 5));
    let first = bench.ami("1.0.0").await.unwrap();
    let second = other.ami_at(&bench.fake.endpoint(), "1.0.0").await.unwrap();
    assert_eq!(second.ami, first.ami);
    bench.holds(&first, &disk);
    assert_eq!(bench.living(), (1, 1));
}

#[tokio::test]
async fn a_stranger_of_the_same_name_is_refused() {
    let bench = Bench::new("taken");
    bench.publish("1.0.0", &bench::disk(1, 5));
    let first = bench.ami("1.0.0").await.unwrap();
    let tag = [("ResourceId.1", first.ami.as_str()), ("Tag.1.Key", "kiln:disk"), ("Tag.1.Value", "another")];
    bench.fake.ec2(Fake::ACCOUNT, REGIONS[0], "CreateTags", &tag).unwrap();
    let registry = &bench.registry;
    for ami in registry.amis_of(&"web".parse().unwrap()).unwrap() {
        registry.forget_ami(&ami).unwrap();
    }
    let error = bench.ami("1.0.0").await.unwrap_err();
    assert!(matches!(error, AwsError::NameTaken { .. }), "{error}");
}

#[tokio::test]
async fn sharing_deprecation_and_protection_are_as_asked_and_nothing_is_public_unasked() {
    let bench = Bench::new("sharing");
    bench.publish("1.0.0", &bench::disk(1, 5));
    let place = [Place { region: REGIONS[0].to_owned(), kms_key: None }];
    let sharing = Sharing {
        with: vec!["210987654321".to_owned()],
        deprecate_at: Some(bench::in_a_month()),
        protect: true,
        public: false,
        tags: BTreeMap::from([("team".to_owned(), "web".to_owned())]),
    };
    let report = bench.report("1.0.0", &place, &sharing).await;
    let published = report.regions.into_values().next().unwrap().unwrap();
    let image = [("ImageId.1", published.ami.as_str())];
    let described = bench.fake.ec2(Fake::ACCOUNT, REGIONS[0], "DescribeImages", &image).unwrap();
    assert!(described.contains("<isPublic>false</isPublic>"), "{described}");
    assert!(described.contains("<deprecationTime>"), "{described}");
    let attribute = [("ImageId", published.ami.as_str()), ("Attribute", "launchPermission")];
    let shared = bench.fake.ec2(Fake::ACCOUNT, REGIONS[0], "DescribeImageAttribute", &attribute).unwrap();
    assert!(shared.contains("210987654321"), "{shared}");
    let tagged = |value: &str| bench.fake.living().iter().all(|living| living.tags["team"] == value);
    assert!(tagged("web") && bench.calls("CreateTags") == 0, "they are there from the beginning");
    // What is said later is added.
    let later = Sharing { tags: BTreeMap::from([("team".to_owned(), "platform".to_owned())]), ..sharing };
    bench.report("1.0.0", &place, &later).await;
    assert!(tagged("platform"));
}
