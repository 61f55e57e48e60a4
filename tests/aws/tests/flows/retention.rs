//! Old AMIs go, and only those that nobody needs and that are ours beyond doubt.

use kiln_aws::{Checked, Fate, Health, Keep};
use kiln_aws_tests::{Fake, Fault, Schedule};
use kiln_core::ImageName;

use crate::bench::{self, Bench, REGIONS, now};

const REGION: &str = REGIONS[0];
const DAY: u64 = 86_400;

fn web() -> ImageName {
    "web".parse().unwrap()
}

async fn versions(bench: &Bench, count: u8) -> Vec<String> {
    let mut disk = bench::disk(1, 3);
    let mut amis = Vec::new();
    for number in 0..count {
        disk[4_000] = number;
        let version = format!("1.{number}.0");
        bench.publish(&version, &disk);
        amis.push(bench.ami(&version).await.unwrap().ami);
    }
    amis
}

#[tokio::test]
async fn it_is_said_then_withdrawn_then_deleted() {
    let bench = Bench::new("retire");
    let amis = versions(&bench, 3).await;
    let region = bench.region(REGION).await;
    let keep = Keep { newest: 1, days: 7, now: now() };
    let said = region.retain(&bench.registry, &web(), &keep, true).await.unwrap();
    let fates = |verdicts: &[kiln_aws::Verdict]| {
        amis.iter()
            .map(|ami| verdicts.iter().find(|verdict| verdict.ami == *ami).unwrap().fate.clone())
            .collect::<Vec<_>>()
    };
    assert!(matches!(fates(&said)[..], [Fate::Withdrawn, Fate::Withdrawn, Fate::Kept(_)]), "{said:?}");
    assert_eq!(bench.calls("DisableImage"), 0);
    let done = region.retain(&bench.registry, &web(), &keep, false).await.unwrap();
    assert_eq!(done, said);
    assert_eq!((bench.calls("DisableImage"), bench.living()), (2, (3, 3)));
    let early = region.retain(&bench.registry, &web(), &keep, false).await.unwrap();
    assert!(fates(&early).iter().all(|fate| matches!(fate, Fate::Kept(_))), "{early:?}");
    let later = Keep { now: keep.now + 8 * DAY, ..keep };
    let last = region.retain(&bench.registry, &web(), &later, false).await.unwrap();
    assert!(matches!(fates(&last)[..], [Fate::Deleted, Fate::Deleted, Fate::Kept(_)]), "{last:?}");
    assert_eq!(bench.living(), (1, 1));
    assert_eq!(bench.registry.amis_of(&web()).unwrap().len(), 1);
}

#[tokio::test]
async fn one_that_was_enabled_again_is_whole_once_it_is_published_again() {
    let bench = Bench::new("back");
    let amis = versions(&bench, 2).await;
    let region = bench.region(REGION).await;
    let keep = Keep { newest: 1, days: 7, now: now() };
    region.retain(&bench.registry, &web(), &keep, false).await.unwrap();
    bench.fake.ec2(Fake::ACCOUNT, REGION, "EnableImage", &[("ImageId", &amis[0])]).unwrap();
    let health = async || {
        let checked = region.check(&bench.registry, &web(), false).await.unwrap();
        checked.into_iter().find(|one| one.ami == amis[0]).unwrap().health
    };
    let before = health().await;
    assert!(matches!(&before, Health::Broken(why) if why.contains("enabled it again")), "{before:?}");
    let described = || bench.fake.ec2(Fake::ACCOUNT, REGION, "DescribeImages", &[("ImageId.1", &amis[0])]).unwrap();
    assert!(described().contains("<deprecationTime>"));
    assert!(bench.ami("1.0.0").await.unwrap().already);
    assert!(!described().contains("<deprecationTime>") && !described().contains("kiln:withdrawn"), "{}", described());
    assert_eq!(health().await, Health::Sound);
    let living = bench.fake.living();
    assert!(living.iter().all(|one| !one.tags.contains_key("kiln:withdrawn")), "its snapshot, too: {living:?}");
}

#[tokio::test]
async fn what_is_used_or_carries_other_tags_stays() {
    let bench = Bench::new("used");
    let amis = versions(&bench, 3).await;
    let template = [("LaunchTemplateName", "web"), ("LaunchTemplateData.ImageId", amis[0].as_str())];
    bench.fake.ec2(Fake::ACCOUNT, REGION, "CreateLaunchTemplate", &template).unwrap();
    let tag = [("ResourceId.1", amis[1].as_str()), ("Tag.1.Key", "kiln:intent"), ("Tag.1.Value", "another")];
    bench.fake.ec2(Fake::ACCOUNT, REGION, "CreateTags", &tag).unwrap();
    let region = bench.region(REGION).await;
    let keep = Keep { newest: 1, days: 0, now: now() };
    for _ in 0..3 {
        let verdicts = region.retain(&bench.registry, &web(), &keep, false).await.unwrap();
        assert!(verdicts.iter().all(|verdict| matches!(verdict.fate, Fate::Kept(_))), "{verdicts:?}");
    }
    assert_eq!(bench.living(), (3, 3));
}

