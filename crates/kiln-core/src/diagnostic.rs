//! Mistakes in templates and manifests: what is wrong, where it stands, what to write instead.

use std::{
    collections::BTreeMap,
    fmt::{self, Write as _},
    ops::Range,
};

use serde::Serialize;

/// One mistake.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Diagnostic {
    pub message: String,
    /// What to do about it: ``did you mean `install`?``
    #[serde(skip_serializing_if = "Option::is_none")]
    pub help: Option<String>,
    /// Where it is; the first label is the place to show first. Empty when the mistake is not in a file
    /// (a `--var` that no template declares).
    pub labels: Vec<Label>,
}

/// A place in a file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Label {
    pub file: String,
    /// Byte range in the file's text.
    pub start: usize,
    pub end: usize,
    /// What to say at the place; may be empty.
    pub text: String,
}

/// All mistakes of one run, with the texts of the files they are in.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Diagnostics {
    list: Vec<Diagnostic>,
    /// Mistakes beyond [`MOST`].
    more: usize,
    sources: BTreeMap<String, String>,
}

/// How many mistakes are kept; of more, only their number. A hostile file can hold a hundred thousand.
const MOST: usize = 200;

/// Line and column, both from 1; the column counts characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    pub line: usize,
    pub column: usize,
}

impl Diagnostic {
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), help: None, labels: Vec::new() }
    }

    #[must_use]
    pub fn with_help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    #[must_use]
    pub fn with_label(mut self, file: impl Into<String>, span: Range<usize>, text: impl Into<String>) -> Self {
        self.labels.push(Label { file: file.into(), start: span.start, end: span.end, text: text.into() });
        self
    }
}

impl Diagnostics {
    pub fn add_source(&mut self, file: impl Into<String>, text: impl Into<String>) {
        self.sources.insert(file.into(), text.into());
    }

    /// Adds a mistake unless the very same one is already there (two members of a matrix make the same mistakes).
    pub fn push(&mut self, diagnostic: Diagnostic) {
        if self.list.len() >= MOST {
            self.more += 1;
        } else if !self.list.contains(&diagnostic) {
            self.list.push(diagnostic);
        }
    }

    /// Takes over all mistakes and sources of `other`.
    pub fn append(&mut self, other: Self) {
        self.sources.extend(other.sources);
        self.more += other.more;
        other.list.into_iter().for_each(|diagnostic| self.push(diagnostic));
    }

    /// Orders by file and place, mistakes without a place first.
    pub fn sort(&mut self) {
        let place = |d: &Diagnostic| d.labels.first().map(|label| (label.file.clone(), label.start));
        self.list.sort_by_key(place);
    }

    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// How many further mistakes were found and not kept.
    pub fn more(&self) -> usize {
        self.more
    }

    pub fn iter(&self) -> impl Iterator<Item = &Diagnostic> {
        self.list.iter()
    }

    /// The text of a file that a label names.
    pub fn source(&self, file: &str) -> Option<&str> {
        self.sources.get(file).map(String::as_str)
    }

    /// Line and column of a byte offset in a file.
    pub fn position(&self, file: &str, offset: usize) -> Option<Position> {
        self.source(file).map(|text| position(text, offset))
    }

    /// `Ok` when there are no mistakes.
    pub(crate) fn into_result<T>(self, value: T) -> Result<T, Self> {
        if self.is_empty() { Ok(value) } else { Err(self) }
    }

    /// All mistakes as plain text: message, `file:line:column`, the line, the place underlined, the help.
    pub fn render(&self) -> String {
        let mut texts: Vec<String> = self.list.iter().map(|diagnostic| self.render_one(diagnostic)).collect();
        if self.more > 0 {
            texts.push(format!("and {} more mistakes\n", self.more));
        }
        texts.join("\n")
    }

    fn render_one(&self, diagnostic: &Diagnostic) -> String {
        let mut text = format!("error: {}\n", visible(&diagnostic.message));
        for label in &diagnostic.labels {
            match self.source(&label.file) {
                Some(source) => text.push_str(&render_label(label, source)),
                None => _ = writeln!(text, "  --> {}", visible(&label.file)),
            }
        }
        if let Some(help) = &diagnostic.help {
            let _ = writeln!(text, "  help: {}", visible(help));
        }
        text
    }
}

