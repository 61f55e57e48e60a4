//! Machines are replaced by those of a version, and come back.

use kiln_aws::AwsError;
use kiln_aws_tests::{Fake, Fault, Schedule};

use crate::bench::{self, Bench, GROUP, REGIONS, group};

const REGION: &str = REGIONS[0];
async fn two_amis(bench: &Bench) -> (String, String) {
    let mut disk = bench.publish("1.0.0", &bench::disk(1, 3));
    let first = bench.ami("1.0.0").await.unwrap().ami;
    disk[4_000] ^= 1;
    bench.publish("1.1.0", &disk);
    (first, bench.ami("1.1.0").await.unwrap().ami)
}

#[tokio::test]
async fn a_parameter_is_pointed_and_says_what_it_was() {
    let bench = Bench::new("parameter");
    let (first, second) = two_amis(&bench).await;
    let region = bench.region(REGION).await;
    let name = "/images/web/stable";
    assert_eq!(region.point_parameter(name, &first).await.unwrap(), None);
    assert_eq!(region.point_parameter(name, &second).await.unwrap(), Some(first));
    assert_eq!(region.point_parameter(name, &second).await.unwrap(), Some(second));
}

/// AWS looks at the AMI after it said yes, and tells nobody that it did not like it.
#[tokio::test]
async fn a_parameter_that_stays_what_it_was_is_an_error_that_says_so() {
    let bench = Bench::new("unmoved");
    let (first, second) = two_amis(&bench).await;
    let region = bench.region(REGION).await;
    region.point_parameter("/images/web", &first).await.unwrap();
    bench.fake.schedule(Schedule::new().at("PutParameter", 1, Fault::Stuck));
    let error = region.point_parameter("/images/web", &second).await.unwrap_err();
    assert!(matches!(&error, AwsError::Parameter { ami, now, .. } if *ami == second && *now == first), "{error}");
    assert_eq!(region.point_parameter("/images/web", &second).await.unwrap(), Some(first));
}

#[tokio::test]
async fn a_group_gets_a_numbered_version_and_goes_back_to_the_one_before() {
    let bench = Bench::new("release");
    let (first, second) = two_amis(&bench).await;
    group(&bench, &first, "1");
    let region = bench.region(REGION).await;
    let release = region.release(GROUP, &second, "web@1.1.0").await.unwrap();
    assert_eq!((release.from, release.to, release.warnings.len()), (1, 2, 0));
    // Asked again while it is under way, it is the same one.
    assert_eq!(region.release(GROUP, &second, "web@1.1.0").await.unwrap(), release);
    bench.fake.replace_instances(Fake::ACCOUNT, REGION, GROUP, 2);
    assert!(region.refreshed(GROUP).await.unwrap().succeeded());
    assert_eq!(region.release(GROUP, &second, "web@1.1.0").await.unwrap().refresh, None);
    let back = region.roll_back(GROUP).await.unwrap().unwrap();
    assert_eq!((back.from, back.to, back.ami.as_str()), (2, 1, first.as_str()));
    bench.fake.replace_instances(Fake::ACCOUNT, REGION, GROUP, 2);
    assert!(region.refreshed(GROUP).await.unwrap().succeeded());
    assert!(matches!(region.roll_back(GROUP).await, Err(AwsError::NothingBefore { .. })));
}

#[tokio::test]
async fn a_release_under_way_is_turned_around() {
    let bench = Bench::new("turned");
    let (first, second) = two_amis(&bench).await;
    group(&bench, &first, "1");
    let region = bench.region(REGION).await;
    region.release(GROUP, &second, "web@1.1.0").await.unwrap();
    bench.fake.replace_instances(Fake::ACCOUNT, REGION, GROUP, 1);
    assert_eq!(region.roll_back(GROUP).await.unwrap(), None);
    // Twice is as good as once.
    assert_eq!(region.roll_back(GROUP).await.unwrap(), None);
    bench.fake.replace_instances(Fake::ACCOUNT, REGION, GROUP, 2);
    assert_eq!(region.refreshed(GROUP).await.unwrap().status, "RollbackSuccessful");
}

