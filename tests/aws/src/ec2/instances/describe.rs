//! What EC2 says of instances.

use std::sync::Arc;

use base64::{Engine as _, prelude::BASE64_STANDARD as BASE64};

use crate::{
    ec2::{
        filters::{Filters, Page},
        instances::Instance,
        names::{check, not_found},
        tags,
        volumes::Volume,
    },
    form::Form,
    machines::Machines,
    refusal::Refusal,
    world::{Region, Tags, World},
    xml::Xml,
};

const FILTERS: [&str; 15] = [
    "availability-zone",
    "client-token",
    "image-id",
    "instance-id",
    "instance-lifecycle",
    "instance-state-code",
    "instance-state-name",
    "instance-type",
    "instance.group-id",
    "key-name",
    "owner-id",
    "private-ip-address",
    "reservation-id",
    "subnet-id",
    "vpc-id",
];

/// Everything that a reply says of an instance.
struct Shown {
    instance: Instance,
    volumes: Vec<Volume>,
    tags: Tags,
    /// Ids and names.
    groups: Vec<(String, String)>,
}

impl Shown {
    fn of(here: &Region, id: &str) -> Option<Self> {
        let instance = here.instances.get(id)?.clone();
        let name =
            |group: &String| here.groups.get(group).map_or_else(|| "default".to_owned(), |group| group.name.clone());
        Some(Self {
            volumes: instance.volumes.iter().filter_map(|volume| here.volumes.get(volume).cloned()).collect(),
            tags: here.tags(id),
            groups: instance.groups.iter().map(|group| (group.clone(), name(group))).collect(),
            instance,
        })
    }
}

fn field(instance: &Instance, account: &str, name: &str) -> Vec<String> {
    let value = match name {
        "availability-zone" => &instance.zone,
        "client-token" => return instance.token.clone().into_iter().collect(),
        "image-id" => &instance.image,
        "instance-id" => &instance.id,
        "instance-lifecycle" => return instance.spot.then(|| "spot".to_owned()).into_iter().collect(),
        "instance-state-code" => return vec![instance.state().0.to_string()],
        "instance-state-name" => instance.state().1,
        "instance-type" => &instance.instance_type,
        "instance.group-id" => return instance.groups.clone(),
        "key-name" => return instance.key.clone().into_iter().collect(),
        "owner-id" => account,
        "private-ip-address" => &instance.address,
        "reservation-id" => &instance.reservation,
        "subnet-id" => &instance.subnet,
        _ => &instance.vpc,
    };
    vec![value.to_owned()]
}

/// The instances that a request means, each looked at once.
fn found(world: &mut World, form: &mut Form, known: &[&str]) -> Result<(Vec<Shown>, Option<String>), Refusal> {
    let ids = form.list("InstanceId");
    let filters = Filters::of(form, known)?;
    let page = Page::of(form, !ids.is_empty(), world.pace.page)?;
    std::mem::take(form).finish()?;
    if !ids.is_empty() {
        for id in &ids {
            check(id, "i")?;
        }
    }
    let account = world.account.clone();
    let all: Vec<String> = world.here().instances.keys().cloned().collect();
    let mut found = Vec::new();
    for id in all {
        let Some(shown) = Shown::of(world.here(), &id) else { continue };
        let wanted = ids.is_empty() || ids.contains(&id);
        if wanted && filters.admit(&shown.tags, |name| field(&shown.instance, &account, name)) && world.sees(&id) {
            found.push(shown);
        }
    }
    let missing = |id: &&String| filters.is_empty() && !found.iter().any(|shown| shown.instance.id == **id);
    if let Some(missing) = ids.iter().find(missing) {
        return Err(not_found(missing));
    }
    let (shown, next) = page.cut(found);
    for shown in &shown {
        if let Some(instance) = world.here().instances.get_mut(&shown.instance.id) {
            instance.progress.look();
        }
    }
    Ok((shown, next))
}

pub(crate) fn describe(world: &mut World, mut form: Form, xml: &mut Xml) -> Result<(), Refusal> {
    let (shown, next) = found(world, &mut form, &FILTERS)?;
    let account = world.account.clone();
    xml.items("reservationSet", &shown, |xml, shown| {
        xml.text("reservationId", &shown.instance.reservation).text("ownerId", &account).items(
            "groupSet",
            [(); 0],
            |_, ()| {},
        );
        xml.items("instancesSet", [shown], write);
    });
    xml.maybe("nextToken", next);
    Ok(())
}

/// The reply of `RunInstances`.
pub(super) fn write_reservation(world: &mut World, ids: &[String], xml: &mut Xml) {
    let account = world.account.clone();
    let here = world.here();
    let shown: Vec<Shown> = ids.iter().filter_map(|id| Shown::of(here, id)).collect();
    xml.maybe("reservationId", shown.first().map(|shown| shown.instance.reservation.clone()));
    xml.text("ownerId", account).items("groupSet", [(); 0], |_, ()| {});
    xml.items("instancesSet", &shown, write);
}

fn write_state(xml: &mut Xml, name: &str, (code, state): (u8, &str)) {
    xml.node(name, |xml| {
        xml.text("code", code).text("name", state);
    });
}

