//! The guest's serial console: its last lines for people, and the words by which a boot is known to have failed.

use std::{
    fs::File,
    io::{Read as _, Seek as _, SeekFrom},
    path::Path,
};

/// Lines quoted in an error.
pub(super) const QUOTED: usize = 40;
/// The end of the file that is looked at for quoting.
const TAIL: u64 = 16 << 10;
/// At most this much of one line is quoted.
const LONGEST: usize = 240;

/// Words on the console after which no guest comes up any more, and what they mean.
const FATAL: [(&str, &str); 8] = [
    ("Kernel panic - not syncing", "its kernel panicked"),
    ("(initramfs)", "it stopped at the initramfs prompt (is the root file system there?)"),
    ("You are in emergency mode", "it stopped in emergency mode"),
    ("Press Enter for maintenance", "it stopped in emergency mode"),
    ("No bootable device", "the firmware found nothing to boot"),
    ("grub rescue>", "GRUB did not find its files"),
    ("end Kernel panic", "its kernel panicked"),
    ("BdsDxe: No bootable option", "the firmware found nothing to boot"),
];

/// The last lines of a console or log, safe to print. Empty when there is none.
pub(super) fn tail(path: &Path, lines: usize) -> Vec<String> {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(TAIL)))?;
        let mut text = Vec::new();
        file.take(TAIL).read_to_end(&mut text)?;
        Ok(text)
    };
    last_lines(&read().unwrap_or_default(), lines)
}

fn last_lines(text: &[u8], lines: usize) -> Vec<String> {
    let text = String::from_utf8_lossy(text);
    let all: Vec<&str> = text.split(['\n', '\r']).map(str::trim_end).filter(|line| !line.is_empty()).collect();
    all[all.len().saturating_sub(lines)..].iter().map(|line| escaped(line)).collect()
}

/// Control characters, and those that change the direction of writing, as `\u{..}`; colour sequences are dropped.
fn escaped(line: &str) -> String {
    let mut text = String::new();
    let mut rest = line.chars().peekable();
    while let Some(character) = rest.next() {
        if character == '\u{1b}' && rest.peek() == Some(&'[') {
            // A CSI sequence ends with a letter; the console is full of harmless ones.
            rest.next();
            while rest.next().is_some_and(|inner| !inner.is_ascii_alphabetic()) {}
        } else if character.is_control()
            || matches!(character, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
        {
            text.extend(character.escape_unicode());
        } else {
            text.push(character);
        }
        if text.len() >= LONGEST {
            text.push_str("...");
            break;
        }
    }
    text
}

/// Follows a console as it grows.
#[derive(Debug, Default)]
pub(super) struct Scan {
    offset: u64,
    /// What may be the beginning of a word that is not complete yet.
    carry: Vec<u8>,
    pub(super) bytes: u64,
}

impl Scan {
    /// Passes over what stands there already.
    pub(super) fn from_end(path: &Path) -> Self {
        Self { offset: std::fs::metadata(path).map_or(0, |metadata| metadata.len()), ..Self::default() }
    }

    /// Reads what is new; says why the guest will not come up, if it said so.
    pub(super) fn look(&mut self, path: &Path) -> Option<&'static str> {
        let mut fresh = Vec::new();
        let read = File::open(path).and_then(|mut file| {
            file.seek(SeekFrom::Start(self.offset))?;
            file.take(1 << 20).read_to_end(&mut fresh)
        });
        self.offset += u64::try_from(read.unwrap_or(0)).unwrap_or(0);
        self.bytes = self.offset;
        self.feed(&fresh)
    }

    fn feed(&mut self, fresh: &[u8]) -> Option<&'static str> {
        self.carry.extend_from_slice(fresh);
        let text = String::from_utf8_lossy(&self.carry);
        let found = FATAL.iter().find(|(words, _)| text.contains(words)).map(|(_, meaning)| *meaning);
        let keep = self.carry.len().saturating_sub(64);
        self.carry.drain(..keep);
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_the_last_lines_with_escapes_made_visible() {
        let text = b"one\r\n\x1b[0;32m  OK  \x1b[0m two\r\n\x1b]52;c;evil\x07 \xff\xe2\x80\xae\r\n";
        assert_eq!(last_lines(text, 2), ["  OK   two", "\\u{1b}]52;c;evil\\u{7} \u{fffd}\\u{202e}"]);
        assert!(last_lines(&[b'x'; 10_000], 1)[0].len() < 300);
    }

    #[test]
    fn finds_fatal_words_across_any_cut_and_only_those() {
        let text = b"[    1.0] Kernel panic - not syncing: VFS";
        for cut in 0..text.len() {
            let mut scan = Scan::default();
            let found = scan.feed(&text[..cut]).or_else(|| scan.feed(&text[cut..]));
            assert_eq!(found, Some("its kernel panicked"), "{cut}");
        }
        assert_eq!(Scan::default().feed(b"Welcome to Debian, panic=30 initramfs unpacked"), None);
    }
}
