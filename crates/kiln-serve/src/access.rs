//! Who may do what: bearer tokens with scopes and patterns of image names, kept as SHA-256 only.
//!
//! A token is 256 random bits, so that its plain hash is as hard to turn around as the token is to guess.

use std::{path::Path, sync::Arc};

use axum::http::{HeaderMap, StatusCode, header};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use kiln_core::{Digest, ImageName};
use kiln_io::random;
use kiln_registry::Parent;
use serde::{Deserialize, Serialize};

use crate::{ServeError, problem::Problem};

/// What a token allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    Read,
    /// Send blobs and versions.
    Publish,
    /// Move channels, back too.
    Promote,
    Revoke,
    /// Say which channels take only proven versions.
    Restrict,
}

/// One token of the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Token {
    /// Who uses it: stands in the history of what it changes.
    pub name: String,
    /// The SHA-256 of the token.
    pub sha256: Digest,
    /// Names of images; `*` stands for any characters.
    pub images: Vec<String>,
    pub allow: Vec<Scope>,
}

/// The file of tokens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tokens {
    /// Whether reading needs no token.
    #[serde(default = "yes")]
    pub public: bool,
    #[serde(default, rename = "token")]
    pub tokens: Vec<Token>,
}

const fn yes() -> bool {
    true
}

impl Default for Tokens {
    /// Everybody reads, nobody changes anything.
    fn default() -> Self {
        Self { public: true, tokens: Vec::new() }
    }
}

/// A token that nobody has seen yet, and its hash.
pub fn new_token() -> (String, Digest) {
    let token = format!("kiln_{}{}", random::nonce(), random::nonce());
    let digest = Digest::of(token.as_bytes());
    (token, digest)
}

impl Tokens {
    pub fn read(path: &Path) -> Result<Self, ServeError> {
        let text =
            std::fs::read_to_string(path).map_err(|source| ServeError::Read { path: path.to_owned(), source })?;
        let refused = |problem: String| ServeError::Tokens { path: path.to_owned(), problem };
        toml::from_str(&text).map_err(|error| refused(error.message().to_owned()))
    }

    /// The token with this text. Takes as long whichever it is, and whether there is one.
    fn find(&self, text: &str) -> Option<Arc<Token>> {
        let digest = Digest::of(text.as_bytes());
        let mut found = None;
        for token in &self.tokens {
            if openssl::memcmp::eq(token.sha256.as_bytes(), digest.as_bytes()) {
                found = Some(Arc::new(token.clone()));
            }
        }
        found
    }

    /// Who sends a request with these headers. A token that is not known is an error, not a nobody.
    pub(crate) fn caller(&self, headers: &HeaderMap) -> Result<Caller, Problem> {
        let Some(value) = headers.get(header::AUTHORIZATION) else {
            return Ok(Caller { token: None, public: self.public });
        };
        let text = value.to_str().ok().and_then(credential);
        match text.and_then(|text| self.find(&text)) {
            Some(token) => Ok(Caller { token: Some(token), public: self.public }),
            None => Err(Problem::new(StatusCode::UNAUTHORIZED, "unknown-token", "this token is not known here")),
        }
    }

    /// Who has `token`, with what it allows now; `None` when it is not here any more.
    pub(crate) fn caller_with(&self, token: &Token) -> Option<Caller> {
        let known = self.tokens.iter().find(|known| known.sha256 == token.sha256)?;
        Some(Caller { token: Some(Arc::new(known.clone())), public: self.public })
    }

    /// The same for somebody who may have no token.
    pub(crate) fn again(&self, caller: &Caller) -> Option<Caller> {
        match &caller.token {
            Some(token) => self.caller_with(token),
            None => Some(Caller { token: None, public: self.public }),
        }
    }

    /// For the log in of the dashboard.
    pub(crate) fn login(&self, text: &str) -> Option<Arc<Token>> {
        self.find(text.trim())
    }
}

/// The token of `Bearer TOKEN`, or of `Basic` with the token as the password.
fn credential(value: &str) -> Option<String> {
    let (scheme, rest) = value.split_once(' ')?;
    if scheme.eq_ignore_ascii_case("bearer") {
        return Some(rest.trim().to_owned());
    }
    if scheme.eq_ignore_ascii_case("basic") {
        let text = String::from_utf8(STANDARD.decode(rest.trim()).ok()?).ok()?;
        return text.split_once(':').map(|(_, password)| password.to_owned());
    }
    None
}

/// Whoever sent a request.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    token: Option<Arc<Token>>,
    public: bool,
}

impl Caller {
    pub(crate) fn may(&self, scope: Scope, image: &ImageName) -> bool {
        if scope == Scope::Read && self.public {
            return true;
        }
        // Who publishes or moves channels sees what is there.
        self.token.as_ref().is_some_and(|token| {
            (token.allow.contains(&scope) || scope == Scope::Read)
                && token.images.iter().any(|pattern| matches(pattern, image.as_str()))
        })
    }

