//! EC2: the Query protocol with XML replies.

pub(crate) mod filters;
pub(crate) mod groups;
pub(crate) mod images;
pub(crate) mod instances;
pub(crate) mod keys;
pub(crate) mod names;
pub(crate) mod network;
pub(crate) mod snapshots;
pub(crate) mod tags;
pub(crate) mod templates;
pub(crate) mod volumes;

use std::sync::Arc;

use crate::{form::Form, machines::Machines, refusal::Refusal, server::Answer, world::World, xml::Xml};

pub(crate) fn answer(
    world: &mut World,
    action: &str,
    form: Form,
    request: &str,
    machines: &Arc<dyn Machines>,
) -> Result<Answer, Refusal> {
    let mut xml = Xml::default();
    xml.text("requestId", request);
    perform(world, action, form, &mut xml, machines)?;
    let mut document = Xml::default();
    document.node(&format!("{action}Response xmlns=\"http://ec2.amazonaws.com/doc/2016-11-15/\""), |document| {
        document.append(&xml);
    });
    Ok(Answer::new("text/xml;charset=UTF-8", document.document()))
}

fn perform(
    world: &mut World,
    action: &str,
    form: Form,
    xml: &mut Xml,
    machines: &Arc<dyn Machines>,
) -> Result<(), Refusal> {
    match action {
        "RegisterImage" => images::register::register(world, form, xml),
        "CopyImage" => images::copy::copy(world, form, xml),
        "CreateImage" => images::create::create(world, form, xml, machines),
        "DescribeImages" => images::describe::describe(world, form, xml),
        "DescribeImageReferences" => images::references::describe(world, form, xml),
        "DescribeImageAttribute" => images::attributes::describe(world, form, xml),
        "ModifyImageAttribute" => images::attributes::modify(world, form),
        "DeregisterImage" => images::lifecycle::deregister(world, form, xml),
        "DisableImage" => images::lifecycle::disable(world, form, xml),
        "EnableImage" => images::lifecycle::enable(world, form, xml),
        "EnableImageDeprecation" => images::lifecycle::deprecate(world, form, xml),
        "DisableImageDeprecation" => images::lifecycle::undeprecate(world, form, xml),
        "EnableImageDeregistrationProtection" => images::lifecycle::protect(world, form, xml),
        "DisableImageDeregistrationProtection" => images::lifecycle::unprotect(world, form, xml),
        "CreateSnapshot" => snapshots::change::create(world, form, xml, machines),
        "CopySnapshot" => snapshots::change::copy(world, form, xml),
        "DescribeSnapshots" => snapshots::describe::describe(world, form, xml),
        "DeleteSnapshot" => snapshots::change::delete(world, form, xml),
        "ModifySnapshotAttribute" => snapshots::change::share(world, form, xml),
        "DescribeSnapshotAttribute" => snapshots::describe::shared(world, form, xml),
        "CreateTags" => tags::create(world, form, xml),
        "DeleteTags" => tags::delete(world, form, xml),
        "DescribeTags" => tags::describe(world, form, xml),
        "ImportKeyPair" => keys::import(world, form, xml),
        "DescribeKeyPairs" => keys::describe(world, form, xml),
        "DeleteKeyPair" => keys::delete(world, form, xml),
        "CreateSecurityGroup" => groups::create(world, form, xml),
        "AuthorizeSecurityGroupIngress" => groups::authorize(world, form, xml),
        "DescribeSecurityGroups" => groups::describe(world, form, xml),
        "DeleteSecurityGroup" => groups::delete(world, form, xml),
        "RunInstances" => instances::run::run(world, form, xml),
        "DescribeInstances" => instances::describe::describe(world, form, xml),
        "DescribeInstanceStatus" => instances::describe::status(world, form, xml),
        "DescribeInstanceAttribute" => instances::describe::attribute(world, form, xml),
        "ModifyInstanceAttribute" => instances::change::modify(world, form, xml),
        "StartInstances" => instances::change::start(world, form, xml),
        "StopInstances" => instances::change::stop(world, form, xml),
        "TerminateInstances" => instances::change::terminate(world, form, xml),
        "GetConsoleOutput" => instances::describe::console(world, form, xml, machines),
        "DeleteVolume" => volumes::delete(world, form, xml),
        "DescribeVolumes" => volumes::describe(world, form, xml),
        "GetEbsEncryptionByDefault" => volumes::encryption(world, form, xml),
        "GetEbsDefaultKmsKeyId" => volumes::default_key(world, form, xml),
        "DescribeVpcs" => network::vpcs(world, form, xml),
        "DescribeSubnets" => network::subnets(world, form, xml),
        "DescribeAvailabilityZones" => network::zones(world, form, xml),
        "DescribeRegions" => network::regions(world, form, xml),
        "DescribeInstanceTypes" => network::types(world, form, xml),
        "DescribeInstanceTypeOfferings" => network::offerings(world, form, xml),
        "CreateLaunchTemplate" => templates::create(world, form, xml),
        "CreateLaunchTemplateVersion" => templates::create_version(world, form, xml),
        "ModifyLaunchTemplate" => templates::modify(world, form, xml),
        "DescribeLaunchTemplates" => templates::describe::describe(world, form, xml),
        "DescribeLaunchTemplateVersions" => templates::describe::describe_versions(world, form, xml),
        "DeleteLaunchTemplate" => templates::delete(world, form, xml),
        "DeleteLaunchTemplateVersions" => templates::delete_versions(world, form, xml),
        _ => Err(Refusal::unknown_action(action)),
    }
}
