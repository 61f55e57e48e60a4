//! On a terminal: colour, and never without being wanted. `script` makes the terminal.

use std::process::Command;

use kiln_tests::home::{Home, kiln, repository};

/// What a run prints on a terminal, stdout and stderr together.
fn on_a_terminal(user: &Home, arguments: &str, variables: &[(&str, &str)]) -> String {
    let mut command = Command::new("script");
    command.args(["-qec", &format!("{} {arguments}", kiln().display()), "/dev/null"]);
    command.current_dir(repository()).env_clear().env("HOME", user.path("")).env("TERM", "xterm-256color");
    command.env("PATH", std::env::var_os("PATH").unwrap_or_default()).envs(variables.iter().copied());
    String::from_utf8(command.output().unwrap().stdout).unwrap()
}

#[test]
fn colour_is_for_terminals_and_goes_when_it_is_not_wanted() {
    let user = Home::apart("colour");
    let arguments = "validate tests/templates/wrong";
    let coloured = on_a_terminal(&user, arguments, &[]);
    assert!(coloured.contains("\u{1b}[1;31merror:\u{1b}[0m"), "{coloured:?}");
    for variables in [[("NO_COLOR", "1")], [("TERM", "dumb")]] {
        let plain = on_a_terminal(&user, arguments, &variables);
        assert!(plain.contains("error:") && !plain.contains('\u{1b}'), "{plain:?}");
    }
    let piped = user.kiln(&["validate", "tests/templates/wrong"]).ends_with(2);
    assert!(!piped.stderr.contains('\u{1b}'), "{piped:?}");
    // The words are the same: colour is never the only sign of anything.
    let stripped =
        coloured.replace("\u{1b}[1;31m", "").replace("\u{1b}[32m", "").replace("\u{1b}[0m", "").replace('\r', "");
    assert_eq!(stripped, piped.stderr);
}
