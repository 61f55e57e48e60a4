//! Arguments of `kiln release`.

use clap::{Args, Subcommand};
use kiln_core::ImageName;
use kiln_registry::Selector;

use super::RegistryArguments;

#[derive(Debug, Subcommand)]
pub(crate) enum ReleaseVerb {
    /// Point a parameter of AWS to the AMI of a version, in each region
    Point(ReleasePoint),
    /// Replace the machines of an Auto Scaling group by those of a version
    Start(ReleaseStart),
    /// Show how the replacement of a group's machines stands
    Status(ReleaseGroup),
    /// Give a group the machines back that it had before
    Rollback(ReleaseGroup),
    /// Withdraw old AMIs that nobody uses, and delete those that were withdrawn long enough; says what it would do
    Retire(ReleaseRetire),
    /// Say which AMIs of an image are gone, disabled, public or relabelled; ends with 1 when one is
    Check(ReleaseCheck),
}

#[derive(Debug, Args)]
pub(crate) struct ReleaseCheck {
    #[arg(value_name = "NAME")]
    pub(crate) image: ImageName,
    /// A region; may be repeated
    #[arg(long = "region", value_name = "REGION", required = true)]
    pub(crate) regions: Vec<String>,
    /// They are meant to be public
    #[arg(long)]
    pub(crate) public: bool,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) registry: RegistryArguments,
}

#[derive(Debug, Args)]
pub(crate) struct ReleasePoint {
    /// An image, one version of it, or what a channel points to; it must have an AMI in each region
    #[arg(value_name = "NAME[@VERSION|@CHANNEL]")]
    pub(crate) image: Selector,
    /// A region; may be repeated
    #[arg(long = "region", value_name = "REGION", required = true)]
    pub(crate) regions: Vec<String>,
    /// The parameter, such as `/images/web/stable`; made if there is none of this name
    #[arg(long, value_name = "NAME")]
    pub(crate) parameter: String,
    /// Use a revoked version all the same, when the version itself is named
    #[arg(long)]
    pub(crate) allow_revoked: bool,
    /// Use a version all the same that none of the trusted keys signed, or of an image whose state is old or expired
    #[arg(long)]
    pub(crate) allow_unproven: bool,
    #[command(flatten)]
    pub(crate) registry: RegistryArguments,
}

#[derive(Debug, Args)]
pub(crate) struct ReleaseStart {
    /// An image, one version of it, or what a channel points to; it must have an AMI in the region
    #[arg(value_name = "NAME[@VERSION|@CHANNEL]")]
    pub(crate) image: Selector,
    #[command(flatten)]
    pub(crate) group: ReleaseGroup,
    /// Use a revoked version all the same, when the version itself is named
    #[arg(long)]
    pub(crate) allow_revoked: bool,
    /// Use a version all the same that none of the trusted keys signed, or of an image whose state is old or expired
    #[arg(long)]
    pub(crate) allow_unproven: bool,
    #[command(flatten)]
    pub(crate) registry: RegistryArguments,
}

#[derive(Debug, Args)]
pub(crate) struct ReleaseGroup {
    /// The Auto Scaling group
    #[arg(long, value_name = "NAME")]
    pub(crate) group: String,
    /// Where it is
    #[arg(long, value_name = "REGION")]
    pub(crate) region: String,
    /// Do not wait until it is over
    #[arg(long)]
    pub(crate) no_wait: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ReleaseRetire {
    #[arg(value_name = "NAME")]
    pub(crate) image: ImageName,
    /// A region; may be repeated
    #[arg(long = "region", value_name = "REGION", required = true)]
    pub(crate) regions: Vec<String>,
    /// Keep the AMIs of the newest so many versions, besides those that channels point to or somebody uses
    #[arg(long, value_name = "N")]
    pub(crate) keep: usize,
    /// How many days a withdrawn AMI stays
    #[arg(long, value_name = "DAYS", default_value_t = 14)]
    pub(crate) days: u64,
    /// Do it
    #[arg(long)]
    pub(crate) yes: bool,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) registry: RegistryArguments,
}
