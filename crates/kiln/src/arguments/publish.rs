//! Arguments of `kiln publish`.

use std::str::FromStr;

use clap::{Args, Subcommand};
use kiln_core::{ChannelName, plan::reserved_tag};
use kiln_registry::Selector;

use super::RegistryArguments;

#[derive(Debug, Subcommand)]
pub(crate) enum PublishVerb {
    /// Make AMIs of a version, one in each region; only what changed since the version before is sent
    Ami(PublishAmi),
}

#[derive(Debug, Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a switch of the command line")]
pub(crate) struct PublishAmi {
    /// An image, one version of it, or what a channel points to
    #[arg(value_name = "NAME[@VERSION|@CHANNEL]")]
    pub(crate) image: Selector,
    /// A region, with the ARN of the key that encrypts there if one does; may be repeated
    #[arg(long = "region", value_name = "REGION[=KEY]", required = true)]
    pub(crate) regions: Vec<RegionArgument>,
    /// An account, or the ARN of an organisation or unit, that may launch it; may be repeated
    #[arg(long = "share-with", value_name = "WHOM")]
    pub(crate) share_with: Vec<String>,
    /// Let everybody launch it
    #[arg(long)]
    pub(crate) public: bool,
    /// Offer it for so many days; instances still start from it after
    #[arg(long, value_name = "DAYS")]
    pub(crate) deprecate_after: Option<u64>,
    /// Protect it from being deregistered
    #[arg(long)]
    pub(crate) protect: bool,
    /// A tag of it and its snapshot besides those of kiln; may be repeated
    #[arg(long = "tag", value_name = "KEY=VALUE")]
    pub(crate) tags: Vec<TagArgument>,
    /// Point this channel to the version when every region has it
    #[arg(long, value_name = "CHANNEL")]
    pub(crate) to: Option<ChannelName>,
    /// Print the report of all regions as JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// Use a revoked version all the same, when the version itself is named
    #[arg(long)]
    pub(crate) allow_revoked: bool,
    /// Use a version all the same that none of the trusted keys signed
    #[arg(long)]
    pub(crate) allow_unproven: bool,
    #[command(flatten)]
    pub(crate) registry: RegistryArguments,
}

#[derive(Debug, Args)]
pub(crate) struct Resume {
    /// The build that was to make them, as the failed command names it
    #[arg(value_name = "BUILD")]
    pub(crate) build: String,
    /// Print the report of all regions as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// `eu-west-1`, `eu-west-1=arn:aws:kms:..`
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RegionArgument {
    pub(crate) name: String,
    pub(crate) key: Option<String>,
}

impl FromStr for RegionArgument {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, key) = text.split_once('=').map_or((text, None), |(name, key)| (name, Some(key.to_owned())));
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if name.is_empty() || !name.chars().all(plain) {
            return Err(format!("`{name}` is not a region such as `eu-west-1`"));
        }
        if key.as_ref().is_some_and(|key| !key.starts_with("arn:")) {
            return Err("behind `=` stands the ARN of a key".to_owned());
        }
        Ok(Self { name: name.to_owned(), key })
    }
}

/// `team=web`
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TagArgument {
    pub(crate) key: String,
    pub(crate) value: String,
}

impl FromStr for TagArgument {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (key, value) = text.split_once('=').ok_or("a tag is written `KEY=VALUE`")?;
        if key.is_empty() || reserved_tag(key).is_some() {
            return Err("the key of a tag is not empty, and begins with neither `aws:` nor `kiln:`".to_owned());
        }
        Ok(Self { key: key.to_owned(), value: value.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_region_may_have_a_key() {
        let parsed = "eu-west-1=arn:aws:kms:eu-west-1:1:key/2".parse::<RegionArgument>().unwrap();
        assert_eq!((parsed.name.as_str(), parsed.key.as_deref()), ("eu-west-1", Some("arn:aws:kms:eu-west-1:1:key/2")));
        for wrong in ["", "=arn:x", "Eu", "eu-west-1=key", "eu west"] {
            assert!(wrong.parse::<RegionArgument>().is_err(), "{wrong}");
        }
    }
}
