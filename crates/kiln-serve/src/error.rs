//! Why a server does not begin, or a client gets no answer.

use std::{io, net::SocketAddr, path::PathBuf};

use kiln_core::Digest;
use kiln_registry::RegistryError;

/// What went wrong between a server and its clients.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("cannot listen on {address}")]
    Listen {
        address: SocketAddr,
        #[source]
        source: io::Error,
    },
    #[error("cannot read `{path}`")]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("`{path}` cannot be used for tokens: {problem}")]
    Tokens { path: PathBuf, problem: String },
    #[error("`{certificate}` and `{key}` are not a certificate and its key in PEM: {problem}")]
    Tls { certificate: PathBuf, key: PathBuf, problem: String },
    #[error("`{url}` is not the URL of a server: {problem}")]
    Url { url: String, problem: String },
    #[error("cannot reach {url}: {problem}")]
    Request { url: String, problem: String },
    #[error("{url} answered {status}: {detail}")]
    Refused { url: String, status: u16, kind: String, detail: String, hint: Option<String>, missing: Vec<Digest> },
    #[error("{url} answered with something that kiln does not read: {problem}")]
    Answer { url: String, problem: String },
    #[error("{url} sent other bytes than {expected} names")]
    Altered { url: String, expected: Digest },
    #[error("`{to}` is not a repository of an OCI registry: {problem}")]
    Repository { to: String, problem: String },
    #[error("`{tag}` is another image there: it has the manifest {found}, this version has {offered}")]
    Taken { tag: String, found: String, offered: String },
    #[error(transparent)]
    Registry(#[from] RegistryError),
    #[error("stopped")]
    Stopped,
}

impl ServeError {
    /// The next thing to try.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Listen { .. } => Some("choose another address with `--listen`".to_owned()),
            Self::Tokens { .. } => Some("`kiln token` writes such a file".to_owned()),
            Self::Refused { status: 401, .. } => Some("set `KILN_TOKEN` to a token that the server knows".to_owned()),
            Self::Refused { status: 403, .. } => {
                Some("the token does not allow this; `kiln token` makes one that does".to_owned())
            }
            Self::Refused { hint, .. } => hint.clone(),
            Self::Altered { .. } => Some("nothing of it was kept; run the same command again".to_owned()),
            Self::Registry(error) => error.hint(),
            Self::Repository { .. } => Some("write it as `registry.example.com/team/web`".to_owned()),
            Self::Taken { .. } => Some("a version is never replaced: mirror into another repository".to_owned()),
            Self::Request { .. } => Some("what came is kept; the same command goes on from there".to_owned()),
            _ => None,
        }
    }
}