fn render_label(label: &Label, source: &str) -> String {
    let start = floor(source, label.start);
    let end = floor(source, label.end).max(start);
    let at = position(source, start);
    let line_start = source[..start].rfind('\n').map_or(0, |index| index + 1);
    let line_end = source[start..].find('\n').map_or(source.len(), |index| start + index);
    let line = source[line_start..line_end].trim_end_matches('\r');
    let marked = &source[start..end.min(line_end)];
    let number = at.line.to_string();
    let gutter = " ".repeat(number.len());
    // Tabs stay tabs under the line, so that the carets stand below what they mean whatever the tab width is.
    let pad: String = source[line_start..start].chars().map(|c| if c == '\t' { '\t' } else { ' ' }).collect();
    let carets = "^".repeat(marked.chars().count().max(1));
    let note = if label.text.is_empty() { String::new() } else { format!(" {}", label.text) };
    format!(
        "{gutter}--> {}:{}:{}\n{gutter} |\n{number} | {}\n{gutter} | {pad}{carets}{note}\n",
        visible(&label.file),
        at.line,
        at.column,
        visible(line)
    )
}

/// Terminal escapes and other control characters of a hostile file must not reach the terminal.
fn visible(line: &str) -> String {
    line.chars().map(|c| if c.is_control() && c != '\t' { '\u{fffd}' } else { c }).collect()
}

fn position(text: &str, offset: usize) -> Position {
    let before = &text[..floor(text, offset)];
    let line_start = before.rfind('\n').map_or(0, |index| index + 1);
    Position { line: before.matches('\n').count() + 1, column: before[line_start..].chars().count() + 1 }
}

/// The largest character boundary at or below `offset`.
fn floor(text: &str, offset: usize) -> usize {
    let mut offset = offset.min(text.len());
    while !text.is_char_boundary(offset) {
        offset -= 1;
    }
    offset
}

impl fmt::Display for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render())
    }
}

impl std::error::Error for Diagnostics {}

/// The known word that `word` was most likely meant to be, as ``did you mean `x`?``.
pub fn did_you_mean<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<String> {
    nearest(word, known).map(|name| format!("did you mean `{name}`?"))
}

fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let word: String = word.chars().take(64).collect::<String>().to_lowercase();
    known
        .into_iter()
        .map(|name| (distance(&word, name), name))
        .filter(|(distance, name)| *distance <= name.len().max(word.len()).div_ceil(3).min(3))
        .min()
        .map(|(_, name)| name)
}

/// Edit distance where swapping two neighbours counts as one edit (Damerau, optimal string alignment).
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut before_last = vec![0; b.len() + 1];
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i; b.len() + 1];
        for j in 1..=b.len() {
            let change = last[j - 1] + usize::from(a[i - 1] != b[j - 1]);
            row[j] = change.min(last[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                row[j] = row[j].min(before_last[j - 2] + 1);
            }
        }
        before_last = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn underlines_the_place_with_file_line_and_column() {
        let mut found = Diagnostics::default();
        found.add_source("web/template.toml", "[image]\n\tnäme = 'web'\n");
        found.push(Diagnostic::new("unknown key `näme`").with_help("did you mean `name`?").with_label(
            "web/template.toml",
            9..14,
            "here",
        ));
        let expected = "error: unknown key `näme`\n --> web/template.toml:2:2\n  |\n2 | \tnäme = 'web'\n  | \t^^^^ here\n  help: did you mean `name`?\n";
        assert_eq!(found.render(), expected);
    }

    #[test]
    fn survives_any_span() {
        let mut found = Diagnostics::default();
        found.add_source("a", "é\u{1b}[31m\r\n");
        for start in 0..12 {
            for end in 0..12 {
                found.push(Diagnostic::new("x").with_label("a", start..end, ""));
            }
        }
        assert!(!found.render().contains('\u{1b}'));
    }

    #[test]
    fn guesses_what_was_meant() {
        let known = ["install", "remove", "upgrade"];
        for (word, meant) in
            [("instal", Some("install")), ("isntall", Some("install")), ("Remove", Some("remove")), ("x", None)]
        {
            assert_eq!(nearest(word, known), meant, "{word}");
        }
    }
}
