//! `kiln validate`: every mistake of a template in one run.

use crate::{
    arguments::Validate,
    failure::{Exit, Outcome},
    output, templates,
};

pub(crate) fn run(arguments: &Validate) -> Outcome {
    let plans = templates::resolve(&arguments.template)?.plans;
    let names: Vec<_> = plans.iter().map(|plan| plan.image.to_string()).collect();
    let count = names.len();
    output::talk(&format!("valid: {count} image{} ({})", if count == 1 { "" } else { "s" }, names.join(", ")));
    Ok(Exit::Done)
}
