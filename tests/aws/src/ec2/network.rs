//! What an account finds in a region: a default VPC with a subnet in each zone, and the types of instances.

use crate::{
    ec2::{
        filters::{Filters, Page},
        names::{check, not_found},
        tags,
    },
    form::Form,
    refusal::Refusal,
    world::World,
    xml::Xml,
};

const REGIONS: [&str; 6] = ["us-east-1", "us-east-2", "us-west-2", "eu-central-1", "eu-west-1", "ap-southeast-2"];

/// Types, their architecture, processors and memory in MiB.
const TYPES: [(&str, &str, u32, u32); 8] = [
    ("t3.micro", "x86_64", 2, 1024),
    ("t3.small", "x86_64", 2, 2048),
    ("t3.medium", "x86_64", 2, 4096),
    ("m5.large", "x86_64", 2, 8192),
    ("m6i.large", "x86_64", 2, 8192),
    ("c5.large", "x86_64", 2, 4096),
    ("t4g.small", "arm64", 2, 2048),
    ("m7g.large", "arm64", 2, 8192),
];

/// The architecture of a type; `None` where there is no such type.
pub(crate) fn architecture(instance_type: &str) -> Option<&'static str> {
    TYPES.iter().find(|(name, ..)| *name == instance_type).map(|(_, architecture, ..)| *architecture)
}

#[derive(Debug, Default)]
pub(crate) struct Network {
    pub(crate) vpc: String,
    pub(crate) subnets: Vec<Subnet>,
    pub(crate) default_group: String,
}

#[derive(Debug, Clone)]
pub(crate) struct Subnet {
    pub(crate) id: String,
    pub(crate) zone: String,
    /// `127.77.<net>.0/24`: addresses of this very machine, so that a guest can stand behind each.
    net: u8,
    next: u8,
}

impl Network {
    pub(crate) fn of(region: &str) -> Self {
        let number = region.bytes().fold(7_u64, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(byte)));
        let subnets = (1_u8..=3).map(|net| Subnet {
            id: format!("subnet-{:017x}", number.wrapping_add(u64::from(net)) & 0xffff_ffff_ffff),
            zone: format!("{region}{}", char::from(b'a' + net - 1)),
            net,
            next: 4,
        });
        Self {
            vpc: format!("vpc-{:017x}", number & 0xffff_ffff_ffff),
            subnets: subnets.collect(),
            default_group: format!("sg-{:017x}", number & 0xffff_ffff_ffff),
        }
    }

    pub(crate) fn has(&self, id: &str) -> bool {
        self.vpc == id || self.subnets.iter().any(|subnet| subnet.id == id)
    }
}

impl Subnet {
    fn cidr(&self) -> String {
        format!("127.77.{}.0/24", self.net)
    }

    pub(crate) fn address(&mut self) -> String {
        let host = self.next;
        self.next = if host == 250 { 4 } else { host + 1 };
        format!("127.77.{}.{host}", self.net)
    }
}

impl World {
    /// The VPC that is meant: the default one, unless another is named, which there is not.
    pub(crate) fn vpc(&mut self, wanted: Option<String>) -> Result<String, Refusal> {
        let known = self.here().network.vpc.clone();
        match wanted {
            Some(wanted) if wanted != known => {
                check(&wanted, "vpc")?;
                Err(not_found(&wanted))
            }
            _ => Ok(known),
        }
    }
}

