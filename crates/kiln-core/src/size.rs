//! Sizes in bytes, written `"512 MiB"`, `"4 GiB"`, `"1048576"`.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct ByteSize(pub u64);

/// A text that is not a size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a size; write for instance `512 MiB` or `4 GiB`")]
pub struct InvalidSize(pub String);

const UNITS: [(&str, u64); 5] = [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];

impl ByteSize {
    pub const fn mib(mebibytes: u64) -> Self {
        Self(mebibytes << 20)
    }

    pub const fn gib(gibibytes: u64) -> Self {
        Self(gibibytes << 30)
    }

    pub const fn bytes(self) -> u64 {
        self.0
    }

    /// One decimal, in the largest unit that keeps it above one: `812.4 MiB`. For people; [`fmt::Display`] is exact.
    pub fn approximate(self) -> String {
        for (unit, factor) in &UNITS[..4] {
            if self.0 >= *factor {
                let tenths = u128::from(self.0) * 10 / u128::from(*factor);
                return format!("{}.{} {unit}", tenths / 10, tenths % 10);
            }
        }
        format!("{} B", self.0)
    }
}

impl fmt::Display for ByteSize {
    /// Exact: the largest unit that divides the size, so that parsing gives the same size again.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (unit, factor) in UNITS {
            if self.0 != 0 && self.0.is_multiple_of(factor) {
                return write!(f, "{} {unit}", self.0 / factor);
            }
        }
        write!(f, "{} B", self.0)
    }
}

impl FromStr for ByteSize {
    type Err = InvalidSize;

    fn from_str(text: &str) -> Result<Self, InvalidSize> {
        let invalid = || InvalidSize(text.to_owned());
        let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
        let unit = text[digits.len()..].trim();
        let factor = match unit {
            "" => 1,
            _ => UNITS.iter().find(|(name, _)| *name == unit).map(|(_, factor)| *factor).ok_or_else(invalid)?,
        };
        let number: u64 = digits.trim().parse().map_err(|_| invalid())?;
        number.checked_mul(factor).map(Self).ok_or_else(invalid)
    }
}

impl Serialize for ByteSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(self.0)
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        u64::deserialize(deserializer).map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_what_it_prints() {
        for bytes in [0, 1, 512, 1024, 1025, 3 << 20, 4 << 30, u64::MAX] {
            assert_eq!(ByteSize(bytes).to_string().parse(), Ok(ByteSize(bytes)));
        }
    }

    #[test]
    fn refuses_unknown_units_fractions_and_overflow() {
        for text in ["", "MiB", "4 GB", "1.5 GiB", "-1 MiB", "99999999999 GiB", "4 gib"] {
            assert!(text.parse::<ByteSize>().is_err(), "{text:?}");
        }
    }
}
