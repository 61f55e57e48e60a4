//! The file of tokens, read again when it changes: who is taken out of it has no access from then on.

use std::{
    fmt, fs,
    os::unix::fs::MetadataExt as _,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use axum::http::HeaderMap;
use kiln_core::Digest;
use kiln_io::time::Clock;

use crate::{
    ServeError,
    access::{Caller, Token, Tokens},
    problem::Problem,
    state::Log,
};

/// A file that was written so shortly before it was read may have been written to once more with the same time.
const SETTLED: Duration = Duration::from_secs(2);

/// When a file was written last, and which one it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    modified: SystemTime,
    bytes: u64,
    inode: u64,
}

#[derive(Debug)]
struct Read {
    tokens: Arc<Tokens>,
    /// Of the file as it was read, or found to be unreadable; `None`: it is to be read again in any case.
    stamp: Option<Stamp>,
}

/// Who may do what, as the file says now.
pub(crate) struct TokensFile {
    /// Without it everybody reads and nobody changes anything.
    path: Option<PathBuf>,
    read: Mutex<Read>,
    clock: Arc<dyn Clock>,
    log: Log,
}

impl fmt::Debug for TokensFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokensFile").field("path", &self.path).finish_non_exhaustive()
    }
}

impl TokensFile {
    /// The file at `path`, which has to be readable to begin with.
    pub(crate) fn open(path: Option<PathBuf>, clock: Arc<dyn Clock>, log: Log) -> Result<Self, ServeError> {
        let tokens = path.as_deref().map(Tokens::read).transpose()?.unwrap_or_default();
        let read = Mutex::new(Read { tokens: Arc::new(tokens), stamp: None });
        Ok(Self { path, read, clock, log })
    }

    /// What the file says now; where it cannot be read, what it said last.
    fn now(&self) -> Arc<Tokens> {
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(path) = &self.path else { return Arc::clone(&read.tokens) };
        let stamp = fs::metadata(path)
            .and_then(|file| Ok(Stamp { modified: file.modified()?, bytes: file.len(), inode: file.ino() }));
        let stamp = stamp.ok();
        if stamp.is_some() && read.stamp == stamp {
            return Arc::clone(&read.tokens);
        }
        match Tokens::read(path) {
            Ok(tokens) if tokens == *read.tokens => {}
            Ok(tokens) => {
                (self.log)(&format!("the tokens in `{}` changed", path.display()));
                read.tokens = Arc::new(tokens);
            }
            Err(error) => (self.log)(&format!("{error}; the tokens that were read before stay in force")),
        }
        let settled = |stamp: &Stamp| self.clock.wall().duration_since(stamp.modified).is_ok_and(|age| age >= SETTLED);
        read.stamp = stamp.filter(settled);
        Arc::clone(&read.tokens)
    }

    /// Whether reading needs no token.
    pub(crate) fn public(&self) -> bool {
        self.now().public
    }

    /// Whether somebody has the token of this hash now.
    pub(crate) fn has(&self, hash: &Digest) -> bool {
        self.now().tokens.iter().any(|token| token.sha256 == *hash)
    }

    /// Whether nobody has a token.
    pub(crate) fn is_empty(&self) -> bool {
        self.now().tokens.is_empty()
    }

    /// Who sends a request with these headers. A token that is not known is an error, not a nobody.
    pub(crate) fn caller(&self, headers: &HeaderMap) -> Result<Caller, Problem> {
        self.now().caller(headers)
    }

    /// The same caller with what he may do now; `None` when his token is not known any more.
    pub(crate) fn again(&self, caller: &Caller) -> Option<Caller> {
        self.now().again(caller)
    }

    /// Who logged in with `token`, unless it is not known any more.
    pub(crate) fn caller_with(&self, token: &Token) -> Option<Caller> {
        self.now().caller_with(token)
    }

    /// For the log in of the dashboard.
    pub(crate) fn login(&self, text: &str) -> Option<Arc<Token>> {
        self.now().login(text)
    }
}
