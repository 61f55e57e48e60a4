//! Finds the expressions of a string, and names inside of expressions.

use std::ops::Range;

use super::Mistake;

/// One expression in a string: with and without its braces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) outer: Range<usize>,
    pub(super) inner: Range<usize>,
}

/// Finds the expressions of a string. A `}}` inside quotes or inside `{ }` does not end one.
pub(super) fn segments(text: &str) -> Result<Vec<Segment>, Mistake> {
    let mut found = Vec::new();
    let mut from = 0;
    while let Some(start) = text[from..].find("{{").map(|index| from + index) {
        let inner = start + 2;
        let end = expression_end(&text[inner..]).map(|length| inner + length).ok_or_else(|| {
            Mistake::new(start..start + 2, "this `{{` is never closed")
                .with_help("close it with `}}`; literal braces are written `{{ \"{{\" }}`")
        })?;
        found.push(Segment { outer: start..end + 2, inner: inner..end });
        from = end + 2;
    }
    Ok(found)
}

fn expression_end(text: &str) -> Option<usize> {
    let mut depth = 0_usize;
    let mut chars = text.char_indices();
    while let Some((index, c)) = chars.next() {
        match c {
            '"' | '\'' => {
                while let Some((_, inside)) = chars.next() {
                    if inside == '\\' {
                        chars.next();
                    } else if inside == c {
                        break;
                    }
                }
            }
            '{' => depth += 1,
            '}' if depth > 0 => depth -= 1,
            '}' if text[index..].starts_with("}}") => return Some(index),
            _ => {}
        }
    }
    None
}

/// minijinja repeats strings and lists with `*`, up to 100 MB each; a few of them together would eat the machine.
pub(super) fn only_numbers_are_multiplied(source: &str) -> Result<(), Mistake> {
    let mut quoted = None;
    let star = source.char_indices().find(|(_, c)| match (quoted, *c) {
        (None, '"' | '\'') => {
            quoted = Some(*c);
            false
        }
        (Some(open), c) if c == open => {
            quoted = None;
            false
        }
        (None, '*') => true,
        _ => false,
    });
    match star {
        Some((index, _)) if source.contains(['"', '\'', '[', '{', '|', '~']) => {
            Err(Mistake::new(index..index + 1, "`*` multiplies numbers only")
                .with_help("an expression with `*` may hold names, numbers, arithmetic and parentheses"))
        }
        _ => Ok(()),
    }
}

pub(super) fn trimmed(source: &str) -> Range<usize> {
    let start = source.len() - source.trim_start().len();
    start..start + source.trim().len()
}

/// Where a name stands as a whole word, outside of attributes.
pub(super) fn find_name(source: &str, name: &str) -> Range<usize> {
    let word = |c: char| c.is_alphanumeric() || c == '_';
    source
        .match_indices(name)
        .find(|(index, _)| {
            let before = source[..*index].chars().next_back();
            let after = source[index + name.len()..].chars().next();
            !before.is_some_and(|c| word(c) || c == '.') && !after.is_some_and(word)
        })
        .map_or_else(|| trimmed(source), |(index, _)| index..index + name.len())
}
