//! `kiln registry`: looking after a registry.

use std::time::Duration;

use kiln_bucket::S3;
use kiln_core::{ByteSize, ImageName};
use kiln_index::{Index, Indexed};
use kiln_registry::{Intent, Registry, Renewed, Report, Rules, Validity};
use serde_json::json;

use crate::{
    arguments::{RegistryIndex, RegistryInit, RegistryPrune, RegistryRenew, RegistryVerb, RegistryVerify},
    calendar::Moment,
    failure::{Exit, Failure, Outcome},
    limits, output,
    signals::Interruption,
    surroundings,
};

pub(crate) async fn run(verb: RegistryVerb) -> Outcome {
    match verb {
        RegistryVerb::Init(arguments) => init(&arguments),
        RegistryVerb::Verify(arguments) => verify(arguments).await,
        RegistryVerb::Prune(arguments) => prune(&arguments),
        RegistryVerb::Index(arguments) => index(&arguments),
        RegistryVerb::Renew(arguments) => renew(&arguments),
    }
}

fn index(arguments: &RegistryIndex) -> Outcome {
    let registry = surroundings::existing(&arguments.registry)?;
    let directory = surroundings::dirs()?.cache.join("index");
    let index = Index::new(registry, Some(&directory));
    let Some(indexed) = index.rebuild()? else {
        return Err(Failure::new(format!("no index can be kept in `{}`", directory.display()))
            .hint("lists and pages are made from the objects meanwhile, which takes longer and is as right"));
    };
    if arguments.json {
        output::json(&indexed)?;
    } else {
        let path = index.path().unwrap_or(&directory).display();
        let Indexed { images, builds, .. } = indexed;
        output::talk(&format!("`{path}` has {images} images with {builds} builds and their histories"));
    }
    Ok(Exit::Done)
}

/// Every image is tried, so that one that cannot be renewed does not let the others expire.
fn renew(arguments: &RegistryRenew) -> Outcome {
    let registry = surroundings::existing(&arguments.registry)?;
    let validity = match arguments.valid_for {
        Some(time) if time < LEAST_VALIDITY => {
            return Err(Failure::usage("a state that is good for less than a minute expires before anybody reads it")
                .hint("a day or a week is usual, and a nightly job or `kiln serve` that renews it"));
        }
        Some(time) => Some(Validity::For(time)),
        None => arguments.without_end.then_some(Validity::Unlimited),
    };
    let images = if arguments.images.is_empty() {
        registry.images()?.into_iter().map(|image| image.image).collect()
    } else {
        arguments.images.clone()
    };
    let intent = Intent { by: surroundings::who(), now: surroundings::seconds(), reason: None, allow_revoked: false };
    let (mut rows, mut failed) = (Vec::new(), Vec::new());
    for image in images {
        match registry.renew(&image, validity, &intent) {
            Ok(renewed) => rows.push((image, renewed)),
            Err(error) => failed.push(error),
        }
    }
    if arguments.json {
        let row = |(image, renewed): &(ImageName, Renewed)| {
            let expires = renewed.expires.map(|expires| Moment::of_seconds(expires).rfc3339());
            json!({ "image": image, "rev": renewed.rev, "renewed": renewed.renewed, "expires": expires })
        };
        output::json(&rows.iter().map(row).collect::<Vec<_>>())?;
    } else {
        for (image, renewed) in &rows {
            output::talk(&renewed_line(image, renewed));
        }
    }
    let also = failed.len().saturating_sub(1);
    match failed.into_iter().next() {
        None => Ok(Exit::Done),
        Some(first) if also == 0 => Err(first.into()),
        Some(first) => {
            let failure = Failure::from(first);
            Err(failure.because(format!("and {also} more images could not be renewed")))
        }
    }
}

fn renewed_line(image: &ImageName, renewed: &Renewed) -> String {
    match (renewed.renewed, renewed.expires.map(|expires| Moment::of_seconds(expires).minute())) {
        (true, Some(until)) => format!("{image} is signed anew, good until {until} UTC (revision {})", renewed.rev),
        (true, None) => format!("{image} is signed anew, good without end (revision {})", renewed.rev),
        (false, Some(until)) => format!("{image} is good until {until} UTC; half of that time is not over yet"),
        (false, None) => format!("{image} is good without end; `--valid-for '7 days'` limits it"),
    }
}

