//! The kiln command: verbs, terminal, wiring, exit codes.

mod arguments;
mod bases;
mod builds;
mod calendar;
mod colour;
mod escape;
mod failure;
mod limits;
mod lock;
mod output;
mod render;
mod signals;
mod surroundings;
mod templates;
mod verbs;

use std::{panic, process::ExitCode};

use clap::Parser as _;

use arguments::{Arguments, Verb};
use failure::{Failure, Outcome};

fn main() -> ExitCode {
    limits::no_core_files();
    report_panics_without_their_message();
    let arguments = Arguments::parse();
    match run(arguments.verb) {
        Ok(exit) => exit.into(),
        Err(failure) => {
            output::complain(&failure);
            failure.exit.into()
        }
    }
}

fn run(verb: Verb) -> Outcome {
    match verb {
        Verb::Build(arguments) => in_runtime(verbs::build::run(arguments)),
        Verb::Validate(arguments) => verbs::validate::run(&arguments),
        Verb::Plan(arguments) => in_runtime(verbs::plan::run(arguments)),
        Verb::Schema => verbs::schema::run(),
        Verb::Fmt(arguments) => verbs::fmt::run(&arguments),
        Verb::Provisioners(arguments) => verbs::provisioners::run(&arguments),
        Verb::Images(arguments) => verbs::images::run(&arguments),
        Verb::Show(arguments) => verbs::show::run(&arguments),
        Verb::Sbom(arguments) => verbs::sbom::run(&arguments),
        Verb::Diff(arguments) => in_runtime(verbs::diff::run(arguments)),
        Verb::Verify(arguments) => in_runtime(verbs::verify::run(arguments)),
        Verb::Export(arguments) => in_runtime(verbs::export::run(arguments)),
        Verb::Resume(arguments) => in_runtime(verbs::publish::resume(arguments)),
        Verb::Publish(verb) => in_runtime(verbs::publish::run(verb)),
        Verb::Release(verb) => in_runtime(verbs::release::run(verb)),
        Verb::Promote(arguments) => verbs::channel::promote(arguments),
        Verb::Rollback(arguments) => verbs::channel::rollback(arguments),
        Verb::Channel(arguments) => verbs::channel::run(&arguments),
        Verb::Resolve(arguments) => verbs::resolve::run(&arguments),
        Verb::Revoke(arguments) => verbs::revoke::run(arguments),
        Verb::Outdated(arguments) => verbs::revoke::outdated(&arguments),
        Verb::Key(verb) => verbs::key::run(verb),
        Verb::Registry(verb) => in_runtime(verbs::registry::run(verb)),
        Verb::Serve(arguments) => in_runtime(verbs::serve::run(arguments)),
        Verb::Mirror(arguments) => in_runtime(verbs::mirror::run(arguments)),
        Verb::Pull(arguments) => in_runtime(verbs::pull::run(arguments)),
        Verb::Push(arguments) => in_runtime(verbs::push::run(arguments)),
        Verb::Token(arguments) => verbs::serve::token(arguments),
        Verb::Ssh(arguments) => verbs::ssh::run(&arguments),
        Verb::Logs(arguments) => in_runtime(verbs::logs::run(arguments)),
        Verb::Doctor(arguments) => in_runtime(verbs::doctor::run(arguments)),
        Verb::Cache(arguments) => in_runtime(verbs::cache::run(arguments)),
        Verb::Clean(arguments) => in_runtime(verbs::clean::run(arguments)),
        Verb::Completions(arguments) => verbs::completions::run(&arguments),
        Verb::Man(arguments) => verbs::man::run(&arguments),
        Verb::Guard { spec } => verbs::guard::run(&spec),
    }
}

fn in_runtime(verb: impl Future<Output = Outcome>) -> Outcome {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::new("cannot start the async runtime").because(error.to_string()))?;
    let outcome = runtime.block_on(verb);
    // A thread that still waits for something (a slow disk, a terminal) must not hold the exit.
    runtime.shutdown_background();
    outcome
}

/// A panic's message may quote a value; its place in the source may not.
fn report_panics_without_their_message() {
    panic::set_hook(Box::new(|panic| {
        let place = panic.location().map_or_else(|| "an unknown place".to_owned(), ToString::to_string);
        let failure = Failure::new(format!("kiln itself failed at {place}"))
            .hint("this is a bug; `kiln clean` releases what is left");
        output::complain(&failure);
    }));
}

#[cfg(test)]
mod tests {
    use std::{env, process::Command};

    /// Panics when it is started again by the test below.
    const VARIABLE: &str = "KILN_TEST_PANIC";

    #[test]
    fn a_panic_says_where_it_was_and_not_what_it_held() {
        if let Ok(held) = env::var(VARIABLE) {
            super::report_panics_without_their_message();
            panic!("the value is {held}");
        }
        #[expect(clippy::disallowed_methods, reason = "the test itself, once more")]
        let mut again = Command::new(env::current_exe().expect("the test's own path"));
        again.args(["--exact", "tests::a_panic_says_where_it_was_and_not_what_it_held", "--nocapture"]);
        let output = again.env(VARIABLE, "hunter2").output().expect("run the test again");
        let said = String::from_utf8_lossy(&output.stderr) + String::from_utf8_lossy(&output.stdout);
        assert!(said.contains("kiln itself failed at crates/kiln/src/main.rs:"), "{said}");
        assert!(!said.contains("hunter2"), "{said}");
    }
}
