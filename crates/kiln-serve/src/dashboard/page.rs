//! What all pages have in common: the frame, times, sizes, marks.

use axum::{
    body::Body,
    http::{HeaderValue, Response, StatusCode, header},
    response::IntoResponse as _,
};
use kiln_core::{ByteSize, ImageName, moment::Moment};
use maud::{DOCTYPE, Markup, html};

use super::session::Visitor;
use crate::{problem::Problem, state::App};

/// Nothing but our own style sheet and forms; no script at all.
const POLICY: &str = "default-src 'none'; style-src 'self'; img-src 'self' data:; form-action 'self'; \
                      base-uri 'none'; frame-ancestors 'none'";

/// A page of the dashboard.
pub(super) fn page(app: &App, visitor: &Visitor, title: &str, path: &[(&str, &str)], body: &Markup) -> Response<Body> {
    let markup = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (title) " · kiln" }
                link rel="stylesheet" href="/style.css";
                link rel="icon" href="/icon.svg" type="image/svg+xml";
            }
            body {
                header.top {
                    nav aria-label="Where you are" {
                        a.brand href="/" { (logo()) span { "kiln" } }
                        @for (name, href) in path {
                            span.slash aria-hidden="true" { "/" }
                            a href=(href) { (name) }
                        }
                    }
                    (account(app, visitor))
                }
                main { (body) }
                footer {
                    span { "kiln " (env!("CARGO_PKG_VERSION")) }
                    a href="/api/v1/openapi.json" { "API" }
                    a href="/metrics" { "Metrics" }
                }
            }
        }
    };
    document(StatusCode::OK, markup)
}

fn account(app: &App, visitor: &Visitor) -> Markup {
    html! {
        div.account {
            @if let Some(session) = &visitor.session {
                span.who { (session.token.name) }
                form method="post" action="/logout" {
                    input type="hidden" name="form" value=(session.form);
                    button.quiet type="submit" { "Log out" }
                }
            } @else if let Some(name) = visitor.caller.name() {
                span.who { (name) }
            } @else if !app.tokens.is_empty() {
                a.button.quiet href="/login" { "Log in" }
            }
        }
    }
}

fn document(status: StatusCode, markup: Markup) -> Response<Body> {
    let mut response = markup.into_string().into_response();
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("private, no-cache"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("same-origin"));
    response
}

/// A problem for people. Who may not see a page is sent to the log-in.
pub(super) fn failed(app: &App, visitor: &Visitor, problem: Problem) -> Response<Body> {
    if problem.status == 401 {
        return see("/login");
    }
    let body = html! {
        section.card.problem {
            p.code { (problem.status) }
            h1 { (problem.title) }
            p { (problem.detail) }
            @if let Some(hint) = &problem.hint { p.muted { (hint) } }
            p { a href="/" { "All images" } }
        }
    };
    let mut response = page(app, visitor, &problem.title, &[], &body);
    *response.status_mut() = problem.status();
    if let Some(inside) = problem.inside {
        response.extensions_mut().insert(crate::problem::Inside(inside));
    }
    response
}

/// Another page instead, with GET.
pub(super) fn see(path: &str) -> Response<Body> {
    let mut response = StatusCode::SEE_OTHER.into_response();
    if let Ok(value) = HeaderValue::from_str(path) {
        response.headers_mut().insert(header::LOCATION, value);
    }
    response
}

fn logo() -> Markup {
    html! {
        svg.logo viewBox="0 0 24 24" aria-hidden="true" {
            path d="M3 21V11a9 9 0 0 1 18 0v10h-5v-8a4 4 0 0 0-8 0v8z" {}
            rect.fire x="10" y="15" width="4" height="6" rx="1" {}
        }
    }
}

/// A moment: how long ago, and exactly when one points at it.
pub(super) fn when(seconds: u64, now: u64) -> Markup {
    let moment = Moment::of_seconds(seconds);
    html! { time datetime=(moment.rfc3339()) title=(format!("{} UTC", moment.minute())) { (ago(seconds, now)) } }
}

fn ago(seconds: u64, now: u64) -> String {
    let past = now.saturating_sub(seconds);
    let count = |number: u64, unit: &str| format!("{number} {unit}{} ago", if number == 1 { "" } else { "s" });
    match past {
        _ if seconds > now + 60 => Moment::of_seconds(seconds).minute(),
        0..60 => "just now".to_owned(),
        60..3600 => count(past / 60, "minute"),
        3600..86_400 => count(past / 3600, "hour"),
        86_400..2_592_000 => count(past / 86_400, "day"),
        _ => Moment::of_seconds(seconds).date(),
    }
}

pub(super) fn size(bytes: u64) -> String {
    ByteSize(bytes).approximate()
}

/// `41.2 s`, `3 min 05 s`
pub(super) fn duration(milliseconds: u64) -> String {
    match milliseconds {
        0..1000 => format!("{milliseconds} ms"),
        1000..60_000 => format!("{}.{} s", milliseconds / 1000, milliseconds % 1000 / 100),
        _ => format!("{} min {:02} s", milliseconds / 60_000, milliseconds % 60_000 / 1000),
    }
}

pub(super) fn channel(image: &ImageName, name: &str) -> Markup {
    html! { a.chip href=(format!("/channels/{image}/{name}")) { (name) } }
}

pub(super) fn revoked(reason: &str) -> Markup {
    html! { span.chip.bad title=(reason) { "revoked" } }
}

/// Text of strangers in which control characters show as signs and nothing turns the direction of writing.
pub(super) fn plain(text: &str) -> String {
    let sign = |c: char| match c {
        '\n' | '\t' => c,
        '\u{0}'..='\u{1f}' => char::from_u32(0x2400 + u32::from(c)).unwrap_or('\u{fffd}'),
        '\u{7f}' => '\u{2421}',
        '\u{80}'..='\u{9f}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => '\u{fffd}',
        c => c,
    };
    text.replace("\r\n", "\n").chars().map(sign).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_of_strangers_shows_what_it_is() {
        assert_eq!(plain("a\u{1b}[31mb\r\nc\rd\u{202e}e\u{9b}"), "a␛[31mb\nc␍d\u{fffd}e\u{fffd}");
    }

    #[test]
    fn times_and_durations_are_short() {
        assert_eq!((ago(100, 130).as_str(), ago(0, 7300).as_str()), ("just now", "2 hours ago"));
        assert_eq!(
            (duration(999), duration(41_250), duration(185_000)),
            ("999 ms".into(), "41.2 s".into(), "3 min 05 s".into())
        );
    }
}
