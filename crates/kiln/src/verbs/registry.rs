//! `kiln registry`: looking after a registry.

use kiln_bucket::S3;
use kiln_core::ByteSize;
use kiln_index::{Index, Indexed};
use kiln_registry::{Intent, Registry, Report, Rules};

use crate::{
    arguments::{RegistryIndex, RegistryInit, RegistryPrune, RegistryVerb, RegistryVerify},
    calendar::Moment,
    failure::{Exit, Failure, Outcome},
    output,
    signals::Interruption,
    surroundings,
};

pub(crate) async fn run(verb: RegistryVerb) -> Outcome {
    match verb {
        RegistryVerb::Init(arguments) => init(&arguments),
        RegistryVerb::Verify(arguments) => verify(arguments).await,
        RegistryVerb::Prune(arguments) => prune(&arguments),
        RegistryVerb::Index(arguments) => index(&arguments),
    }
}

fn index(arguments: &RegistryIndex) -> Outcome {
    let registry = surroundings::registry(&arguments.registry)?;
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
    let registry = surroundings::registry(&arguments.registry)?;
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
    let registry = surroundings::registry(&arguments.registry)?;
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