/// EC2's own references are the newest ten versions of a template, and not what groups name.
#[tokio::test]
async fn what_a_group_without_machines_or_an_old_default_launches_stays() {
    let bench = Bench::new("grouped");
    let amis = versions(&bench, 5).await;
    let template = |name| [("LaunchTemplateName", name), ("LaunchTemplateData.ImageId", amis[0].as_str())];
    bench.fake.ec2(Fake::ACCOUNT, REGION, "CreateLaunchTemplate", &template("old")).unwrap();
    let version = |name, ami| [("LaunchTemplateName", name), ("LaunchTemplateData.ImageId", ami)];
    let create = |name, ami| {
        bench.fake.ec2(Fake::ACCOUNT, REGION, "CreateLaunchTemplateVersion", &version(name, ami)).unwrap();
    };
    create("old", &amis[1]);
    (0..11).for_each(|_| create("old", "ami-0123456789abcdef0"));
    let group = [
        ("AutoScalingGroupName", "asleep"),
        ("LaunchTemplate.LaunchTemplateName", "old"),
        ("LaunchTemplate.Version", "2"),
        ("MinSize", "0"),
        ("MaxSize", "4"),
        ("AvailabilityZones.member.1", "eu-west-1a"),
    ];
    bench.fake.autoscaling(Fake::ACCOUNT, REGION, "CreateAutoScalingGroup", &group).unwrap();
    let configuration = [("LaunchConfigurationName", "of-2015"), ("ImageId", &amis[2]), ("InstanceType", "t3.small")];
    bench.fake.autoscaling(Fake::ACCOUNT, REGION, "CreateLaunchConfiguration", &configuration).unwrap();
    let group = [
        ("AutoScalingGroupName", "ancient"),
        ("LaunchConfigurationName", "of-2015"),
        ("MinSize", "0"),
        ("MaxSize", "4"),
        ("AvailabilityZones.member.1", "eu-west-1a"),
    ];
    bench.fake.autoscaling(Fake::ACCOUNT, REGION, "CreateAutoScalingGroup", &group).unwrap();
    let region = bench.region(REGION).await;
    let keep = Keep { newest: 1, days: 0, now: now() };
    let verdicts = region.retain(&bench.registry, &web(), &keep, false).await.unwrap();
    let fate = |ami: &String| &verdicts.iter().find(|verdict| verdict.ami == *ami).unwrap().fate;
    assert!(matches!(fate(&amis[0]), Fate::Kept(why) if why.contains("version 1 of lt-")), "{verdicts:?}");
    assert!(matches!(fate(&amis[1]), Fate::Kept(why) if why.contains("the group asleep")), "{verdicts:?}");
    assert!(matches!(fate(&amis[2]), Fate::Kept(why) if why.contains("the group ancient")), "{verdicts:?}");
    assert_eq!(fate(&amis[3]), &Fate::Withdrawn);
}

#[tokio::test]
async fn one_that_cannot_go_keeps_no_other_from_going() {
    let bench = Bench::new("stuck");
    let amis = versions(&bench, 4).await;
    let region = bench.region(REGION).await;
    let keep = Keep { newest: 1, days: 0, now: now() };
    bench.fake.schedule(Schedule::new().at("EnableImageDeprecation", 1, Fault::AccessDenied));
    let verdicts = region.retain(&bench.registry, &web(), &keep, false).await.unwrap();
    let fates: Vec<_> = amis.iter().map(|ami| &verdicts.iter().find(|one| one.ami == *ami).unwrap().fate).collect();
    assert!(
        matches!(fates[..], [Fate::Withdrawn, Fate::Withdrawn, Fate::Failed(_), Fate::Kept(_)]),
        "the newest is looked at first: {verdicts:?}"
    );
}

