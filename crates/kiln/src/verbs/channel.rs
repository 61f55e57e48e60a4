//! `kiln promote`, `kiln rollback` and `kiln channel`: pointers to versions, and how they moved.

use kiln_core::{ChannelName, ImageName};
use kiln_registry::{Action, Intent, Moved, Registry, Selector};
use serde_json::json;

use crate::{
    arguments::{Channel, IntentArguments, Promote, Rollback},
    calendar::Moment,
    escape::visible,
    failure::{Exit, Outcome},
    output, surroundings,
};

pub(crate) fn promote(arguments: Promote) -> Outcome {
    let registry = surroundings::registry(&arguments.registry)?;
    let Promote { image, reference, to: channel, expect, intent, .. } = arguments;
    let selector = Selector { image, reference };
    let moved = registry.promote(&selector, &channel, expect.as_ref(), &self::intent(intent))?;
    say(&selector.image, &channel, &moved);
    Ok(Exit::Done)
}

pub(crate) fn rollback(arguments: Rollback) -> Outcome {
    let registry = surroundings::registry(&arguments.registry)?;
    let Rollback { image, channel, to, expect, intent, .. } = arguments;
    let moved = registry.rollback(&image, &channel, to.as_ref(), expect.as_ref(), &self::intent(intent))?;
    say(&image, &channel, &moved);
    Ok(Exit::Done)
}

/// Who and why, from the command line and the surroundings.
pub(crate) fn intent(arguments: IntentArguments) -> Intent {
    let by = arguments.by.unwrap_or_else(surroundings::who);
    Intent { by, now: surroundings::seconds(), reason: arguments.reason, allow_revoked: arguments.allow_revoked }
}

fn say(image: &ImageName, channel: &ChannelName, moved: &Moved) {
    let Moved { from, to, rev, already } = moved;
    output::talk(&match from {
        _ if *already => format!("{image}@{channel} is {to} already"),
        Some(from) => format!("{image}@{channel} is {to} now, was {from} (revision {rev})"),
        None => format!("{image}@{channel} is {to} now, a new channel (revision {rev})"),
    });
}

pub(crate) fn run(arguments: &Channel) -> Outcome {
    let registry = surroundings::registry(&arguments.registry)?;
    match &arguments.channel {
        Some(channel) if arguments.restrict || arguments.unrestrict => restrict(&registry, arguments, channel),
        Some(channel) => history(&registry, arguments, channel),
        None => list(&registry, arguments),
    }
}

fn restrict(registry: &Registry, arguments: &Channel, channel: &ChannelName) -> Outcome {
    let image = &arguments.image;
    let intent = Intent { by: surroundings::who(), now: surroundings::seconds(), reason: None, allow_revoked: false };
    let changed = registry.restrict(image, channel, arguments.restrict, &intent)?;
    let takes = if arguments.restrict { "only proven versions" } else { "any version" };
    output::talk(&format!("{image}@{channel} takes {takes}{}", if changed { " from now on" } else { " already" }));
    Ok(Exit::Done)
}

fn list(registry: &Registry, arguments: &Channel) -> Outcome {
    let channels = registry.channels(&arguments.image)?;
    if arguments.json {
        output::json(&channels)?;
    } else if channels.is_empty() {
        output::talk(&format!(
            "`{0}` has no channels; `kiln promote {0} VERSION --to CHANNEL` makes one",
            arguments.image
        ));
    } else {
        let restricted = registry.restricted(&arguments.image)?;
        let heading = ["CHANNEL", "VERSION", "SINCE", "BY", "TAKES"].map(str::to_owned).to_vec();
        let rows = channels.iter().map(|(name, channel)| {
            let since = Moment::of_seconds(channel.since).minute();
            let takes = if restricted.contains(name) { "only proven versions" } else { "" };
            vec![name.to_string(), channel.version.to_string(), since, visible(&channel.by), takes.to_owned()]
        });
        output::data(&output::table(&std::iter::once(heading).chain(rows).collect::<Vec<_>>()))?;
    }
    Ok(Exit::Done)
}

fn history(registry: &Registry, arguments: &Channel, channel: &ChannelName) -> Outcome {
    let mut changes = registry.history(&arguments.image, Some(channel))?;
    changes.reverse();
    let rows = changes.iter().filter_map(|change| {
        let (what, from, to) = match &change.action {
            Action::Promote { from, to, .. } => ("promote", from.as_ref(), Some(to)),
            Action::Rollback { from, to, .. } => ("rollback", from.as_ref(), Some(to)),
            Action::Restrict { .. } => ("restrict", None, None),
            Action::Unrestrict { .. } => ("unrestrict", None, None),
            _ => return None,
        };
        Some((change, what, from, to))
    });
    if arguments.json {
        let rows = rows.map(|(change, what, from, to)| {
            let (rev, at, by, reason) =
                (change.rev, Moment::of_seconds(change.at).rfc3339(), &change.by, &change.reason);
            json!({ "rev": rev, "at": at, "by": by, "reason": reason, "action": what, "from": from, "to": to })
        });
        output::json(&rows.collect::<Vec<_>>())?;
    } else {
        let heading = ["REV", "WHEN", "WHAT", "FROM", "TO", "BY", "WHY"].map(str::to_owned).to_vec();
        let rows = rows.map(|(change, what, from, to)| {
            let version = |version: Option<&kiln_core::Version>| version.map_or("-".to_owned(), ToString::to_string);
            let when = Moment::of_seconds(change.at).minute();
            let why = change.reason.as_deref().unwrap_or_default();
            let (by, why) = (visible(&change.by), visible(why));
            vec![change.rev.to_string(), when, what.to_owned(), version(from), version(to), by, why]
        });
        output::data(&output::table(&std::iter::once(heading).chain(rows).collect::<Vec<_>>()))?;
    }
    Ok(Exit::Done)
}
