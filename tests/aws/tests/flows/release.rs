//! Machines are replaced by those of a version, and come back.

use kiln_aws::AwsError;
use kiln_aws_tests::{Fake, Fault, Schedule};

use crate::bench::{self, Bench, REGIONS};

const REGION: &str = REGIONS[0];
const GROUP: &str = "web";

/// A group of two machines whose launch template has one version, from `ami`; the group names `version`.
fn group(bench: &Bench, ami: &str, version: &str) {
    let template = [
        ("LaunchTemplateName", GROUP),
        ("LaunchTemplateData.ImageId", ami),
        ("LaunchTemplateData.InstanceType", "t3.small"),
    ];
    bench.fake.ec2(Fake::ACCOUNT, REGION, "CreateLaunchTemplate", &template).unwrap();
    let group = [
        ("AutoScalingGroupName", GROUP),
        ("LaunchTemplate.LaunchTemplateName", GROUP),
        ("LaunchTemplate.Version", version),
        ("MinSize", "2"),
        ("MaxSize", "4"),
        ("AvailabilityZones.member.1", "eu-west-1a"),
    ];
    bench.fake.autoscaling(Fake::ACCOUNT, REGION, "CreateAutoScalingGroup", &group).unwrap();
}

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
async fn a_group_that_follows_the_latest_version_is_warned_about() {
    let bench = Bench::new("latest");
    let (first, second) = two_amis(&bench).await;
    group(&bench, &first, "$Latest");
    let region = bench.region(REGION).await;
    let release = region.release(GROUP, &second, "web@1.1.0").await.unwrap();
    assert_eq!(release.warnings.len(), 1, "{:?}", release.warnings);
    assert!(release.warnings[0].contains("$Latest"));
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