pub(crate) fn vpcs(world: &mut World, mut form: Form, xml: &mut Xml) -> Result<(), Refusal> {
    let ids = form.list("VpcId");
    let filters = Filters::of(&mut form, &["vpc-id", "isDefault", "is-default", "cidr", "state", "owner-id"])?;
    let page = Page::of(&mut form, !ids.is_empty(), 0)?;
    form.finish()?;
    let (account, vpc) = (world.account.clone(), world.here().network.vpc.clone());
    if let Some(wrong) = ids.iter().find(|id| **id != vpc) {
        return Err(not_found(wrong));
    }
    let tags = world.here().tags(&vpc);
    let field = |name: &str| {
        let value = match name {
            "vpc-id" => &vpc,
            "isDefault" | "is-default" => "true",
            "cidr" => "127.77.0.0/16",
            "state" => "available",
            _ => &account,
        };
        vec![value.to_owned()]
    };
    let (shown, _) = page.cut(filters.admit(&tags, field).then_some(&vpc).into_iter().collect());
    xml.items("vpcSet", shown, |xml, vpc| {
        xml.text("vpcId", vpc).text("ownerId", &account).text("state", "available");
        xml.text("cidrBlock", "127.77.0.0/16").text("isDefault", true);
        tags::write(xml, &tags);
    });
    Ok(())
}

pub(crate) fn subnets(world: &mut World, mut form: Form, xml: &mut Xml) -> Result<(), Refusal> {
    let ids = form.list("SubnetId");
    let known =
        ["subnet-id", "vpc-id", "availability-zone", "availabilityZone", "default-for-az", "defaultForAz", "state"];
    let filters = Filters::of(&mut form, &known)?;
    let page = Page::of(&mut form, !ids.is_empty(), 0)?;
    form.finish()?;
    let account = world.account.clone();
    let here = world.here();
    if let Some(wrong) = ids.iter().find(|id| !here.network.subnets.iter().any(|subnet| subnet.id == **id)) {
        return Err(not_found(wrong));
    }
    let vpc = here.network.vpc.clone();
    let admitted = |subnet: &&Subnet| {
        let field = |name: &str| {
            let value = match name {
                "subnet-id" => &subnet.id,
                "vpc-id" => &vpc,
                "availability-zone" | "availabilityZone" => &subnet.zone,
                "state" => "available",
                _ => "true",
            };
            vec![value.to_owned()]
        };
        (ids.is_empty() || ids.contains(&subnet.id)) && filters.admit(&here.tags(&subnet.id), field)
    };
    let found = here.network.subnets.iter().filter(admitted).map(|subnet| (subnet.clone(), here.tags(&subnet.id)));
    let (shown, next) = page.cut(found.collect());
    xml.items("subnetSet", shown, |xml, (subnet, tags)| {
        xml.text("subnetId", &subnet.id).text("vpcId", &vpc).text("state", "available").text("ownerId", &account);
        xml.text("cidrBlock", subnet.cidr()).text("availabilityZone", &subnet.zone);
        xml.text("availableIpAddressCount", 247).text("defaultForAz", true).text("mapPublicIpOnLaunch", true);
        tags::write(xml, &tags);
    });
    xml.maybe("nextToken", next);
    Ok(())
}

pub(crate) fn zones(world: &mut World, mut form: Form, xml: &mut Xml) -> Result<(), Refusal> {
    let names = form.list("ZoneName");
    form.flag("AllAvailabilityZones")?;
    let filters = Filters::of(&mut form, &["zone-name", "region-name", "state", "zone-type"])?;
    form.finish()?;
    let region = world.region.clone();
    let subnets = world.here().network.subnets.iter();
    let zones = subnets.map(|subnet| subnet.zone.clone()).filter(|zone| names.is_empty() || names.contains(zone));
    let admitted = zones.filter(|zone| {
        filters.admit(&crate::world::Tags::new(), |name| {
            let value = match name {
                "zone-name" => zone,
                "region-name" => &region,
                "state" => "available",
                _ => "availability-zone",
            };
            vec![value.to_owned()]
        })
    });
    xml.items("availabilityZoneInfo", admitted.collect::<Vec<_>>(), |xml, zone| {
        xml.text("zoneName", &zone).text("zoneState", "available").text("regionName", &region);
        xml.text("zoneId", format!("{region}-z{}", &zone[zone.len() - 1..])).text("zoneType", "availability-zone");
    });
    Ok(())
}

