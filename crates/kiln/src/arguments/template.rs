//! What a template is called with, and the verbs that only read one.

use std::path::PathBuf;

use clap::Args;

use super::RegistryArguments;

/// A template, its variables, and which of its images.
#[derive(Debug, Clone, Args)]
pub(crate) struct TemplateArguments {
    /// Directories with a `template.toml`, directories of such directories, or TOML files
    #[arg(value_name = "TEMPLATE", default_value = ".")]
    pub(crate) templates: Vec<PathBuf>,
    /// Set a variable; wins over --var-file and the environment (`KILN_VAR_NAME`)
    #[arg(long = "var", value_name = "NAME=VALUE")]
    pub(crate) variables: Vec<String>,
    /// Take variables from a TOML file; a later file wins over an earlier one
    #[arg(long = "var-file", value_name = "FILE")]
    pub(crate) variable_files: Vec<PathBuf>,
    /// Only these images: a name, or a pattern with * and ?
    #[arg(long, visible_alias = "member", value_name = "IMAGE")]
    pub(crate) only: Vec<String>,
    /// Look up anew which AMIs are meant by name, and write it into kiln.lock
    #[arg(long)]
    pub(crate) relock: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Validate {
    #[command(flatten)]
    pub(crate) template: TemplateArguments,
}

#[derive(Debug, Args)]
pub(crate) struct Plan {
    #[command(flatten)]
    pub(crate) template: TemplateArguments,
    #[command(flatten)]
    pub(crate) registry: RegistryArguments,
    /// Print the whole plan as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Fmt {
    /// Template files, or directories with a `template.toml`; `-` reads stdin and writes stdout
    #[arg(value_name = "TEMPLATE", default_value = ".")]
    pub(crate) templates: Vec<PathBuf>,
    /// Change nothing; exit with 1 and name the files that would change
    #[arg(long)]
    pub(crate) check: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Provisioners {
    /// Show the options of this one
    #[arg(value_name = "NAME")]
    pub(crate) name: Option<String>,
    /// The template that would use it: its own provisioners and its project's are found, too
    #[arg(long, value_name = "TEMPLATE", default_value = ".")]
    pub(crate) template: PathBuf,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}
