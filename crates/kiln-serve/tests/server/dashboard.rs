//! The pages of the dashboard: that they are there, that texts of strangers stay texts, and who may press the button.

use std::collections::BTreeSet;

use crate::artifacts::{Scratch, select};
use crate::serving::{PUBLISHER, READER, Serving, tokens};

const NOW: u64 = 1_795_267_596;

fn showcase(name: &str, public: bool) -> Serving {
    let scratch = Scratch::new(name);
    let registry = scratch.registry();
    crate::showcase::fill(&registry, &scratch.0, NOW);
    Serving::of(scratch, registry, Some(tokens(public)), None)
}

fn page(server: &Serving, arguments: &[&str], path: &str) -> (u16, String, String) {
    let (status, head, body) = server.ask(arguments, path);
    (status, head, String::from_utf8(body).unwrap())
}

/// Every address that a page names with `href`.
fn links(html: &str) -> Vec<String> {
    let links = html.split("href=\"").skip(1).filter_map(|rest| rest.split('"').next());
    links.map(|link| link.replace("&amp;", "&")).filter(|link| link.starts_with('/')).collect()
}

#[test]
fn every_page_that_a_page_names_is_there_and_runs_no_script() {
    let server = showcase("click", true);
    let (mut open, mut seen) = (vec!["/".to_owned()], BTreeSet::new());
    while let Some(path) = open.pop() {
        if !seen.insert(path.clone()) {
            continue;
        }
        if path.contains("/disk.") {
            assert_eq!(server.ask(&["--head"], &path).0, 200, "{path}");
            continue;
        }
        let (status, head, html) = page(&server, &[], &path);
        assert_eq!(status, 200, "{path}: {html}");
        if head.contains("content-type: text/html") {
            assert!(!html.contains("<script") && !html.contains("<b>new kernel") && !html.contains('\u{1b}'), "{path}");
            assert!(!html.contains(" style=") && !html.contains(" onclick"), "{path}");
            assert!(head.contains("content-security-policy: default-src 'none'; style-src 'self'"), "{path}");
            open.extend(links(&html));
        }
    }
    for path in [
        "/images/golden-base",
        "/images/web/1.12.0",
        "/channels/web/stable",
        "/diff/web?from=1.12.0&to=1.13.0",
        "/login",
    ] {
        assert!(seen.contains(path), "{path} is linked from nowhere: {seen:?}");
    }
    let (_, _, html) = page(&server, &[], "/images/web/1.13.0");
    assert!(html.contains("&lt;script&gt;alert(1)&lt;/script&gt;␛[31m"), "{html}");
    assert!(html.contains("/images/golden-base/2026.11.1.1"), "its base");
    let (status, _, html) = page(&server, &[], "/logs/web/1.13.0");
    assert!(status == 200 && html.contains("␛]52;c;aGk=␇&lt;script&gt;alert('log')&lt;/script&gt;"), "{html}");
    assert_eq!(page(&server, &[], "/logs/web/1.0.0").0, 404);
    let (_, _, html) = page(&server, &[], "/images/golden-base/2026.11.1.1");
    assert!(html.contains("/images/web/1.13.0"), "what was baked on it");
    let (_, _, html) = page(&server, &[], "/images/web");
    assert!(html.matches("<circle").count() == 28 && html.contains("revoked"), "{html}");
    assert!(page(&server, &[], "/?q=gold").2.contains("/images/golden-base"));
    assert!(!page(&server, &[], "/?q=gold").2.contains("/images/web\""));
    for (path, status) in [
        ("/images/none", 404),
        ("/images/web/9.9", 404),
        ("/images/%3Cscript%3E", 400),
        ("/channels/web/none", 404),
        ("/diff/web?from=1.0.0&to=none", 404),
        ("/diff/web", 400),
    ] {
        let (found, _, html) = page(&server, &[], path);
        assert!(found == status && !html.contains("<script"), "{path} {found}: {html}");
    }
}

/// The cookie and the form text of a log-in with `token`.
fn log_in(server: &Serving, token: &str) -> (String, String) {
    let (status, head, _) = page(server, &["-d", &format!("token={token}")], "/login");
    assert_eq!(status, 303, "{head}");
    let cookie = head.lines().find_map(|line| line.strip_prefix("set-cookie: ")).unwrap();
    assert!(cookie.contains("httponly") && cookie.contains("samesite=strict"), "{cookie}");
    let cookie = format!("Cookie: {}", cookie.split(';').next().unwrap());
    let (_, _, html) = page(server, &["-H", &cookie], "/channels/web/stable");
    let form = html.split("name=\"form\" value=\"").nth(1).unwrap().split('"').next().unwrap().to_owned();
    (cookie, form)
}

