//! What a version says: the parameters of `RunInstances`, read from a request and written into a reply.

use std::collections::BTreeSet;

use crate::{form::Form, refusal::Refusal, xml::Xml};

/// What a template may say: what `RunInstances` knows, by the first part of a parameter's name.
const DATA: [&str; 17] = [
    "BlockDeviceMapping",
    "DisableApiTermination",
    "EbsOptimized",
    "IamInstanceProfile",
    "ImageId",
    "InstanceInitiatedShutdownBehavior",
    "InstanceMarketOptions",
    "InstanceType",
    "KeyName",
    "MetadataOptions",
    "Monitoring",
    "NetworkInterface",
    "Placement",
    "SecurityGroup",
    "SecurityGroupId",
    "TagSpecification",
    "UserData",
];

fn root(key: &str) -> &str {
    key.split('.').next().unwrap_or(key)
}

pub(super) fn of(form: &mut Form) -> Result<Form, Refusal> {
    let data = form.under("LaunchTemplateData");
    if let Some((unknown, _)) = data.pairs().find(|(key, _)| !DATA.contains(&root(key))) {
        let message = format!("The parameter LaunchTemplateData.{unknown} is not recognized");
        return Err(Refusal::client("UnknownParameter", message));
    }
    if data.pairs().next().is_none() {
        return Err(Refusal::missing("LaunchTemplateData"));
    }
    Ok(data)
}

/// A request's parameters as the elements of a reply: `Name.1.Field` becomes `nameSet`, `item`, `field`.
pub(super) fn write_data(xml: &mut Xml, within: &str, data: &Form) {
    let names: BTreeSet<&str> = data.pairs().map(|(key, _)| root(key)).collect();
    for name in names {
        let mut inside = data.clone();
        let lower = name[..1].to_ascii_lowercase() + &name[1..];
        if let Some(value) = inside.text(name) {
            xml.text(&lower, value);
            continue;
        }
        let items = inside.indexed(name);
        if items.is_empty() {
            xml.node(&lower, |xml| write_data(xml, name, &inside.under(name)));
            continue;
        }
        let set = if within == "NetworkInterface" && name == "SecurityGroupId" {
            "groupSet".to_owned()
        } else {
            lower + "Set"
        };
        let items: Vec<_> = items.iter().map(|at| (inside.text(at), inside.under(at))).collect();
        xml.items(&set, items, |xml, (value, fields)| match value {
            Some(value) => xml.value(value),
            None => write_data(xml, name, &fields),
        });
    }
}
