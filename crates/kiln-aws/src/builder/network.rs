//! Where an instance is put, and who may reach it: subnets, the temporary key, the temporary security group.

use std::collections::BTreeMap;

use aws_sdk_ec2::{
    primitives::Blob,
    types::{Filter, IpPermission, IpRange, ResourceType, TagSpecification},
};
use kiln_core::plan::{Ec2Machine, Which};
use kiln_io::keys::PublicKey;

use crate::{
    Region,
    call::{Age, Look},
    error::AwsError,
    intent::ec2_tags,
};

/// A subnet that an instance may be put into.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Subnet {
    pub(super) id: String,
    pub(super) zone: String,
    pub(super) vpc: String,
    /// As in `10.0.1.0/24`.
    pub(super) cidr: String,
}

impl Region {
    /// The subnets to try, in the order of the zones that are asked for; all in one VPC.
    pub(super) async fn subnets(&self, machine: &Ec2Machine) -> Result<Vec<Subnet>, AwsError> {
        let filter = |name: &str, value: &str| Filter::builder().name(name).values(value).build();
        let mut filters = vec![filter("state", "available")];
        match &machine.vpc {
            Which::Default => {}
            Which::Id(vpc) => filters.push(filter("vpc-id", vpc)),
            Which::Filters(wanted) => filters.push(filter("vpc-id", &self.vpc(wanted).await?)),
        }
        match &machine.subnet {
            Which::Id(subnet) => filters.push(filter("subnet-id", subnet)),
            Which::Filters(wanted) => filters.extend(wanted.iter().map(|(name, value)| filter(name, value))),
            Which::Default if machine.vpc == Which::Default => filters.push(filter("default-for-az", "true")),
            Which::Default => {}
        }
        let mut found = Vec::new();
        let mut next = None;
        loop {
            let look = || {
                let request = self.ec2.describe_subnets().set_filters(Some(filters.clone()));
                request.set_next_token(next.clone()).send()
            };
            let page = self.caller.call("DescribeSubnets", Age::Old, look).await?;
            found.extend(page.subnets.unwrap_or_default().into_iter().filter_map(|subnet| {
                let (id, zone, vpc) = (subnet.subnet_id?, subnet.availability_zone?, subnet.vpc_id?);
                Some(Subnet { id, zone, vpc, cidr: subnet.cidr_block.unwrap_or_default() })
            }));
            next = page.next_token.filter(|token| !token.is_empty());
            if next.is_none() {
                break;
            }
        }
        let chosen = chosen(found, &machine.zones);
        if chosen.is_empty() { Err(AwsError::NoSubnet { region: self.name.clone() }) } else { Ok(chosen) }
    }

    async fn vpc(&self, wanted: &BTreeMap<String, String>) -> Result<String, AwsError> {
        let filters = wanted.iter().map(|(name, value)| Filter::builder().name(name).values(value).build());
        let filters: Vec<_> = filters.collect();
        let look = || self.ec2.describe_vpcs().set_filters(Some(filters.clone())).send();
        let found = self.caller.call("DescribeVpcs", Age::Old, look).await?.vpcs.unwrap_or_default();
        match <[_; 1]>::try_from(found) {
            Ok([vpc]) => vpc.vpc_id.ok_or_else(|| self.caller.incomplete("DescribeVpcs", "vpcId")),
            Err(found) => Err(AwsError::NotOneVpc { region: self.name.clone(), found: found.len() }),
        }
    }

    /// Imports the public half of the key; its name.
    pub(super) async fn import_key(
        &self,
        intent: &str,
        login: &PublicKey,
        tags: &BTreeMap<String, String>,
    ) -> Result<String, AwsError> {
        let name = name(intent);
        let marked = marked(ResourceType::KeyPair, tags);
        let import = || {
            let request = self.ec2.import_key_pair().key_name(&name).tag_specifications(marked.clone());
            request.public_key_material(Blob::new(login.line())).send()
        };
        match self.caller.call("ImportKeyPair", Age::Old, import).await {
            // Nobody else has the intent in his names: the answer to an earlier attempt was lost.
            Err(error) if !error.is_duplicate() => Err(error),
            _ => Ok(name),
        }
    }

