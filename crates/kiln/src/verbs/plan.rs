//! `kiln plan`: what a build would do.

use crate::{
    arguments::Plan,
    failure::{Exit, Outcome},
    output, templates,
};

pub(crate) fn run(arguments: &Plan) -> Outcome {
    let plans = templates::resolve(&arguments.template)?.plans;
    if arguments.json {
        output::json(&plans)?;
    } else {
        let texts: Vec<_> = plans.iter().map(kiln_core::plan::Plan::render).collect();
        output::data(&texts.join("\n"))?;
    }
    Ok(Exit::Done)
}
