//! Searching every byte of a disk, free space included, for values that must not be there.
//!
//! A deleted file's bytes stay on the disk until something overwrites or trims them, so hygiene looks at blocks, not
//! at files. Each value is searched as written, in base64 (at the three alignments) and in hexadecimal.

use std::sync::{Mutex, PoisonError};

use aho_corasick::AhoCorasick;

use crate::seal::Tap;

/// Shorter values match by chance all over a disk.
pub const SHORTEST: usize = 8;
/// Hits kept for each value; more tell nothing new.
const HITS_KEPT: usize = 3;

/// A value to search for. Prints its name only.
#[derive(Clone, PartialEq, Eq)]
pub struct Needle {
    /// What to call it in a finding: the variable's name, `the login key of this bake`.
    pub name: String,
    pub value: Vec<u8>,
}

impl std::fmt::Debug for Needle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Needle").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Needle {
    pub fn new(name: impl Into<String>, value: impl Into<Vec<u8>>) -> Self {
        Self { name: name.into(), value: value.into() }
    }

    /// The needles of a private key in PEM form: the whole text, and each full line of its body but the first, which
    /// begins alike in every key. A key that was wrapped or embedded elsewhere still has these.
    pub fn private_key(name: &str, pem: &str) -> Vec<Self> {
        let body = pem.lines().filter(|line| !line.starts_with("-----")).skip(1).filter(|line| line.len() >= 32);
        std::iter::once(pem.trim()).chain(body).map(|text| Self::new(name, text)).collect()
    }
}

/// Where a value was found.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Hit {
    pub name: String,
    /// `plain`, `base64` or `hex`.
    pub encoding: &'static str,
    /// Byte offset on the guest's disk.
    pub offset: u64,
}

/// The search: a [`Tap`] for sealing.
#[derive(Debug)]
pub struct Scan {
    automaton: Option<AhoCorasick>,
    /// By pattern: needle, encoding.
    patterns: Vec<(usize, &'static str)>,
    names: Vec<String>,
    too_short: Vec<String>,
    longest: usize,
    hits: Mutex<Vec<Vec<Hit>>>,
}

impl Scan {
    /// Values shorter than [`SHORTEST`] are not searched; [`Scan::too_short`] names them.
    pub fn new(needles: &[Needle]) -> Self {
        let mut texts: Vec<Vec<u8>> = Vec::new();
        let mut patterns = Vec::new();
        let mut too_short = Vec::new();
        for (index, needle) in needles.iter().enumerate() {
            if needle.value.len() < SHORTEST {
                too_short.push(needle.name.clone());
                continue;
            }
            for (encoding, text) in encodings(&needle.value) {
                patterns.push((index, encoding));
                texts.push(text);
            }
        }
        let longest = texts.iter().map(Vec::len).max().unwrap_or(0);
        // Only absurd amounts of text can fail to build; then every value counts as not searched, which fails a bake.
        let automaton = if texts.is_empty() { None } else { AhoCorasick::new(&texts).ok() };
        if automaton.is_none() {
            too_short = needles.iter().map(|needle| needle.name.clone()).collect();
        }
        Self {
            automaton,
            patterns,
            names: needles.iter().map(|needle| needle.name.clone()).collect(),
            too_short,
            longest,
            hits: Mutex::new(vec![Vec::new(); needles.len()]),
        }
    }

    /// The names of values that were not searched for.
    pub fn too_short(&self) -> &[String] {
        &self.too_short
    }

    /// What was found, in order of name and offset, each place once.
    pub fn hits(&self) -> Vec<Hit> {
        let mut hits: Vec<Hit> =
            self.hits.lock().unwrap_or_else(PoisonError::into_inner).iter().flatten().cloned().collect();
        hits.sort_by(|a, b| (&a.name, a.offset, a.encoding).cmp(&(&b.name, b.offset, b.encoding)));
        hits.dedup();
        hits
    }
}

impl Tap for Scan {
    fn overlap(&self) -> usize {
        self.longest.saturating_sub(1)
    }

