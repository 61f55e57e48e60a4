//! Which registry, and the arguments of `kiln registry`.

use std::{path::PathBuf, time::Duration};

use clap::{Args, Subcommand};
use kiln_core::{ImageName, duration};

/// Where images are published.
#[derive(Debug, Args)]
pub(crate) struct RegistryArguments {
    /// The registry's directory, a bucket (`s3://bucket/prefix?endpoint=URL`), or the URL of a server [default: `registry` in
    /// kiln's data directory]
    #[arg(long, value_name = "DIRECTORY|URL", env = "KILN_REGISTRY", hide_env_values = true)]
    pub(crate) registry: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum RegistryVerb {
    /// Make a directory or a bucket a registry, after trying in a race whether it keeps writers apart
    Init(RegistryInit),
    /// Read everything and compare it with its digests; set bad blobs aside and name the versions they harm
    Verify(RegistryVerify),
    /// Say which versions and blobs are not needed any more, and why the others are kept; remove them with --remove
    Prune(RegistryPrune),
    /// Make the index of lists and pages anew; without this it is made, and kept as the registry is, by whoever needs it
    Index(RegistryIndex),
    /// Sign the state of images anew before it expires, and say how long it is good for
    Renew(RegistryRenew),
}

#[derive(Debug, Args)]
pub(crate) struct RegistryRenew {
    /// Images [default: all]
    #[arg(value_name = "IMAGE")]
    pub(crate) images: Vec<ImageName>,
    /// How long the state is good for from now on: `7 days`, `36h`. Who reads it later refuses it
    #[arg(long, value_name = "TIME", value_parser = duration::parse, conflicts_with = "without_end")]
    pub(crate) valid_for: Option<Duration>,
    /// The state does not expire any more
    #[arg(long)]
    pub(crate) without_end: bool,
    #[command(flatten)]
    pub(crate) registry: RegistryArguments,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct RegistryIndex {
    #[command(flatten)]
    pub(crate) registry: RegistryArguments,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct RegistryInit {
    #[command(flatten)]
    pub(crate) registry: RegistryArguments,
}

#[derive(Debug, Args)]
pub(crate) struct RegistryPrune {
    /// Keep the newest N versions of each image
    #[arg(long, value_name = "N")]
    pub(crate) keep: Option<usize>,
    /// Keep what was published in the last N days
    #[arg(long, value_name = "N")]
    pub(crate) keep_days: Option<u64>,
    /// Remove the others, and every blob that nothing needs; what a channel points to, its rollback, and the bases of what is kept stay
    #[arg(long)]
    pub(crate) remove: bool,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) registry: RegistryArguments,
}

#[derive(Debug, Args)]
pub(crate) struct RegistryVerify {
    #[command(flatten)]
    pub(crate) registry: RegistryArguments,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}
