//! Security groups and what they let in.

use std::net::IpAddr;

use crate::{
    ec2::{
        filters::{Filters, Page},
        instances::Instance,
        names::{check, not_found},
        tags::{self, specified},
    },
    form::Form,
    refusal::Refusal,
    world::World,
    xml::Xml,
};

#[derive(Debug, Clone)]
pub(crate) struct SecurityGroup {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) description: String,
    pub(crate) vpc: String,
    rules: Vec<Rule>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Rule {
    protocol: String,
    from: i32,
    to: i32,
    cidr: String,
}

impl Rule {
    fn is_v6(&self) -> bool {
        self.cidr.contains(':')
    }
}

impl SecurityGroup {
    pub(crate) fn new(id: String, name: &str, description: String, vpc: &str) -> Self {
        Self { id, name: name.to_owned(), description, vpc: vpc.to_owned(), rules: Vec::new() }
    }
}

pub(crate) fn create(world: &mut World, mut form: Form, xml: &mut Xml) -> Result<(), Refusal> {
    let (name, description) = (form.required("GroupName")?, form.required("GroupDescription")?);
    let vpc = form.text("VpcId");
    let tags = specified(&mut form, &["security-group"])?.remove("security-group").unwrap_or_default();
    form.finish()?;
    let vpc = world.vpc(vpc)?;
    if name.starts_with("sg-") || name.len() > 255 {
        return Err(Refusal::invalid(format!("Invalid value '{name}' for groupName")));
    }
    if world.here().groups.values().any(|group| group.name == name && group.vpc == vpc) {
        let message = format!("The security group '{name}' already exists for VPC '{vpc}'");
        return Err(Refusal::client("InvalidGroup.Duplicate", message));
    }
    let id = world.id("sg");
    xml.text("return", true).text("groupId", &id);
    tags::write(xml, &tags);
    world.note(&id, tags);
    let group = SecurityGroup::new(id.clone(), &name, description, &vpc);
    world.here().groups.insert(id, group);
    Ok(())
}

pub(crate) fn authorize(world: &mut World, mut form: Form, xml: &mut Xml) -> Result<(), Refusal> {
    let id = form.required("GroupId")?;
    let mut rules = Vec::new();
    if form.has("IpProtocol") {
        let cidr = form.required("CidrIp")?;
        rules.push(rule(&mut form, "", cidr)?);
    }
    for at in form.indexed("IpPermissions") {
        let mut cidrs = Vec::new();
        for (ranges, field) in [("IpRanges", "CidrIp"), ("Ipv6Ranges", "CidrIpv6")] {
            for range in form.indexed(&format!("{at}.{ranges}")) {
                cidrs.push(form.required(&format!("{range}.{field}"))?);
                form.text(&format!("{range}.Description"));
            }
        }
        let first = cidrs.first().cloned().ok_or_else(|| Refusal::missing("cidrIp"))?;
        let like = rule(&mut form, &format!("{at}."), first)?;
        for cidr in cidrs {
            rules.push(Rule { cidr, ..like.clone() });
        }
    }
    specified(&mut form, &["security-group-rule"])?;
    form.finish()?;
    check(&id, "sg")?;
    if rules.is_empty() {
        return Err(Refusal::missing("ipPermissions"));
    }
    for rule in &rules {
        check_cidr(&rule.cidr)?;
    }
    if !world.sees(&id) {
        return Err(not_found(&id));
    }
    let group = world.here().groups.get_mut(&id).ok_or_else(|| not_found(&id))?;
    if let Some(known) = rules.iter().find(|rule| group.rules.contains(rule)) {
        let message = format!("the specified rule \"peer: {}, ALLOW\" already exists", known.cidr);
        return Err(Refusal::client("InvalidPermission.Duplicate", message));
    }
    group.rules.extend(rules.clone());
    let numbered = rules.iter().map(|rule| (world.id("sgr"), rule)).collect::<Vec<_>>();
    xml.text("return", true).items("securityGroupRuleSet", numbered, |xml, (rule_id, rule)| {
        xml.text("securityGroupRuleId", rule_id).text("groupId", &id).text("isEgress", false);
        xml.text("ipProtocol", &rule.protocol).text("fromPort", rule.from).text("toPort", rule.to);
        xml.text(if rule.is_v6() { "cidrIpv6" } else { "cidrIpv4" }, &rule.cidr);
    });
    Ok(())
}

