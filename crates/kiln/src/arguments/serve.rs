//! Serving a registry.

use std::{net::SocketAddr, path::PathBuf};

use clap::{Args, ValueEnum};
use kiln_registry::Selector;

#[derive(Debug, Args)]
pub(crate) struct Serve {
    /// Where it listens; port 0 takes a free one and says which
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:8080")]
    pub(crate) listen: SocketAddr,
    /// The registry's directory, or a bucket (`s3://bucket/prefix?endpoint=URL`) [default: `registry` in kiln's data directory]
    #[arg(long, value_name = "DIRECTORY", env = "KILN_REGISTRY", hide_env_values = true)]
    pub(crate) registry: Option<PathBuf>,
    /// Who may change what, as `kiln token` writes it; without it everybody reads and nobody changes anything
    #[arg(long, value_name = "FILE")]
    pub(crate) tokens: Option<PathBuf>,
    /// The certificate, with those that it needs behind it, in PEM
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub(crate) tls_cert: Option<PathBuf>,
    /// The key of the certificate, in PEM (PKCS #8)
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub(crate) tls_key: Option<PathBuf>,
    /// Show the logs of the builds in this directory too, such as `builds` in kiln's state directory
    #[arg(long, value_name = "DIRECTORY")]
    pub(crate) builds: Option<PathBuf>,
    /// The address that clients use, when a proxy stands before the server
    #[arg(long, value_name = "URL")]
    pub(crate) url: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Token {
    /// Who will use it; stands in the history of what it changes
    #[arg(value_name = "NAME")]
    pub(crate) name: String,
    /// The file of tokens to add it to; made if there is none
    #[arg(long, value_name = "FILE")]
    pub(crate) tokens: PathBuf,
    /// The images it is for; `*` stands for any characters
    #[arg(long = "image", value_name = "PATTERN", default_value = "*")]
    pub(crate) images: Vec<String>,
    /// What it allows
    #[arg(long, value_enum, value_name = "WHAT", value_delimiter = ',', default_value = "read")]
    pub(crate) allow: Vec<Allowed>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Allowed {
    Read,
    Publish,
    /// Move channels, and back
    Promote,
    Revoke,
    /// Say which channels take only proven versions
    Restrict,
}

#[derive(Debug, Args)]
pub(crate) struct Mirror {
    /// An image, one version of it, or what a channel points to; a channel's name becomes a tag too
    #[arg(value_name = "NAME[@VERSION|@CHANNEL]")]
    pub(crate) image: Selector,
    /// The repository, without a tag: `registry.example.com/team/web`
    #[arg(long, value_name = "REPOSITORY")]
    pub(crate) to: String,
    /// Speak HTTP, not HTTPS
    #[arg(long)]
    pub(crate) plain_http: bool,
    /// Use a revoked version all the same, when the version itself is named
    #[arg(long)]
    pub(crate) allow_revoked: bool,
    /// Use a version all the same that none of the trusted keys signed, or of an image whose state is old or expired
    #[arg(long)]
    pub(crate) allow_unproven: bool,
    /// The registry's directory, or a bucket (`s3://bucket/prefix?endpoint=URL`) [default: `registry` in kiln's data directory]
    #[arg(long, value_name = "DIRECTORY", env = "KILN_REGISTRY", hide_env_values = true)]
    pub(crate) registry: Option<PathBuf>,
}
