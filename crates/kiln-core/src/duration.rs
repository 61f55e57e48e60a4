//! Durations, written `"90s"`, `"10 min"`, `"1 h"`, `"1h 30m"`.

use std::time::Duration;

/// A text that is not a duration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a duration; write for instance `90s`, `10 min` or `1 h`")]
pub struct InvalidDuration(pub String);

const UNITS: [(&str, u64); 14] = [
    ("s", 1),
    ("sec", 1),
    ("second", 1),
    ("seconds", 1),
    ("m", 60),
    ("min", 60),
    ("minute", 60),
    ("minutes", 60),
    ("h", 3600),
    ("hour", 3600),
    ("hours", 3600),
    ("d", 86400),
    ("day", 86400),
    ("days", 86400),
];

/// The longest duration, 365 days: what is longer is a slip of the pen and would overflow deadlines.
const LONGEST: u64 = 365 * 86400;

/// Parses whole seconds with a unit; several parts add up (`1h 30m`). Units: s, m or min, h, d.
pub fn parse(text: &str) -> Result<Duration, InvalidDuration> {
    let invalid = || InvalidDuration(text.chars().take(80).collect());
    let mut rest = text.trim();
    let mut total = 0_u64;
    if rest.is_empty() {
        return Err(invalid());
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(invalid)?;
        let number: u64 = rest[..digits].parse().map_err(|_| invalid())?;
        rest = rest[digits..].trim_start();
        let letters = rest.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(rest.len());
        let (_, factor) = UNITS.iter().find(|(name, _)| *name == &rest[..letters]).ok_or_else(invalid)?;
        total = number.checked_mul(*factor).and_then(|part| total.checked_add(part)).ok_or_else(invalid)?;
        rest = rest[letters..].trim_start();
    }
    if total > LONGEST { Err(invalid()) } else { Ok(Duration::from_secs(total)) }
}

/// The duration as the template would write it: `90s`, `10min`, `2h`. Whole seconds.
pub fn format(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0 => "0s".to_owned(),
        _ if seconds.is_multiple_of(3600) => format!("{}h", seconds / 3600),
        _ if seconds.is_multiple_of(60) => format!("{}min", seconds / 60),
        _ => format!("{seconds}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_what_people_write() {
        for (text, seconds) in
            [("90s", 90), ("10 min", 600), ("1 h", 3600), ("1h 30m", 5400), (" 2 days ", 172_800), ("0s", 0)]
        {
            assert_eq!(parse(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
    }

    #[test]
    fn parses_what_it_prints() {
        for seconds in [0, 1, 59, 60, 61, 3600, 3660, 86400] {
            let duration = Duration::from_secs(seconds);
            assert_eq!(parse(&format(duration)), Ok(duration));
        }
    }

    #[test]
    fn refuses_bare_numbers_fractions_and_overflow() {
        for text in ["", "10", "s", "1.5h", "-1s", "1 fortnight", "99999999999999999999s", "366d", "10é"] {
            assert!(parse(text).is_err(), "{text:?}");
        }
    }
}