    /// Makes a security group that lets nobody in; its id.
    pub(super) async fn make_group(
        &self,
        intent: &str,
        vpc: &str,
        tags: &BTreeMap<String, String>,
    ) -> Result<String, AwsError> {
        let name = name(intent);
        let marked = marked(ResourceType::SecurityGroup, tags);
        let make = || {
            let request = self.ec2.create_security_group().group_name(&name).vpc_id(vpc);
            request.description("kiln: one bake").tag_specifications(marked.clone()).send()
        };
        match self.caller.call("CreateSecurityGroup", Age::Old, make).await {
            Ok(made) => made.group_id.ok_or_else(|| self.caller.incomplete("CreateSecurityGroup", "groupId")),
            Err(error) if error.is_duplicate() => self.group_called(&name).await,
            Err(error) => Err(error),
        }
    }

    async fn group_called(&self, name: &str) -> Result<String, AwsError> {
        let look = || async {
            let named = Filter::builder().name("group-name").values(name).build();
            let look = || self.ec2.describe_security_groups().filters(named.clone()).send();
            let found = self.caller.call("DescribeSecurityGroups", Age::Old, look).await?;
            let id = found.security_groups.unwrap_or_default().into_iter().find_map(|group| group.group_id);
            Ok(id.map_or_else(|| Look::Under("not to be seen".to_owned()), Look::Done))
        };
        self.caller.wait("the security group", look).await
    }

    /// Lets the network `source` connect to a port, and nobody else.
    pub(super) async fn let_in(&self, group: &str, port: u16, source: &str) -> Result<(), AwsError> {
        let port = i32::from(port);
        let range = IpRange::builder().cidr_ip(source).description("the kiln that bakes").build();
        let ssh = IpPermission::builder().ip_protocol("tcp").from_port(port).to_port(port).ip_ranges(range).build();
        let authorize =
            || self.ec2.authorize_security_group_ingress().group_id(group).ip_permissions(ssh.clone()).send();
        match self.caller.call("AuthorizeSecurityGroupIngress", Age::New, authorize).await {
            Err(error) if !error.is_duplicate() => Err(error),
            _ => Ok(()),
        }
    }
}

/// What is made for one bake is called after its intent.
fn name(intent: &str) -> String {
    format!("kiln-{intent}")
}

pub(super) fn marked(what: ResourceType, tags: &BTreeMap<String, String>) -> TagSpecification {
    TagSpecification::builder().resource_type(what).set_tags(Some(ec2_tags(tags))).build()
}

/// Those in `zones`, in their order, or all in the order of their zones; of one VPC, since a security group belongs to one.
fn chosen(mut found: Vec<Subnet>, zones: &[String]) -> Vec<Subnet> {
    let rank = |subnet: &Subnet| zones.iter().position(|zone| *zone == subnet.zone);
    found.retain(|subnet| zones.is_empty() || rank(subnet).is_some());
    found.sort_by(|one, two| (rank(one), &one.zone, &one.id).cmp(&(rank(two), &two.zone, &two.id)));
    if let Some(vpc) = found.first().map(|first| first.vpc.clone()) {
        found.retain(|subnet| subnet.vpc == vpc);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zones_are_tried_in_the_order_of_the_template_and_in_one_vpc() {
        let subnet = |id: &str, zone: &str, vpc: &str| Subnet {
            id: id.to_owned(),
            zone: zone.to_owned(),
            vpc: vpc.to_owned(),
            cidr: String::new(),
        };
        let found =
            vec![subnet("s1", "a", "v1"), subnet("s2", "b", "v2"), subnet("s3", "c", "v1"), subnet("s4", "b", "v1")];
        let ids = |zones: &[&str]| {
            let zones: Vec<_> = zones.iter().map(|zone| (*zone).to_owned()).collect();
            chosen(found.clone(), &zones).into_iter().map(|subnet| subnet.id).collect::<Vec<_>>()
        };
        assert_eq!(ids(&[]), ["s1", "s4", "s3"]);
        assert_eq!(ids(&["c", "a"]), ["s3", "s1"]);
        assert_eq!(ids(&["d"]), [""; 0]);
    }
}
