//! `kiln revoke` and `kiln outdated`: what may not be used any more, and what should be baked again.

use kiln_registry::{Intent, Parent};
use kiln_serve::wire;

use crate::{
    arguments::{Outdated, Revoke},
    escape::visible,
    failure::{Exit, Outcome},
    output,
    surroundings::{self, Place},
};

pub(crate) fn run(arguments: Revoke) -> Outcome {
    let place = surroundings::place(&arguments.registry)?;
    let Revoke { image, version, reason, at, lift, by, .. } = arguments;
    let now = surroundings::seconds();
    let from = (!lift).then(|| at.map_or(now, |at| at.seconds()));
    let intent = Intent { by: by.unwrap_or_else(surroundings::who), now, reason, allow_revoked: false };
    let version = Parent { image, version };
    let inherited = match &place {
        Place::Here(registry) => registry.revoke(&version, from, &intent)?,
        Place::There(remote) => {
            let (reason, by) = (intent.reason.clone(), Some(intent.by.clone()));
            let request = wire::Revoke { reason, at: at.map(|at| at.seconds()), lift, by };
            surroundings::wait(remote.revoke(&version.image, &version.version, &request))?.inherited
        }
    };
    let when = match at.filter(|at| at.seconds() > now) {
        Some(at) => format!("from {} UTC on", at.minute()),
        None => "now".to_owned(),
    };
    match &intent.reason {
        _ if lift => output::talk(&format!("{version} is not revoked any more")),
        reason => {
            output::talk(&format!("{version} is revoked {when}: {}", visible(reason.as_deref().unwrap_or_default())));
        }
    }
    for child in &inherited {
        output::talk(&format!("  and with it {child}, which is baked on it"));
    }
    let channels = match place {
        Place::Here(registry) => registry.channels(&version.image)?,
        Place::There(remote) => surroundings::wait(remote.image(&version.image))?.channels,
    };
    for (name, channel) in channels {
        if !lift && channel.version == version.version {
            let image = &version.image;
            output::talk(&format!("{image}@{name} points there: `kiln rollback {image} {name}`"));
        }
    }
    Ok(Exit::Done)
}

pub(crate) fn outdated(arguments: &Outdated) -> Outcome {
    let (channel, now) = (arguments.channel.as_ref(), surroundings::seconds());
    let outdated = match surroundings::place(&arguments.registry)? {
        Place::Here(registry) => registry.outdated(channel, now)?,
        Place::There(remote) => surroundings::wait(remote.outdated(channel))?.outdated,
    };
    if arguments.json {
        output::json(&outdated)?;
    } else if outdated.is_empty() {
        output::talk("no image has a base of this registry that has a newer version");
    } else {
        let heading = ["IMAGE", "BAKED ON", "NEWER"].map(str::to_owned).to_vec();
        let rows = outdated.iter().map(|one| vec![one.image.to_string(), one.base.to_string(), one.newer.to_string()]);
        output::data(&output::table(&std::iter::once(heading).chain(rows).collect::<Vec<_>>()))?;
    }
    Ok(Exit::Done)
}
