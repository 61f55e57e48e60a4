//! The address that this kiln has where an instance sees it.

use std::net::{IpAddr, Ipv4Addr, UdpSocket};

use kiln_core::plan::{Address, Ec2Machine};
use kiln_io::download::fetch;
use tokio_util::sync::CancellationToken;

use super::network::Subnet;
use crate::error::AwsError;

/// Amazon's own: the body is the address that the request came from.
const ECHO: &str = "https://checkip.amazonaws.com/";

/// What the security group lets in: as the template says, else this machine's address alone; nothing for a proxy that needs no way in.
pub(super) async fn of_caller(
    machine: &Ec2Machine,
    subnets: &[Subnet],
    cancel: &CancellationToken,
) -> Result<Option<String>, AwsError> {
    if machine.source.is_some() || machine.proxy_command.is_some() {
        return Ok(machine.source.clone());
    }
    let address = match machine.address {
        Address::Public => public(cancel).await?,
        Address::Private => towards(subnets)?,
    };
    Ok(Some(format!("{address}/32")))
}

async fn public(cancel: &CancellationToken) -> Result<Ipv4Addr, AwsError> {
    let unknown = |reason: String| AwsError::Caller { reason };
    let text = fetch(ECHO, 64, cancel).await.map_err(|error| unknown(format!("{ECHO}: {error}")))?;
    let text = String::from_utf8_lossy(&text);
    text.trim().parse().map_err(|_| unknown(format!("{ECHO} answered `{}`", text.trim().escape_debug())))
}

/// The address with which this machine would send to the subnet; not a packet leaves.
fn towards(subnets: &[Subnet]) -> Result<Ipv4Addr, AwsError> {
    let unknown = |reason: String| AwsError::Caller { reason };
    let cidr = subnets.first().map_or("", |subnet| subnet.cidr.as_str());
    let network = cidr.split('/').next().and_then(|network| network.parse::<Ipv4Addr>().ok());
    // The first host of the network.
    let there = network.map(|network| Ipv4Addr::from(u32::from(network).saturating_add(1)));
    let there = there.ok_or_else(|| unknown(format!("the subnet has the network `{}`", cidr.escape_debug())))?;
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0));
    let local = socket.and_then(|socket| socket.connect((there, 9)).and_then(|()| socket.local_addr()));
    match local.map_err(|error| unknown(format!("no route to {there}: {error}")))?.ip() {
        IpAddr::V4(address) => Ok(address),
        IpAddr::V6(address) => Err(unknown(format!("{there} is reached from {address}"))),
    }
}
