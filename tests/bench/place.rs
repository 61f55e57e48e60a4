//! A registry and a cache for one part of the benchmarks, which shares only the bases with the user's own.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use kiln_io::dirs::Dirs;
use kiln_tests::home;
use serde_json::Value;

use crate::measure::{Timed, timed};

/// A cache of its own that shares only the bases.
pub(crate) struct Place {
    pub(crate) work: tempfile::TempDir,
}

impl Place {
    pub(crate) fn new() -> Self {
        let work = tempfile::tempdir().expect("a directory to work in");
        let user = Dirs::from_environment(|name| std::env::var(name).ok()).expect("a home");
        let own = work.path().join("cache");
        fs::create_dir_all(&own).expect("make a cache");
        std::os::unix::fs::symlink(user.cache.join("bases"), own.join("bases")).expect("share the bases");
        let _ = fs::copy(user.cache.join("calibration.json"), own.join("calibration.json"));
        Self { work }
    }

    pub(crate) fn template(&self, name: &str, text: &str) -> PathBuf {
        let path = self.work.path().join(name);
        fs::write(&path, text).expect("write a template");
        path
    }

    pub(crate) fn kiln(&self, arguments: &[&str]) -> Timed {
        let work = self.work.path();
        timed(
            Command::new(home::kiln())
                .args(arguments)
                .env("KILN_CACHE_DIR", work.join("cache"))
                .env("KILN_DATA_DIR", work.join("data"))
                .env("KILN_STATE_DIR", work.join("state")),
        )
    }

    pub(crate) fn build(&self, template: &Path, options: &[&str]) -> Timed {
        let template = template.to_str().expect("a UTF-8 path");
        self.kiln(&[&["build", template, "--json"], options].concat())
    }

    /// Releases a machine that waits after `--until`.
    pub(crate) fn release(&self) {
        self.kiln(&["clean", "--kept"]);
    }
}

pub(crate) fn events(ran: &Timed) -> impl Iterator<Item = Value> {
    ran.output.lines().filter_map(|line| serde_json::from_str(line).ok())
}
