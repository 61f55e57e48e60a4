//! What a verb learns from the process it runs in: directories, registry, clock.

use std::{env, path::PathBuf, time::SystemTime};

use kiln_io::{
    dirs::Dirs,
    time::{Clock as _, SystemClock},
};
use kiln_registry::Registry;

use crate::{arguments::RegistryArguments, failure::Failure};

/// kiln's directories, from the environment.
pub(crate) fn dirs() -> Result<Dirs, Failure> {
    Dirs::from_environment(|name| env::var(name).ok()).ok_or_else(|| {
        Failure::usage("there is no home directory to keep bases, builds and images in")
            .hint("set `HOME`, or `KILN_CACHE_DIR`, `KILN_STATE_DIR` and `KILN_DATA_DIR`, to absolute paths")
    })
}

/// The registry that is meant: the one named, else the user's own.
pub(crate) fn registry(arguments: &RegistryArguments) -> Result<Registry, Failure> {
    let path: PathBuf = match &arguments.registry {
        Some(path) => path.clone(),
        None => dirs()?.data.join("registry"),
    };
    Ok(Registry::open(&path)?)
}

/// Who does something, unless `--by` says it: `ada@builder`.
pub(crate) fn who() -> String {
    let user = ["USER", "LOGNAME"].iter().find_map(|name| env::var(name).ok().filter(|user| !user.is_empty()));
    let user = user.unwrap_or_else(|| format!("uid {}", rustix::process::getuid().as_raw()));
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("{user}@{}", host.trim())
}

/// Seconds since 1970, UTC.
pub(crate) fn seconds() -> u64 {
    now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

pub(crate) fn now() -> SystemTime {
    SystemClock::new().wall()
}
