//! What a plan says of EC2: the instance, and the AMI that it starts from.

use std::{collections::BTreeMap, fmt, time::Duration};

use serde::{Deserialize, Serialize};

use super::seconds;
use crate::{ByteSize, ImageName, artifact::ParentRecord};

/// An instance that a bake runs in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Ec2Machine {
    pub region: String,
    /// Tried in this order where there is no capacity.
    pub instance_types: Vec<String>,
    /// Tried in this order; empty: wherever there is a subnet.
    pub zones: Vec<String>,
    pub subnet: Which,
    pub vpc: Which,
    /// A spot instance where there is one, else on demand.
    pub spot: bool,
    /// Of the root volume; `None`: as the AMI has it.
    pub volume: Option<ByteSize>,
    /// Encrypts the root volume; `None`: the account's default key.
    pub kms_key: Option<String>,
    /// Instance profile, by name or ARN.
    pub profile: Option<String>,
    /// On all that is made for the bake, besides kiln's own.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub tags: BTreeMap<String, String>,
    /// For cloud-init, besides kiln's own.
    pub user_data: Option<String>,
    pub ssh_port: u16,
    pub address: Address,
    /// The network that may connect; `None`: this machine's address.
    pub source: Option<String>,
    /// A shell command whose input and output are the connection, instead of a socket to the instance. See [`Self::proxy`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proxy_command: Option<String>,
    /// When the instance ends by itself, whatever became of kiln.
    #[serde(serialize_with = "seconds")]
    pub lifetime: Duration,
    #[serde(serialize_with = "seconds")]
    pub boot_timeout: Duration,
    #[serde(serialize_with = "seconds")]
    pub shutdown_timeout: Duration,
}

impl Ec2Machine {
    /// What may follow a `%` in [`Self::proxy_command`]: host, port, instance, and `%` itself.
    pub const PROXY_TOKENS: [char; 4] = ['h', 'p', 'i', '%'];

    /// The command that reaches `instance`, which answers at `host`.
    pub fn proxy(&self, host: &str, instance: &str) -> Option<String> {
        let mut command = String::new();
        let mut rest = self.proxy_command.as_deref()?.chars();
        // What a service answers is not to become a command.
        let plain = |text: &str| -> String {
            text.chars().filter(|c| c.is_ascii_alphanumeric() || ".:-_".contains(*c)).collect()
        };
        while let Some(c) = rest.next() {
            let part: String = match (c, rest.clone().next()) {
                ('%', Some('h')) => plain(host),
                ('%', Some('p')) => self.ssh_port.to_string(),
                ('%', Some('i')) => plain(instance),
                ('%', Some('%')) => "%".to_owned(),
                _ => {
                    command.push(c);
                    continue;
                }
            };
            command.push_str(&part);
            rest.next();
        }
        Some(command)
    }
}

/// Which of an account's networks.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Which {
    /// As the account has it by default.
    #[default]
    Default,
    Id(String),
    /// EC2's filters: name to value.
    Filters(BTreeMap<String, String>),
}

/// The address of an instance that kiln connects to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Address {
    Public,
    Private,
}

/// An AMI as a base.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AmiBase {
    pub region: String,
    /// As written.
    pub wanted: AmiWish,
    /// `None`: nobody has looked yet.
    #[serde(flatten)]
    pub found: Option<Ami>,
}

/// How a template names an AMI.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum AmiWish {
    Id {
        id: String,
        owner: Option<String>,
    },
    /// The newest whose name fits. Without an owner anybody could publish one that does.
    Name {
        pattern: String,
        owner: String,
    },
    /// A parameter of Parameter Store that holds an id.
    Parameter {
        path: String,
        owner: Option<String>,
    },
    /// A version of the registry that has an AMI in the region.
    Image {
        image: ImageName,
        reference: Option<String>,
    },
}

/// An AMI that was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ami {
    pub ami: String,
    /// Account number; `None`: it was named by its id and nobody asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The version of the registry that it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<ParentRecord>,
}

impl AmiWish {
    /// The owner that the AMI must have.
    pub fn owner(&self) -> Option<&str> {
        match self {
            Self::Id { owner, .. } | Self::Parameter { owner, .. } => owner.as_deref(),
            Self::Name { owner, .. } => Some(owner),
            Self::Image { .. } => None,
        }
    }
}

/// One line: the key of a lock file, and for people.
impl fmt::Display for AmiWish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id { id, .. } => f.write_str(id)?,
            Self::Name { pattern, .. } => write!(f, "name {pattern}")?,
            Self::Parameter { path, .. } => write!(f, "parameter {path}")?,
            Self::Image { image, reference: None } => write!(f, "image {image}")?,
            Self::Image { image, reference: Some(reference) } => write!(f, "image {image}@{reference}")?,
        }
        self.owner().map_or(Ok(()), |owner| write!(f, " of {owner}"))
    }
}
