//! `kiln promote`, `kiln rollback` and `kiln channel`: pointers to versions, and how they moved.

use kiln_core::{ChannelName, ImageName};
use kiln_index::Index;
use kiln_registry::{Action, Intent, Moved, Selector};
use kiln_serve::wire;
use serde_json::json;

use crate::{
    arguments::{Channel, IntentArguments, Promote, Rollback},
    calendar::Moment,
    escape::visible,
    failure::{Exit, Outcome},
    output,
    surroundings::{self, Place},
};

pub(crate) fn promote(arguments: Promote) -> Outcome {
    let place = surroundings::place(&arguments.registry)?;
    let Promote { image, reference, to: channel, expect, intent, .. } = arguments;
    let Intent { by, reason, allow_revoked, .. } = self::intent(intent);
    let moved = match place {
        Place::Here(registry) => {
            let selector = Selector { image: image.clone(), reference };
            let intent = Intent { by, now: surroundings::seconds(), reason, allow_revoked };
            registry.promote(&selector, &channel, expect.as_ref(), &intent)?
        }
        Place::There(remote) => {
            let version = reference.to_string();
            let request = wire::Promote { version, expect, reason, by: Some(by), allow_revoked };
            moved(surroundings::wait(remote.promote(&image, &channel, &request))?)
        }
    };
    say(&image, &channel, &moved);
    Ok(Exit::Done)
}

pub(crate) fn rollback(arguments: Rollback) -> Outcome {
    let place = surroundings::place(&arguments.registry)?;
    let Rollback { image, channel, to, expect, intent, .. } = arguments;
    let intent = self::intent(intent);
    let moved = match place {
        Place::Here(registry) => registry.rollback(&image, &channel, to.as_ref(), expect.as_ref(), &intent)?,
        Place::There(remote) => {
            let Intent { by, reason, allow_revoked, .. } = intent;
            let request = wire::Rollback { to, expect, reason, by: Some(by), allow_revoked };
            moved(surroundings::wait(remote.rollback(&image, &channel, &request))?)
        }
    };
    say(&image, &channel, &moved);
    Ok(Exit::Done)
}

fn moved(wire::Moved { from, to, rev, already }: wire::Moved) -> Moved {
    Moved { from, to, rev, already }
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
    let place = surroundings::place(&arguments.registry)?;
    match &arguments.channel {
        Some(channel) if arguments.restrict || arguments.unrestrict => restrict(&place, arguments, channel),
        Some(channel) => history(&place, arguments, channel),
        None => list(&place, arguments),
    }
}

fn restrict(place: &Place, arguments: &Channel, channel: &ChannelName) -> Outcome {
    let (image, restricted, by) = (&arguments.image, arguments.restrict, surroundings::who());
    let changed = match place {
        Place::Here(registry) => {
            let intent = Intent { by, now: surroundings::seconds(), reason: None, allow_revoked: false };
            registry.restrict(image, channel, restricted, &intent)?
        }
        // The proof is judged there, by the keys that the server trusts.
        Place::There(remote) => {
            let request = wire::Restrict { restricted, reason: None, by: Some(by) };
            surroundings::wait(remote.restrict(image, channel, &request))?.changed
        }
    };
    let takes = if arguments.restrict { "only proven versions" } else { "any version" };
    output::talk(&format!("{image}@{channel} takes {takes}{}", if changed { " from now on" } else { " already" }));
    Ok(Exit::Done)
}

fn list(place: &Place, arguments: &Channel) -> Outcome {
    let channels = match place {
        Place::Here(registry) => registry.channels(&arguments.image)?,
        Place::There(remote) => surroundings::wait(remote.image(&arguments.image))?.channels,
    };
    if arguments.json {
        output::json(&channels)?;
    } else if channels.is_empty() {
        output::talk(&format!(
            "`{0}` has no channels; `kiln promote {0} VERSION --to CHANNEL` makes one",
            arguments.image
        ));
    } else {
        let restricted = place.reading(&arguments.image)?.restricted(&arguments.image)?;
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

fn history(place: &Place, arguments: &Channel, channel: &ChannelName) -> Outcome {
    let changes = match place {
        Place::Here(registry) => {
            let index = Index::new(registry.clone(), surroundings::index().as_deref());
            let mut changes = index.history(&arguments.image, channel)?;
            changes.reverse();
            changes
        }
        Place::There(remote) => surroundings::wait(remote.history(&arguments.image, channel))?.changes,
    };
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
