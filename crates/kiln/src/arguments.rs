//! The command line.

mod build;
mod cache;
mod channel;
mod machine;
mod proof;
mod publish;
mod published;
mod registry;
mod release;
mod serve;
mod template;

use std::path::PathBuf;

use clap::{Parser, Subcommand};

pub(crate) use self::{
    build::{Accelerator, Build, Checkpoints, OnError},
    cache::{Cache, CacheExplain, CacheList, CachePrune},
    channel::{Channel, IntentArguments, Outdated, Promote, Revoke, Rollback},
    machine::{Clean, Completions, Doctor, Logs, Man, Ssh},
    proof::{Diff, KeyExport, KeyInit, KeyList, KeyRevoke, KeyTrust, KeyVerb, Sbom, SbomFormat, Verify},
    publish::{PublishVerb, Resume},
    published::{Export, Images, Pull, Push, Resolve, ResolveFormat, Show},
    registry::{
        RegistryArguments, RegistryIndex, RegistryInit, RegistryPrune, RegistryRenew, RegistryVerb, RegistryVerify,
    },
    release::ReleaseVerb,
    serve::{Allowed, Mirror, Serve, Token},
    template::{Fmt, Plan, Provisioners, TemplateArguments, Validate},
};
#[cfg(feature = "aws")]
pub(crate) use self::{
    publish::PublishAmi,
    release::{ReleaseCheck, ReleaseGroup, ReleasePoint, ReleaseRetire, ReleaseStart},
};

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
    /// Show what a build would do, in order, with the recipe digest; bakes nothing
    Plan(Plan),
    /// Print the JSON Schema of templates, for editors
    Schema,
    /// Bring template files into the standard layout
    Fmt(Fmt),
    /// List the provisioners that a template can use, or the options of one
    Provisioners(Provisioners),
    /// List the published images
    Images(Images),
    /// Show one version of an image: digests, base, steps, checks
    Show(Show),
    /// Print the bill of materials of a version: the packages on its disk
    Sbom(Sbom),
    /// Show what differs between two versions: packages, files, units, sizes
    Diff(Diff),
    /// Prove a version: signature, digests, builder, revocation, and every stored byte
    Verify(Verify),
    /// Write a disk image out of the registry, verified
    Export(Export),
    /// Bring a version to where machines start from it
    #[command(subcommand)]
    Publish(PublishVerb),
    /// Go on with AMIs that were asked for and are not all there
    Resume(Resume),
    /// Replace running machines by those of a version, or go back
    #[command(subcommand)]
    Release(ReleaseVerb),
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
    /// Look after the keys that sign what is published, and those that are trusted
    #[command(subcommand)]
    Key(KeyVerb),
    /// Look after a registry
    #[command(subcommand)]
    Registry(RegistryVerb),
    /// Serve a registry over HTTP: files, OCI, an API and a dashboard
    Serve(Serve),
    /// Put a version into an OCI registry, for skopeo, oras and their kin
    Mirror(Mirror),
    /// Bring a version from a server into a registry here; only what is missing comes
    Pull(Pull),
    /// Send a version to a server; only what it lacks is sent
    Push(Push),
    /// Make a token that lets somebody change a served registry
    Token(Token),
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
