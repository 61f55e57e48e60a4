//! Arguments of the verbs about this machine and its builds.

use std::path::PathBuf;

use clap::{ArgAction, Args};

#[derive(Debug, Args)]
pub(crate) struct Ssh {
    /// A build, or an image whose newest kept build is meant [default: the newest kept build]
    #[arg(value_name = "BUILD|IMAGE")]
    pub(crate) which: Option<String>,
    /// A command to run instead of a login shell
    #[arg(last = true, value_name = "COMMAND")]
    pub(crate) command: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Logs {
    /// A build, or an image whose newest build is meant [default: the newest build]
    #[arg(value_name = "BUILD|IMAGE")]
    pub(crate) which: Option<String>,
    /// Only this step
    #[arg(long, value_name = "N")]
    pub(crate) step: Option<usize>,
    /// Go on as the build does, until it ends
    #[arg(long, short)]
    pub(crate) follow: bool,
    /// Print the events as they were written
    #[arg(long)]
    pub(crate) json: bool,
    /// List the builds instead
    #[arg(long, conflicts_with_all = ["step", "follow", "json"])]
    pub(crate) list: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Doctor {
    /// Install what is missing with apt-get, in one command
    #[arg(long)]
    pub(crate) install: bool,
    /// Do not ask before installing
    #[arg(long, requires = "install")]
    pub(crate) yes: bool,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Clean {
    /// Only this build, or the newest of this image; a build that was kept is released only when it is named
    #[arg(value_name = "BUILD|IMAGE")]
    pub(crate) build: Option<String>,
    /// Also release what was kept with --on-error keep
    #[arg(long)]
    pub(crate) kept: bool,
    /// Also remove cached bases, downloads and checkpoints that no build used for a while
    #[arg(long)]
    pub(crate) cache: bool,
    /// What "a while" is, in days; 0 removes all of the cache
    #[arg(long, value_name = "DAYS", default_value_t = 30, requires = "cache")]
    pub(crate) older_than: u64,
    /// Say what would be done, and do nothing
    #[arg(long, action = ArgAction::SetTrue)]
    pub(crate) dry_run: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Completions {
    #[arg(value_enum, value_name = "SHELL")]
    pub(crate) shell: clap_complete::Shell,
}

#[derive(Debug, Args)]
pub(crate) struct Man {
    /// Write a page for every verb into this directory instead of printing the first one
    #[arg(long, value_name = "DIRECTORY")]
    pub(crate) to: Option<PathBuf>,
}
