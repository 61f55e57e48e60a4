//! Arguments of the verbs that read what is published.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use kiln_core::ImageName;
use kiln_registry::Selector;

use super::RegistryArguments;

#[derive(Debug, Args)]
pub(crate) struct Images {
    #[command(flatten)]
    pub(crate) registry: RegistryArguments,
    /// Every version of this image instead of the newest of each
    #[arg(value_name = "NAME")]
    pub(crate) image: Option<ImageName>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Show {
    /// An image, one version of it, or what a channel points to
    #[arg(value_name = "NAME[@VERSION|@CHANNEL]")]
    pub(crate) image: Selector,
    #[command(flatten)]
    pub(crate) registry: RegistryArguments,
    /// Print the artifact's record as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Export {
    /// An image, one version of it, or what a channel points to
    #[arg(value_name = "NAME[@VERSION|@CHANNEL]")]
    pub(crate) image: Selector,
    /// The file to write; it appears when it is complete
    #[arg(long, value_name = "FILE")]
    pub(crate) to: PathBuf,
    /// The format: qcow2, raw and raw.zst are laid down from what is stored, others are converted with qemu-img
    #[arg(long, value_name = "FORMAT", default_value = "qcow2", value_parser = ["qcow2", "raw", "raw.zst", "vmdk", "vhd"])]
    pub(crate) format: String,
    /// Replace the file if it exists
    #[arg(long)]
    pub(crate) force: bool,
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
pub(crate) struct Resolve {
    /// An image, a version, or what a channel points to
    #[arg(value_name = "NAME[@VERSION|@CHANNEL]")]
    pub(crate) image: Selector,
    /// How it is printed; json is one flat object of texts
    #[arg(long, value_enum, value_name = "FORMAT", default_value_t = ResolveFormat::Json)]
    pub(crate) format: ResolveFormat,
    /// Use a revoked version all the same, when the version itself is named
    #[arg(long)]
    pub(crate) allow_revoked: bool,
    /// Take also a version, or a state of the image, that none of the trusted keys signed, or a state that is old or expired
    #[arg(long)]
    pub(crate) allow_unproven: bool,
    #[command(flatten)]
    pub(crate) registry: RegistryArguments,
}

#[derive(Debug, Args)]
pub(crate) struct Pull {
    /// An image, one version of it, or what a channel points to
    #[arg(value_name = "NAME[@VERSION|@CHANNEL]")]
    pub(crate) image: Selector,
    /// The server, or a bucket; `KILN_TOKEN` holds the token if a server needs one
    #[arg(long, value_name = "URL", env = "KILN_REGISTRY", hide_env_values = true)]
    pub(crate) registry: String,
    /// The registry that gets it: a directory [default: `registry` in kiln's data directory]
    #[arg(long, value_name = "DIRECTORY")]
    pub(crate) into: Option<PathBuf>,
    /// Pull a revoked version all the same, when the version itself is named
    #[arg(long)]
    pub(crate) allow_revoked: bool,
    /// Pull a version that is not proven, or of an image whose state is old or expired, although keys are trusted here
    #[arg(long)]
    pub(crate) allow_unproven: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Push {
    /// An image, one version of it, or what a channel points to
    #[arg(value_name = "NAME[@VERSION|@CHANNEL]")]
    pub(crate) image: Selector,
    /// The server, or a bucket; `KILN_TOKEN` holds the token of a server
    #[arg(long, value_name = "URL", env = "KILN_REGISTRY", hide_env_values = true)]
    pub(crate) registry: String,
    /// The registry that has it: a directory [default: `registry` in kiln's data directory]
    #[arg(long, value_name = "DIRECTORY")]
    pub(crate) from: Option<PathBuf>,
    /// Who; stands in the history beside the name of the token [default: user and host]
    #[arg(long, value_name = "WHO", env = "KILN_BY", hide_env_values = true)]
    pub(crate) by: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ResolveFormat {
    Json,
    Env,
    Tfvars,
    GithubOutput,
    Ansible,
}
