//! Instances and groups of them: capacity, ends that nobody called for, what they leave behind, refreshes there and back.

#![expect(clippy::unwrap_used, reason = "tests")]

use kiln_aws_tests::{BaseImage, Fake, Refusal};

const REGION: &str = "us-east-1";
const GROUP: &str = "web";

fn ec2(fake: &Fake, action: &str, fields: &[(&str, &str)]) -> Result<String, Refusal> {
    fake.ec2(Fake::ACCOUNT, REGION, action, fields)
}

fn code(answer: Result<String, Refusal>) -> String {
    answer.map_or_else(|refusal| refusal.code, |_| "done".to_owned())
}

/// The first text of an element.
fn text<'a>(xml: &'a str, name: &str) -> &'a str {
    let from = xml.find(&format!("<{name}>")).unwrap_or_else(|| panic!("no {name} in {xml}")) + name.len() + 2;
    &xml[from..from + xml[from..].find('<').unwrap()]
}

fn base(fake: &Fake) -> String {
    let owner = "136693071363";
    fake.base_image(BaseImage { region: REGION, owner, name: "debian-12", architecture: "x86_64", disk: b"base" })
}

fn run(fake: &Fake, image: &str, more: &[(&str, &str)]) -> Result<String, Refusal> {
    let mut fields = vec![("ImageId", image), ("InstanceType", "m6i.large"), ("MinCount", "1"), ("MaxCount", "1")];
    fields.extend(more);
    ec2(fake, "RunInstances", &fields).map(|xml| text(&xml, "instanceId").to_owned())
}

fn state(fake: &Fake, instance: &str) -> String {
    let xml = ec2(fake, "DescribeInstances", &[("InstanceId.1", instance)]).unwrap();
    let from = xml.find("<instanceState>").unwrap();
    text(&xml[from..], "name").to_owned()
}

#[test]
fn a_zone_without_machines_refuses_and_another_has_some() {
    let fake = Fake::start();
    let image = base(&fake);
    let placed = |zone| run(&fake, &image, &[("Placement.AvailabilityZone", zone)]);
    fake.capacity("m6i.large", "us-east-1a", 0);
    fake.capacity("m6i.large", "us-east-1b", 1);
    assert_eq!(code(placed("us-east-1a")), "InsufficientInstanceCapacity");
    assert_eq!(code(placed("us-east-1b")), "done");
    assert_eq!(code(placed("us-east-1b")), "InsufficientInstanceCapacity");
    assert_eq!(code(run(&fake, &image, &[])), "done", "the third zone has enough");
}

#[test]
fn a_guest_that_shuts_itself_down_ends_or_stops_as_it_was_launched() {
    let fake = Fake::start();
    let image = base(&fake);
    for (behaviour, wanted) in [("terminate", "terminated"), ("stop", "stopped")] {
        let instance = run(&fake, &image, &[("InstanceInitiatedShutdownBehavior", behaviour)]).unwrap();
        fake.power_off(Fake::ACCOUNT, REGION, &instance);
        assert_eq!(state(&fake, &instance), wanted);
    }
    let spot = run(&fake, &image, &[("InstanceMarketOptions.MarketType", "spot")]).unwrap();
    assert_eq!(code(ec2(&fake, "StopInstances", &[("InstanceId.1", &spot)])), "UnsupportedOperation");
    fake.reclaim(Fake::ACCOUNT, REGION, &spot);
    assert_eq!(state(&fake, &spot), "terminated");
}

#[test]
fn a_volume_that_is_not_to_go_with_its_instance_stays_and_is_seen() {
    let fake = Fake::start();
    let image = base(&fake);
    let keep =
        [("BlockDeviceMapping.1.DeviceName", "/dev/xvda"), ("BlockDeviceMapping.1.Ebs.DeleteOnTermination", "false")];
    for (more, left) in [(&[][..], 0), (&keep[..], 1)] {
        let instance = run(&fake, &image, more).unwrap();
        ec2(&fake, "TerminateInstances", &[("InstanceId.1", &instance)]).unwrap();
        let volumes = fake.living().iter().filter(|living| living.kind == "volume").count();
        assert_eq!(volumes, left);
    }
}