/// Clocks differ by so much.
const LEAST_VALIDITY: Duration = Duration::from_mins(1);
/// Connections from which a bucket is raced.
const CONNECTIONS: usize = 4;

fn init(arguments: &RegistryInit) -> Outcome {
    let path = surroundings::registry_path(&arguments.registry)?;
    surroundings::refuse_server(&path)?;
    let registry = match surroundings::bucket(&path)? {
        Some(address) => Registry::init_in_bucket(&S3::connections(&address, CONNECTIONS)?)?,
        None => Registry::init(&path)?,
    };
    output::talk(&format!("`{}` is a registry; of writers that race there, one wins", registry.root().display()));
    Ok(Exit::Done)
}

async fn verify(arguments: RegistryVerify) -> Outcome {
    let there = "run it on the server's machine; `kiln verify NAME --registry URL` proves one version from here";
    surroundings::refuse_server(&surroundings::registry_path(&arguments.registry)?)
        .map_err(|failure| failure.hint(there))?;
    let registry = surroundings::existing(&arguments.registry)?;
    let interruption = Interruption::listen()?;
    let cancel = interruption.token().clone();
    let checking = {
        let registry = registry.clone();
        tokio::task::spawn_blocking(move || registry.verify(&|_, _| !cancel.is_cancelled()))
    };
    let checked = checking.await.map_err(|error| Failure::new("the work was ended").because(error.to_string()))?;
    if interruption.happened() {
        return Err(Failure::new("stopped before everything was read").exit(Exit::Interrupted));
    }
    let report = checked?;
    if arguments.json {
        output::json(&report)?;
    } else {
        say(&report);
    }
    match report.findings.len() {
        0 => Ok(Exit::Done),
        count => Err(Failure::new(format!(
            "{count} problem{} in `{}`",
            if count == 1 { "" } else { "s" },
            registry.root().display()
        ))
        .hint("build the same template again, or publish the same disk again, and what was set aside comes back")),
    }
}

fn prune(arguments: &RegistryPrune) -> Outcome {
    limits::many_open_files();
    let registry = surroundings::existing(&arguments.registry)?;
    let now = surroundings::seconds();
    let rules = Rules { newest: arguments.keep, days: arguments.keep_days, now };
    let pruned = if arguments.remove {
        let intent = Intent { by: surroundings::who(), now, reason: None, allow_revoked: false };
        registry.prune(&rules, &intent)?
    } else {
        registry.prune_dry(&rules)?
    };
    if arguments.json {
        output::json(&pruned)?;
    } else if !pruned.versions.is_empty() {
        let heading = ["VERSION", "PUBLISHED", "KEPT BECAUSE"].map(str::to_owned).to_vec();
        let rows = pruned.versions.iter().map(|verdict| {
            let goes = if arguments.remove { "- removed" } else { "- would go" };
            let published = Moment::of_seconds(verdict.published).minute();
            vec![verdict.version.to_string(), published, verdict.kept.as_deref().unwrap_or(goes).to_owned()]
        });
        output::data(&output::table(&std::iter::once(heading).chain(rows).collect::<Vec<_>>()))?;
    }
    let gone = pruned.versions.iter().filter(|verdict| verdict.kept.is_none()).count();
    let what = format!("{gone} versions and {} blobs, {}", pruned.blobs, ByteSize(pruned.bytes).approximate());
    output::talk(&if arguments.remove { format!("removed {what}") } else { format!("`--remove` would remove {what}") });
    Ok(Exit::Done)
}

fn say(report: &Report) {
    for finding in &report.findings {
        output::talk(&crate::escape::visible(&finding.problem));
        if !finding.harmed.is_empty() {
            output::talk(&format!("  harmed: {}", finding.harmed.join(", ")));
        }
    }
    let size = |bytes| ByteSize(bytes).approximate();
    output::talk(&format!(
        "{} of {} versions are whole: {} blobs, {}",
        report.whole,
        report.versions,
        report.blobs,
        size(report.bytes)
    ));
    if report.unneeded > 0 {
        output::talk(&format!("{} blobs, {}, belong to no version", report.unneeded, size(report.unneeded_bytes)));
    }
}
