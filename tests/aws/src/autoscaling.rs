//! Auto Scaling: groups, and the refresh of their instances, which tests move along.

mod launched;
mod refresh;

use std::collections::BTreeMap;

use self::launched::{Launched, launched};
use crate::{
    form::Form,
    refusal::Refusal,
    server::Answer,
    world::{Tags, World},
    xml::Xml,
};

#[derive(Debug, Clone)]
pub(crate) struct Group {
    name: String,
    template: Launched,
    least: u32,
    most: u32,
    desired: u32,
    zones: Vec<String>,
    subnets: String,
    tags: Tags,
    /// What each instance was launched from.
    instances: BTreeMap<String, Launched>,
    /// The newest last.
    refreshes: Vec<refresh::Refresh>,
}

pub(crate) fn answer(world: &mut World, action: &str, form: Form, request: &str) -> Result<Answer, Refusal> {
    let mut result = Xml::default();
    match action {
        "CreateAutoScalingGroup" => create(world, form),
        "UpdateAutoScalingGroup" => update(world, form),
        "DescribeAutoScalingGroups" => describe(world, form, &mut result),
        "CreateLaunchConfiguration" => configure(world, form),
        "DescribeLaunchConfigurations" => configurations(world, form, &mut result),
        "StartInstanceRefresh" => refresh::start(world, form, &mut result),
        "DescribeInstanceRefreshes" => refresh::describe(world, form, &mut result),
        "CancelInstanceRefresh" => refresh::cancel(world, form, &mut result),
        "RollbackInstanceRefresh" => refresh::rollback(world, form, &mut result),
        _ => Err(Refusal::unknown_action(action)),
    }?;
    let mut xml = Xml::default();
    xml.node(&format!("{action}Response xmlns=\"http://autoscaling.amazonaws.com/doc/2011-01-01/\""), |xml| {
        xml.node(&format!("{action}Result"), |xml| xml.append(&result));
        xml.node("ResponseMetadata", |xml| {
            xml.text("RequestId", request);
        });
    });
    Ok(Answer::new("text/xml", xml.document()))
}

fn invalid(message: impl Into<String>) -> Refusal {
    Refusal::client("ValidationError", message)
}

fn group<'a>(world: &'a mut World, name: &str) -> Result<&'a mut Group, Refusal> {
    let missing = || invalid(format!("AutoScalingGroup name not found - AutoScalingGroup '{name}' not found"));
    world.here().scaling.get_mut(name).ok_or_else(missing)
}

fn create(world: &mut World, mut form: Form) -> Result<(), Refusal> {
    let name = form.required("AutoScalingGroupName")?;
    let template =
        launched(world, &mut form, "")?.ok_or_else(|| invalid("Valid requests must contain a launch template"))?;
    let number = |form: &mut Form, name: &str| form.number(name).map(std::option::Option::unwrap_or_default);
    let (least, most): (u32, u32) = (number(&mut form, "MinSize")?, number(&mut form, "MaxSize")?);
    let desired = form.number("DesiredCapacity")?.unwrap_or(least);
    let zones = form.list("AvailabilityZones.member");
    let subnets = form.text("VPCZoneIdentifier").unwrap_or_default();
    let mut tags = Tags::new();
    for at in form.indexed("Tags.member") {
        tags.insert(form.required(&format!("{at}.Key"))?, form.text(&format!("{at}.Value")).unwrap_or_default());
        form.flag(&format!("{at}.PropagateAtLaunch"))?;
    }
    form.finish()?;
    if world.here().scaling.contains_key(&name) {
        let message = "AutoScalingGroup by this name already exists - A group with the name already exists";
        return Err(Refusal::client("AlreadyExists", message));
    }
    if !(least..=most).contains(&desired) {
        return Err(invalid("Desired capacity must be between the specified min size and max size"));
    }
    let instances = (0..desired).map(|_| (world.id("i"), template.clone())).collect();
    let group = Group {
        name: name.clone(),
        template,
        least,
        most,
        desired,
        zones,
        subnets,
        tags,
        instances,
        refreshes: Vec::new(),
    };
    world.created.push(name.clone());
    world.here().scaling.insert(name, group);
    Ok(())
}

/// What groups launched before there were launch templates; accounts that are new cannot make them any more.
fn configure(world: &mut World, mut form: Form) -> Result<(), Refusal> {
    let (name, image) = (form.required("LaunchConfigurationName")?, form.required("ImageId")?);
    form.required("InstanceType")?;
    form.finish()?;
    world.launchable_image(&image).map_err(|refusal| invalid(refusal.message))?;
    world.created.push(name.clone());
    world.here().configurations.insert(name, image);
    Ok(())
}

