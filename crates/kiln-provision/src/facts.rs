//! The build host as [`Facts`]: template files, inputs and provisioners read from disk.

use std::path::{Component, Path, PathBuf};

use kiln_core::facts::{FactError, Facts, InputFact, ProvisionerFact, TemplateText};
use kiln_io::{
    error::FsError,
    fs::{read_text, resolve_within},
    tree,
};

use crate::{Library, error::LibraryError};

/// Facts for one template. Names of template files are paths relative to the working directory, or absolute.
#[derive(Debug, Clone)]
pub struct HostFacts {
    library: Library,
}

impl HostFacts {
    /// For the template file at `template`.
    pub fn for_template(template: &Path) -> Self {
        Self { library: Library::for_template(directory_of(template)) }
    }

    pub const fn with_library(library: Library) -> Self {
        Self { library }
    }

    /// Where provisioners are found; the same for planning and for running.
    pub fn library(&self) -> &Library {
        &self.library
    }
}

impl Facts for HostFacts {
    fn template(&self, from: &str, path: &str) -> Result<TemplateText, FactError> {
        let mut found = plain(&directory_of(Path::new(from)).join(path));
        if found.is_dir() {
            found.push("template.toml");
        }
        let text = read_text(&found).map_err(|error| unreadable(&error))?;
        Ok(TemplateText { name: found.display().to_string(), text })
    }

    fn input(&self, from: &str, path: &str, allowed: &[String]) -> Result<InputFact, FactError> {
        resolve_within(directory_of(Path::new(from)), path, allowed)
            .and_then(|found| tree::input(&found))
            .map_err(|error| unreadable(&error))
    }

    fn provisioner(&self, name: &str) -> Result<ProvisionerFact, FactError> {
        let found = self.library.find(name).map_err(|error| match error {
            LibraryError::Manifest { ref mistakes, .. } => {
                FactError::new(error.to_string()).with_details(mistakes.clone())
            }
            LibraryError::Read { ref source, .. } => FactError::new(format!("{error}: {}", chain(source))),
            other => FactError::new(other.to_string()),
        })?;
        Ok(ProvisionerFact { manifest: found.manifest, digest: found.digest, origin: found.origin })
    }

    fn provisioner_names(&self) -> Vec<String> {
        self.library.names()
    }
}

/// `.` for a bare file name.
fn directory_of(file: &Path) -> &Path {
    file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// The path without `.` and without `x/..`, so that one file has one name in messages.
fn plain(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir
                if matches!(out.components().next_back(), Some(Component::Normal(_))) && !out.is_symlink() =>
            {
                out.pop();
            }
            other => out.push(other),
        }
    }
    out
}

fn unreadable(error: &FsError) -> FactError {
    FactError::new(chain(error))
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}
