//! Range requests: RFC 9110, section 14, and the conditions of section 13 that decide about them.

use axum::http::{HeaderMap, HeaderName, header};
use kiln_core::moment::Moment;
use std::ops::Range;

/// More ranges than this in one request are refused: nobody who reads a disk needs them.
const MOST: usize = 16;

/// What a request wants of a representation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Wanted {
    NotModified,
    PreconditionFailed,
    Whole,
    /// In the order asked for; one or several.
    Parts(Vec<Range<u64>>),
    Unsatisfiable,
}

/// What `headers` want of something of `size` bytes with this strong `etag` (with its quotes), changed last at `modified`.
pub(crate) fn wanted(headers: &HeaderMap, size: u64, etag: &str, modified: u64) -> Wanted {
    let text = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    if let Some(tags) = text(header::IF_MATCH)
        && !lists(tags, etag, false)
    {
        return Wanted::PreconditionFailed;
    }
    if let Some(tags) = text(header::IF_NONE_MATCH)
        && lists(tags, etag, true)
    {
        return Wanted::NotModified;
    }
    let Some(range) = text(header::RANGE) else { return Wanted::Whole };
    // A weak tag never matches here.
    let same = |validator: &str| validator == etag || validator == http_date(modified);
    if text(header::IF_RANGE).is_some_and(|validator| !same(validator.trim())) {
        return Wanted::Whole;
    }
    parse(range, size)
}

/// Whether `tags`, a list of entity tags or `*`, has `etag`; weakly compared or not.
fn lists(tags: &str, etag: &str, weakly: bool) -> bool {
    tags.split(',')
        .map(str::trim)
        .any(|tag| tag == "*" || tag == etag || (weakly && tag.strip_prefix("W/") == Some(etag)))
}

/// What is not a range of bytes at all is ignored, as the RFC wants.
fn parse(text: &str, size: u64) -> Wanted {
    let Some(set) = text.trim().strip_prefix("bytes=") else { return Wanted::Whole };
    let mut parts: Vec<Range<u64>> = Vec::new();
    for (number, spec) in set.split(',').map(str::trim).filter(|spec| !spec.is_empty()).enumerate() {
        if number == MOST {
            return Wanted::Unsatisfiable;
        }
        let Some((first, last)) = spec.split_once('-') else { return Wanted::Whole };
        let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        if !digits(first) || !digits(last) {
            return Wanted::Whole;
        }
        // A number too large for us lies behind every end.
        let number = |text: &str| text.parse::<u64>().unwrap_or(u64::MAX);
        let range = match (first.is_empty(), last.is_empty()) {
            (true, true) => return Wanted::Whole,
            (true, false) => size.saturating_sub(number(last))..size,
            (false, true) => number(first)..size,
            (false, false) if number(first) > number(last) => return Wanted::Whole,
            (false, false) => number(first)..number(last).saturating_add(1).min(size),
        };
        if range.start < range.end {
            parts.push(range);
        }
    }
    let overlap = |a: &Range<u64>, b: &Range<u64>| a.start < b.end && b.start < a.end;
    let overlaps = parts.iter().enumerate().any(|(place, a)| parts[..place].iter().any(|b| overlap(a, b)));
    if parts.is_empty() || overlaps { Wanted::Unsatisfiable } else { Wanted::Parts(parts) }
}

/// `Sat, 21 Nov 2026 13:26:36 GMT`
pub(crate) fn http_date(seconds: u64) -> String {
    const DAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let moment = Moment::of_seconds(seconds);
    let day = DAYS[usize::try_from(moment.seconds() / 86_400 % 7).unwrap_or(0)];
    let month = usize::try_from(moment.month).unwrap_or(1).clamp(1, 12);
    let time = moment.rfc3339();
    format!("{day}, {:02} {} {:04} {} GMT", moment.day, MONTHS[month - 1], moment.year, &time[11..19])
}

#[cfg(test)]
#[expect(clippy::single_range_in_vec_init, reason = "one part is what is meant")]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_as_the_rfc_says() {
        let one = |range| Wanted::Parts(vec![range]);
        for (text, expected) in [
            ("bytes=0-0", one(0..1)),
            ("bytes=5-", one(5..100)),
            ("bytes=-5", one(95..100)),
            ("bytes=-500", one(0..100)),
            ("bytes=90-1000", one(90..100)),
            ("bytes=90-99999999999999999999999", one(90..100)),
            ("bytes=0-1, 50-59,-1", Wanted::Parts(vec![0..2, 50..60, 99..100])),
            ("bytes=0-1,200-300", one(0..2)),
            ("bytes=100-", Wanted::Unsatisfiable),
            ("bytes=-0", Wanted::Unsatisfiable),
            ("bytes=0-5,5-9", Wanted::Unsatisfiable),
            ("bytes=", Wanted::Unsatisfiable),
            ("bytes=5-1", Wanted::Whole),
            ("bytes=a-b", Wanted::Whole),
            ("bytes=-", Wanted::Whole),
            ("bytes=+1-2", Wanted::Whole),
            ("lines=1-2", Wanted::Whole),
        ] {
            assert_eq!(parse(text, 100), expected, "{text}");
        }
        let many = (0..40).map(|number| format!("{number}-{number}")).collect::<Vec<_>>().join(",");
        assert_eq!(parse(&format!("bytes={many}"), 100), Wanted::Unsatisfiable);
        assert_eq!(parse("bytes=0-", 0), Wanted::Unsatisfiable);
    }

    #[test]
    fn conditions_are_asked_before_ranges() {
        let ask = |pairs: &[(HeaderName, &str)]| {
            let mut headers = HeaderMap::new();
            for (name, value) in pairs {
                headers.insert(name, value.parse().unwrap());
            }
            wanted(&headers, 10, "\"a\"", 0)
        };
        let range = (header::RANGE, "bytes=0-1");
        assert_eq!(ask(&[(header::IF_NONE_MATCH, "\"b\", W/\"a\"")]), Wanted::NotModified);
        assert_eq!(ask(&[(header::IF_MATCH, "\"b\"")]), Wanted::PreconditionFailed);
        assert_eq!(ask(&[range.clone(), (header::IF_RANGE, "\"a\"")]), Wanted::Parts(vec![0..2]));
        assert_eq!(ask(&[range.clone(), (header::IF_RANGE, "W/\"a\"")]), Wanted::Whole);
        assert_eq!(ask(&[range.clone(), (header::IF_RANGE, "\"b\"")]), Wanted::Whole);
        assert_eq!(ask(&[range, (header::IF_RANGE, "Thu, 01 Jan 1970 00:00:00 GMT")]), Wanted::Parts(vec![0..2]));
    }
}
