//! The keys of a user: `signing.pem`, which signs what is published, and `trust.json`, whose keys are believed.
//!
//! A public key is trusted before its private half is there, and stays so when another takes its place: what was signed stays
//! proven until the key is revoked.

use std::{
    fs::{self, File},
    io::{self, Read as _},
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    time::Duration,
};

use kiln_core::{Digest, Secret};
use kiln_io::{
    fs::{lock_within, write_atomic, write_private},
    signing::{SigningKey, VerifyingKey},
};
use serde::{Deserialize, Serialize};

use super::{
    LOCAL_BUILDER,
    trust::{RevokedKey, Trust, TrustedKey},
};

const FORMAT: u32 = 1;
/// Nobody trusts so many keys; a file that grows without end is not read.
const LONGEST: u64 = 4 << 20;
/// How long somebody else may be at the keys.
const PATIENCE: Duration = Duration::from_secs(5);

/// Keys could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    #[error("cannot {operation} `{}`", path.display())]
    Io {
        operation: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    Fs(#[from] kiln_io::error::FsError),
    #[error("`{}` cannot be used: {problem}", path.display())]
    Unusable { path: PathBuf, problem: String },
    #[error("there is a key already: `{}`", path.display())]
    Exists { path: PathBuf },
    #[error("there is no key to replace")]
    NoKey,
    #[error("no key that is known begins with `{id}`")]
    Unknown { id: String },
    #[error("{count} keys begin with `{id}`")]
    Ambiguous { id: String, count: usize },
    #[error("the key {} is revoked; it is not trusted again", key.short())]
    Revoked { key: Digest },
    #[error(transparent)]
    Signing(#[from] kiln_io::signing::SigningError),
}

impl KeysError {
    /// The next thing to try.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Exists { .. } => Some("`kiln key rotate` puts another in its place".to_owned()),
            Self::NoKey => Some("`kiln key init` makes one".to_owned()),
            Self::Unknown { .. } | Self::Ambiguous { .. } => Some("`kiln key list` shows them".to_owned()),
            _ => None,
        }
    }
}

/// The keys in a directory, which is made when the first one is.
#[derive(Debug, Clone)]
pub struct KeyStore {
    directory: PathBuf,
}

/// `trust.json`.
#[derive(Debug, Serialize, Deserialize)]
struct TrustFile {
    format: u32,
    #[serde(flatten)]
    trust: Trust,
}

