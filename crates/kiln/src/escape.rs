//! Text from guests and files made harmless for a terminal: no escape sequence, no control character, no direction trick.

/// One line without escape sequences. A carriage return starts the line again, as on a terminal; other control
/// characters and marks that reorder text become `\u{fffd}`. Tabs become spaces.
pub(crate) fn visible(text: &str) -> String {
    let text = text.trim_end_matches(['\r', '\n']);
    let mut out = String::with_capacity(text.len());
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        match character {
            '\u{1b}' => skip_sequence(&mut characters),
            '\u{9b}' => skip_control_sequence(&mut characters),
            '\u{90}' | '\u{9d}' | '\u{9e}' | '\u{9f}' | '\u{98}' => skip_string(&mut characters),
            '\r' => out.clear(),
            '\t' => out.push_str("    "),
            '\n' => out.push_str("\n  "),
            character if harmful(character) => out.push('\u{fffd}'),
            character => out.push(character),
        }
    }
    out
}

fn harmful(character: char) -> bool {
    character.is_control()
        || matches!(character, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

type Characters<'a> = std::iter::Peekable<std::str::Chars<'a>>;

/// What follows an escape character (ECMA-48).
fn skip_sequence(characters: &mut Characters<'_>) {
    match characters.peek() {
        Some('[') => {
            characters.next();
            skip_control_sequence(characters);
        }
        Some(']' | 'P' | '_' | '^' | 'X') => {
            characters.next();
            skip_string(characters);
        }
        // Intermediate characters, then a final one: `ESC ( B`.
        Some(' '..='/') => {
            while characters.next_if(|c| (' '..='/').contains(c)).is_some() {}
            characters.next_if(|c| !c.is_control());
        }
        Some('0'..='~') => {
            characters.next();
        }
        _ => {}
    }
}

/// Parameters and intermediates up to the final character of a control sequence.
fn skip_control_sequence(characters: &mut Characters<'_>) {
    while characters.next_if(|c| (' '..='?').contains(c)).is_some() {}
    characters.next_if(|c| ('@'..='~').contains(c));
}

/// Up to the bell or the string terminator; a string without an end takes the rest of the line.
fn skip_string(characters: &mut Characters<'_>) {
    while let Some(character) = characters.next() {
        match character {
            '\u{7}' | '\u{9c}' => return,
            '\u{1b}' => {
                characters.next_if_eq(&'\\');
                return;
            }
            _ => {}
        }
    }
}

/// Collects output into lines: pieces come as they come, lines go out whole.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    pending: String,
}

/// A line without an end is given out in pieces of this size.
const LONGEST: usize = 4096;

impl Lines {
    /// Calls `line` for every line that `text` completes, made harmless.
    pub(crate) fn push(&mut self, text: &str, mut line: impl FnMut(&str)) {
        for piece in text.split_inclusive('\n') {
            self.pending.push_str(piece);
            if self.pending.ends_with('\n') || self.pending.len() >= LONGEST {
                line(&visible(&self.pending));
                self.pending.clear();
            }
        }
    }

    /// What stands there so far of a line that has no end yet.
    pub(crate) fn unfinished(&self) -> Option<String> {
        (!self.pending.is_empty()).then(|| visible(&self.pending))
    }

    /// Gives out the last line, when it has no end.
    pub(crate) fn finish(&mut self, mut line: impl FnMut(&str)) {
        if !self.pending.is_empty() {
            line(&visible(&self.pending));
            self.pending.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drops_sequences_and_keeps_the_words() {
        for (text, shown) in [
            ("\u{1b}[1;31mred\u{1b}[0m", "red"),
            ("a\u{1b}]52;c;cm0gLXJm\u{7}b", "ab"),
            ("a\u{1b}]0;title\u{1b}\\b", "ab"),
            ("10%\r20%\r30%", "30%"),
            ("done\r\n", "done"),
            ("\u{1b}(Bplain", "plain"),
            ("\u{9b}2Jgone", "gone"),
            ("tab\tbed", "tab    bed"),
            ("bell\u{7}", "bell\u{fffd}"),
            ("abc\u{202e}cba", "abc\u{fffd}cba"),
            ("cut\u{1b}", "cut"),
            ("\u{1b}Pq#0\u{1b}\\x", "x"),
        ] {
            assert_eq!(visible(text), shown, "{text:?}");
        }
    }

    #[test]
    fn no_text_gets_a_control_character_through() {
        // Every pair and triple of the characters that sequences are made of.
        let alphabet: Vec<char> =
            "\u{1b}[]()P_\\;?0m\u{7}\u{9b}\u{9c}\u{9d}\u{90}\r\u{8}\u{7f}\u{0}x".chars().collect();
        for a in &alphabet {
            for b in &alphabet {
                for c in &alphabet {
                    let text: String = [*a, *b, *c, 'y'].iter().collect();
                    assert!(!visible(&text).contains(|c: char| c.is_control()), "{text:?}");
                }
            }
        }
    }

    #[test]
    fn lines_come_whole_and_endless_ones_in_pieces() {
        let mut lines = Lines::default();
        let mut seen = Vec::new();
        lines.push("one\ntw", |line| seen.push(line.to_owned()));
        assert_eq!(lines.unfinished().as_deref(), Some("tw"));
        lines.push("o\n", |line| seen.push(line.to_owned()));
        lines.push(&"x".repeat(3 * LONGEST), |line| seen.push(line.to_owned()));
        lines.finish(|line| seen.push(line.to_owned()));
        assert_eq!(seen[..2], ["one", "two"]);
        assert_eq!(seen[2..].iter().map(String::len).sum::<usize>(), 3 * LONGEST);
    }
}
