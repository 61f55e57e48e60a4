//! The dashboard in a real browser: a click through every kind of page, in light and dark, on a screen and on a phone.
//!
//! `KILN_PICTURES=DIRECTORY` keeps a picture of each page, to look at.

use std::{env, fs, path::PathBuf, time::SystemTime};

use crate::artifacts::{Scratch, select};
use crate::chromium::Browser;
use crate::serving::{PUBLISHER, READER, Serving, tokens};
use kiln_io::time::{Clock as _, SystemClock};

const SCREEN: u32 = 1280;
const PHONE: u32 = 390;

fn showcase(name: &str) -> (Serving, Browser) {
    let scratch = Scratch::new(name);
    let registry = scratch.registry();
    let now = SystemClock::new().wall().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    crate::showcase::fill(&registry, &scratch.0, now);
    let browser = Browser::start(&scratch.0);
    (Serving::of(scratch, registry, Some(tokens(true)), None), browser)
}

/// Looks at the page that is open in every way that people look at it.
fn look(browser: &mut Browser, name: &str) {
    let path = browser.path();
    for (width, dark) in [(PHONE, true), (PHONE, false), (SCREEN, true), (SCREEN, false)] {
        browser.appear(width, dark);
        let wide = browser.evaluate("document.documentElement.scrollWidth");
        assert!(wide.as_u64() <= Some(width.into()), "{path} is {wide} wide on a screen of {width}");
        // Text stands out from what is behind it, in both themes.
        let contrast = browser.evaluate(CONTRAST);
        assert!(contrast["ratio"].as_f64() >= Some(4.5), "{path}, dark {dark}: {contrast}");
        if let Some(directory) = env::var_os("KILN_PICTURES").map(PathBuf::from) {
            fs::create_dir_all(&directory).unwrap();
            browser.picture(&directory.join(format!("{name}-{width}-{}.png", if dark { "dark" } else { "light" })));
        }
    }
    assert_eq!(browser.complaints, Vec::<String>::new(), "{path}");
}

/// The text that stands out least, by the contrast of WCAG 2.
const CONTRAST: &str = "(() => {
    const channels = color => (color.match(/[\\d.]+/g) || []).map(Number);
    const linear = value => (value /= 255) <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
    const light = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
    const behind = element => {
        for (; element; element = element.parentElement) {
            const found = channels(getComputedStyle(element).backgroundColor);
            if (found.length === 3 || found[3] === 1) return found;
        }
        return [255, 255, 255];
    };
    let worst = { ratio: 21, text: '' };
    for (const element of document.querySelectorAll('body *')) {
        const own = [...element.childNodes].filter(node => node.nodeType === 3 && node.textContent.trim());
        if (!own.length || element.closest('svg') || !element.getClientRects().length) continue;
        const [a, b] = [light(channels(getComputedStyle(element).color)), light(behind(element))];
        const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
        if (ratio < worst.ratio) worst = { ratio, text: own[0].textContent.trim().slice(0, 40) };
    }
    return worst;
})()";

#[test]
fn every_kind_of_page_is_reached_by_clicks_and_fits_every_screen() {
    let (server, mut browser) = showcase("browser");
    browser.appear(SCREEN, false);
    browser.open(&server.url);
    look(&mut browser, "images");
    browser.follow("th a[href='/images/web']");
    look(&mut browser, "image");
    browser.follow("a.version[href='/images/web/1.13.0']");
    assert_eq!(browser.path(), "/images/web/1.13.0");
    look(&mut browser, "version");
    browser.follow("a[href='/logs/web/1.13.0']");
    assert_eq!(browser.evaluate("document.querySelectorAll('script').length"), 0, "the log is text");
    let log = browser.evaluate("document.querySelector('pre.log').textContent");
    assert!(log.as_str().unwrap().contains("<script>alert('log')</script>"), "{log}");
    look(&mut browser, "log");
    browser.follow("nav a[href='/images/web']");
    browser.follow("a[href='/images/web/1.12.0']");
    look(&mut browser, "revoked");
    browser.follow("a[href='/images/golden-base/2026.11.1.1']");
    let title = browser.evaluate("document.title");
    assert!(title.as_str().unwrap().contains("golden-base 2026.11.1.1"), "{title}");
    look(&mut browser, "base");
    browser.follow("a.button[href^='/diff/golden-base']");
    let text = browser.evaluate("document.querySelector('main').innerText");
    let text = text.as_str().unwrap();
    for expected in ["libgcc-s1", "12.2.0-14+deb12u2", "nginx-light", "/etc/motd", "nginx.service", "set-uid"] {
        assert!(text.contains(expected), "{expected} is not in {text}");
    }
    look(&mut browser, "difference");
    // Two versions chosen on the page of the image.
    browser.open(&format!("{}/images/web", server.url));
    browser.click("input[name=from][value='1.4.0']");
    browser.click("input[name=to][value='1.11.0']");
    browser.follow("form[action='/diff/web'] button");
    let path = browser.path();
    assert!(path.starts_with("/diff/web?") && path.contains("from=1.4.0") && path.contains("to=1.11.0"), "{path}");
    look(&mut browser, "chosen");
    browser.follow("nav a[href='/images/web']");
    browser.follow("a.chip[href='/channels/web/stable']");
    look(&mut browser, "channel");
    // A dot of a plot is a version.
    browser.open(&format!("{}/images/web", server.url));
    browser.follow("figure.plot a[href='/images/web/1.13.0'] circle");
    assert_eq!(browser.path(), "/images/web/1.13.0");
    browser.open(&format!("{}/images/nothing", server.url));
    browser.complaints.retain(|said| !said.contains("404"));
    look(&mut browser, "unknown");
}

#[test]
fn who_may_promote_rolls_back_with_the_mouse_and_nobody_else_finds_the_button() {
    let (server, mut browser) = showcase("browser-button");
    let points_to = || server.registry.record(&select("web@stable")).unwrap().artifact.version.to_string();
    browser.appear(SCREEN, false);
    for (token, may) in [(READER, false), (PUBLISHER, true)] {
        browser.open(&server.url);
        browser.follow("a[href='/login']");
        look(&mut browser, "login");
        browser.write("input[name=token]", "kiln_wrong");
        browser.follow("form[action='/login'] button");
        browser.complaints.retain(|said| !said.contains("403"));
        look(&mut browser, "wrong-token");
        browser.write("input[name=token]", token);
        browser.follow("form[action='/login'] button");
        browser.open(&format!("{}/channels/web/stable", server.url));
        assert_eq!(browser.evaluate("document.querySelectorAll('details.confirm').length > 0"), may, "{token}");
        if may {
            browser.click("details.confirm summary");
            look(&mut browser, "rollback");
            browser.write("details[open] input[name=reason]", "latency doubled again");
            browser.follow("details[open] button");
            assert_eq!(browser.path(), "/channels/web/stable");
            assert!(browser.evaluate("document.body.innerText").as_str().unwrap().contains("latency doubled again"));
            look(&mut browser, "rolled-back");
        }
        browser.follow("form[action='/logout'] button");
        assert_eq!(browser.evaluate("document.querySelectorAll('form[action=\"/logout\"]').length"), 0);
    }
    assert_ne!(points_to(), "1.11.0");
}
