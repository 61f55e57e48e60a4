//! The attributes of an image that can change: who may launch it, its description, IMDS.

use crate::{
    ec2::{images::Grantee, snapshots::Snapshot},
    form::Form,
    refusal::Refusal,
    world::World,
    xml::Xml,
};

/// The names of a grantee in requests and in replies.
const GRANTEES: [(&str, &str, &str); 4] = [
    ("UserId", "UserId", "userId"),
    ("Group", "UserGroup", "group"),
    ("OrganizationArn", "OrganizationArn", "organizationArn"),
    ("OrganizationalUnitArn", "OrganizationalUnitArn", "organizationalUnitArn"),
];

pub(crate) fn modify(world: &mut World, mut form: Form) -> Result<(), Refusal> {
    let id = form.required("ImageId")?;
    let attribute = form.text("Attribute");
    let operation = form.choice("OperationType", &["add", "remove"])?;
    let value = form.text("Value");
    let mut description = form.text("Description.Value");
    let imds = form.text("ImdsSupport.Value");
    let mut add = grantees(&mut form, "LaunchPermission.Add")?;
    let mut remove = grantees(&mut form, "LaunchPermission.Remove")?;
    for (_, name, kind) in GRANTEES {
        for value in form.list(name) {
            let list = if operation.as_deref() == Some("remove") { &mut remove } else { &mut add };
            list.push(grantee(kind, value)?);
        }
    }
    form.finish()?;
    match attribute.as_deref() {
        None | Some("launchPermission") if value.is_none() => {}
        Some("description") => description = description.or(value),
        Some("imdsSupport" | "launchPermission") | None => {
            return Err(Refusal::client("InvalidParameterCombination", "Value belongs to another attribute"));
        }
        Some(other) => return Err(Refusal::invalid(format!("The attribute {other} cannot be modified"))),
    }
    if add.is_empty() && remove.is_empty() && description.is_none() && imds.is_none() {
        return Err(Refusal::client("InvalidParameterCombination", "No attributes specified."));
    }
    if imds.as_deref().is_some_and(|imds| imds != "v2.0") {
        return Err(Refusal::invalid("Value for parameter imdsSupport is invalid: v2.0 is the only one"));
    }
    let snapshots: Vec<_> = world.own_image(&id)?.snapshots().map(str::to_owned).collect();
    let here = world.here();
    let roots_own = snapshots.iter().any(|id| here.snapshots.get(id).is_some_and(Snapshot::has_own_key));
    let image = world.own_image(&id)?;
    if !image.is_available() {
        let message = format!("The image {id} is in the state {}", image.state());
        return Err(Refusal::client("InvalidAMIID.Unavailable", message));
    }
    let to_all = add.iter().any(|(kind, _)| *kind == "group");
    if to_all && image.mappings.iter().any(|mapping| mapping.ebs.as_ref().is_some_and(|ebs| ebs.encrypted)) {
        let message = "Images with encrypted snapshots cannot be made public";
        return Err(Refusal::client("InvalidParameter", message));
    }
    let accounts = add.iter().any(|(kind, _)| *kind != "group");
    if accounts && roots_own {
        let message = "Images with snapshots encrypted with the EBS default key cannot be shared";
        return Err(Refusal::client("OperationNotPermitted", message));
    }
    image.launch.extend(add);
    image.launch.retain(|grantee| !remove.contains(grantee));
    if let Some(description) = description {
        image.description = description;
    }
    image.imds = imds.or_else(|| image.imds.take());
    Ok(())
}

fn grantees(form: &mut Form, name: &str) -> Result<Vec<Grantee>, Refusal> {
    let mut all = Vec::new();
    for at in form.indexed(name) {
        for (field, _, kind) in GRANTEES {
            if let Some(value) = form.text(&format!("{at}.{field}")) {
                all.push(grantee(kind, value)?);
            }
        }
    }
    Ok(all)
}

fn grantee(kind: &'static str, value: String) -> Result<Grantee, Refusal> {
    let legal = match kind {
        "userId" => is_account(&value),
        "group" => value == "all",
        _ => value.starts_with("arn:aws:organizations::"),
    };
    if legal {
        return Ok((kind, value));
    }
    let message = format!("Invalid attribute item value \"{value}\" for {kind} item type.");
    Err(Refusal::client("InvalidAMIAttributeItemValue", message))
}

pub(crate) fn is_account(text: &str) -> bool {
    text.len() == 12 && text.bytes().all(|byte| byte.is_ascii_digit())
}

pub(crate) fn describe(world: &mut World, mut form: Form, xml: &mut Xml) -> Result<(), Refusal> {
    let (id, attribute) = (form.required("ImageId")?, form.required("Attribute")?);
    form.finish()?;
    let image = world.own_image(&id)?;
    xml.text("imageId", &id);
    let mut value = |name: &str, value: Option<&str>| {
        xml.node(name, |xml| {
            xml.maybe("value", value);
        });
    };
    match attribute.as_str() {
        "description" => value("description", Some(&image.description)),
        "bootMode" => value("bootMode", image.boot_mode.as_deref()),
        "tpmSupport" => value("tpmSupport", image.tpm.as_deref()),
        "imdsSupport" => value("imdsSupport", image.imds.as_deref()),
        "uefiData" => value("uefiData", image.uefi_data.as_deref()),
        "sriovNetSupport" => value("sriovNetSupport", image.sriov.as_deref()),
        "deregistrationProtection" => value("deregistrationProtection", Some(image.protection.name())),
        "launchPermission" => {
            xml.items("launchPermission", &image.launch, |xml, (kind, value)| {
                xml.text(kind, value);
            });
        }
        "blockDeviceMapping" => {
            xml.items("blockDeviceMapping", &image.mappings, |xml, mapping| mapping.write(xml));
        }
        other => return Err(Refusal::invalid(format!("The fake does not know the attribute {other}"))),
    }
    Ok(())
}