#[tokio::test]
async fn a_release_without_machines_to_be_had_turns_around_by_itself() {
    let bench = Bench::new("capacity");
    let (first, second) = two_amis(&bench).await;
    group(&bench, &first, "1");
    let region = bench.region(REGION).await;
    region.release(GROUP, &second, "web@1.1.0").await.unwrap();
    bench.fake.replace_instances(Fake::ACCOUNT, REGION, GROUP, 1);
    bench.fake.fail_refresh(Fake::ACCOUNT, REGION, GROUP, "InsufficientInstanceCapacity");
    bench.fake.replace_instances(Fake::ACCOUNT, REGION, GROUP, 2);
    let refresh = region.refreshed(GROUP).await.unwrap();
    assert_eq!((refresh.status.as_str(), refresh.succeeded()), ("RollbackSuccessful", false));
    assert_eq!(refresh.reason.as_deref(), Some("InsufficientInstanceCapacity"));
}

/// The group has a version that kiln made, and the next one came to nothing: going back must not go one version too far.
#[tokio::test]
async fn a_release_that_went_back_by_itself_is_not_rolled_back_once_more() {
    let bench = Bench::new("too-far");
    let (first, second) = two_amis(&bench).await;
    group(&bench, &first, "1");
    let region = bench.region(REGION).await;
    region.release(GROUP, &second, "web@1.1.0").await.unwrap();
    bench.fake.replace_instances(Fake::ACCOUNT, REGION, GROUP, 2);
    let third = "ami-0fedcba9876543210";
    assert_eq!(region.release(GROUP, third, "web@1.2.0").await.unwrap().to, 3);
    bench.fake.fail_refresh(Fake::ACCOUNT, REGION, GROUP, "InsufficientInstanceCapacity");
    bench.fake.replace_instances(Fake::ACCOUNT, REGION, GROUP, 2);
    assert!(region.refreshed(GROUP).await.unwrap().went_back());
    for _ in 0..2 {
        assert_eq!(region.roll_back(GROUP).await.unwrap(), None);
        assert!(region.last_refresh(GROUP).await.unwrap().unwrap().went_back());
    }
    // And the version that it has is there, not to be brought once more.
    assert_eq!(region.release(GROUP, &second, "web@1.1.0").await.unwrap().refresh, None);
}

#[tokio::test]
async fn a_group_with_mixed_instances_keeps_its_types_and_its_spot_share() {
    let bench = Bench::new("mixed");
    let (first, second) = two_amis(&bench).await;
    group(&bench, &first, "1");
    let types = ["t3.small", "t3a.small"];
    let group = [
        ("AutoScalingGroupName", "mixed"),
        ("MixedInstancesPolicy.LaunchTemplate.LaunchTemplateSpecification.LaunchTemplateName", GROUP),
        ("MixedInstancesPolicy.LaunchTemplate.LaunchTemplateSpecification.Version", "1"),
        ("MixedInstancesPolicy.LaunchTemplate.Overrides.member.1.InstanceType", types[0]),
        ("MixedInstancesPolicy.LaunchTemplate.Overrides.member.2.InstanceType", types[1]),
        ("MixedInstancesPolicy.InstancesDistribution.OnDemandPercentageAboveBaseCapacity", "30"),
        ("MinSize", "2"),
        ("MaxSize", "4"),
        ("AvailabilityZones.member.1", "eu-west-1a"),
    ];
    bench.fake.autoscaling(Fake::ACCOUNT, REGION, "CreateAutoScalingGroup", &group).unwrap();
    let region = bench.region(REGION).await;
    let release = region.release("mixed", &second, "web@1.1.0").await.unwrap();
    assert_eq!((release.from, release.to, release.warnings.len()), (1, 2, 0));
    assert_eq!(region.release("mixed", &second, "web@1.1.0").await.unwrap(), release);
    bench.fake.replace_instances(Fake::ACCOUNT, REGION, "mixed", 2);
    assert!(region.refreshed("mixed").await.unwrap().succeeded());
    let name = [("AutoScalingGroupNames.member.1", "mixed")];
    let described = bench.fake.autoscaling(Fake::ACCOUNT, REGION, "DescribeAutoScalingGroups", &name).unwrap();
    for kept in [types[0], types[1], "<OnDemandPercentageAboveBaseCapacity>30<", "<Version>2<"] {
        assert!(described.contains(kept), "{kept} is not in {described}");
    }
    let back = region.roll_back("mixed").await.unwrap().unwrap();
    assert_eq!((back.from, back.to, back.ami.as_str()), (2, 1, first.as_str()));
    // Twice is as good as once.
    assert_eq!(region.roll_back("mixed").await.unwrap().unwrap(), back);
}

