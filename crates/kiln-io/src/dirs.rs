//! Where kiln keeps things: cache, state and data directories.

use std::path::{Path, PathBuf};

/// The directories of one user's kiln.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dirs {
    /// Bases, downloads, calibration. May be deleted at any time.
    pub cache: PathBuf,
    /// Ledgers, logs and work files of builds.
    pub state: PathBuf,
    /// The registry.
    pub data: PathBuf,
}

impl Dirs {
    /// From `KILN_CACHE_DIR`, `KILN_STATE_DIR`, `KILN_DATA_DIR`, then the XDG variables, then `~/.cache/kiln`,
    /// `~/.local/state/kiln`, `~/.local/share/kiln`. `None` without a home directory.
    pub fn from_environment(variable: impl Fn(&str) -> Option<String>) -> Option<Self> {
        let set = |name: &str| variable(name).filter(|value| Path::new(value).is_absolute());
        let pick = |own: &str, xdg: &str, home: &str| {
            set(own)
                .map(PathBuf::from)
                .or_else(|| set(xdg).map(|base| Path::new(&base).join("kiln")))
                .or_else(|| set("HOME").map(|base| Path::new(&base).join(home).join("kiln")))
        };
        Some(Self {
            cache: pick("KILN_CACHE_DIR", "XDG_CACHE_HOME", ".cache")?,
            state: pick("KILN_STATE_DIR", "XDG_STATE_HOME", ".local/state")?,
            data: pick("KILN_DATA_DIR", "XDG_DATA_HOME", ".local/share")?,
        })
    }

    /// The directory of one build: ledger, log, keys, overlay.
    pub fn build(&self, build: &str) -> PathBuf {
        self.state.join("builds").join(build)
    }
}
