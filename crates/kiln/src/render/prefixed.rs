//! Lines with the name of their build in front, where several builds write at once.

use std::io::{self, Write};

/// Writes whole lines to stderr, each at once and with a label.
#[derive(Debug)]
pub(crate) struct Prefixed<W> {
    out: W,
    label: String,
    partial: Vec<u8>,
}

impl<W: Write> Prefixed<W> {
    /// `width`: that of the longest label.
    pub(crate) fn new(out: W, label: &str, width: usize) -> Self {
        Self { out, label: format!("{label:<width$} |"), partial: Vec::new() }
    }
}

impl<W: Write> Write for Prefixed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.partial.extend_from_slice(bytes);
        while let Some(end) = self.partial.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.partial.drain(..=end).collect();
            self.out.write_all(&[self.label.as_bytes(), b" ", &line].concat())?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_gets_its_label_however_it_is_written() {
        let mut out = Prefixed::new(Vec::new(), "web", 5);
        for piece in ["one\ntw", "o", "\n", "three\nfour"] {
            out.write_all(piece.as_bytes()).unwrap();
        }
        assert_eq!(String::from_utf8(out.out).unwrap(), "web   | one\nweb   | two\nweb   | three\n");
    }
}
