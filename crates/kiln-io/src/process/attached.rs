//! Runs a program that talks with the person at the terminal: kiln's own stdin, stdout and stderr, kiln's own session.

use std::{
    os::unix::process::CommandExt as _,
    process::{Command, ExitStatus},
};

use super::{Spec, which};
use crate::error::ProcessError;

/// Runs the program to its end. `stdin`, `stdout` and `stderr` of the spec do not count.
pub fn run_attached(spec: &Spec) -> Result<ExitStatus, ProcessError> {
    command(spec)?.status().map_err(|source| ProcessError::Io { operation: "start", command: spec.to_string(), source })
}

/// Becomes the program; returns only when that fails.
pub fn replace_by(spec: &Spec) -> ProcessError {
    match command(spec) {
        Ok(mut command) => ProcessError::Io { operation: "start", command: spec.to_string(), source: command.exec() },
        Err(error) => error,
    }
}

#[expect(clippy::disallowed_methods, reason = "this is the door the lint leads to")]
fn command(spec: &Spec) -> Result<Command, ProcessError> {
    let mut command = Command::new(which(&spec.program)?);
    command.args(&spec.args).envs(&spec.env);
    if let Some(directory) = &spec.cwd {
        command.current_dir(directory);
    }
    Ok(command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gives_the_exit_status_and_names_a_missing_program() {
        let status = run_attached(&Spec::new("sh").args(["-c", "exit 7"])).unwrap();
        assert_eq!(status.code(), Some(7));
        let error = run_attached(&Spec::new("no-such-program-x")).unwrap_err();
        assert!(matches!(error, ProcessError::Missing { .. }));
        assert!(matches!(replace_by(&Spec::new("no-such-program-x")), ProcessError::Missing { .. }));
    }
}
