//! `kiln completions`: a script for a shell.

use clap::CommandFactory as _;

use crate::{
    arguments::{Arguments, Completions},
    failure::{Exit, Outcome},
    output,
};

pub(crate) fn run(arguments: &Completions) -> Outcome {
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut Arguments::command(), "kiln", &mut script);
    output::data(&String::from_utf8_lossy(&script))?;
    Ok(Exit::Done)
}
