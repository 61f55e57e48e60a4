//! Arguments of `kiln build`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::{RegistryArguments, TemplateArguments};

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
    /// What becomes of the machine when a step or a check fails
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
    /// Bake also on a revoked version of an image, when the version itself is named as the base
    #[arg(long)]
    pub(crate) allow_revoked: bool,
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
    /// After a build that used checkpoints, bake the image once more without any and compare the files of both; with a share in percent, only
    /// so many of such builds
    #[arg(long, value_name = "PERCENT", num_args = 0..=1, require_equals = true, default_missing_value = "100", value_parser = clap::value_parser!(u8).range(0..=100))]
    pub(crate) audit: Option<u8>,
    /// Bake even if nothing has changed since the published version was baked
    #[arg(long)]
    pub(crate) force: bool,
    /// At most so many builds at once [default: as many as the machine has processors]
    #[arg(long, short = 'j', value_name = "N")]
    pub(crate) jobs: Option<std::num::NonZeroUsize>,
    /// Memory for the machines of all builds that run at once, such as `8 GiB` [default: most of what is free]
    #[arg(long, value_name = "SIZE")]
    pub(crate) memory: Option<kiln_core::ByteSize>,
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
    /// Ask: retry with the edited files, look inside, keep or clean; needs a terminal
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
