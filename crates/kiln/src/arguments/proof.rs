//! Arguments of the verbs that prove what is published.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use kiln_core::ImageName;
use kiln_registry::{Reference, Selector};

use super::RegistryArguments;

#[derive(Debug, Args)]
pub(crate) struct Sbom {
    /// An image, one version of it, or what a channel points to
    #[arg(value_name = "NAME[@VERSION|@CHANNEL]")]
    pub(crate) image: Selector,
    /// Which document, as JSON: cyclonedx is of version 1.6, spdx of 2.3
    #[arg(long, value_enum, value_name = "FORMAT", default_value_t = SbomFormat::Cyclonedx)]
    pub(crate) format: SbomFormat,
    #[command(flatten)]
    pub(crate) registry: RegistryArguments,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum SbomFormat {
    Cyclonedx,
    Spdx,
}

#[derive(Debug, Args)]
pub(crate) struct Diff {
    #[arg(value_name = "NAME")]
    pub(crate) image: ImageName,
    /// A version, `latest`, a disk digest, or a channel: what it points to now
    #[arg(value_name = "FROM")]
    pub(crate) from: Reference,
    /// The same of the version to compare with
    #[arg(value_name = "TO")]
    pub(crate) to: Reference,
    /// Print JSON, every file with it
    #[arg(long, conflicts_with_all = ["markdown", "all"])]
    pub(crate) json: bool,
    /// Print Markdown, for a release note
    #[arg(long)]
    pub(crate) markdown: bool,
    /// Every file instead of the first 50
    #[arg(long)]
    pub(crate) all: bool,
    #[command(flatten)]
    pub(crate) registry: RegistryArguments,
}

#[derive(Debug, Args)]
pub(crate) struct Verify {
    /// An image, one version of it, or what a channel points to
    #[arg(value_name = "NAME[@VERSION|@CHANNEL]")]
    pub(crate) image: Selector,
    /// Do not read the stored disk; signature, digests, builder and revocation only
    #[arg(long)]
    pub(crate) quick: bool,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) registry: RegistryArguments,
}

#[derive(Debug, Subcommand)]
pub(crate) enum KeyVerb {
    /// Make the key that signs what is published, and trust it
    Init(KeyInit),
    /// Put a new key in its place; what the old one signed stays proven until it is revoked
    Rotate(KeyInit),
    /// List the keys that are or were trusted
    List(KeyList),
    /// Trust the public key of somebody else
    Trust(KeyTrust),
    /// Stop trusting a key, and everything it ever signed
    Revoke(KeyRevoke),
    /// Print a public key, for others to trust
    Export(KeyExport),
}

#[derive(Debug, Args)]
pub(crate) struct KeyInit {
    /// Whose key it is [default: user and host]
    #[arg(long, value_name = "WHO")]
    pub(crate) name: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct KeyList {
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct KeyTrust {
    /// A file with the public key, as `kiln key export` prints it (Ed25519, PEM)
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
    /// Whose key it is [default: the name of the file]
    #[arg(long, value_name = "WHO")]
    pub(crate) name: Option<String>,
    /// A builder that it may speak for [default: kiln on somebody's machine]
    #[arg(long = "builder", value_name = "ID")]
    pub(crate) builders: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct KeyRevoke {
    /// The key, or how its id begins
    #[arg(value_name = "KEY")]
    pub(crate) key: String,
    /// Why; shown to everybody who meets a signature of it
    #[arg(long, value_name = "TEXT")]
    pub(crate) reason: String,
}

#[derive(Debug, Args)]
pub(crate) struct KeyExport {
    /// The key, or how its id begins [default: the one that signs]
    #[arg(value_name = "KEY")]
    pub(crate) key: Option<String>,
}
