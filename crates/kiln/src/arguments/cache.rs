//! Arguments of `kiln cache`.

use clap::{Args, Subcommand};

use super::{RegistryArguments, TemplateArguments};

#[derive(Debug, Subcommand)]
pub(crate) enum Cache {
    /// List the checkpoints: of what, how large, how old
    List(CacheList),
    /// Remove the checkpoints used longest ago until the rest fits
    Prune(CachePrune),
    /// Show for every step of a template whether it will run, why, and everything its key covers
    Explain(CacheExplain),
}

#[derive(Debug, Args)]
pub(crate) struct CacheList {
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct CachePrune {
    /// What may stay in all, such as `5 GiB`; 0 removes all that is not in use [default: kiln's own limit]
    #[arg(long, value_name = "SIZE")]
    pub(crate) to: Option<kiln_core::ByteSize>,
}

#[derive(Debug, Args)]
pub(crate) struct CacheExplain {
    #[command(flatten)]
    pub(crate) template: TemplateArguments,
    #[command(flatten)]
    pub(crate) registry: RegistryArguments,
}
