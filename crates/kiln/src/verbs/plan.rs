//! `kiln plan`: what a build would do, and what of it is in a checkpoint already.

use std::fmt::Write as _;

use kiln_build::checkpoint::{Known, Outlook, Wish, ago, outlook};
use kiln_core::{ByteSize, plan::Plan as Planned};
use kiln_io::dirs::Dirs;

use crate::{
    arguments::Plan,
    failure::{Exit, Failure, Outcome},
    output,
    render::duration,
    surroundings, templates,
};

pub(crate) async fn run(arguments: Plan) -> Outcome {
    let templates::Planned { plans, library } = templates::resolve(&arguments.template)?;
    if arguments.json {
        output::json(&plans)?;
        return Ok(Exit::Done);
    }
    // A plan needs no home; without one there are no checkpoints.
    let dirs = surroundings::dirs().ok();
    let mut texts = Vec::new();
    for plan in &plans {
        let mut text = plan.render();
        if let Some(dirs) = &dirs {
            let found =
                outlook(plan, dirs, &library, None, &Wish::default()).await.map_err(|error| Failure::of(&error))?;
            text.push('\n');
            text.push_str(&shown(found.as_ref(), plan, dirs));
        }
        texts.push(text);
    }
    output::data(&texts.join("\n"))?;
    Ok(Exit::Done)
}

/// What every step of a plan would come to.
pub(crate) fn shown(found: Option<&Outlook>, plan: &Planned, dirs: &Dirs) -> String {
    let mut text = "checkpoints\n".to_owned();
    let Some(found) = found else {
        text.push_str("  none: no build on this machine has made the base or tried the accelerator yet\n");
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
