//! The two ways out: data on stdout, talk on stderr.

use std::io::{self, Write as _};

use crate::{colour::Palette, failure::Failure};

/// Writes to stdout. A reader that has gone away (`kiln images | head`) is no failure; a full disk is.
pub(crate) fn data(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::new("cannot write to the standard output").because(error.to_string()))
        }
        _ => Ok(()),
    }
}

/// Writes a line to stderr. Nothing can be said when that fails, so it is not.
pub(crate) fn talk(line: &str) {
    let _ = writeln!(io::stderr().lock(), "{line}");
}

/// Says what went wrong.
pub(crate) fn complain(failure: &Failure) {
    let _ = io::stderr().lock().write_all(failure.render(Palette::of_stderr()).as_bytes());
}

/// `data` as pretty JSON with a line end.
pub(crate) fn json(value: &impl serde::Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value).map_err(|error| Failure::of(&error))?;
    data(&format!("{text}\n"))
}

/// Lines up columns with two spaces between them; the first row is the heading.
pub(crate) fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            line.push_str(cell);
            line.extend(std::iter::repeat_n(' ', width - cell.chars().count() + 2));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}
