//! Log-ins of browsers: a random cookie stands for a token, and a second random text in every form shows that the page was ours.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use kiln_io::random::nonce;

use crate::{
    access::{Caller, Token},
    problem::Problem,
    state::App,
};

const COOKIE: &str = "kiln-session";
const HOURS: u64 = 12;
/// More than this many browsers at once push the oldest out.
const MOST: usize = 1000;

#[derive(Debug, Clone)]
pub(crate) struct Session {
    pub(crate) token: Arc<Token>,
    /// Stands in every form.
    pub(crate) form: String,
    until: u64,
}

/// Who is logged in. Forgotten when the server stops.
#[derive(Debug, Default)]
pub(crate) struct Sessions(Mutex<HashMap<String, Session>>);

impl Sessions {
    /// A new session; the cookie for it.
    pub(super) fn begin(&self, token: Arc<Token>, now: u64, tls: bool) -> String {
        let id = nonce();
        let mut sessions = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        sessions.retain(|_, session| session.until > now);
        if sessions.len() >= MOST
            && let Some(oldest) = sessions.iter().min_by_key(|(_, session)| session.until).map(|(id, _)| id.clone())
        {
            sessions.remove(&oldest);
        }
        sessions.insert(id.clone(), Session { token, form: nonce(), until: now + HOURS * 3600 });
        let secure = if tls { "; Secure" } else { "" };
        format!("{COOKIE}={id}; Path=/; HttpOnly; SameSite=Strict; Max-Age={}{secure}", HOURS * 3600)
    }

    pub(super) fn end(&self, headers: &HeaderMap) -> String {
        if let Some(id) = cookie(headers) {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
        }
        format!("{COOKIE}=; Path=/; HttpOnly; SameSite=Strict; Max-Age=0")
    }

    fn find(&self, headers: &HeaderMap, now: u64) -> Option<Session> {
        let id = cookie(headers)?;
        let sessions = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        sessions.get(&id).filter(|session| session.until > now).cloned()
    }
}

fn cookie(headers: &HeaderMap) -> Option<String> {
    let cookies = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    let mut pairs = cookies.flat_map(|text| text.split(';')).filter_map(|pair| pair.trim().split_once('='));
    pairs.find(|(name, _)| *name == COOKIE).map(|(_, value)| value.to_owned())
}

/// Who looks at a page.
#[derive(Debug)]
pub(crate) struct Visitor {
    pub(crate) caller: Caller,
    pub(crate) session: Option<Session>,
}

impl Visitor {
    pub(crate) fn of(app: &App, headers: &HeaderMap) -> Result<Self, Problem> {
        if headers.contains_key(header::AUTHORIZATION) {
            return Ok(Self { caller: app.tokens.caller(headers)?, session: None });
        }
        let session = app.sessions.find(headers, app.now());
        // A token that was taken away takes its sessions with it.
        match session.and_then(|session| Some((app.tokens.caller_with(&session.token)?, session))) {
            Some((caller, session)) => Ok(Self { caller, session: Some(session) }),
            None => Ok(Self { caller: app.tokens.caller(&HeaderMap::new())?, session: None }),
        }
    }

    /// Whether a form was sent from a page of ours to the one who was logged in.
    pub(crate) fn require_form(&self, headers: &HeaderMap, sent: Option<&str>) -> Result<&Session, Problem> {
        let refused = |detail: &str| Problem::new(StatusCode::FORBIDDEN, "form", detail);
        let foreign = |value: &HeaderValue| value != "same-origin" && value != "none";
        if headers.get("sec-fetch-site").is_some_and(foreign) {
            return Err(refused("this form was sent from another site"));
        }
        let session = self.session.as_ref().ok_or_else(|| refused("log in first"))?;
        let same = sent.is_some_and(|sent| {
            sent.len() == session.form.len() && openssl::memcmp::eq(sent.as_bytes(), session.form.as_bytes())
        });
        if same { Ok(session) } else { Err(refused("this form is not of this session; load the page again")) }
    }
}
