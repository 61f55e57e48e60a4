//! What resolving a template needs to know of the world, as one trait.

use std::fmt;

use crate::{
    Digest, ImageName,
    diagnostic::Diagnostics,
    manifest::Manifest,
    plan::{Ami, AmiWish, ImageVersion},
};

/// The world as the pure part sees it. Paths are as written in the template, relative to the
/// directory of the template file that names them (`from`).
pub trait Facts: fmt::Debug {
    /// The text of another template file (`extends`, `include`), and the name to show for it.
    fn template(&self, from: &str, path: &str) -> Result<TemplateText, FactError>;

    /// Kind and digest of an input file or directory of a step. `allowed` are the template's `allow_paths`:
    /// a path that leaves the directory of `from` must lie beneath one of them.
    fn input(&self, from: &str, path: &str, allowed: &[String]) -> Result<InputFact, FactError>;

    /// The provisioner called `name`: the template's own directory first, then the project's, then the built-in set.
    fn provisioner(&self, name: &str) -> Result<ProvisionerFact, FactError>;

    /// The names of all provisioners that can be found, for "did you mean".
    fn provisioner_names(&self) -> Vec<String>;

    /// The published version that `image` and `reference` mean. `reference` is what stands behind the `@`: a version, a channel or
    /// a disk digest; `None` is the newest.
    fn image(&self, image: &ImageName, reference: Option<&str>) -> Result<ImageFact, FactError> {
        let _ = reference;
        Err(FactError::new(format!("there is no registry here that could have `{image}`")))
    }

    /// The AMI that `wanted` means in a region; `None`: nobody looks.
    fn ami(&self, region: &str, wanted: &AmiWish) -> Result<Option<Ami>, FactError> {
        let _ = (region, wanted);
        Ok(None)
    }
}

/// What a base of the registry comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageFact {
    Published(Box<ImageVersion>),
    /// It is built first, in the same run.
    Awaited,
}

/// A template file that was read.
#[derive(Debug, Clone)]
pub struct TemplateText {
    /// The path to show in messages, and the `from` of the paths inside it.
    pub name: String,
    pub text: String,
}

/// An input of a step, without its bytes.
#[derive(Debug, Clone)]
pub struct InputFact {
    /// Absolute path on the build host. Never part of a digest.
    pub path: String,
    pub directory: bool,
    /// Of a file: its bytes and whether it is executable. Of a directory: every path, kind, executable bit,
    /// link target and content beneath it, in byte order.
    pub digest: Digest,
    /// Total size in bytes.
    pub bytes: u64,
}

/// A provisioner that was found.
#[derive(Debug, Clone)]
pub struct ProvisionerFact {
    pub manifest: Manifest,
    /// Over every file of its directory, cases left out.
    pub digest: Digest,
    /// Where it came from, for people: a path, or `built in`.
    pub origin: String,
}

/// Why a fact could not be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct FactError {
    pub message: String,
    pub hint: Option<String>,
    /// The mistakes in the file that could not be read (a provisioner's manifest); shown besides the message.
    pub details: Diagnostics,
}

impl FactError {
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), hint: None, details: Diagnostics::default() }
    }

    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    #[must_use]
    pub fn with_details(mut self, details: Diagnostics) -> Self {
        self.details = details;
        self
    }
}

/// What the caller decided: values for variables.
#[derive(Debug, Clone, Default)]
pub struct Inputs {
    /// Values for variables, in rising precedence: where each came from (`--var`, `vars.toml:3`, `KILN_VAR_x`) is kept for messages.
    pub variables: Vec<VariableValue>,
}

/// A value for a variable. Text from the command line or the environment is parsed by the variable's type.
#[derive(Debug, Clone)]
pub struct VariableValue {
    pub name: String,
    pub value: GivenValue,
    pub origin: String,
}

#[derive(Debug, Clone)]
pub enum GivenValue {
    Text(String),
    Typed(serde_json::Value),
}