/// A template of two versions and a group of three instances launched from `version`.
fn group(fake: &Fake, version: &str) {
    let image = base(fake);
    let data = ("LaunchTemplateData.ImageId", image.as_str());
    ec2(fake, "CreateLaunchTemplate", &[("LaunchTemplateName", GROUP), data]).unwrap();
    ec2(fake, "CreateLaunchTemplateVersion", &[("LaunchTemplateName", GROUP), data]).unwrap();
    let fields = [
        ("AutoScalingGroupName", GROUP),
        ("MinSize", "3"),
        ("MaxSize", "6"),
        ("LaunchTemplate.LaunchTemplateName", GROUP),
        ("LaunchTemplate.Version", version),
    ];
    scaling(fake, "CreateAutoScalingGroup", &fields).unwrap();
}

fn scaling(fake: &Fake, action: &str, fields: &[(&str, &str)]) -> Result<String, Refusal> {
    fake.autoscaling(Fake::ACCOUNT, REGION, action, fields)
}

fn refresh(fake: &Fake, auto_rollback: &str) -> Result<String, Refusal> {
    let fields = [
        ("AutoScalingGroupName", GROUP),
        ("DesiredConfiguration.LaunchTemplate.LaunchTemplateName", GROUP),
        ("DesiredConfiguration.LaunchTemplate.Version", "2"),
        ("Preferences.AutoRollback", auto_rollback),
    ];
    scaling(fake, "StartInstanceRefresh", &fields)
}

fn status(fake: &Fake) -> String {
    let xml = scaling(fake, "DescribeInstanceRefreshes", &[("AutoScalingGroupName", GROUP)]).unwrap();
    text(&xml, "Status").to_owned()
}

/// The version of the group, then those of its instances, sorted.
fn versions(fake: &Fake) -> Vec<String> {
    let xml = scaling(fake, "DescribeAutoScalingGroups", &[]).unwrap();
    let mut all: Vec<String> =
        xml.split("<Version>").skip(1).map(|rest| rest[..rest.find('<').unwrap()].to_owned()).collect();
    all[1..].sort();
    all
}

#[test]
fn a_refresh_replaces_instances_and_then_the_group_launches_the_new_version() {
    let fake = Fake::start();
    group(&fake, "1");
    refresh(&fake, "false").unwrap();
    assert_eq!(status(&fake), "Pending");
    fake.replace_instances(Fake::ACCOUNT, REGION, GROUP, 2);
    assert_eq!(
        (status(&fake).as_str(), versions(&fake)),
        ("InProgress", ["1", "1", "2", "2"].map(str::to_owned).to_vec())
    );
    fake.replace_instances(Fake::ACCOUNT, REGION, GROUP, 9);
    assert_eq!((status(&fake).as_str(), versions(&fake)), ("Successful", ["2"; 4].map(str::to_owned).to_vec()));
}

#[test]
fn a_refresh_turns_back_when_told_or_when_it_fails_and_was_told_to() {
    for by_itself in [true, false] {
        let fake = Fake::start();
        group(&fake, "1");
        refresh(&fake, if by_itself { "true" } else { "false" }).unwrap();
        fake.replace_instances(Fake::ACCOUNT, REGION, GROUP, 1);
        if by_itself {
            fake.fail_refresh(Fake::ACCOUNT, REGION, GROUP, "unhealthy");
        } else {
            scaling(&fake, "RollbackInstanceRefresh", &[("AutoScalingGroupName", GROUP)]).unwrap();
        }
        assert_eq!(status(&fake), "RollbackInProgress");
        fake.replace_instances(Fake::ACCOUNT, REGION, GROUP, 1);
        assert_eq!(
            (status(&fake).as_str(), versions(&fake)),
            ("RollbackSuccessful", ["1"; 4].map(str::to_owned).to_vec())
        );
    }
}

#[test]
fn a_group_that_follows_the_latest_version_cannot_be_rolled_back() {
    let fake = Fake::start();
    group(&fake, "$Latest");
    assert_eq!(code(refresh(&fake, "true")), "ValidationError");
    refresh(&fake, "false").unwrap();
    let rollback = scaling(&fake, "RollbackInstanceRefresh", &[("AutoScalingGroupName", GROUP)]);
    assert_eq!(code(rollback), "IrreversibleInstanceRefresh");
}
