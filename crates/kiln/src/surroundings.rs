//! What a verb learns from the process it runs in: directories, registry, clock.

use std::{
    env,
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use kiln_bucket::{Address, S3};
use kiln_core::ImageName;
use kiln_io::{
    dirs::Dirs,
    time::{Clock as _, SystemClock},
};
use kiln_registry::{KeyStore, Record, Reference, Registry, Seen, Selector};
use kiln_serve::{
    ServeError,
    client::{Remote, is_url},
};
use tokio_util::sync::CancellationToken;

use crate::{arguments::RegistryArguments, bases::Shelf, failure::Failure};

/// kiln's directories, from the environment.
pub(crate) fn dirs() -> Result<Dirs, Failure> {
    Dirs::from_environment(|name| env::var(name).ok()).ok_or_else(|| {
        Failure::usage("there is no home directory to keep bases, builds and images in")
            .hint("set `HOME`, or `KILN_CACHE_DIR`, `KILN_STATE_DIR` and `KILN_DATA_DIR`, to absolute paths")
    })
}

/// The registry that is meant: the one named, else the user's own.
pub(crate) fn registry(arguments: &RegistryArguments) -> Result<Registry, Failure> {
    open(&registry_path(arguments)?)
}

/// The same for what looks after a registry: one that was named and is not there is a slip of the pen, or a disk that is not mounted.
pub(crate) fn existing(arguments: &RegistryArguments) -> Result<Registry, Failure> {
    if let Some(path) = &arguments.registry
        && bucket(path)?.is_none()
        && !path.to_str().is_some_and(|text| text.contains("://"))
        && !path.is_dir()
    {
        return Err(Failure::new(format!("there is no registry at `{}`", path.display()))
            .hint("look whether the path is right and the disk is mounted"));
    }
    registry(arguments)
}

/// The registry in a directory or in a bucket, with this user's keys.
pub(crate) fn open(path: &Path) -> Result<Registry, Failure> {
    with_keys(bare(path)?)
}

fn with_keys(registry: Registry) -> Result<Registry, Failure> {
    // Without a home there are no keys: nothing is signed, and nothing can be proven.
    let Ok(keys) = keys() else { return Ok(registry) };
    let registry = registry.trusting(keys.trust()?);
    Ok(match keys.signer()? {
        Some(key) => registry.signing(key),
        None => registry,
    })
}

/// The same without keys: it signs nothing and believes nobody.
pub(crate) fn bare(path: &Path) -> Result<Registry, Failure> {
    refuse_server(path)?;
    Ok(match bucket(path)? {
        Some(address) => Registry::in_bucket(Arc::new(S3::new(&address)?))?,
        None if path.to_str().is_some_and(|text| text.contains("://")) => {
            return Err(Failure::usage(format!("`{}` is no registry that kiln knows", path.display()))
                .hint("a directory, `s3://bucket/prefix`, or the URL of a server with `http://` or `https://`"));
        }
        None => Registry::open(path)?,
    })
}

/// Refuses a server for what is done where the registry lies.
pub(crate) fn refuse_server(path: &Path) -> Result<(), Failure> {
    match path.to_str().filter(|text| is_url(text)) {
        None => Ok(()),
        Some(url) => Err(Failure::usage(format!("`{url}` is a server, and this is done where its registry lies"))
            .hint(
                "run it on the server's machine, or with the address of the bucket; `kiln pull` brings a version here",
            )),
    }
}

/// Where indices of registries are kept; nowhere without a home.
pub(crate) fn index() -> Option<PathBuf> {
    dirs().ok().map(|dirs| dirs.cache.join("index"))
}

/// The bucket that is named as a registry, if one is.
pub(crate) fn bucket(path: &Path) -> Result<Option<Address>, Failure> {
    Ok(path.to_str().filter(|text| Address::is_one(text)).map(Address::parse).transpose()?)
}

pub(crate) fn registry_path(arguments: &RegistryArguments) -> Result<PathBuf, Failure> {
    match &arguments.registry {
        Some(path) => Ok(path.clone()),
        None => Ok(dirs()?.data.join("registry")),
    }
}

/// The name of a registry by which it is found from any directory.
#[cfg(feature = "aws")]
pub(crate) fn lasting(path: &Path) -> Result<PathBuf, Failure> {
    if path.to_str().is_some_and(is_url) || bucket(path)?.is_some() {
        return Ok(path.to_owned());
    }
    std::path::absolute(path).map_err(|error| kiln_io::fs::failed("find", path, 0)(error).into())
}

/// The registry that is meant, for reading what belongs to `image`, wherever it is.
pub(crate) fn reading(arguments: &RegistryArguments, image: &ImageName) -> Result<Registry, Failure> {
    read(&registry_path(arguments)?, image)
}

/// The same for a registry by its name. That of a server is asked for once first, so that what is wrong with server, token or image is
/// said in its own words.
pub(crate) fn read(path: &Path, image: &ImageName) -> Result<Registry, Failure> {
    let Some(remote) = remote(path, &CancellationToken::new())? else { return open(path) };
    remote.greet(image)?;
    with_keys(remote.registry(image)?)
}

/// The registry as far as bases are looked up in it. A plan needs no home: without one there is no registry.
pub(crate) fn shelf(arguments: &RegistryArguments, allow_revoked: bool) -> Option<Shelf> {
    Some(Shelf { root: registry_path(arguments).ok()?, allow_revoked, now: seconds() })
}

/// A registry in a directory or a bucket, or one that a server has.
#[derive(Debug)]
pub(crate) enum Place {
    Here(Registry),
    There(Remote),
}

/// The registry that is meant, wherever it is.
pub(crate) fn place(arguments: &RegistryArguments) -> Result<Place, Failure> {
    match server(arguments, &CancellationToken::new())? {
        Some(remote) => Ok(Place::There(remote)),
        None => Ok(Place::Here(registry(arguments)?)),
    }
}

impl Place {
    /// For reading what belongs to `image`.
    pub(crate) fn reading(&self, image: &ImageName) -> Result<Registry, Failure> {
        match self {
            Self::Here(registry) => Ok(registry.clone()),
            Self::There(remote) => with_keys(remote.registry(image)?),
        }
    }

    /// As people write it.
    pub(crate) fn name(&self) -> String {
        match self {
            Self::Here(registry) => registry.root().display().to_string(),
            Self::There(remote) => remote.url(),
        }
    }
}

/// The server that is named as the registry, if one is.
pub(crate) fn server(arguments: &RegistryArguments, cancel: &CancellationToken) -> Result<Option<Remote>, Failure> {
    arguments.registry.as_ref().map_or(Ok(None), |path| remote(path, cancel))
}

/// The server of this name, if it is one.
pub(crate) fn remote(path: &Path, cancel: &CancellationToken) -> Result<Option<Remote>, Failure> {
    let Some(url) = path.to_str().filter(|text| is_url(text)) else { return Ok(None) };
    let token = env::var("KILN_TOKEN").ok().filter(|token| !token.is_empty());
    Ok(Some(Remote::new(url, token.as_deref(), Arc::new(SystemClock::new()), cancel.clone())?))
}

/// The version that `selector` means on a server: by its own word, which knows what is revoked above what a token may read, and by
/// the state of the image, which is judged here.
pub(crate) fn judged(
    remote: &Remote,
    selector: &Selector,
    allow_revoked: bool,
    allow_unproven: bool,
) -> Result<(Registry, Record), Failure> {
    let said = remote.usable_now(selector, allow_revoked)?;
    let registry = with_keys(remote.registry(&selector.image)?)?;
    if allow_unproven {
        return Ok((registry, said));
    }
    refuse_old_state(&registry, &selector.image, false)?;
    let record = registry.usable(selector, seconds(), allow_revoked)?;
    if record.artifact.version != said.artifact.version {
        // The channel moved between the two questions, or the server says something else than the state that it shows.
        let reference = Reference::Named(record.artifact.version.clone());
        let named = Selector { image: selector.image.clone(), reference };
        remote.usable_now(&named, allow_revoked)?;
    }
    Ok((registry, record))
}

/// Waits for an answer of a server.
pub(crate) fn wait<T>(answer: impl Future<Output = Result<T, ServeError>>) -> Result<T, Failure> {
    Ok(self::answer(answer)??)
}

/// The same, where what the server says is looked into.
pub(crate) fn answer<T>(answer: impl Future<Output = T>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::new("cannot start the async runtime").because(error.to_string()))?;
    Ok(runtime.block_on(answer))
}

/// The user's own registry, as a cache of what servers have.
pub(crate) fn own_registry() -> Result<Registry, Failure> {
    registry(&RegistryArguments { registry: Some(dirs()?.data.join("registry")) })
}

/// The user's keys.
pub(crate) fn keys() -> Result<KeyStore, Failure> {
    Ok(KeyStore::new(dirs()?.data.join("keys")))
}

/// Refuses a version that is not proven, where keys are trusted: without any there is nothing to prove with.
pub(crate) fn refuse_unproven(registry: &Registry, record: &Record, allowed: bool) -> Result<(), Failure> {
    if !allowed && !registry.trust().is_empty() {
        registry.proof(record)?;
    }
    Ok(())
}

/// Refuses the state of an image when this user has seen a newer one, and remembers it otherwise.
pub(crate) fn refuse_old_state(registry: &Registry, image: &ImageName, allowed: bool) -> Result<(), Failure> {
    if !allowed {
        Seen::new(dirs()?.data.join("seen")).check(registry, image, seconds())?;
    }
    Ok(())
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
