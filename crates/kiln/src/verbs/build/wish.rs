//! What the command line wants of checkpoints.

use kiln_build::checkpoint::{Fresh, Take, Wish, step};
use kiln_core::plan::Plan;

use crate::{
    arguments::{Build, Checkpoints},
    failure::Failure,
};

/// Refuses the name of a step that no plan has.
pub(super) fn check(arguments: &Build, plans: &[&Plan]) -> Result<(), Failure> {
    let named = [("--fresh-from", &arguments.fresh_from), ("--until", &arguments.until)];
    for (option, name) in named.into_iter().filter_map(|(option, name)| Some((option, name.as_ref()?))) {
        if let Some(plan) = plans.iter().find(|plan| step(plan, name).is_none()) {
            let known: Vec<_> = plan.steps.iter().map(|step| format!("`{}`", step.name)).collect();
            return Err(Failure::usage(format!("`{option}`: `{}` has no step `{name}`", plan.image))
                .hint(format!("it has {}; a number will do, too", known.join(", "))));
        }
    }
    Ok(())
}

pub(super) fn wish(arguments: &Build, plan: &Plan) -> Wish {
    let number = |name: &Option<String>| name.as_ref().and_then(|name| step(plan, name)).map(|step| step.number);
    let fresh = match number(&arguments.fresh_from) {
        _ if arguments.fresh => Fresh::All,
        Some(step) => Fresh::From(step),
        None => Fresh::None,
    };
    let take = match arguments.checkpoints {
        Checkpoints::Auto => Take::Auto,
        Checkpoints::Every => Take::Every,
        Checkpoints::Off => Take::Off,
    };
    Wish { take, fresh, until: number(&arguments.until), budget: None }
}