fn write(xml: &mut Xml, shown: &Shown) {
    let Shown { instance, volumes, tags, groups } = shown;
    xml.text("instanceId", &instance.id).text("imageId", &instance.image);
    write_state(xml, "instanceState", instance.state());
    let over = instance.is_over();
    let name = if over { String::new() } else { format!("ip-{}.ec2.internal", instance.address.replace('.', "-")) };
    xml.text("privateDnsName", &name).text("dnsName", if over { "" } else { &instance.address });
    xml.maybe("keyName", instance.key.as_ref()).text("amiLaunchIndex", 0);
    xml.text("instanceType", &instance.instance_type).text("launchTime", instance.launched.rfc3339());
    xml.node("placement", |xml| {
        xml.text("availabilityZone", &instance.zone).text("groupName", "").text("tenancy", "default");
    });
    xml.node("monitoring", |xml| {
        xml.text("state", "disabled");
    });
    if !over {
        xml.text("subnetId", &instance.subnet).text("vpcId", &instance.vpc);
        xml.text("privateIpAddress", &instance.address);
        // A public address comes with the running state.
        xml.maybe("ipAddress", (instance.state().1 == "running").then_some(&instance.address));
        xml.items("groupSet", groups, |xml, (id, name)| {
            xml.text("groupId", id).text("groupName", name);
        });
    }
    if let Some(reason) = instance.reason {
        xml.node("stateReason", |xml| {
            xml.text("code", reason).text("message", format!("{reason}: it ended"));
        });
    }
    xml.text("architecture", &instance.architecture).text("rootDeviceType", "ebs");
    xml.text("rootDeviceName", &instance.root_device).text("virtualizationType", "hvm").text("hypervisor", "xen");
    xml.items("blockDeviceMapping", volumes, |xml, volume| {
        xml.text("deviceName", &volume.device);
        xml.node("ebs", |xml| {
            xml.text("volumeId", &volume.id).text("status", "attached").text("deleteOnTermination", volume.delete);
        });
    });
    xml.maybe("clientToken", instance.token.as_ref()).maybe("instanceLifecycle", instance.spot.then_some("spot"));
    xml.text("ebsOptimized", false).text("enaSupport", true);
    if let Some(profile) = &instance.profile {
        xml.node("iamInstanceProfile", |xml| {
            xml.text("arn", profile);
        });
    }
    xml.node("metadataOptions", |xml| {
        let metadata = &instance.metadata;
        xml.text("state", "applied").text("httpTokens", &metadata.tokens).text("httpEndpoint", &metadata.endpoint);
        xml.text("httpPutResponseHopLimit", metadata.hops);
    });
    tags::write(xml, tags);
}

pub(crate) fn status(world: &mut World, mut form: Form, xml: &mut Xml) -> Result<(), Refusal> {
    let all = form.flag("IncludeAllInstances")? == Some(true);
    let (shown, next) = found(world, &mut form, &["instance-state-name", "availability-zone"])?;
    let shown = shown.iter().filter(|shown| all || shown.instance.state().1 == "running");
    xml.items("instanceStatusSet", shown, |xml, shown| {
        let state = shown.instance.state();
        let status = if state.1 == "running" { "ok" } else { "not-applicable" };
        xml.text("instanceId", &shown.instance.id).text("availabilityZone", &shown.instance.zone);
        write_state(xml, "instanceState", state);
        for name in ["systemStatus", "instanceStatus"] {
            xml.node(name, |xml| {
                xml.text("status", status);
            });
        }
    });
    xml.maybe("nextToken", next);
    Ok(())
}

pub(crate) fn attribute(world: &mut World, mut form: Form, xml: &mut Xml) -> Result<(), Refusal> {
    let (id, attribute) = (form.required("InstanceId")?, form.required("Attribute")?);
    form.finish()?;
    world.check_instances(std::slice::from_ref(&id))?;
    let instance = world.here().instances.get(&id).ok_or_else(|| not_found(&id))?;
    let (name, value) = match attribute.as_str() {
        "userData" => ("userData", instance.user_data.clone()),
        "instanceType" => ("instanceType", Some(instance.instance_type.clone())),
        "disableApiTermination" => ("disableApiTermination", Some(instance.protected.to_string())),
        "instanceInitiatedShutdownBehavior" => {
            let behaviour = if instance.ends_on_shutdown { "terminate" } else { "stop" };
            ("instanceInitiatedShutdownBehavior", Some(behaviour.to_owned()))
        }
        other => return Err(Refusal::invalid(format!("The fake does not know the attribute {other}"))),
    };
    xml.text("instanceId", &id).node(name, |xml| {
        xml.maybe("value", value);
    });
    Ok(())
}

pub(crate) fn console(
    world: &mut World,
    mut form: Form,
    xml: &mut Xml,
    machines: &Arc<dyn Machines>,
) -> Result<(), Refusal> {
    let id = form.required("InstanceId")?;
    form.flag("Latest")?;
    form.finish()?;
    world.check_instances(std::slice::from_ref(&id))?;
    let output = machines.console(&id);
    xml.text("instanceId", &id).text("timestamp", world.now().rfc3339());
    xml.maybe("output", Some(BASE64.encode(&output)).filter(|_| !output.is_empty()));
    Ok(())
}