#[tokio::test]
async fn a_group_that_follows_the_latest_version_is_warned_about() {
    let bench = Bench::new("latest");
    let (first, second) = two_amis(&bench).await;
    group(&bench, &first, "$Latest");
    let region = bench.region(REGION).await;
    let release = region.release(GROUP, &second, "web@1.1.0").await.unwrap();
    assert_eq!(release.warnings.len(), 1, "{:?}", release.warnings);
    assert!(release.warnings[0].contains("$Latest"));
}

/// The new version is the latest as soon as it is made: that the group has it replaces no machine.
#[tokio::test]
async fn a_group_that_follows_the_latest_version_is_brought_there_by_a_second_run() {
    let bench = Bench::new("latest-again");
    let (first, second) = two_amis(&bench).await;
    group(&bench, &first, "$Latest");
    let region = bench.region(REGION).await;
    bench.fake.schedule(Schedule::new().at("StartInstanceRefresh", 1, Fault::AccessDenied));
    region.release(GROUP, &second, "web@1.1.0").await.unwrap_err();
    let release = region.release(GROUP, &second, "web@1.1.0").await.unwrap();
    assert!(release.refresh.is_some(), "{release:?}");
    bench.fake.replace_instances(Fake::ACCOUNT, REGION, GROUP, 2);
    assert!(region.refreshed(GROUP).await.unwrap().succeeded());
    assert_eq!(region.release(GROUP, &second, "web@1.1.0").await.unwrap().refresh, None);
}

#[tokio::test]
async fn a_fault_at_any_call_of_a_release_makes_no_second_version_and_no_second_refresh() {
    for fault in [Fault::LoseReply, Fault::InternalAfter, Fault::Cut, Fault::Throttle] {
        for call in 2..=6 {
            let bench = Bench::new("release-fault");
            let ami = "ami-0123456789abcdef0";
            group(&bench, ami, "1");
            bench.fake.schedule(Schedule::new().at_call(call, fault.clone()));
            let region = bench.region(REGION).await;
            let release = region.release(GROUP, "ami-0fedcba9876543210", "web@1.1.0").await;
            let release = release.unwrap_or_else(|error| panic!("{fault:?} at call {call}: {error}"));
            assert_eq!((release.from, release.to), (1, 2), "{fault:?} at call {call}");
            let template = [("LaunchTemplateName", GROUP)];
            let versions = bench.fake.ec2(Fake::ACCOUNT, REGION, "DescribeLaunchTemplateVersions", &template).unwrap();
            assert_eq!(versions.matches("<versionNumber>").count(), 2, "{fault:?} at call {call}");
            let group = [("AutoScalingGroupName", GROUP)];
            let refreshes = bench.fake.autoscaling(Fake::ACCOUNT, REGION, "DescribeInstanceRefreshes", &group).unwrap();
            assert_eq!(refreshes.matches("<InstanceRefreshId>").count(), 1, "{fault:?} at call {call}");
        }
    }
}
