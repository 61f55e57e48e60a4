//! What the system lets this process and its children do.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// No core file of kiln, nor of the machines it starts, ever holds a secret.
pub(crate) fn no_core_files() {
    let _ = setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) });
}

/// As many open files as the system allows: who holds many versions has a lock open for each.
pub(crate) fn many_open_files() {
    let most = getrlimit(Resource::Nofile).maximum;
    let _ = setrlimit(Resource::Nofile, Rlimit { current: most, maximum: most });
}
