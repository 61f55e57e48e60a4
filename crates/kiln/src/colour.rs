//! Colour on a terminal, never as the only sign of anything.

use std::{
    env,
    io::{self, IsTerminal as _},
};

/// Paints, or leaves the text alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Palette {
    on: bool,
}

impl Palette {
    /// For text on stderr: a terminal that can, and no `NO_COLOR`.
    pub(crate) fn of_stderr() -> Self {
        Self { on: io::stderr().is_terminal() && wanted() }
    }

    /// For text on stdout.
    pub(crate) fn of_stdout() -> Self {
        Self { on: io::stdout().is_terminal() && wanted() }
    }

    #[cfg(test)]
    pub(crate) const fn plain() -> Self {
        Self { on: false }
    }

    pub(crate) fn bad(self, text: &str) -> String {
        self.paint("1;31", text)
    }

    pub(crate) fn warn(self, text: &str) -> String {
        self.paint("1;33", text)
    }

    pub(crate) fn good(self, text: &str) -> String {
        self.paint("32", text)
    }

    pub(crate) fn faint(self, text: &str) -> String {
        self.paint("2", text)
    }

    pub(crate) fn strong(self, text: &str) -> String {
        self.paint("1", text)
    }

    fn paint(self, code: &str, text: &str) -> String {
        if self.on { format!("\u{1b}[{code}m{text}\u{1b}[0m") } else { text.to_owned() }
    }
}

fn wanted() -> bool {
    let set = |name| env::var_os(name).is_some_and(|value| !value.is_empty());
    !set("NO_COLOR") && env::var_os("TERM").is_some_and(|term| term != "dumb")
}
