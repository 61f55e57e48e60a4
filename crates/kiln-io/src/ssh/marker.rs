//! Finds the end of a command in the shell's output: the line `<nonce> <number>`, which nothing else can print.

use memchr::memmem::find;

/// Watches one stream for one marker, passing on everything else unchanged and without delay.
#[derive(Debug)]
pub(super) struct Scanner {
    /// With the blank that follows it.
    nonce: String,
    /// The beginning of what may become a marker.
    held: Vec<u8>,
    /// What stood after the nonce, once its line is complete.
    found: Option<String>,
}

/// A marker's line is never longer than this after its nonce; whatever is, is not a marker.
const LONGEST: usize = 128;

impl Scanner {
    pub(super) fn new(nonce: &str) -> Self {
        Self { nonce: format!("{nonce} "), held: Vec::new(), found: None }
    }

    pub(super) fn found(&self) -> Option<&str> {
        self.found.as_deref()
    }

    /// Passes on the bytes that are not part of the marker. Bytes after the marker belong to nobody and are dropped.
    pub(super) fn push(&mut self, bytes: &[u8], emit: &mut dyn FnMut(&[u8])) {
        if self.found.is_some() {
            return;
        }
        let joined: Vec<u8>;
        let data = if self.held.is_empty() {
            bytes
        } else {
            joined = [std::mem::take(&mut self.held), bytes.to_vec()].concat();
            &joined
        };
        let Some(start) = find(data, self.nonce.as_bytes()) else {
            let keep = self.possible_start(data);
            self.hold(&data[keep..]);
            return pass(&data[..keep], emit);
        };
        let rest = &data[start + self.nonce.len()..];
        match rest.iter().take(LONGEST).position(|byte| *byte == b'\n') {
            Some(end) => {
                pass(&data[..start], emit);
                self.found = Some(String::from_utf8_lossy(&rest[..end]).into_owned());
            }
            None if rest.len() < LONGEST => {
                pass(&data[..start], emit);
                self.hold(&data[start..]);
            }
            // A long line that begins with the nonce: the command has read it somewhere. It is output.
            None => pass(data, emit),
        }
    }

    fn hold(&mut self, bytes: &[u8]) {
        self.held = bytes.to_vec();
    }

    /// Where a suffix of `data` begins that is a prefix of the nonce.
    fn possible_start(&self, data: &[u8]) -> usize {
        let first = data.len().saturating_sub(self.nonce.len() - 1);
        (first..data.len()).find(|start| self.nonce.as_bytes().starts_with(&data[*start..])).unwrap_or(data.len())
    }
}

fn pass(bytes: &[u8], emit: &mut dyn FnMut(&[u8])) {
    if !bytes.is_empty() {
        emit(bytes);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NONCE: &str = "00112233445566778899aabbccddeeff";

    fn scan(pieces: &[&[u8]]) -> (Vec<u8>, Option<String>) {
        let (mut scanner, mut out) = (Scanner::new(NONCE), Vec::new());
        for piece in pieces {
            scanner.push(piece, &mut |bytes| out.extend_from_slice(bytes));
        }
        (out, scanner.found().map(str::to_owned))
    }

    #[test]
    fn what_is_no_marker_is_passed_on_at_once() {
        assert_eq!(scan(&[b"no line end"]), (b"no line end".to_vec(), None));
        assert_eq!(scan(&[b"x00112"]).0, b"x");
        assert_eq!(scan(&[b"x00112", b"z"]).0, b"x00112z");
        let long = [NONCE.as_bytes(), b" ", &[b'y'; 300]].concat();
        let name = [b"/run/", NONCE.as_bytes(), b".sh: not found\n"].concat();
        assert_eq!(scan(&[&name]), (name.clone(), None));
        assert_eq!(scan(&[&long]), (long.clone(), None));
    }

    proptest! {
        #[test]
        fn any_output_cut_anywhere_comes_through_unchanged(
            output in proptest::collection::vec(any::<u8>(), 0..200),
            prefix in 0..32_usize,
            cuts in proptest::collection::vec(1..20_usize, 1..40),
        ) {
            // The hard case: the output ends in the beginning of the marker itself.
            let output = [output, NONCE.as_bytes()[..prefix].to_vec()].concat();
            let stream = [&output[..], NONCE.as_bytes(), b" 42\nlate"].concat();
            let mut pieces = Vec::new();
            let mut rest = &stream[..];
            for cut in cuts.iter().cycle() {
                let (piece, more) = rest.split_at((*cut).min(rest.len()));
                pieces.push(piece);
                rest = more;
                if rest.is_empty() { break }
            }
            prop_assert_eq!(scan(&pieces), (output, Some("42".to_owned())));
        }
    }
}
