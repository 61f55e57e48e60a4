//! Arguments of the verbs that move channels and revoke versions.

use clap::Args;
use kiln_core::{ChannelName, ImageName, Version};
use kiln_registry::Reference;

use super::RegistryArguments;
use crate::calendar::Moment;

/// Who and why, for the history.
#[derive(Debug, Args)]
pub(crate) struct IntentArguments {
    /// Why; stands in the history
    #[arg(long, value_name = "TEXT")]
    pub(crate) reason: Option<String>,
    /// Who; stands in the history [default: user and host]
    #[arg(long, value_name = "WHO", env = "KILN_BY", hide_env_values = true)]
    pub(crate) by: Option<String>,
    /// Use a revoked version all the same, when the version itself is named
    #[arg(long)]
    pub(crate) allow_revoked: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Promote {
    #[arg(value_name = "NAME")]
    pub(crate) image: ImageName,
    /// A version, `latest`, a disk digest, or a channel: what it points to now
    #[arg(value_name = "VERSION")]
    pub(crate) reference: Reference,
    /// The channel; made if there is none of this name
    #[arg(long, value_name = "CHANNEL")]
    pub(crate) to: ChannelName,
    /// Only if the channel points to this version now
    #[arg(long, value_name = "VERSION")]
    pub(crate) expect: Option<Version>,
    #[command(flatten)]
    pub(crate) intent: IntentArguments,
    #[command(flatten)]
    pub(crate) registry: RegistryArguments,
}

#[derive(Debug, Args)]
pub(crate) struct Rollback {
    #[arg(value_name = "NAME")]
    pub(crate) image: ImageName,
    #[arg(value_name = "CHANNEL")]
    pub(crate) channel: ChannelName,
    /// This version [default: the one before]
    #[arg(long, value_name = "VERSION")]
    pub(crate) to: Option<Version>,
    /// Only if the channel points to this version now
    #[arg(long, value_name = "VERSION")]
    pub(crate) expect: Option<Version>,
    #[command(flatten)]
    pub(crate) intent: IntentArguments,
    #[command(flatten)]
    pub(crate) registry: RegistryArguments,
}

#[derive(Debug, Args)]
#[expect(clippy::struct_field_names, reason = "the command line calls it a channel")]
pub(crate) struct Channel {
    #[arg(value_name = "NAME")]
    pub(crate) image: ImageName,
    /// The history of this channel instead of a list of all
    #[arg(value_name = "CHANNEL")]
    pub(crate) channel: Option<ChannelName>,
    /// From now on the channel takes only versions that are proven, boot-tested, and whose checks and hygiene hold
    #[arg(long, requires = "channel", conflicts_with_all = ["json", "unrestrict"])]
    pub(crate) restrict: bool,
    /// It takes any version again
    #[arg(long, requires = "channel", conflicts_with = "json")]
    pub(crate) unrestrict: bool,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) registry: RegistryArguments,
}

#[derive(Debug, Args)]
pub(crate) struct Revoke {
    #[arg(value_name = "NAME")]
    pub(crate) image: ImageName,
    #[arg(value_name = "VERSION")]
    pub(crate) version: Version,
    /// Why; shown to everybody who asks for the version
    #[arg(long, value_name = "TEXT", required_unless_present = "lift")]
    pub(crate) reason: Option<String>,
    /// From this moment on (`2026-12-01` or `2026-12-01T08:00Z`, UTC) [default: now]
    #[arg(long, value_name = "TIME", conflicts_with = "lift")]
    pub(crate) at: Option<Moment>,
    /// Take the revocation back
    #[arg(long)]
    pub(crate) lift: bool,
    /// Who; stands in the history [default: user and host]
    #[arg(long, value_name = "WHO", env = "KILN_BY", hide_env_values = true)]
    pub(crate) by: Option<String>,
    #[command(flatten)]
    pub(crate) registry: RegistryArguments,
}

#[derive(Debug, Args)]
pub(crate) struct Outdated {
    /// Compare with what this channel of the base points to, instead of the newest version
    #[arg(long, value_name = "CHANNEL")]
    pub(crate) channel: Option<ChannelName>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) registry: RegistryArguments,
}
