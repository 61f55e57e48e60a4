//! Where the sealed image goes.

use std::collections::BTreeMap;

use super::parsed;
use crate::{
    ChannelName,
    keys::{AMI_REGION, AMI_TARGET, PUBLISH, REGISTRY},
    node::Report,
    plan::{AmiRegion, AmiTarget, Publish},
    shape::Section,
};

/// `None` when there is a mistake.
pub(super) fn publish(report: &mut Report, root: Section<'_>) -> Option<Publish> {
    let section = root.section("publish", PUBLISH);
    let registry = section.section("registry", REGISTRY);
    let before = report.found.len();
    let ami = section.has("ami").then(|| ami(report, section.section("ami", AMI_TARGET)));
    let publish = Publish { registry: registry.bool("enabled")?, placement: registry.bool("placement")?, ami: None };
    if let Some(node) = section.node("ami").filter(|_| !publish.registry) {
        let help = "take `enabled = false` out of `[publish.registry]`";
        report.error_with_help(
            node.at,
            "AMIs are made of a version in the registry, and this image is not published",
            help,
        );
    }
    let ami = match ami {
        None => None,
        Some(target) => Some(target?),
    };
    (report.found.len() == before).then_some(Publish { ami, ..publish })
}

fn ami(report: &mut Report, section: Section<'_>) -> Option<AmiTarget> {
    let public = section.bool("public")?;
    let mut regions = BTreeMap::new();
    for (name, entry) in section.table("regions") {
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if !name.contains('-') || !name.chars().all(plain) {
            report.error(entry.key, format!("`{name}` is not a region such as `eu-west-1`"));
        }
        let region = Section::new(&entry.node, AMI_REGION);
        let kms_key = region.string("kms_key");
        let at = region.node("kms_key").map_or(entry.key, |node| node.at);
        if kms_key.as_ref().is_some_and(|key| !key.starts_with("arn:")) {
            report.error_with_help(
                at,
                "`kms_key` is not the ARN of a key",
                "`arn:aws:kms:eu-west-1:111122223333:key/..`",
            );
        } else if kms_key.is_some() && public {
            report.error(at, "an AMI that a key encrypts cannot be public");
        }
        regions.insert(name.clone(), AmiRegion { kms_key, required: region.bool("required")? });
    }
    if let Some(node) = section.node("regions").filter(|node| node.as_table().is_some_and(BTreeMap::is_empty)) {
        report.error(node.at, "`[publish.ami]` names no region");
    }
    let channel = parsed(report, section, "channel", str::parse::<ChannelName>);
    if let (Some(node), Some(name)) = (section.node("channel"), channel.as_ref().filter(|name| !name.can_be_made())) {
        let help = "`latest` always means the newest version, and a channel begins with a letter";
        report.error_with_help(node.at, format!("a channel cannot be called `{name}`"), help);
    }
    check_grantees(report, section);
    check_parameter(report, section);
    Some(AmiTarget {
        regions,
        share_with: section.strings("share_with"),
        public,
        deprecate_after: section.duration("deprecate_after").map(|duration| duration.as_secs()),
        protect: section.bool("protect")?,
        tags: super::ec2::tags(report, section),
        channel,
        parameter: section.string("parameter"),
    })
}

fn check_grantees(report: &mut Report, section: Section<'_>) {
    for node in section.list("share_with") {
        let Some(whom) = node.text() else { continue };
        let account = whom.len() == 12 && whom.bytes().all(|byte| byte.is_ascii_digit());
        if !account && !whom.contains(":organizations::") {
            let help = "an account has twelve digits, in quotes; organisations and units have an ARN";
            report.error_with_help(node.at, format!("`{whom}` is nobody who could launch an AMI"), help);
        }
    }
}

fn check_parameter(report: &mut Report, section: Section<'_>) {
    let Some(node) = section.node("parameter") else { return };
    let legal = |c: char| c.is_ascii_alphanumeric() || "/._-".contains(c);
    let Some(name) = node.text() else { return };
    let root = name.trim_start_matches('/').to_ascii_lowercase();
    if !name.chars().all(legal) || root.is_empty() || root.starts_with("aws") || root.starts_with("ssm") {
        let help = "letters, digits and `/._-`, not beginning with `aws` or `ssm`: `/images/web/stable`";
        report.error_with_help(node.at, format!("`{name}` is not the name of a parameter"), help);
    }
}