    /// Leaves, of versions each of which was baked on the next, those before the first that may not be seen: behind it, the rest would be
    /// said of the wrong version.
    pub(crate) fn cut(&self, names: &mut Vec<Parent>) {
        let readable = names.iter().take_while(|name| self.may(Scope::Read, &name.image)).count();
        names.truncate(readable);
    }

    pub(crate) fn require(&self, scope: Scope, image: &ImageName) -> Result<(), Problem> {
        if self.may(scope, image) {
            return Ok(());
        }
        Err(if self.token.is_none() {
            Problem::new(StatusCode::UNAUTHORIZED, "token-needed", "this needs a token")
        } else {
            let what = match scope {
                Scope::Read => "read",
                Scope::Publish => "publish",
                Scope::Promote => "promote",
                Scope::Revoke => "revoke",
                Scope::Restrict => "restrict channels of",
            };
            let detail = format!("this token does not allow to {what} `{image}`");
            Problem::new(StatusCode::FORBIDDEN, "not-allowed", detail)
        })
    }

    /// Whether it may see anything at all: the lists are filtered, this is for what has no image.
    pub(crate) fn require_any(&self) -> Result<(), Problem> {
        if self.public || self.token.is_some() {
            return Ok(());
        }
        Err(Problem::new(StatusCode::UNAUTHORIZED, "token-needed", "this needs a token"))
    }

    /// For the history: the token, and who the client says it is.
    pub(crate) fn signature(&self, says: Option<&str>) -> String {
        let name = self.token.as_ref().map_or("anonymous", |token| token.name.as_str());
        let says: String = says.unwrap_or_default().chars().filter(|c| !c.is_control()).take(100).collect();
        if says.is_empty() { name.to_owned() } else { format!("{says} ({name})") }
    }

    pub(crate) fn token_hash(&self) -> Option<Digest> {
        self.token.as_ref().map(|token| token.sha256)
    }

    pub(crate) fn name(&self) -> Option<&str> {
        self.token.as_ref().map(|token| token.name.as_str())
    }
}

/// Whether `name` is what `pattern` says; `*` stands for any characters.
fn matches(pattern: &str, name: &str) -> bool {
    let Some((start, rest)) = pattern.split_once('*') else { return pattern == name };
    let Some(mut left) = name.strip_prefix(start) else { return false };
    let mut parts = rest.split('*').peekable();
    while let Some(part) = parts.next() {
        if parts.peek().is_none() {
            return left.ends_with(part);
        }
        match left.find(part) {
            Some(at) => left = &left[at + part.len()..],
            None => return false,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_any_characters() {
        for (pattern, name, expected) in [
            ("web", "web", true),
            ("web", "web2", false),
            ("*", "anything", true),
            ("web-*", "web-a", true),
            ("web-*", "web", false),
            ("*-base", "golden-base", true),
            ("*-base", "golden-base-2", false),
            ("a*b*c", "aXbYc", true),
            ("a*b*c", "acb", false),
            ("", "web", false),
        ] {
            assert_eq!(matches(pattern, name), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn a_token_allows_what_it_says_for_the_images_it_names() {
        let (text, sha256) = new_token();
        let token = Token { name: "ci".into(), sha256, images: vec!["web-*".into()], allow: vec![Scope::Publish] };
        let tokens = Tokens { public: false, tokens: vec![token] };
        let mut headers = HeaderMap::new();
        let image = |name: &str| name.parse::<ImageName>().unwrap();
        let nobody = tokens.caller(&headers).unwrap();
        assert_eq!(nobody.require(Scope::Read, &image("web-a")).unwrap_err().status, 401);
        headers.insert(header::AUTHORIZATION, format!("Bearer {text}").parse().unwrap());
        let ci = tokens.caller(&headers).unwrap();
        assert!(ci.may(Scope::Publish, &image("web-a")) && ci.may(Scope::Read, &image("web-a")));
        assert_eq!(ci.require(Scope::Promote, &image("web-a")).unwrap_err().status, 403);
        assert_eq!(ci.require(Scope::Publish, &image("db")).unwrap_err().status, 403);
        let basic = format!("basic {}", STANDARD.encode(format!("anyone:{text}")));
        headers.insert(header::AUTHORIZATION, basic.parse().unwrap());
        assert!(tokens.caller(&headers).is_ok());
        for wrong in [format!("Bearer {text}x"), "Bearer".into(), "Digest a".into(), "Basic !!".into()] {
            headers.insert(header::AUTHORIZATION, wrong.parse().unwrap());
            assert_eq!(tokens.caller(&headers).unwrap_err().status, 401, "{wrong}");
        }
    }
}
