//! Arguments of the verbs that prove what is published.

use clap::{Args, ValueEnum};
use kiln_registry::Selector;

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
