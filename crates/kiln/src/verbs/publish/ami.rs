//! `kiln publish ami`.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use kiln_aws::{Access, Account, Note, Patience, Place, Publisher, Report, Sharing, Watch};
use kiln_io::{ledger::Ledger, random::build_id, time::SystemClock};
use kiln_registry::{Intent, Record, Reference, Registry, Selector};
use tokio_util::sync::CancellationToken;

use crate::{
    arguments::PublishAmi,
    escape::visible,
    failure::{Exit, Failure, Outcome},
    output,
    signals::Interruption,
    surroundings,
};

const DAY: u64 = 86_400;
/// Credentials that end so soon are worth a word.
const SOON: Duration = Duration::from_secs(15 * 60);

pub(crate) async fn run(arguments: PublishAmi) -> Outcome {
    let path = surroundings::registry_path(&arguments.registry)?;
    if surroundings::bucket(&path)?.is_some() {
        // The ledger names the catalog by its path, and `kiln clean` must find it there.
        return Err(Failure::usage("AMIs are made of versions in a directory, and this registry is a bucket")
            .hint("`kiln pull` brings the version here"));
    }
    let registry = surroundings::open(&path)?;
    let now = surroundings::seconds();
    let record = registry.usable(&arguments.image, now, arguments.allow_revoked)?;
    surroundings::refuse_unproven(&registry, &record, arguments.allow_unproven)?;
    let names: BTreeSet<_> = arguments.regions.iter().map(|region| &region.name).collect();
    if names.len() < arguments.regions.len() {
        return Err(Failure::usage("a region is named twice").hint("name each region once, with or without a key"));
    }
    let interruption = Interruption::listen()?;
    let first = &arguments.regions[0].name;
    let account = Account::open(access(interruption.token()), first).await?;
    if let Some(left) = account.time_left().await.filter(|left| *left < SOON) {
        let minutes = left.as_secs() / 60;
        output::talk(&format!(
            "warning: the credentials end in {minutes} min; what is not done by then goes on after a new log-in"
        ));
    }
    let dirs = surroundings::dirs()?;
    let ledger = Ledger::open(&dirs, &build_id(surroundings::now())).map_err(|error| Failure::of(&error))?;
    let sharing = Sharing {
        with: arguments.share_with.clone(),
        public: arguments.public,
        deprecate_at: arguments.deprecate_after.map(|days| now + days * DAY),
        protect: arguments.protect,
    };
    let places: Vec<_> = arguments
        .regions
        .iter()
        .map(|region| Place { region: region.name.clone(), kms_key: region.key.clone() })
        .collect();
    let publisher = Publisher { registry: &registry, dirs: &dirs, ledger: &ledger, now };
    let report = publisher.publish(&account, &record, &places, &sharing).await;
    // Written whatever came of it, so that a job that failed still has its AMIs.
    let path = ledger.directory().join("publish.json");
    kiln_io::fs::write_atomic(&path, format!("{:#}\n", report.json()).as_bytes(), 0o644)?;
    if arguments.json {
        output::json(&report.json())?;
    }
    say(&report);
    let complete = report.complete();
    if complete == report.regions.len() {
        if let Some(channel) = &arguments.to {
            promote(&registry, &record, channel, &arguments)?;
        }
        return Ok(Exit::Done);
    }
    let exit = match complete {
        _ if interruption.happened() => Exit::Interrupted,
        0 => Exit::Failed,
        _ => Exit::Partial,
    };
    let hints = report.regions.values().filter_map(|outcome| outcome.as_ref().err()?.hint());
    let failure = Failure::new(format!("{complete} of {} regions have the AMI", report.regions.len()))
        .because(format!("the report is `{}`", path.display()));
    Err(hints.take(1).fold(failure, Failure::hint).exit(exit))
}

/// AWS as the environment describes it.
pub(crate) fn access(cancel: &CancellationToken) -> Access {
    Access {
        stand_in: None,
        clock: Arc::new(SystemClock::new()),
        cancel: cancel.clone(),
        patience: Patience::default(),
        watch: Arc::new(Lines),
    }
}

fn promote(
    registry: &Registry,
    record: &Record,
    channel: &kiln_core::ChannelName,
    arguments: &PublishAmi,
) -> Result<(), Failure> {
    let artifact = &record.artifact;
    let selector = Selector { image: artifact.image.clone(), reference: Reference::Named(artifact.version.clone()) };
    let now = surroundings::seconds();
    let intent = Intent { by: surroundings::who(), now, reason: None, allow_revoked: arguments.allow_revoked };
    registry.promote(&selector, channel, None, &intent)?;
    output::talk(&format!("{}@{channel} is {} now", artifact.image, artifact.version));
    Ok(())
}

fn say(report: &Report) {
    for (region, outcome) in &report.regions {
        output::talk(&match outcome {
            Ok(published) if published.already => format!("{region}: {} is there already", published.ami),
            Ok(published) => format!("{region}: {} from {}", published.ami, published.snapshot),
            Err(error) => format!("{region}: failed: {}", visible(&Failure::of(error).on_one_line())),
        });
    }
}

/// A line for each piece of news.
#[derive(Debug)]
struct Lines;

impl Watch for Lines {
    fn note(&self, region: &str, note: Note<'_>) {
        output::talk(&match note {
            Note::Uploading { blocks, present, parent } => {
                let on = parent.map_or_else(|| "in full".to_owned(), |version| format!("on top of {version}"));
                let present = if present > 0 { format!(", {present} are there already") } else { String::new() };
                format!("{region}: {blocks} blocks of 512 KiB to send, {on}{present}")
            }
            Note::Waiting { what, progress } => {
                format!("{region}: waiting for {what} {}", visible(progress)).trim_end().to_owned()
            }
            Note::ReadBack { blocks } => format!("{region}: {blocks} blocks read back, all as sealed"),
            Note::Throttled => format!("{region}: AWS is throttling; going slower"),
            Note::Resumed { snapshot } => format!("{region}: going on with {snapshot}"),
        });
    }
}