fn rule(form: &mut Form, at: &str, cidr: String) -> Result<Rule, Refusal> {
    let protocol = form.required(&format!("{at}IpProtocol"))?;
    let (from, to) = (form.number(&format!("{at}FromPort"))?, form.number(&format!("{at}ToPort"))?);
    if protocol != "-1" && (from.is_none() || to.is_none()) {
        return Err(Refusal::client("MissingParameter", "The request must contain the parameter toPort or fromPort"));
    }
    Ok(Rule { protocol, from: from.unwrap_or(-1), to: to.unwrap_or(-1), cidr })
}

fn check_cidr(cidr: &str) -> Result<(), Refusal> {
    let parsed = cidr.split_once('/').and_then(|(address, bits)| {
        let address: IpAddr = address.parse().ok()?;
        let bits: u8 = bits.parse().ok()?;
        (bits <= if address.is_ipv4() { 32 } else { 128 }).then_some(())
    });
    parsed.ok_or_else(|| Refusal::invalid(format!("CIDR block {cidr} is malformed")))
}

pub(crate) fn describe(world: &mut World, mut form: Form, xml: &mut Xml) -> Result<(), Refusal> {
    let (ids, names) = (form.list("GroupId"), form.list("GroupName"));
    let filters = Filters::of(&mut form, &["group-id", "group-name", "vpc-id", "description"])?;
    let page = Page::of(&mut form, !(ids.is_empty() && names.is_empty()), world.pace.page)?;
    form.finish()?;
    let all: Vec<SecurityGroup> = world.here().groups.values().cloned().collect();
    let mut found = Vec::new();
    for group in all {
        let tags = world.here().tags(&group.id);
        let field = |name: &str| {
            let value = match name {
                "group-id" => &group.id,
                "group-name" => &group.name,
                "vpc-id" => &group.vpc,
                _ => &group.description,
            };
            vec![value.clone()]
        };
        let wanted = (ids.is_empty() && names.is_empty()) || ids.contains(&group.id) || names.contains(&group.name);
        if wanted && filters.admit(&tags, field) && world.sees(&group.id) {
            found.push((group, tags));
        }
    }
    let known = |wanted: &String| found.iter().any(|(group, _)| group.id == *wanted || group.name == *wanted);
    if let Some(missing) = ids.iter().chain(&names).find(|wanted| filters.is_empty() && !known(wanted)) {
        let message = format!("The security group '{missing}' does not exist");
        return Err(Refusal::client("InvalidGroup.NotFound", message));
    }
    let account = world.account.clone();
    let (shown, next) = page.cut(found);
    xml.items("securityGroupInfo", &shown, |xml, (group, tags)| {
        xml.text("ownerId", &account).text("groupId", &group.id).text("groupName", &group.name);
        xml.text("groupDescription", &group.description).text("vpcId", &group.vpc);
        xml.items("ipPermissions", &group.rules, |xml, rule| {
            xml.text("ipProtocol", &rule.protocol).text("fromPort", rule.from).text("toPort", rule.to);
            let (ranges, field) = if rule.is_v6() { ("ipv6Ranges", "cidrIpv6") } else { ("ipRanges", "cidrIp") };
            xml.items(ranges, [&rule.cidr], |xml, cidr| {
                xml.text(field, cidr);
            });
        });
        tags::write(xml, tags);
    });
    xml.maybe("nextToken", next);
    Ok(())
}

pub(crate) fn delete(world: &mut World, mut form: Form, xml: &mut Xml) -> Result<(), Refusal> {
    let id = form.required("GroupId")?;
    form.finish()?;
    check(&id, "sg")?;
    let group = world.here().groups.get(&id).cloned();
    let group = group.filter(|_| world.sees(&id)).ok_or_else(|| not_found(&id))?;
    if group.name == "default" {
        let message = format!("the specified group: \"{id}\" name: \"default\" cannot be deleted by a user");
        return Err(Refusal::client("CannotDelete", message));
    }
    // An instance holds its groups until it is gone, not only until it is told to go.
    let holds = |instance: &Instance| instance.state().1 != "terminated" && instance.groups.contains(&id);
    let used = world.here().instances.values().any(holds);
    if used {
        return Err(Refusal::client("DependencyViolation", format!("resource {id} has a dependent object")));
    }
    world.here().groups.remove(&id);
    world.forget(&id);
    xml.text("return", true).text("groupId", &id);
    Ok(())
}
