//! What the person or the program at the other end sees: one build in full, or several at once, each with its name.

use std::{
    env,
    io::{self, IsTerminal as _},
};

use indicatif::{MultiProgress, ProgressDrawTarget};
use kiln_core::ImageName;

use crate::{
    escape::visible,
    failure::Failure,
    output,
    render::{Json, Plain, Prefixed, Renderer, Row, Terminal},
};

/// The display that all builds of a run share.
#[derive(Debug)]
pub(super) struct Stage {
    json: bool,
    /// Several builds at once; the width of the longest name.
    many: Option<usize>,
    /// The lines of a terminal.
    bars: Option<MultiProgress>,
}

impl Stage {
    /// For one build after the other, each with the whole screen.
    pub(super) fn one(json: bool) -> Self {
        Self { json, many: None, bars: None }
    }

    /// For several builds at once.
    pub(super) fn many<'n>(json: bool, names: impl Iterator<Item = &'n ImageName>) -> Self {
        let width = names.map(|name| name.as_str().len()).max().unwrap_or(0);
        let bars =
            (!json && on_a_terminal()).then(|| MultiProgress::with_draw_target(ProgressDrawTarget::stderr_with_hz(10)));
        Self { json, many: Some(width), bars }
    }

    /// What shows the events of a build; one that does not begin has no id.
    pub(super) fn face(&self, image: &ImageName, build: Option<&str>) -> Box<dyn Renderer> {
        if self.json {
            return Box::new(Json::new(io::stdout(), image.clone(), build.map(str::to_owned)));
        }
        match (self.many, &self.bars) {
            (Some(width), Some(bars)) => Box::new(Row::new(bars.clone(), image.as_str(), width)),
            (Some(width), None) => Box::new(Plain::live(Prefixed::new(io::stderr(), image.as_str(), width))),
            (None, _) if on_a_terminal() => Box::new(Terminal::new()),
            (None, _) => Box::new(Plain::live(io::stderr())),
        }
    }

    /// A line of talk about a build.
    pub(super) fn talk(&self, image: &ImageName, line: &str) {
        match (self.many, &self.bars) {
            (Some(width), Some(bars)) => {
                let _ = bars.println(format!("  {:<width$}  {}", image.as_str(), visible(line)));
            }
            (Some(width), None) => output::talk(&format!("{:<width$} | {line}", image.as_str())),
            (None, _) => output::talk(line),
        }
    }

    /// A line that is about the run.
    pub(super) fn say(&self, line: &str) {
        match &self.bars {
            Some(bars) => _ = bars.println(visible(line)),
            None => output::talk(line),
        }
    }

    /// Says why a build failed.
    pub(super) fn complain(&self, image: &ImageName, failure: &Failure) {
        let mut failure = failure.clone();
        if self.many.is_some() {
            failure.message = format!("{image}: {}", failure.message);
        }
        let complain = || output::complain(&failure);
        match &self.bars {
            Some(bars) => bars.suspend(complain),
            None => complain(),
        }
    }
}

fn on_a_terminal() -> bool {
    io::stderr().is_terminal() && env::var_os("TERM").is_some_and(|term| term != "dumb")
}