#[tokio::test]
async fn what_was_half_withdrawn_or_half_deleted_is_finished_by_the_next_run() {
    let bench = Bench::new("half");
    let amis = versions(&bench, 2).await;
    let region = bench.region(REGION).await;
    let keep = Keep { newest: 1, days: 7, now: now() };
    let failed = |verdicts: Vec<kiln_aws::Verdict>| {
        verdicts.iter().any(|verdict| matches!(&verdict.fate, Fate::Failed(why) if why.contains("not authorized")))
    };
    bench.fake.schedule(Schedule::new().at("DisableImage", 1, Fault::AccessDenied));
    assert!(failed(region.retain(&bench.registry, &web(), &keep, false).await.unwrap()));
    // Its days begin when nothing starts from it any more.
    let later = Keep { now: keep.now + 6 * DAY, ..keep };
    region.retain(&bench.registry, &web(), &later, false).await.unwrap();
    assert_eq!(bench.calls("DisableImage"), 1);
    let early = Keep { now: keep.now + 8 * DAY, ..keep };
    let verdicts = region.retain(&bench.registry, &web(), &early, false).await.unwrap();
    assert!(verdicts.iter().all(|verdict| matches!(verdict.fate, Fate::Kept(_))), "{verdicts:?}");
    let last = Keep { now: keep.now + 14 * DAY, ..keep };
    bench.fake.schedule(Schedule::new().at("DeleteSnapshot", 1, Fault::AccessDenied));
    assert!(failed(region.retain(&bench.registry, &web(), &last, false).await.unwrap()));
    assert_eq!(bench.living(), (1, 2));
    let verdicts = region.retain(&bench.registry, &web(), &last, false).await.unwrap();
    assert!(verdicts.iter().any(|verdict| verdict.ami == amis[0] && verdict.fate == Fate::Deleted), "{verdicts:?}");
    assert_eq!((bench.living(), bench.registry.amis_of(&web()).unwrap().len()), ((1, 1), 1));
}

#[tokio::test]
async fn what_others_did_to_amis_is_found_and_nothing_is_changed() {
    let bench = Bench::new("health");
    let amis = versions(&bench, 6).await;
    let region = bench.region(REGION).await;
    let web = web();
    let checked = |public| region.check(&bench.registry, &web, public);
    let sound = checked(false).await.unwrap();
    assert!(sound.len() == 6 && sound.iter().all(|one| one.health == Health::Sound), "{sound:?}");
    assert_eq!(sound[0].version.as_str(), "1.5.0", "the newest first");

    let keep = Keep { newest: 5, days: 7, now: now() };
    region.retain(&bench.registry, &web, &keep, false).await.unwrap();
    let snapshot = bench.fake.root_snapshot(REGION, Fake::ACCOUNT, &amis[2]).unwrap();
    let others: [(&str, &[(&str, &str)]); 6] = [
        ("DisableImage", &[("ImageId", &amis[1])]),
        ("DeregisterImage", &[("ImageId", &amis[2])]),
        ("DeleteSnapshot", &[("SnapshotId", &snapshot)]),
        ("DeregisterImage", &[("ImageId", &amis[3])]),
        ("ModifyImageAttribute", &[("ImageId", &amis[4]), ("LaunchPermission.Add.1.Group", "all")]),
        ("CreateTags", &[("ResourceId.1", &amis[5]), ("Tag.1.Key", "kiln:disk"), ("Tag.1.Value", "sha256:0")]),
    ];
    for (action, fields) in others {
        bench.fake.ec2(Fake::ACCOUNT, REGION, action, fields).unwrap();
    }
    let before = (bench.fake.living(), bench.registry.amis_of(&web).unwrap());
    let found = checked(false).await.unwrap();
    let of = |checked: &[Checked], ami: &str| checked.iter().find(|one| one.ami == ami).unwrap().health.clone();
    assert_eq!(of(&found, &amis[0]), Health::Withdrawn);
    for (ami, words) in [
        (&amis[1], "somebody disabled it"),
        (&amis[2], "and its snapshot too"),
        (&amis[3], "registers its snapshot again"),
        (&amis[4], "everybody may launch it"),
        (&amis[5], "the tags of its record"),
    ] {
        let health = of(&found, ami);
        assert!(matches!(&health, Health::Broken(why) if why.contains(words)), "{words}: {health:?}");
    }
    assert_eq!(of(&checked(true).await.unwrap(), &amis[4]), Health::Sound);
    assert_eq!((bench.fake.living(), bench.registry.amis_of(&web).unwrap()), before);
    // What it advises helps: the AMI comes back from its snapshot.
    bench.ami("1.3.0").await.unwrap();
    let healed = checked(false).await.unwrap();
    let again: Vec<_> = healed.iter().filter(|one| one.version.as_str() == "1.3.0").collect();
    assert!(again.len() == 1 && again[0].health == Health::Sound, "{healed:?}");
}