fn failed(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> KeysError {
    let path = path.to_owned();
    move |source| KeysError::Io { operation, path, source }
}

impl KeyStore {
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self { directory: directory.into() }
    }

    /// Where the private key is or would be.
    pub fn private(&self) -> PathBuf {
        self.directory.join("signing.pem")
    }

    fn trusted(&self) -> PathBuf {
        self.directory.join("trust.json")
    }

    /// The key that signs, if there is one. A file that others can read is refused, as `ssh` does.
    pub fn signer(&self) -> Result<Option<SigningKey>, KeysError> {
        let path = self.private();
        let unusable = |problem: String| KeysError::Unusable { path: path.clone(), problem };
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed("read", &path)(error)),
        };
        let mode = file.metadata().map_err(failed("read", &path))?.permissions().mode();
        if mode & 0o077 != 0 {
            return Err(unusable(format!("others can read it (mode {:o}); `chmod 600` it", mode & 0o7777)));
        }
        let mut pem = String::new();
        file.take(LONGEST).read_to_string(&mut pem).map_err(failed("read", &path))?;
        SigningKey::from_pem(&Secret::new(pem)).map(Some).map_err(|error| unusable(error.to_string()))
    }

    /// Every key that is known.
    pub fn trust(&self) -> Result<Trust, KeysError> {
        let path = self.trusted();
        let mut bytes = Vec::new();
        match File::open(&path).and_then(|file| file.take(LONGEST + 1).read_to_end(&mut bytes)) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Trust::default()),
            Err(error) => return Err(failed("read", &path)(error)),
        }
        let unusable = |problem: String| KeysError::Unusable { path: path.clone(), problem };
        if bytes.len() as u64 > LONGEST {
            return Err(unusable("it is longer than any list of keys".to_owned()));
        }
        let file: TrustFile = serde_json::from_slice(&bytes).map_err(|error| unusable(error.to_string()))?;
        if file.format > FORMAT {
            return Err(unusable(format!("it has format {}; this kiln reads up to {FORMAT}", file.format)));
        }
        Ok(file.trust)
    }

    /// Makes the first key and trusts it.
    pub fn init(&self, name: &str, now: u64) -> Result<TrustedKey, KeysError> {
        let _locked = self.lock()?;
        let path = self.private();
        if path.exists() {
            return Err(KeysError::Exists { path });
        }
        self.make(name, now)
    }

    /// Puts a new key in the place of the one that signs. The old one stays trusted.
    pub fn rotate(&self, name: &str, now: u64) -> Result<TrustedKey, KeysError> {
        let _locked = self.lock()?;
        if !self.private().exists() {
            return Err(KeysError::NoKey);
        }
        self.make(name, now)
    }

    fn make(&self, name: &str, now: u64) -> Result<TrustedKey, KeysError> {
        let key = SigningKey::generate()?;
        let trusted = self.add(key.public(), name, &[], now)?;
        write_private(&self.private(), key.to_pem()?.reveal().as_bytes())?;
        Ok(trusted)
    }

    /// Trusts a public key for `builders`, or for machines of people like the one this runs on.
    pub fn trust_key(
        &self,
        public: &VerifyingKey,
        name: &str,
        builders: &[String],
        now: u64,
    ) -> Result<TrustedKey, KeysError> {
        let _locked = self.lock()?;
        self.add(public, name, builders, now)
    }

    fn add(&self, public: &VerifyingKey, name: &str, builders: &[String], now: u64) -> Result<TrustedKey, KeysError> {
        let mut trust = self.trust()?;
        let (id, public) = (public.id(), public.to_pem()?);
        let builders = if builders.is_empty() { vec![LOCAL_BUILDER.to_owned()] } else { builders.to_vec() };
        let key = TrustedKey { id, name: name.to_owned(), public, since: now, builders, revoked: None };
        match trust.keys.iter_mut().find(|known| known.id == id) {
            Some(known) if known.revoked.is_some() => return Err(KeysError::Revoked { key: id }),
            Some(known) => *known = TrustedKey { since: known.since, ..key.clone() },
            None => trust.keys.push(key.clone()),
        }
        self.write(trust)?;
        Ok(key)
    }

    /// Stops believing the key whose name begins with `id`.
    pub fn revoke(&self, id: &str, reason: &str, now: u64) -> Result<TrustedKey, KeysError> {
        let _locked = self.lock()?;
        let mut trust = self.trust()?;
        let place = self.find(&trust, id)?;
        let key = &mut trust.keys[place];
        if key.revoked.is_none() {
            key.revoked = Some(RevokedKey { at: now, reason: reason.to_owned() });
        }
        let key = key.clone();
        self.write(trust)?;
        Ok(key)
    }

    /// The place of the key whose id begins with `id`, with or without `sha256:`.
    #[expect(clippy::unused_self, reason = "a question to this store")]
    fn find(&self, trust: &Trust, id: &str) -> Result<usize, KeysError> {
        let wanted = id.strip_prefix("sha256:").unwrap_or(id);
        let places =
            trust.keys.iter().enumerate().filter(|(_, key)| !wanted.is_empty() && key.id.hex().starts_with(wanted));
        let places: Vec<_> = places.map(|(place, _)| place).collect();
        match places[..] {
            [place] => Ok(place),
            [] => Err(KeysError::Unknown { id: id.to_owned() }),
            _ => Err(KeysError::Ambiguous { id: id.to_owned(), count: places.len() }),
        }
    }

    /// The public key whose id begins with `id`.
    pub fn public(&self, id: &str) -> Result<TrustedKey, KeysError> {
        let trust = self.trust()?;
        let place = self.find(&trust, id)?;
        Ok(trust.keys[place].clone())
    }

    fn write(&self, trust: Trust) -> Result<(), KeysError> {
        let path = self.trusted();
        let text = serde_json::to_string_pretty(&TrustFile { format: FORMAT, trust });
        let text = text.map_err(|error| KeysError::Unusable { path: path.clone(), problem: error.to_string() })?;
        Ok(write_atomic(&path, format!("{text}\n").as_bytes(), 0o644)?)
    }

    fn lock(&self) -> Result<File, KeysError> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.directory)
            .map_err(failed("make", &self.directory))?;
        let path = self.directory.join("lock");
        let file = File::options().create(true).truncate(false).read(true).write(true).open(&path);
        let file = file.map_err(failed("open", &path))?;
        if lock_within(&file, PATIENCE).map_err(failed("lock", &path))? {
            Ok(file)
        } else {
            Err(KeysError::Unusable { path, problem: "somebody else is changing the keys".to_owned() })
        }
    }
}
