//! `kiln plan`: what a build would do, and what of it is in a checkpoint already.

use std::fmt::Write as _;

use kiln_build::checkpoint::{Checkpoint, Known, Outlook, Wish, ago, outlook};
use kiln_core::{
    ByteSize,
    checkpoint::Key,
    plan::{Builder, Plan as Planned},
};
use kiln_io::dirs::Dirs;
use serde_json::{Value as Json, json};

use crate::{
    arguments::Plan,
    failure::{Exit, Failure, Outcome},
    output,
    render::duration,
    surroundings, templates,
    verbs::build::graph,
};

pub(crate) async fn run(arguments: Plan) -> Outcome {
    let shelf = surroundings::shelf(&arguments.registry, false);
    let planned = templates::resolve(&arguments.template, shelf.as_ref())?;
    graph::check(&planned)?;
    let plans = planned.iter().flat_map(|planned| planned.plans.iter().map(|plan| (plan, &planned.library)));
    // A plan needs no home; without one there are no checkpoints.
    let dirs = surroundings::dirs().ok();
    let (mut texts, mut objects) = (Vec::new(), Vec::new());
    for (plan, library) in plans {
        let found = match &dirs {
            Some(dirs) => outlook(plan, dirs, library, None, &Wish::default()).await,
            None => Ok(None),
        };
        let found = found.map_err(|error| Failure::of(&error))?;
        if arguments.json {
            objects.push(as_json(plan, found.as_ref())?);
            continue;
        }
        let mut text = plan.render();
        if let Some(dirs) = &dirs {
            text.push('\n');
            text.push_str(&shown(found.as_ref(), plan, dirs));
        }
        texts.push(text);
    }
    if arguments.json {
        output::json(&objects)?;
    } else {
        output::data(&texts.join("\n"))?;
    }
    Ok(Exit::Done)
}

/// The plan with what every step would come to; `checkpoints` is null where that is not known.
fn as_json(plan: &Planned, found: Option<&Outlook>) -> Result<Json, Failure> {
    let mut object = serde_json::to_value(plan).map_err(|error| Failure::of(&error))?;
    object["checkpoints"] = found.map_or(Json::Null, |found| {
        let best = found.choice.usable.first();
        let of = |key: &Key| {
            let miss = found.choice.misses.iter().find(|miss| miss.number == key.number);
            let taken = best.filter(|best| best.record.number == key.number);
            json!({
                "step": key.number,
                "name": key.name,
                "key": key.digest,
                "runs": miss.is_some(),
                "reason": miss.map(|miss| &miss.reason),
                "made": taken.map(|taken| taken.record.made),
                "bytes": taken.map(Checkpoint::bytes),
                "saves": taken.map(Checkpoint::saves),
            })
        };
        found.keys.iter().map(of).collect()
    });
    Ok(object)
}

/// What every step of a plan would come to.
pub(crate) fn shown(found: Option<&Outlook>, plan: &Planned, dirs: &Dirs) -> String {
    let mut text = "checkpoints\n".to_owned();
    let Some(found) = found else {
        text.push_str(match plan.builder {
            Builder::Qemu(_) => "  none: no build on this machine has made the base or tried the accelerator yet\n",
            Builder::Ec2(_) => "  none: instances of EC2 leave none\n",
        });
        return text;
    };
    let best = found.choice.usable.first();
    for key in &found.keys {
        let name = if key.number == 0 { "the boot".to_owned() } else { format!("{}. {}", key.number, key.name) };
        let says = match (best, found.choice.misses.iter().find(|miss| miss.number == key.number)) {
            (_, Some(miss)) => format!("will run: {}", miss.reason),
            (Some(best), None) if best.record.number == key.number => format!(
                "in a checkpoint of {} ago, {}, saves {}",
                ago(found.now.saturating_sub(best.record.made)),
                ByteSize(best.bytes()).approximate(),
                duration(best.saves())
            ),
            (_, None) => "in the same checkpoint as what follows".to_owned(),
        };
        // Writing to a String cannot fail.
        let _ = writeln!(text, "  {name:<20} {}", crate::escape::visible(&says).replace('\n', " "));
    }
    if let Some(known) = Known::read(dirs, &found.inputs(plan)) {
        let age = ago(found.now.saturating_sub(known.baked));
        let _ = writeln!(text, "  baked from the same inputs {age} ago: {} {}", known.image, known.version);
    }
    text
}
