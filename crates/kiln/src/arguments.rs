//! The command line.

use std::path::PathBuf;

use crate::calendar::Moment;
use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};
use kiln_core::{ChannelName, ImageName, Version};
use kiln_registry::{Reference, Selector};

/// Bakes machine images: a TOML template becomes a sealed, tested, bootable disk image
#[derive(Debug, Parser)]
#[command(name = "kiln", version, max_term_width = 100, disable_help_subcommand = true, arg_required_else_help = true)]
#[command(
    after_help = "Exit codes: 0 done, 1 failed, 2 wrong command line or template, 3 published in part, 130 interrupted.\n\
Directories: KILN_CACHE_DIR, KILN_STATE_DIR, KILN_DATA_DIR, else the XDG directories of the user."
)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Bake the images of a template, prove them, and publish them
    Build(Build),
    /// Report every mistake in a template; changes nothing and needs no network
    Validate(Validate),
    /// Show what a build would do, in order, with the recipe digest; changes nothing
    Plan(Plan),
    /// Print the JSON Schema of templates, for editors
    Schema,
    /// Bring template files into the standard layout
    Fmt(Fmt),
    /// List the published images
    Images(Images),
    /// Show one version of an image: digests, base, steps, checks
    Show(Show),
    /// Write a disk image out of the registry, verified
    Export(Export),
    /// Point a channel to a version
    Promote(Promote),
    /// Point a channel back to the version before, or to a named one
    Rollback(Rollback),
    /// Show the channels of an image, or the history of one
    Channel(Channel),
    /// Say which version is meant, for scripts, Terraform, GitHub Actions and Ansible
    Resolve(Resolve),
    /// Revoke a version, and with it all that were baked on it
    Revoke(Revoke),
    /// List the images whose base has a newer version
    Outdated(Outdated),
    /// Look after a registry
    #[command(subcommand)]
    Registry(RegistryVerb),
    /// Log in to a machine that was kept after a failed build, or run a command in it
    Ssh(Ssh),
    /// Show the output of a build
    Logs(Logs),
    /// Say what this machine lacks for baking, and install it
    Doctor(Doctor),
    /// List, explain and remove checkpoints
    #[command(subcommand)]
    Cache(Cache),
    /// Release what interrupted builds left; with --cache, also old bases and downloads
    Clean(Clean),
    /// Print a completion script for a shell
    Completions(Completions),
    /// Print or write the manual pages
    Man(Man),
    /// Runs a build's virtual machines and outlives kiln by a moment
    #[command(name = "__guard", hide = true)]
    Guard { spec: PathBuf },
}

/// A template, its variables, and which of its images.
#[derive(Debug, Args)]
pub(crate) struct TemplateArguments {
    /// A directory with a `template.toml`, or a TOML file
    #[arg(value_name = "TEMPLATE", default_value = ".")]
    pub(crate) template: PathBuf,
    /// Set a variable; wins over --var-file and the environment (`KILN_VAR_NAME`)
    #[arg(long = "var", value_name = "NAME=VALUE")]
    pub(crate) variables: Vec<String>,
    /// Take variables from a TOML file; a later file wins over an earlier one
    #[arg(long = "var-file", value_name = "FILE")]
    pub(crate) variable_files: Vec<PathBuf>,
    /// Only these images of a matrix: a name, or a pattern with * and ?
    #[arg(long, visible_alias = "member", value_name = "IMAGE")]
    pub(crate) only: Vec<String>,
}

/// Where images are published.
#[derive(Debug, Args)]
pub(crate) struct RegistryArguments {
    /// The registry's directory [default: `registry` in kiln's data directory]
    #[arg(long, value_name = "DIRECTORY", env = "KILN_REGISTRY", hide_env_values = true)]
    pub(crate) registry: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a switch of the command line")]
pub(crate) struct Build {
    #[command(flatten)]
    pub(crate) template: TemplateArguments,
    #[command(flatten)]
    pub(crate) registry: RegistryArguments,
    /// Write every event as a line of JSON to stdout
    #[arg(long)]
    pub(crate) json: bool,
    /// What becomes of the machine when a build fails
    #[arg(long, value_enum, value_name = "WHAT", default_value_t = OnError::Clean)]
    pub(crate) on_error: OnError,
    /// Which accelerator QEMU uses, instead of the one the template or the calibration chooses
    #[arg(long, value_enum, value_name = "WHICH")]
    pub(crate) accelerator: Option<Accelerator>,
    /// Also put the files of each image into a directory of its own here
    #[arg(long, value_name = "DIRECTORY")]
    pub(crate) output: Option<PathBuf>,
    /// Bake and prove, but publish nothing
    #[arg(long)]
    pub(crate) no_publish: bool,
    /// Do not boot the sealed image to test it; the artifact's record says so
    #[arg(long)]
    pub(crate) no_boot_test: bool,
    /// Boot and run every step, whatever checkpoints there are; new ones are taken
    #[arg(long)]
    pub(crate) fresh: bool,
    /// Run this step and all after it, a number or a name; what is before it may come from a checkpoint
    #[arg(long, value_name = "STEP", conflicts_with = "fresh")]
    pub(crate) fresh_from: Option<String>,
    /// Stop after this step, a number or a name, and keep the machine for `kiln ssh`; nothing is published
    #[arg(long, value_name = "STEP")]
    pub(crate) until: Option<String>,
    /// When checkpoints are taken: where they are worth their cost, after every step, or never (and none is used)
    #[arg(long, value_enum, value_name = "WHEN", default_value_t = Checkpoints::Auto)]
    pub(crate) checkpoints: Checkpoints,
    /// Bake even if nothing has changed since the published version was baked
    #[arg(long)]
    pub(crate) force: bool,
    /// Install what this machine lacks first, as `kiln doctor --install --yes` does
    #[arg(long)]
    pub(crate) install: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum OnError {
    /// Release everything
    Clean,
    /// Leave it running for `kiln ssh`
    Keep,
    /// Ask; needs a terminal
    Ask,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Checkpoints {
    Auto,
    Every,
    Off,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Accelerator {
    /// Calibrate, take the faster one that works
    Auto,
    Kvm,
    Tcg,
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
    #[command(flatten)]
    pub(crate) registry: RegistryArguments,
}

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
pub(crate) struct Channel {
    #[arg(value_name = "NAME")]
    pub(crate) image: ImageName,
    /// The history of this channel instead of a list of all
    #[arg(value_name = "CHANNEL")]
    pub(crate) channel: Option<ChannelName>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
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

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ResolveFormat {
    Json,
    Env,
    Tfvars,
    GithubOutput,
    Ansible,
}

#[derive(Debug, Subcommand)]
pub(crate) enum RegistryVerb {
    /// Read everything and compare it with its digests; set bad blobs aside and name the versions they harm
    Verify(RegistryVerify),
    /// Say which versions and blobs are not needed any more, and why the others are kept; remove them with --remove
    Prune(RegistryPrune),
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