fn configurations(world: &mut World, mut form: Form, xml: &mut Xml) -> Result<(), Refusal> {
    let names = form.list("LaunchConfigurationNames.member");
    let most: usize = form.number("MaxRecords")?.unwrap_or(50);
    let token = form.text("NextToken");
    form.finish()?;
    let known = world.here().configurations.iter().filter(|(name, _)| names.is_empty() || names.contains(name));
    let known: Vec<_> = known.collect();
    let from: usize = token.and_then(|token| token.parse().ok()).unwrap_or_default();
    let next = (known.len() > from + most).then(|| (from + most).to_string());
    xml.members("LaunchConfigurations", known.into_iter().skip(from).take(most), |xml, (name, image)| {
        xml.text("LaunchConfigurationName", name).text("ImageId", image).text("InstanceType", "t3.small");
        xml.text("CreatedTime", "2026-01-01T00:00:00Z");
    });
    xml.maybe("NextToken", next);
    Ok(())
}

fn update(world: &mut World, mut form: Form) -> Result<(), Refusal> {
    let name = form.required("AutoScalingGroupName")?;
    let template = launched(world, &mut form, "")?;
    let (least, most, desired) = (form.number("MinSize")?, form.number("MaxSize")?, form.number("DesiredCapacity")?);
    form.finish()?;
    let group = group(world, &name)?;
    if template.is_some() && group.refreshes.last().is_some_and(|refresh| refresh.is_active() && refresh.is_desired()) {
        let message = "An active instance refresh with a desired configuration exists. All configuration options derived from the desired configuration are not available for update while the instance refresh is active.";
        return Err(invalid(message));
    }
    group.template = template.unwrap_or_else(|| group.template.clone());
    group.least = least.unwrap_or(group.least);
    group.most = most.unwrap_or(group.most);
    group.desired = desired.unwrap_or(group.desired);
    Ok(())
}

fn describe(world: &mut World, mut form: Form, xml: &mut Xml) -> Result<(), Refusal> {
    let names = form.list("AutoScalingGroupNames.member");
    let most: usize = form.number("MaxRecords")?.unwrap_or(50);
    let token = form.text("NextToken");
    form.finish()?;
    let account = world.account.clone();
    let region = world.region.clone();
    let here = world.here();
    let known: Vec<&Group> =
        here.scaling.values().filter(|group| names.is_empty() || names.contains(&group.name)).collect();
    let from: usize = token.and_then(|token| token.parse().ok()).unwrap_or_default();
    let next = (known.len() > from + most).then(|| (from + most).to_string());
    xml.members("AutoScalingGroups", known.into_iter().skip(from).take(most), |xml, group| {
        xml.text("AutoScalingGroupName", &group.name);
        xml.text(
            "AutoScalingGroupARN",
            format!("arn:aws:autoscaling:{region}:{account}:autoScalingGroup:kiln:autoScalingGroupName/{}", group.name),
        );
        group.template.write(xml);
        xml.text("MinSize", group.least).text("MaxSize", group.most).text("DesiredCapacity", group.desired);
        xml.text("DefaultCooldown", 300).text("HealthCheckType", "EC2").text("CreatedTime", "2026-01-01T00:00:00Z");
        xml.members("AvailabilityZones", &group.zones, super::xml::Xml::value);
        xml.text("VPCZoneIdentifier", &group.subnets);
        xml.members("Instances", &group.instances, |xml, (id, launched)| {
            let zone = group.zones.first().cloned().unwrap_or_else(|| format!("{region}a"));
            xml.text("InstanceId", id).text("AvailabilityZone", zone).text("LifecycleState", "InService");
            xml.text("HealthStatus", "Healthy").text("ProtectedFromScaleIn", false);
            // An instance knows the number that it was launched from.
            let number = here.templates.get(&launched.id).and_then(|template| template.number(Some(&launched.version)));
            let version = number.map_or_else(|| launched.version.clone(), |number| number.to_string());
            Launched { version, mixed: None, ..launched.clone() }.write(xml);
        });
        xml.members("Tags", &group.tags, |xml, (key, value)| {
            xml.text("ResourceId", &group.name).text("ResourceType", "auto-scaling-group");
            xml.text("Key", key).text("Value", value).text("PropagateAtLaunch", false);
        });
    });
    xml.maybe("NextToken", next);
    Ok(())
}
