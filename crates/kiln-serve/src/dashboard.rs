//! The dashboard: pages made on the server, without a line of script.

mod channel;
mod difference;
mod image;
mod images;
mod log;
mod page;
mod plot;
mod session;
mod version;

use std::sync::Arc;

use axum::{
    Router,
    body::Body,
    extract::State,
    http::{HeaderMap, HeaderValue, Response, StatusCode, header},
    response::IntoResponse as _,
    routing::{get, post},
};
use maud::{Markup, html};

pub(crate) use self::session::Sessions;
use self::{
    page::{failed, page, see},
    session::Visitor,
};
use crate::{api::body, api::query::Query, problem::Problem, state::App};

const STYLE: &str = include_str!("dashboard/style.css");
const ICON: &str = concat!(
    "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 24 24'>",
    "<path d='M3 21V11a9 9 0 0 1 18 0v10h-5v-8a4 4 0 0 0-8 0v8z' fill='#b4461a'/></svg>"
);
/// Forms are short.
const LONGEST_FORM: usize = 16 << 10;

pub(crate) fn router() -> Router<Arc<App>> {
    let fixed = |kind: &'static str, text: &'static str| {
        get(
            move || async move { ([(header::CONTENT_TYPE, kind), (header::CACHE_CONTROL, "public, max-age=3600")], text) },
        )
    };
    Router::new()
        .route("/", get(images::show))
        .route("/images/{image}", get(image::show))
        .route("/images/{image}/{reference}", get(version::show))
        .route("/channels/{image}/{channel}", get(channel::show))
        .route("/channels/{image}/{channel}/rollback", post(channel::rollback))
        .route("/diff/{image}", get(difference::show))
        .route("/logs/{image}/{reference}", get(log::show))
        .route("/login", get(login).post(log_in))
        .route("/logout", post(log_out))
        .route("/style.css", fixed("text/css; charset=utf-8", STYLE))
        .route("/icon.svg", fixed("image/svg+xml", ICON))
}

/// A page whose body `body` makes for whoever asks.
async fn shown(
    app: &Arc<App>,
    headers: &HeaderMap,
    body: impl AsyncFnOnce(&Visitor) -> Result<Markup, Problem>,
    title: &str,
    path: &[(&str, &str)],
) -> Response<Body> {
    let visitor = match Visitor::of(app, headers) {
        Ok(visitor) => visitor,
        Err(problem) => return problem_page(app, problem),
    };
    match body(&visitor).await {
        Ok(markup) => page(app, &visitor, title, path, &markup),
        Err(problem) => failed(app, &visitor, problem),
    }
}

/// A problem of somebody who could not even be told.
pub(crate) fn problem_page(app: &App, problem: Problem) -> Response<Body> {
    match app.tokens.caller(&HeaderMap::new()) {
        Ok(caller) => failed(app, &Visitor { caller, session: None }, problem),
        Err(_) => problem.into_response(),
    }
}

/// The fields of a form that was sent.
async fn form(sent: Body) -> Result<Query, Problem> {
    let bytes = body::whole(sent, LONGEST_FORM).await?;
    Ok(Query::parse(Some(&String::from_utf8_lossy(&bytes))))
}

async fn login(State(app): State<Arc<App>>, headers: HeaderMap) -> Response<Body> {
    login_page(&app, &headers, false)
}

fn login_page(app: &App, headers: &HeaderMap, wrong: bool) -> Response<Body> {
    let visitor = match Visitor::of(app, headers) {
        Ok(visitor) => visitor,
        Err(problem) => return problem_page(app, problem),
    };
    let body = html! {
        section.card.login {
            h1 { "Log in" }
            p.muted { "With a token that " code { "kiln token" } " made." }
            form method="post" action="/login" {
                label { "Token" input type="password" name="token" autocomplete="current-password" required autofocus; }
                @if wrong { p.bad-input role="alert" { "This token is not known here." } }
                button type="submit" { "Log in" }
            }
        }
    };
    let mut response = page(app, &visitor, "Log in", &[], &body);
    if wrong {
        *response.status_mut() = StatusCode::FORBIDDEN;
    }
    response
}

async fn log_in(State(app): State<Arc<App>>, headers: HeaderMap, sent: Body) -> Response<Body> {
    let sent = match form(sent).await {
        Ok(sent) => sent,
        Err(problem) => return problem_page(&app, problem),
    };
    // Nobody is logged in by another site's form.
    if headers.get("sec-fetch-site").is_some_and(|site| site != "same-origin" && site != "none") {
        return login_page(&app, &headers, true);
    }
    match app.tokens.login(sent.get("token").unwrap_or_default()) {
        Some(token) => with_cookie(see("/"), &app.sessions.begin(token, app.now(), app.tls)),
        None => login_page(&app, &headers, true),
    }
}

async fn log_out(State(app): State<Arc<App>>, headers: HeaderMap, sent: Body) -> Response<Body> {
    let ended = async {
        let sent = form(sent).await?;
        Visitor::of(&app, &headers)?.require_form(&headers, sent.get("form")).map(drop)
    };
    match ended.await {
        Ok(()) => with_cookie(see("/"), &app.sessions.end(&headers)),
        Err(problem) => problem_page(&app, problem),
    }
}

fn with_cookie(mut response: Response<Body>, cookie: &str) -> Response<Body> {
    if let Ok(value) = HeaderValue::from_str(cookie) {
        response.headers_mut().insert(header::SET_COOKIE, value);
    }
    response
}
