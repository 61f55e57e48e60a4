//! AMIs and instances of a plan.

use std::{collections::BTreeMap, net::Ipv4Addr};

use super::World;
use crate::{
    ByteSize, ImageName,
    facts::FactError,
    keys::{AMI, BUILDER, EC2},
    node::{Node, Report},
    plan::{Address, Ami, AmiBase, AmiWish, Builder, Ec2Machine, Which, reserved_tag},
    shape::Section,
    template::load::report_fact,
};

/// The largest volume of gp3.
const MOST_VOLUME: ByteSize = ByteSize::gib(64 << 10);
/// EC2 takes 50; kiln has up to seven of its own, and takes one more for what it withdraws.
const MOST_TAGS: usize = 40;
/// Owners with a name instead of a number.
const OWNERS: [&str; 3] = ["amazon", "aws-marketplace", "self"];

/// The `[builder.ec2]` of the template, if it has one.
pub(super) fn section(root: Section<'_>) -> Option<Section<'_>> {
    root.section("builder", BUILDER).node("ec2").map(|node| Section::new(node, EC2))
}

/// `[base.ami]`
pub(super) fn base(report: &mut Report, root: Section<'_>, node: &Node, world: &World<'_>) -> Option<AmiBase> {
    let Some(builder) = section(root) else {
        let help = "add `[builder.ec2]` with `region` and `instance_types`";
        report.error_with_help(node.at, "only the builder `ec2` can start from an AMI", help);
        return None;
    };
    let wanted = wish(report, node)?;
    found(report, node, builder.string("region")?, wanted, world)
}

/// `base.image` on the builder `ec2`: the AMI that the version has.
pub(super) fn image(
    report: &mut Report,
    builder: Section<'_>,
    node: &Node,
    (image, reference): (ImageName, Option<String>),
    world: &World<'_>,
) -> Option<AmiBase> {
    found(report, node, builder.string("region")?, AmiWish::Image { image, reference }, world)
}

fn found(report: &mut Report, node: &Node, region: String, wanted: AmiWish, world: &World<'_>) -> Option<AmiBase> {
    let found = match &wanted {
        AmiWish::Id { id, owner: None } => Ok(Some(Ami { ami: id.clone(), owner: None, name: None, parent: None })),
        _ => world.facts.ami(&region, &wanted),
    };
    let found = found.map_err(|error: FactError| report_fact(report, node.at, &error)).ok()?;
    Some(AmiBase { region, wanted, found })
}

fn wish(report: &mut Report, node: &Node) -> Option<AmiWish> {
    let section = Section::new(node, AMI);
    let owner = section.string("owner");
    if let (Some(node), Some(owner)) = (section.node("owner"), &owner)
        && !OWNERS.contains(&owner.as_str())
        && !(owner.len() == 12 && owner.bytes().all(|byte| byte.is_ascii_digit()))
    {
        let help = "write the twelve digits of an account, `amazon`, `aws-marketplace` or `self`";
        report.error_with_help(node.at, format!("`{}` is no owner", owner.escape_debug()), help);
        return None;
    }
    let given = ["id", "name", "parameter"].map(|key| section.node(key));
    if let [Some(_), Some(second), _] | [Some(_), None, Some(second)] | [None, Some(_), Some(second)] = given {
        report.error(second.at, "the AMI is named twice; write one of `id`, `name` and `parameter`");
        return None;
    }
    match given {
        [Some(node), ..] => {
            let id = node.text()?;
            is_id(report, node, &id, "ami").then_some(AmiWish::Id { id, owner })
        }
        [_, Some(node), _] => {
            let Some(owner) = owner else {
                let help = "add `owner = \"..\"`: the publisher's account number, or `amazon`";
                let message = "an AMI by its name needs its `owner`: anybody can publish one of the same name";
                report.error_with_help(node.at, message, help);
                return None;
            };
            Some(AmiWish::Name { pattern: node.text()?, owner })
        }
        [_, _, Some(node)] => {
            let path = node.text()?;
            if !path.starts_with('/') {
                report.error(node.at, "the path of a parameter begins with `/`");
                return None;
            }
            Some(AmiWish::Parameter { path, owner })
        }
        [None, None, None] => {
            let help = "add `id`, `name` with its `owner`, or `parameter`";
            report.error_with_help(node.at, "`[base.ami]` names no AMI", help);
            None
        }
    }
}

/// `ami-0123456789abcdef0`, and the shorter ids of old.
fn is_id(report: &mut Report, node: &Node, id: &str, kind: &str) -> bool {
    let digits = id.strip_prefix(kind).and_then(|rest| rest.strip_prefix('-')).unwrap_or_default();
    let right = [8, 17].contains(&digits.len()) && digits.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f'));
    if !right {
        let message = format!("`{}` is no id; one looks like `{kind}-0123456789abcdef0`", id.escape_debug());
        report.error(node.at, message);
    }
    right
}

/// `[builder.ec2]`
pub(super) fn builder(report: &mut Report, section: Section<'_>) -> Option<Builder> {
    let instance_types = section.strings("instance_types");
    if let Some(node) = section.node("instance_types").filter(|_| instance_types.is_empty()) {
        report.error(node.at, "`instance_types` is empty");
    }
    let region = named(report, section, "region", |c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
    let volume = volume(report, section);
    let subnet = which(report, section, ("subnet", "subnet_filter"), "subnet");
    let source = source(report, section);
    let proxy_command = proxy_command(report, section);
    let vpc = which(report, section, ("vpc", "vpc_filter"), "vpc");
    Some(Builder::Ec2(Ec2Machine {
        region: region?,
        instance_types,
        zones: section.strings("zones"),
        subnet: subnet?,
        vpc: vpc?,
        spot: section.bool("spot")?,
        volume: volume?,
        kms_key: section.string("kms_key"),
        profile: section.string("profile"),
        tags: tags(report, section),
        user_data: section.string("user_data"),
        ssh_port: section.integer("ssh_port")?,
        address: if section.string("address")? == "private" { Address::Private } else { Address::Public },
        source: source?,
        proxy_command: proxy_command?,
        lifetime: section.duration("lifetime")?,
        boot_timeout: section.duration("boot_timeout")?,
        shutdown_timeout: section.duration("shutdown_timeout")?,
    }))
}

/// Tags of the template's own, in the limits of EC2.
pub(super) fn tags(report: &mut Report, section: Section<'_>) -> BTreeMap<String, String> {
    let mut tags = BTreeMap::new();
    for (name, entry) in section.table("tags") {
        let value = entry.node.text().unwrap_or_default();
        if let Some(prefix) = reserved_tag(name) {
            report.error(entry.key, format!("no tag of your own begins with `{prefix}`"));
        } else if name.is_empty() || name.chars().count() > 127 || value.chars().count() > 255 {
            report.error(entry.key, "a tag has 1 to 127 characters, and its value at most 255");
        }
        tags.insert(name.clone(), value);
    }
    if let Some(node) = section.node("tags").filter(|_| tags.len() > MOST_TAGS) {
        report.error(node.at, format!("there are more than {MOST_TAGS} tags, and EC2 takes 50 with kiln's own"));
    }
    tags
}

/// A text of these characters alone.
fn named(report: &mut Report, section: Section<'_>, key: &str, plain: impl Fn(char) -> bool) -> Option<String> {
    let node = section.node(key)?;
    let text = node.text()?;
    if text.is_empty() || !text.chars().all(plain) {
        report.error(node.at, format!("`{}` is no {key}", text.escape_debug()));
        return None;
    }
    Some(text)
}

/// A network in which not everybody is. `None` on a mistake.
#[expect(clippy::option_option, reason = "a mistake is not the same as nothing said")]
fn source(report: &mut Report, section: Section<'_>) -> Option<Option<String>> {
    let Some(node) = section.node("source") else { return Some(None) };
    let text = node.text()?;
    let network = text.split_once('/').map(|(address, bits)| (address.parse::<Ipv4Addr>(), bits.parse::<u8>()));
    match network {
        Some((Ok(_), Ok(1..=32))) => Some(Some(text)),
        Some((Ok(_), Ok(0))) => {
            report.error(node.at, "`source` is the whole internet; an SSH port is not opened to that");
            None
        }
        _ => {
            report.error(node.at, format!("`{}` is no IPv4 network such as `198.51.100.7/32`", text.escape_debug()));
            None
        }
    }
}

/// One line, with nothing after a `%` but what is replaced. `None` on a mistake.
#[expect(clippy::option_option, reason = "a mistake is not the same as nothing said")]
fn proxy_command(report: &mut Report, section: Section<'_>) -> Option<Option<String>> {
    let Some(node) = section.node("proxy_command") else { return Some(None) };
    let text = node.text()?;
    if text.trim().is_empty() || text.contains(char::is_control) {
        report.error(node.at, "`proxy_command` must be one line of shell");
        return None;
    }
    let mut rest = text.chars();
    while let Some(c) = rest.next() {
        let token = if c == '%' { rest.next().unwrap_or(' ') } else { '%' };
        if !Ec2Machine::PROXY_TOKENS.contains(&token) {
            let help = "`%h` is the address, `%p` the port, `%i` the instance's id, `%%` a percent sign";
            report.error_with_help(
                node.at,
                format!("`%{}` means nothing in `proxy_command`", token.escape_debug()),
                help,
            );
            return None;
        }
    }
    Some(Some(text))
}

/// `None` on a mistake.
#[expect(clippy::option_option, reason = "a mistake is not the same as nothing said")]
fn volume(report: &mut Report, section: Section<'_>) -> Option<Option<ByteSize>> {
    let Some(node) = section.node("volume") else { return Some(None) };
    let size = section.size("volume")?;
    if size.bytes() % ByteSize::gib(1).bytes() != 0 || size > MOST_VOLUME || size.bytes() == 0 {
        report.error(node.at, format!("`volume` must be whole GiB, at most {MOST_VOLUME}"));
        return None;
    }
    Some(Some(size))
}

fn which(report: &mut Report, section: Section<'_>, (id, filter): (&str, &str), kind: &str) -> Option<Which> {
    match (section.node(id), section.node(filter)) {
        (None, None) => Some(Which::Default),
        (Some(node), None) => {
            let text = node.text()?;
            is_id(report, node, &text, kind).then_some(Which::Id(text))
        }
        (None, Some(_)) => {
            let filters = section.table(filter).filter_map(|(name, entry)| Some((name.clone(), entry.node.text()?)));
            Some(Which::Filters(filters.collect::<BTreeMap<_, _>>()))
        }
        (Some(_), Some(second)) => {
            report.error(second.at, format!("there are both `{id}` and `{filter}`; one is enough"));
            None
        }
    }
}
