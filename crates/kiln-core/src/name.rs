//! Names of images and versions: what may stand in a path, a URL and a tag.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A text that may not name an image or a version.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{text}` is not {what}: use 1 to {limit} of `a-z`, `0-9`, `.`, `_`, `-`, beginning and ending with a letter or digit"
)]
pub struct InvalidName {
    pub text: String,
    pub what: &'static str,
    pub limit: usize,
}

fn check(text: &str, what: &'static str, limit: usize, extra: &str) -> Result<(), InvalidName> {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let sound = text.len() <= limit
        && text.starts_with(plain)
        && text.ends_with(plain)
        && !text.contains("..")
        && text.chars().all(|c| plain(c) || "._-".contains(c) || extra.contains(c));
    if sound { Ok(()) } else { Err(InvalidName { text: text.to_owned(), what, limit }) }
}

macro_rules! name {
    ($(#[$doc:meta])* $type:ident, $what:literal, $limit:literal, $extra:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $type(String);

        impl $type {
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl FromStr for $type {
            type Err = InvalidName;

            fn from_str(text: &str) -> Result<Self, InvalidName> {
                check(text, $what, $limit, $extra).map(|()| Self(text.to_owned()))
            }
        }

        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

name! {
    /// The name of an image: `web`, `golden-base`.
    ImageName, "an image name", 128, ""
}
name! {
    /// One immutable version of an image: `1.4.0`, `2026.11.21.1`. A `+` may add build metadata.
    Version, "a version", 64, "+"
}
name! {
    /// A moving, logged pointer to a version: `stable`, `candidate`.
    ChannelName, "a channel name", 64, ""
}

/// What stands for the newest version everywhere, and so can be called nothing else.
pub const LATEST: &str = "latest";

impl ChannelName {
    /// Whether a channel may be made under this name: `latest` means something else, and what begins with a digit could be a version.
    pub fn can_be_made(&self) -> bool {
        self.as_str() != LATEST && self.as_str().starts_with(|c: char| c.is_ascii_lowercase())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_what_could_leave_its_directory_or_look_like_an_option() {
        for text in ["", ".", "..", "a/b", "-a", "a-", "A", "a..b", "a b", "é", "a\n"] {
            assert!(text.parse::<ImageName>().is_err(), "{text:?}");
            assert!(text.parse::<Version>().is_err(), "{text:?}");
        }
        assert!("1.4.0+deb12".parse::<Version>().is_ok());
        assert!("golden-base_2".parse::<ImageName>().is_ok());
    }
}
