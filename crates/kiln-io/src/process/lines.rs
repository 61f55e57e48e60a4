//! Cuts a stream into lines in bounded memory.

/// A longer line is cut into pieces of this size.
const LONGEST: usize = 16 << 10;

#[derive(Debug, Default)]
pub(super) struct Lines {
    rest: Vec<u8>,
}

impl Lines {
    /// Hands every line completed by `bytes` to `sink`, without its end.
    pub(super) fn push(&mut self, bytes: &[u8], sink: &mut dyn FnMut(&str)) {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            for part in piece.chunks(LONGEST) {
                self.rest.extend_from_slice(part);
                if self.rest.ends_with(b"\n") || self.rest.len() >= LONGEST {
                    self.finish(sink);
                }
            }
        }
    }

    /// Hands over a last line without an end.
    pub(super) fn finish(&mut self, sink: &mut dyn FnMut(&str)) {
        if !self.rest.is_empty() {
            let line = self.rest.strip_suffix(b"\n").unwrap_or(&self.rest);
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            sink(&String::from_utf8_lossy(line));
            self.rest.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_survive_any_cut_and_memory_stays_bounded() {
        let (mut lines, mut seen) = (Lines::default(), Vec::new());
        for byte in b"one\r\n\ntwo\nrest" {
            lines.push(&[*byte], &mut |line| seen.push(line.to_owned()));
        }
        lines.finish(&mut |line| seen.push(line.to_owned()));
        assert_eq!(seen, ["one", "", "two", "rest"]);
        let mut longest = 0;
        lines.push(&vec![b'x'; 1 << 20], &mut |line| longest = longest.max(line.len()));
        assert!(longest < 2 * LONGEST && lines.rest.len() < LONGEST);
    }
}