#[test]
fn only_who_may_promote_rolls_back_and_only_from_a_page_of_ours() {
    let server = showcase("button", true);
    let points_to = || server.registry.record(&select("web@stable")).unwrap().artifact.version.to_string();
    assert_eq!(points_to(), "1.11.0");
    let path = "/channels/web/stable/rollback";
    let ask =
        |cookie: &str, body: &str, more: &[&str]| page(&server, &[&["-H", cookie, "-d", body], more].concat(), path).0;
    assert!(!page(&server, &[], "/channels/web/stable").2.contains("Roll back to this"));
    assert_eq!(page(&server, &["-d", "token=kiln_wrong"], "/login").0, 403);
    let (cookie, form) = log_in(&server, PUBLISHER);
    assert!(page(&server, &["-H", &cookie], "/channels/web/stable").2.contains("Roll back to this"));
    let right = format!("form={form}&to=1.4.0&expect=1.11.0&reason=a%20drill");
    assert_eq!(ask("Cookie: none=1", &right, &[]), 403, "without a session");
    assert_eq!(ask(&cookie, "to=1.4.0&expect=1.11.0", &[]), 403, "without the form's text");
    assert_eq!(ask(&cookie, &right.replace(&form, &"0".repeat(32)), &[]), 403, "with another one");
    assert_eq!(ask(&cookie, &right, &["-H", "Sec-Fetch-Site: cross-site"]), 403, "from another site");
    assert_eq!(points_to(), "1.11.0");
    assert_eq!(ask(&cookie, &right.replace("expect=1.11.0", "expect=1.12.0"), &[]), 409, "somebody else was faster");
    assert_eq!(ask(&cookie, &right, &["-H", "Sec-Fetch-Site: same-origin"]), 303);
    assert_eq!(points_to(), "1.4.0");
    let (_, _, html) = page(&server, &[], "/channels/web/stable");
    assert!(html.contains("a drill") && html.contains("publisher"), "{html}");

    let (reader, of_reader) = log_in(&server, READER);
    assert!(!page(&server, &["-H", &reader], "/channels/web/stable").2.contains("Roll back to this"));
    assert_eq!(ask(&reader, &format!("form={of_reader}&to=1.11.0&reason=x"), &[]), 403, "a reader");
    assert_eq!(page(&server, &["-H", &cookie, "-d", &format!("form={form}")], "/logout").0, 303);
    assert_eq!(ask(&cookie, &right, &[]), 403, "after the log-out");
}

#[test]
fn where_reading_is_not_public_pages_lead_to_the_log_in() {
    let server = showcase("closed", false);
    for path in ["/", "/images/web", "/images/web/1.0.0", "/channels/web/stable", "/diff/web?from=1.0.0&to=1.1.0"] {
        let (status, head, html) = page(&server, &[], path);
        assert!(status == 303 && head.contains("location: /login"), "{path}: {head}");
        assert!(!html.contains("1.0.0"), "{path}");
    }
    let (cookie, _) = log_in(&server, READER);
    let (status, _, html) = page(&server, &["-H", &cookie], "/");
    assert!(status == 200 && html.contains("/images/web") && !html.contains("golden-base"), "{html}");
    assert_eq!(page(&server, &["-H", &cookie], "/images/golden-base").0, 403);
}

#[test]
fn names_of_images_that_a_token_may_not_read_stand_in_no_lineage() {
    let server = showcase("lineage-closed", false);
    let (web, base) = ("/images/web/1.13.0", "/images/golden-base/2026.11.1.1");
    let all = tokens(false).replace("\"web\"", "\"*\"");
    let revoke = |lift: bool| {
        let body = if lift { r#"{"lift": true}"# } else { r#"{"reason": "a leaked key"}"# };
        let (status, answer) = server.post(PUBLISHER, "/api/v1/images/golden-base/versions/2026.11.1.1/revoke", body);
        assert_eq!(status, 200, "{answer}");
        answer["inherited"].as_array().unwrap().len()
    };
    let reader = format!("Authorization: Bearer {READER}");
    let show = |path: &str| {
        let (status, _, html) = page(&server, &["-H", &reader], path);
        assert_eq!(status, 200, "{path}: {html}");
        html
    };
    assert!(!show(web).contains("/images/golden-base"), "its base is not his to see");
    std::fs::write(server.path("tokens.toml"), all).unwrap();
    assert!(show(web).contains(base) && show(base).contains(web));
    assert_eq!((revoke(false), revoke(true)), (8, 8), "all that was baked on it");

    let only = tokens(false).replace("\"web\"", "\"golden-*\"");
    std::fs::write(server.path("tokens.toml"), only).unwrap();
    assert!(!show(base).contains("/images/web"), "what was baked on it is not his to see");
    assert_eq!(revoke(false), 0);
    std::fs::write(server.path("tokens.toml"), tokens(false)).unwrap();
    let html = show(web);
    assert!(html.contains("a leaked key") && !html.contains("/images/golden-base"), "{html}");
    // Nor in answers for programs: what is shown keeps its base as a part of the record, what is refused names nothing.
    let shown = server.json(&["-H", &reader], "/api/v1/images/web/versions/1.13.0").1;
    assert_eq!(shown["revoked"]["chain"], serde_json::json!([{ "image": "web", "version": "1.13.0" }]), "{shown}");
    for path in ["/images/web/1.13.0/disk.qcow2", "/api/v1/images/web/resolve/1.13.0", "/v2/web/manifests/1.13.0"] {
        let (status, _, body) = server.ask(&["-H", &reader], path);
        let body = String::from_utf8_lossy(&body);
        assert!([404, 410].contains(&status) && !body.contains("golden-base"), "{path}: {status} {body}");
    }
}
