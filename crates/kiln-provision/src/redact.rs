//! Replaces secret values in output by `***`: the value, its lines, and its base64 and hex forms.
//! A second line of defence: the first is that a secret is never put where it could be printed.

use kiln_core::Secret;

use crate::encode::{base64, hex};

/// Shorter values and fragments would blank out ordinary words.
const SHORTEST: usize = 4;
/// Fragments of an encoded secret, shorter than which a hit could be chance.
const SHORTEST_CODED: usize = 8;
const MASK: &[u8] = b"***";

/// The byte patterns to replace, longest first.
#[derive(Clone, Default)]
pub(crate) struct Patterns(Vec<Vec<u8>>);

impl Patterns {
    pub(crate) fn of<'a>(secrets: impl IntoIterator<Item = &'a Secret>) -> Self {
        let mut patterns = Vec::new();
        for secret in secrets {
            let value = secret.reveal();
            add(&mut patterns, value);
            if value.contains('\n') {
                value.lines().map(str::trim).filter(|line| line.len() >= SHORTEST_CODED).for_each(|line| {
                    add(&mut patterns, line);
                });
            }
        }
        patterns.sort_by(|a, b| b.len().cmp(&a.len()).then_with(|| a.cmp(b)));
        patterns.dedup();
        Self(patterns)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Takes whatever of `buffer` is sure not to be the beginning of a secret, redacted; at the `end`, all of it.
    pub(crate) fn take(&self, buffer: &mut Vec<u8>, end: bool) -> Vec<u8> {
        let mut out = Vec::with_capacity(buffer.len());
        let mut at = 0;
        while at < buffer.len() {
            let rest = &buffer[at..];
            if !end && self.0.iter().any(|pattern| pattern.len() > rest.len() && pattern.starts_with(rest)) {
                break;
            }
            if let Some(found) = self.0.iter().find(|pattern| rest.starts_with(pattern)) {
                out.extend_from_slice(MASK);
                at += found.len();
            } else {
                out.push(rest[0]);
                at += 1;
            }
        }
        buffer.drain(..at);
        out
    }

    /// A whole text, redacted.
    pub(crate) fn text(&self, text: &str) -> String {
        if self.is_empty() {
            return text.to_owned();
        }
        String::from_utf8_lossy(&self.take(&mut text.as_bytes().to_vec(), true)).into_owned()
    }
}

impl std::fmt::Debug for Patterns {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Patterns({})", self.0.len())
    }
}

fn add(patterns: &mut Vec<Vec<u8>>, value: &str) {
    if value.len() < SHORTEST {
        return;
    }
    let bytes = value.as_bytes();
    patterns.push(bytes.to_vec());
    let digits = hex(bytes);
    if digits.len() >= SHORTEST_CODED {
        patterns.push(digits.to_uppercase().into_bytes());
        patterns.push(digits.into_bytes());
    }
    // In a longer text the value may begin at any of three bit positions; only the characters that the value alone
    // decides are compared.
    for offset in 0..3 {
        let coded = base64(&[&[0_u8; 3][..offset], bytes].concat());
        let from = (offset * 8).div_ceil(6);
        let to = (offset + bytes.len()) * 8 / 6;
        if to - from >= SHORTEST_CODED {
            patterns.push(coded.as_bytes()[from..to].to_vec());
            patterns.push(coded[from..to].replace('+', "-").replace('/', "_").into_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn patterns(values: &[&str]) -> Patterns {
        Patterns::of(&values.iter().map(|value| Secret::new((*value).to_owned())).collect::<Vec<_>>())
    }

    #[test]
    fn hides_the_value_and_its_encodings_wherever_they_stand() {
        let hidden = patterns(&["correct horse"]);
        for prefix in ["", "x", "xy", "user:"] {
            let whole = format!("{prefix}correct horse and more");
            for text in [whole.clone(), base64(whole.as_bytes()), hex(whole.as_bytes())] {
                let shown = hidden.text(&text);
                assert!(shown.contains("***"), "{text} -> {shown}");
                assert!(!shown.contains("correct horse"));
            }
        }
        assert_eq!(hidden.text("nothing here"), "nothing here");
    }

    #[test]
    fn hides_a_value_that_arrives_in_pieces() {
        let hidden = patterns(&["sesame-open"]);
        for cut in 0..30 {
            let text = b"before sesame-open after. sesame";
            let mut buffer = text[..cut].to_vec();
            let mut out = hidden.take(&mut buffer, false);
            buffer.extend_from_slice(&text[cut..]);
            out.extend(hidden.take(&mut buffer, false));
            out.extend(hidden.take(&mut buffer, true));
            assert_eq!(String::from_utf8(out).unwrap(), "before *** after. sesame");
        }
    }

    #[test]
    fn hides_every_line_of_a_key() {
        let hidden = patterns(&["-----BEGIN KEY-----\nabcdefghijklmnop\nqrstuvwxyz012345\n-----END KEY-----\n"]);
        assert_eq!(hidden.text("> qrstuvwxyz012345 <"), "> *** <");
    }

    #[test]
    fn leaves_output_alone_for_values_too_short_to_be_secret() {
        assert_eq!(patterns(&["a", ""]).text("a banana"), "a banana");
    }

    #[test]
    fn never_shows_what_it_hides_in_debug_output() {
        assert!(!format!("{:?}", patterns(&["abcd"])).contains("abcd"));
    }
}
