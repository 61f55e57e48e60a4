//! `kiln cache`: the checkpoints.

use std::{fmt::Write as _, time::UNIX_EPOCH};

use kiln_build::checkpoint::{Budget, Checkpoint, Store, Wish, last_used, outlook};
use kiln_core::ByteSize;
use serde_json::json;

use crate::{
    arguments::{Cache, CacheExplain, CacheList, CachePrune},
    calendar::Moment,
    failure::{Exit, Failure, Outcome},
    output, surroundings, templates,
    verbs::plan,
};

pub(crate) async fn run(arguments: Cache) -> Outcome {
    match arguments {
        Cache::List(arguments) => list(&arguments),
        Cache::Prune(arguments) => prune(&arguments),
        Cache::Explain(arguments) => explain(arguments).await,
    }
}

fn list(arguments: &CacheList) -> Outcome {
    let store = Store::at(&surroundings::dirs()?);
    let found = store.list();
    if arguments.json {
        let records = found.iter().map(|checkpoint| {
            let record = &checkpoint.record;
            json!({
                "id": checkpoint.id, "key": record.key, "image": record.image, "step": record.number, "name": record.name,
                "bytes": checkpoint.bytes(), "made": record.made, "used": seconds(checkpoint), "layers": record.layers,
                "pause": record.pause, "saves": checkpoint.saves(),
            })
        });
        output::json(&records.collect::<Vec<_>>())?;
        return Ok(Exit::Done);
    }
    if found.is_empty() {
        output::talk(&format!("no checkpoints in `{}`", store.directory().display()));
        return Ok(Exit::Done);
    }
    let heading = ["CHECKPOINT", "IMAGE", "AFTER", "SIZE", "MADE", "USED"].map(str::to_owned).to_vec();
    let rows = found.iter().map(|checkpoint| {
        let record = &checkpoint.record;
        let after = if record.number == 0 { "boot".to_owned() } else { format!("{} {}", record.number, record.name) };
        vec![
            checkpoint.id.clone(),
            record.image.clone(),
            after,
            ByteSize(checkpoint.bytes()).approximate(),
            Moment::of_seconds(record.made).minute(),
            Moment::of_seconds(seconds(checkpoint)).minute(),
        ]
    });
    output::data(&output::table(&std::iter::once(heading).chain(rows).collect::<Vec<_>>()))?;
    let all = found.iter().map(Checkpoint::bytes).sum();
    output::talk(&format!("{} in all", ByteSize(all).approximate()));
    Ok(Exit::Done)
}

fn seconds(checkpoint: &Checkpoint) -> u64 {
    last_used(checkpoint).duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn prune(arguments: &CachePrune) -> Outcome {
    let store = Store::at(&surroundings::dirs()?);
    let budget = arguments.to.map_or_else(|| store.budget(None), |size| Budget(size.bytes()));
    let pruned = store.prune(budget, surroundings::now());
    let plural = if pruned.removed == 1 { "" } else { "s" };
    let in_use = if pruned.in_use > 0 { format!("; {} in use stay", pruned.in_use) } else { String::new() };
    let freed = ByteSize(pruned.bytes).approximate();
    output::talk(&format!("removed {} checkpoint{plural}, {freed} freed{in_use}", pruned.removed));
    Ok(Exit::Done)
}

async fn explain(arguments: CacheExplain) -> Outcome {
    let dirs = surroundings::dirs()?;
    let shelf = surroundings::shelf(&arguments.registry, false);
    let planned = templates::resolve(&arguments.template, shelf.as_ref())?;
    let plans = planned.iter().flat_map(|planned| planned.plans.iter().map(|plan| (plan, &planned.library)));
    let mut text = String::new();
    for (plan, library) in plans {
        let found = outlook(plan, &dirs, library, None, &Wish::default()).await.map_err(|error| Failure::of(&error))?;
        // Writing to a String cannot fail.
        let _ = writeln!(text, "image {}\n{}", plan.image, plan::shown(found.as_ref(), plan, &dirs));
        for key in found.iter().flat_map(|found| &found.keys) {
            let _ = writeln!(text, "{} {}, key {}", key.number, key.name, key.digest.short());
            for input in &key.inputs {
                let _ = writeln!(text, "  {}: {}", input.what, crate::escape::visible(&input.value));
            }
        }
    }
    output::data(&text)?;
    Ok(Exit::Done)
}
