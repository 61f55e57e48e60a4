//! `RunInstances`, over types, zones and markets until one has room.

use std::collections::BTreeMap;

use aws_sdk_ec2::types::{
    BlockDeviceMapping, EbsBlockDevice, HttpTokensState, IamInstanceProfileSpecification, InstanceInterruptionBehavior,
    InstanceMarketOptionsRequest, InstanceMetadataEndpointState, InstanceMetadataOptionsRequest,
    InstanceNetworkInterfaceSpecification, InstanceType, MarketType, ResourceType, ShutdownBehavior, SpotInstanceType,
    SpotMarketOptions, VolumeType,
};
use kiln_core::plan::{Address, Ec2Machine};
use kiln_io::random::nonce;

use super::{
    ami::Origin,
    network::{Subnet, marked},
};
use crate::{Region, call::Age, error::AwsError};

/// What an instance is launched with, wherever that is.
#[derive(Debug, Clone, Copy)]
pub(super) struct With<'a> {
    pub(super) ami: &'a Origin,
    /// Name of the key pair.
    pub(super) key: &'a str,
    /// Id of the security group.
    pub(super) group: &'a str,
    /// In Base64.
    pub(super) user_data: &'a str,
    pub(super) tags: &'a BTreeMap<String, String>,
}

/// An instance that was launched, and where it found room.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Launched {
    pub(super) id: String,
    pub(super) instance_type: String,
    pub(super) zone: String,
    pub(super) spot: bool,
}

/// One place to try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Attempt<'a> {
    instance_type: &'a str,
    subnet: &'a Subnet,
    spot: bool,
}

impl Region {
    /// Launches an instance in the first place that has room for it.
    pub(super) async fn launch(
        &self,
        machine: &Ec2Machine,
        subnets: &[Subnet],
        with: &With<'_>,
    ) -> Result<Launched, AwsError> {
        let mut last = String::new();
        for attempt in attempts(machine, subnets) {
            match self.run_instance(machine, attempt, with).await {
                Ok(id) => {
                    let Attempt { instance_type, subnet, spot } = attempt;
                    return Ok(Launched {
                        id,
                        instance_type: instance_type.to_owned(),
                        zone: subnet.zone.clone(),
                        spot,
                    });
                }
                Err(AwsError::Refused { code, message, .. }) if has_no_room(&code, attempt.spot) => {
                    last = format!("{message} ({code})");
                }
                Err(error) => return Err(error),
            }
        }
        Err(AwsError::NoCapacity {
            region: self.name.clone(),
            types: machine.instance_types.join(", "),
            zones: subnets.iter().map(|subnet| subnet.zone.as_str()).collect::<Vec<_>>().join(", "),
            last,
        })
    }

    async fn run_instance(
        &self,
        machine: &Ec2Machine,
        attempt: Attempt<'_>,
        with: &With<'_>,
    ) -> Result<String, AwsError> {
        // The same for every attempt in this place: a lost answer starts no second instance.
        let token = nonce();
        let run = || {
            let request = self.ec2.run_instances().client_token(&token).min_count(1).max_count(1);
            let request = request.image_id(&with.ami.ami).instance_type(InstanceType::from(attempt.instance_type));
            let request = request.key_name(with.key).user_data(with.user_data);
            let request = request.network_interfaces(interface(machine, attempt.subnet, with.group));
            let request = request.block_device_mappings(root(machine, with.ami)).metadata_options(metadata());
            let request = request.instance_initiated_shutdown_behavior(ShutdownBehavior::Terminate);
            let request = request.set_iam_instance_profile(machine.profile.as_deref().map(profile));
            let request = request.set_instance_market_options(attempt.spot.then(spot));
            tagged(attempt.spot)
                .into_iter()
                .fold(request, |request, what| request.tag_specifications(marked(what, with.tags)))
                .send()
        };
        // Key and group were made a moment ago.
        let answer = self.caller.call("RunInstances", Age::New, run).await?;
        let id = answer.instances.unwrap_or_default().into_iter().find_map(|instance| instance.instance_id);
        id.ok_or_else(|| self.caller.incomplete("RunInstances", "instanceId"))
    }
}

/// Every type in every zone, first those that cost less.
fn attempts<'a>(machine: &'a Ec2Machine, subnets: &'a [Subnet]) -> impl Iterator<Item = Attempt<'a>> {
    let markets = if machine.spot { &[true, false][..] } else { &[false][..] };
    markets.iter().flat_map(move |spot| {
        machine.instance_types.iter().flat_map(move |instance_type| {
            subnets.iter().map(move |subnet| Attempt { instance_type, subnet, spot: *spot })
        })
    })
}

/// Whether another place may have what this one has not.
fn has_no_room(code: &str, spot: bool) -> bool {
    let nowhere_here = [
        "InsufficientInstanceCapacity",
        "InsufficientCapacity",
        "InsufficientVolumeCapacity",
        "InsufficientAddressCapacity",
        "InsufficientFreeAddressesInSubnet",
        // The type is not offered in the zone.
        "Unsupported",
    ];
    let not_as_spot =
        ["SpotMaxPriceTooLow", "MaxSpotInstanceCountExceeded", "InvalidSpotInstanceType", "UnfulfillableCapacity"];
    nowhere_here.contains(&code) || (spot && not_as_spot.contains(&code))
}

fn interface(machine: &Ec2Machine, subnet: &Subnet, group: &str) -> InstanceNetworkInterfaceSpecification {
    let public = machine.address == Address::Public;
    let interface = InstanceNetworkInterfaceSpecification::builder().device_index(0).subnet_id(&subnet.id);
    let interface = interface.groups(group).delete_on_termination(true);
    interface.set_associate_public_ip_address(public.then_some(true)).build()
}

fn root(machine: &Ec2Machine, ami: &Origin) -> BlockDeviceMapping {
    let gib = machine.volume.map(|size| i32::try_from(size.bytes() >> 30).unwrap_or(i32::MAX));
    let volume = EbsBlockDevice::builder().volume_type(VolumeType::Gp3).encrypted(true).delete_on_termination(true);
    let volume = volume.set_volume_size(gib).set_kms_key_id(machine.kms_key.clone()).build();
    BlockDeviceMapping::builder().device_name(&ami.root).ebs(volume).build()
}

fn metadata() -> InstanceMetadataOptionsRequest {
    let options = InstanceMetadataOptionsRequest::builder().http_tokens(HttpTokensState::Required);
    options.http_endpoint(InstanceMetadataEndpointState::Enabled).build()
}

fn profile(profile: &str) -> IamInstanceProfileSpecification {
    let builder = IamInstanceProfileSpecification::builder();
    if profile.starts_with("arn:") { builder.arn(profile) } else { builder.name(profile) }.build()
}

fn spot() -> InstanceMarketOptionsRequest {
    let options = SpotMarketOptions::builder().spot_instance_type(SpotInstanceType::OneTime);
    let options = options.instance_interruption_behavior(InstanceInterruptionBehavior::Terminate).build();
    InstanceMarketOptionsRequest::builder().market_type(MarketType::Spot).spot_options(options).build()
}

/// What `RunInstances` makes and can mark.
fn tagged(spot: bool) -> Vec<ResourceType> {
    let request = spot.then_some(ResourceType::SpotInstancesRequest);
    [ResourceType::Instance, ResourceType::Volume, ResourceType::NetworkInterface].into_iter().chain(request).collect()
}