pub(crate) fn regions(_: &mut World, mut form: Form, xml: &mut Xml) -> Result<(), Refusal> {
    let names = form.list("RegionName");
    form.flag("AllRegions")?;
    form.finish()?;
    if let Some(wrong) = names.iter().find(|name| !REGIONS.contains(&name.as_str())) {
        return Err(Refusal::invalid(format!("Invalid region name provided: {wrong}")));
    }
    let shown = REGIONS.iter().filter(|region| names.is_empty() || names.iter().any(|name| name == *region));
    xml.items("regionInfo", shown, |xml, region| {
        xml.text("regionName", region).text("regionEndpoint", format!("ec2.{region}.amazonaws.com"));
        xml.text("optInStatus", "opt-in-not-required");
    });
    Ok(())
}

pub(crate) fn types(_: &mut World, mut form: Form, xml: &mut Xml) -> Result<(), Refusal> {
    let names = form.list("InstanceType");
    let filters = Filters::of(&mut form, &["instance-type", "processor-info.supported-architecture"])?;
    let page = Page::of(&mut form, !names.is_empty(), 0)?;
    form.finish()?;
    let wrong: Vec<_> = names.iter().filter(|name| architecture(name).is_none()).cloned().collect();
    if !wrong.is_empty() {
        let message = format!("The following supplied instance types do not exist: [{}]", wrong.join(", "));
        return Err(Refusal::client("InvalidInstanceType", message));
    }
    let admitted = TYPES.iter().filter(|(name, architecture, ..)| {
        let field = |of: &str| vec![if of == "instance-type" { *name } else { *architecture }.to_owned()];
        (names.is_empty() || names.iter().any(|wanted| wanted == name))
            && filters.admit(&crate::world::Tags::new(), field)
    });
    let (shown, next) = page.cut(admitted.collect());
    xml.items("instanceTypeSet", shown, |xml, (name, architecture, processors, memory)| {
        xml.text("instanceType", name).text("currentGeneration", true).text("hypervisor", "nitro");
        xml.node("processorInfo", |xml| {
            xml.items("supportedArchitectures", [architecture], super::super::xml::Xml::value);
        });
        xml.node("vCpuInfo", |xml| {
            xml.text("defaultVCpus", processors);
        });
        xml.node("memoryInfo", |xml| {
            xml.text("sizeInMiB", memory);
        });
        xml.items("supportedBootModes", ["legacy-bios", "uefi"], super::super::xml::Xml::value);
        xml.node("networkInfo", |xml| {
            xml.text("enaSupport", "required");
        });
    });
    xml.maybe("nextToken", next);
    Ok(())
}

pub(crate) fn offerings(world: &mut World, mut form: Form, xml: &mut Xml) -> Result<(), Refusal> {
    let by_zone =
        form.choice("LocationType", &["region", "availability-zone"])?.as_deref() == Some("availability-zone");
    let filters = Filters::of(&mut form, &["instance-type", "location"])?;
    let page = Page::of(&mut form, false, 0)?;
    form.finish()?;
    let region = world.region.clone();
    let zones = world.here().network.subnets.iter().map(|subnet| subnet.zone.clone());
    let places: Vec<String> = if by_zone { zones.collect() } else { vec![region] };
    let mut all = Vec::new();
    for place in &places {
        for (name, ..) in TYPES {
            let field = |of: &str| vec![if of == "location" { place.clone() } else { name.to_owned() }];
            if filters.admit(&crate::world::Tags::new(), field) {
                all.push((name, place));
            }
        }
    }
    let (shown, next) = page.cut(all);
    xml.items("instanceTypeOfferingSet", shown, |xml, (name, place)| {
        xml.text("instanceType", name).text("location", place);
        xml.text("locationType", if by_zone { "availability-zone" } else { "region" });
    });
    xml.maybe("nextToken", next);
    Ok(())
}
