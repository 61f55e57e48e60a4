//! What state the package archives are in: a base is built again when their indexes change, and not before.
//!
//! The indexes' digests stand in each suite's `InRelease`. Its signature is mmdebstrap's to check, not ours: here it
//! only decides whether to build.

use std::time::SystemTime;

use kiln_core::Digest;
use kiln_io::{
    download::fetch,
    fs::{read_text, write_atomic},
};
use serde::{Deserialize, Serialize};

use super::{BaseContext, cache::Cache};

/// For how long an answer of the mirror is good.
const FRESH: u64 = 3600;
/// `InRelease` of Debian's main archive has 150 kB.
const LONGEST: usize = 4 << 20;

/// The archives at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Release {
    /// Changes when a package index changes.
    pub(super) state: String,
    /// Date of the suite's main archive (of its last point release), seconds since 1970: it stands for every moment of
    /// the build, so it must not depend on when that was.
    pub(super) time: i64,
}

#[derive(Debug, Serialize, Deserialize)]
struct Remembered {
    asked: u64,
    release: Release,
}

impl Release {
    /// Where mmdebstrap chooses the mirror itself and we cannot ask it: a base a day.
    pub(super) fn unknown(suite: &str, now: SystemTime) -> Self {
        // The days on which bookworm and trixie were released.
        let time = if suite == "bookworm" { 1_686_355_200 } else { 1_754_697_600 };
        Self { state: format!("day{}", seconds(now) / 86400), time }
    }
}

/// Asks the archives behind `sources`, at most once an hour. The error says why they could not be asked.
pub(super) async fn now(
    cache: &Cache,
    prefix: &str,
    suite: &str,
    sources: &[String],
    context: &BaseContext,
) -> Result<Release, String> {
    if sources.is_empty() {
        return Ok(Release::unknown(suite, context.clock.wall()));
    }
    let memory = cache.path(&format!(".release-{prefix}.json"));
    let time = seconds(context.clock.wall());
    let remembered = std::fs::read(&memory).ok().and_then(|json| serde_json::from_slice::<Remembered>(&json).ok());
    if let Some(remembered) =
        remembered.filter(|remembered| (remembered.asked..remembered.asked + FRESH).contains(&time))
    {
        return Ok(remembered.release);
    }
    let mut texts = Vec::new();
    for source in sources {
        let mut words = source.split_whitespace().skip(1);
        let (Some(uri), Some(suite)) = (words.next(), words.next()) else { continue };
        let url = format!("{uri}/dists/{suite}/InRelease");
        texts.push(if let Some(path) = url.strip_prefix("file:") {
            let path = format!("/{}", path.trim_start_matches('/'));
            read_text(path.as_ref()).map_err(|error| error.to_string())?
        } else {
            let bytes = fetch(&url, LONGEST, &context.cancel).await.map_err(|error| error.to_string())?;
            String::from_utf8_lossy(&bytes).into_owned()
        });
    }
    let release = read(&texts).ok_or_else(|| "its `InRelease` names no date or no package index".to_owned())?;
    let remembered = Remembered { asked: time, release: release.clone() };
    let json = serde_json::to_vec(&remembered).map_err(|error| error.to_string())?;
    write_atomic(&memory, &json, 0o600).map_err(|error| error.to_string())?;
    Ok(release)
}

/// The state of the archives from their `InRelease` files, the main one first.
fn read(texts: &[String]) -> Option<Release> {
    let mut indexes = String::new();
    for text in texts {
        // Lines of `SHA256:` are digest, size, path; those of `MD5Sum:` have shorter digests.
        let index = text.lines().find(|line| {
            let words: Vec<_> = line.split_whitespace().collect();
            matches!(words[..], [digest, _, "main/binary-amd64/Packages"] if digest.len() == 64)
        });
        indexes += index?;
    }
    let date = texts.first()?.lines().find_map(|line| line.strip_prefix("Date: "))?;
    Some(Release { state: Digest::of(indexes.as_bytes()).short(), time: date_seconds(date)? })
}

/// `Sat, 10 Jan 2026 09:45:12 UTC`, as `Release` files have it.
fn date_seconds(date: &str) -> Option<i64> {
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let words: Vec<&str> = date.split_whitespace().collect();
    let [_, day, month, year, clock, "UTC" | "GMT" | "+0000"] = words[..] else { return None };
    let day: i64 = day.parse().ok()?;
    let month = i64::try_from(MONTHS.iter().position(|name| *name == month)?).ok()? + 1;
    let year: i64 = year.parse().ok().filter(|year| (1970..10_000).contains(year))?;
    let parts: Vec<i64> = clock.split(':').map_while(|part| part.parse().ok()).collect();
    let [hours, minutes, seconds] = parts[..] else { return None };
    // Days of the Gregorian calendar, the year beginning in March.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = 365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day - 1 - 719_468;
    Some(days * 86400 + hours * 3600 + minutes * 60 + seconds)
}

/// Whole seconds since 1970.
pub(super) fn seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(date: &str, digest: char) -> String {
        let digest = digest.to_string();
        format!(
            "Origin: Debian\nDate: {date}\nMD5Sum:\n {} 9 main/binary-amd64/Packages\nSHA256:\n {} 9 main/binary-amd64/Packages\n",
            digest.repeat(32),
            digest.repeat(64)
        )
    }

    #[test]
    fn dates_are_seconds_since_1970() {
        assert_eq!(date_seconds("Thu, 01 Jan 1970 00:00:00 UTC"), Some(0));
        assert_eq!(date_seconds("Sat, 10 Jan 2026 09:45:12 UTC"), Some(1_768_038_312));
        assert_eq!(date_seconds("Thu, 29 Feb 2024 23:59:59 UTC"), Some(1_709_251_199));
        for date in ["", "Sat, 10 Jan 2026 09:45:12 CET", "Sat, 10 Foo 2026 09:45:12 UTC", "Sat, 10 Jan 2026 09:45 UTC"]
        {
            assert_eq!(date_seconds(date), None, "{date}");
        }
    }

    #[test]
    fn a_release_signed_again_over_the_same_index_is_the_same_state() {
        let of = |main: &str, updates: &str, digest| read(&[text(main, 'a'), text(updates, digest)]).unwrap();
        let (first, second) = ("Sat, 10 Jan 2026 09:45:12 UTC", "Sun, 11 Jan 2026 02:00:00 UTC");
        assert_eq!(of(first, first, 'b'), of(first, second, 'b'));
        assert_ne!(of(first, first, 'b').state, of(first, first, 'c').state);
        assert_eq!(read(&["nothing".to_owned()]), None);
    }
}