    fn see(&self, offset: u64, bytes: &[u8]) {
        let Some(automaton) = &self.automaton else { return };
        for found in automaton.find_overlapping_iter(bytes) {
            let (needle, encoding) = self.patterns[found.pattern().as_usize()];
            let hit = Hit { name: self.names[needle].clone(), encoding, offset: offset + found.start() as u64 };
            let mut hits = self.hits.lock().unwrap_or_else(PoisonError::into_inner);
            // The lowest offsets are kept, so that the result does not depend on which thread came first.
            let hits = &mut hits[needle];
            if let Err(place) = hits.binary_search_by(|known| known.offset.cmp(&hit.offset)) {
                hits.insert(place, hit);
                hits.truncate(HITS_KEPT);
            }
        }
    }
}

/// The forms a value may take on a disk.
fn encodings(value: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    let hex: String = value
        .iter()
        .flat_map(|byte| [byte >> 4, byte & 15])
        .filter_map(|digit| char::from_digit(digit.into(), 16))
        .collect();
    let mut forms =
        vec![("plain", value.to_vec()), ("hex", hex.to_uppercase().into_bytes()), ("hex", hex.into_bytes())];
    for lead in 0..3 {
        let text = base64_core(value, lead);
        if text.len() >= SHORTEST {
            forms.push(("base64", text));
        }
    }
    forms.dedup_by(|a, b| a.1 == b.1);
    forms
}

/// The base64 digits that depend on `value` alone when `lead` unknown bytes stand before it and more may follow.
fn base64_core(value: &[u8], lead: usize) -> Vec<u8> {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let bits: Vec<u8> = std::iter::repeat_n(0, lead).chain(value.iter().copied()).collect();
    let digit = |at: usize| {
        let bit = at * 6;
        let high = u16::from(bits[bit / 8]) << 8;
        let low = bits.get(bit / 8 + 1).copied().map_or(0, u16::from);
        DIGITS[usize::from((high | low) >> (10 - bit % 8) & 63)]
    };
    // The first digits mix with what stands before, the last with what follows.
    let first = (lead * 8).div_ceil(6);
    let last = bits.len() * 8 / 6;
    (first..last).map(digit).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn search(needles: &[Needle], disk: &[u8], piece: usize) -> Vec<Hit> {
        let scan = Scan::new(needles);
        for start in (0..disk.len()).step_by(piece) {
            let from = start.saturating_sub(scan.overlap());
            scan.see(from as u64, &disk[from..disk.len().min(start + piece)]);
        }
        scan.hits()
    }

    #[test]
    fn finds_a_value_across_the_border_of_two_pieces() {
        let mut disk = vec![0; 4096];
        disk[1020..1035].copy_from_slice(b"correct-horse-1");
        let hits = search(&[Needle::new("password", *b"correct-horse-1")], &disk, 1024);
        assert_eq!(hits, [Hit { name: "password".into(), encoding: "plain", offset: 1020 }]);
    }

    #[test]
    fn finds_base64_at_every_alignment_and_hex_in_both_cases() {
        let needle = Needle::new("token", *b"s3cr3t-t0k3n!");
        for text in [
            "czNjcjN0LXQwazNuIQ==",     // the value itself
            "eHMzY3IzdC10MGszbiF5",     // `x` before it, `y` after it
            "eHlzM2NyM3QtdDBrM24heg==", // `xy` before it, `z` after it
            "7333637233742d74306b336e21",
            "7333637233742D74306B336E21",
        ] {
            let hits = search(std::slice::from_ref(&needle), text.as_bytes(), 4096);
            assert_eq!(hits.len(), 1, "{text}: {hits:?}");
        }
        assert!(search(&[needle], b"nothing of the kind", 4096).is_empty());
    }

    #[test]
    fn names_values_too_short_to_search_instead_of_drowning_in_matches() {
        let scan = Scan::new(&[Needle::new("pin", *b"1234"), Needle::new("long", *b"12345678")]);
        assert_eq!(scan.too_short(), ["pin"]);
    }

    #[test]
    fn finds_a_private_key_that_was_wrapped_differently() {
        let line = "QyNTUxOQAAACB0b3RhbGx5LW1hZGUtdXAta2V5LW1hdGVyaWFsLWZvci10ZXN0";
        let pem = format!(
            "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEAAAAA\n{line}\n-----END OPENSSH PRIVATE KEY-----\n"
        );
        let disk = format!("something {line} something");
        assert_eq!(search(&Needle::private_key("login key", &pem), disk.as_bytes(), 64).len(), 1);
    }

    #[test]
    fn does_not_print_the_value() {
        assert!(!format!("{:?}", Needle::new("a", *b"do-not-show")).contains("do-not-show"));
    }
}
