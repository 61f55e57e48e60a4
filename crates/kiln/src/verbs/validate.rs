//! `kiln validate`: every mistake of a template in one run.

use crate::{
    arguments::Validate,
    failure::{Exit, Outcome},
    output, templates,
    verbs::build::graph,
};

pub(crate) fn run(arguments: &Validate) -> Outcome {
    let planned = templates::resolve(&arguments.template, None)?;
    graph::check_names(&planned)?;
    let plans = planned.iter().flat_map(|planned| &planned.plans);
    let names: Vec<_> = plans.map(|plan| plan.image.to_string()).collect();
    let count = names.len();
    output::talk(&format!("valid: {count} image{} ({})", if count == 1 { "" } else { "s" }, names.join(", ")));
    Ok(Exit::Done)
}
