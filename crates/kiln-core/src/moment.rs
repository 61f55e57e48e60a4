//! Seconds since 1970 as dates and times, in UTC.

use std::{
    str::FromStr,
    time::{Duration, SystemTime},
};

/// A moment in UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    pub year: u64,
    pub month: u64,
    pub day: u64,
    /// Since 1970.
    seconds: u64,
    of_day: u64,
    milliseconds: u32,
}

impl Moment {
    /// As near as a millisecond.
    pub fn of(time: SystemTime) -> Self {
        let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
        let (year, month, day) = civil(since.as_secs() / 86_400);
        let (seconds, of_day) = (since.as_secs(), since.as_secs() % 86_400);
        Self { year, month, day, seconds, of_day, milliseconds: since.subsec_millis() }
    }

    /// Since 1970.
    pub const fn seconds(&self) -> u64 {
        self.seconds
    }

    pub fn of_seconds(seconds: u64) -> Self {
        Self::of(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds.min(253_402_300_799)))
    }

    /// `2026-11-21`
    pub fn date(&self) -> String {
        format!("{:04}-{:02}-{:02}", self.year, self.month, self.day)
    }

    /// `2026-11-21 13:26`
    pub fn minute(&self) -> String {
        format!("{} {:02}:{:02}", self.date(), self.of_day / 3600, self.of_day / 60 % 60)
    }

    /// `2026-11-21T13:26:36Z` (RFC 3339)
    pub fn second(&self) -> String {
        let (hours, minutes, seconds) = (self.of_day / 3600, self.of_day / 60 % 60, self.of_day % 60);
        format!("{}T{hours:02}:{minutes:02}:{seconds:02}Z", self.date())
    }

    /// `2026-11-21T13:26:36.123Z` (RFC 3339)
    pub fn rfc3339(&self) -> String {
        let second = self.second();
        format!("{}.{:03}Z", second.trim_end_matches('Z'), self.milliseconds)
    }
}

impl FromStr for Moment {
    type Err = String;

    /// `2026-12-01`, or `2026-12-01T08:00Z` with or without seconds; UTC.
    fn from_str(text: &str) -> Result<Self, String> {
        let unreadable = || format!("`{text}` is not a time such as `2026-12-01` or `2026-12-01T08:00Z`");
        let (date, time) = text.split_once('T').unwrap_or((text, "00:00Z"));
        let fields = |text: &str, separator: char| -> Option<Vec<u64>> {
            text.split(separator).map(|field| field.parse().ok().filter(|_| field.len() >= 2)).collect()
        };
        let date = fields(date, '-').filter(|date| date.len() == 3).ok_or_else(unreadable)?;
        let time = time.strip_suffix('Z').and_then(|time| fields(time, ':')).ok_or_else(unreadable)?;
        let seconds = match time[..] {
            [hours @ 0..24, minutes @ 0..60] => hours * 3600 + minutes * 60,
            [hours @ 0..24, minutes @ 0..60, seconds @ 0..60] => hours * 3600 + minutes * 60 + seconds,
            _ => return Err(unreadable()),
        };
        // Found again from the number of days, so that no day is taken that there is not.
        let wanted = (date[0], date[1], date[2]);
        let (mut day, mut end) = (0, 2_932_897);
        while day < end {
            let middle = u64::midpoint(day, end);
            (day, end) = if civil(middle) < wanted { (middle + 1, end) } else { (day, middle) };
        }
        if civil(day) != wanted {
            return Err(unreadable());
        }
        Ok(Self::of_seconds(day * 86_400 + seconds))
    }
}

/// Year, month, day of a number of days since 1970-01-01, in the Gregorian calendar: eras of 400 years, years that
/// begin in March.
const fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let era = days / 146_097;
    let of_era = days % 146_097;
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + (month <= 2) as u64;
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_times_as_it_writes_them_and_no_others() {
        for (text, expected) in [
            ("1970-01-01", "1970-01-01T00:00:00.000Z"),
            ("2026-12-01T08:05Z", "2026-12-01T08:05:00.000Z"),
            ("2028-02-29T23:59:58Z", "2028-02-29T23:59:58.000Z"),
        ] {
            assert_eq!(text.parse::<Moment>().map(|moment| moment.rfc3339()).as_deref(), Ok(expected));
        }
        for text in ["", "tomorrow", "2026-02-29", "2026-13-01", "2026-12-01T24:00Z", "2026-12-01T08:00", "2026-1-1"] {
            assert!(text.parse::<Moment>().is_err(), "{text}");
        }
    }

    #[test]
    fn agrees_with_known_moments() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_399, "2000-02-28T23:59:59.000Z"),
            (951_782_400, "2000-02-29T00:00:00.000Z"),
            (951_868_800, "2000-03-01T00:00:00.000Z"),
            (1_709_164_800, "2024-02-29T00:00:00.000Z"),
            (1_795_267_596, "2026-11-21T13:26:36.000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000Z"),
        ] {
            assert_eq!(Moment::of_seconds(seconds).rfc3339(), text);
        }
    }
}
