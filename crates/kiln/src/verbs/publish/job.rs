//! AMIs of one version, as they were asked for: written down before anything is made, so that `kiln resume` can go on.

use std::{
    collections::BTreeSet,
    fmt, fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use kiln_aws::{
    Access, Account, AwsError, Note, Outcome as Regional, Patience, Place, Publisher, Report, Sharing, Tried, Watch,
};
use kiln_core::{ChannelName, ImageName, Version};
use kiln_io::{ledger::Ledger, random::build_id, time::SystemClock};
use kiln_registry::{Intent, Record, Reference, Registry, Selector};
use kiln_serve::wire;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::{
    escape::visible,
    failure::{Exit, Failure},
    output, surroundings,
};

/// Credentials that end so soon are worth a word.
const SOON: Duration = Duration::from_mins(15);

/// What was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Job {
    pub(crate) format: u32,
    /// By a name that means it from any directory.
    pub(crate) registry: PathBuf,
    pub(crate) image: ImageName,
    pub(crate) version: Version,
    pub(crate) places: Vec<Place>,
    /// Regions that the channel does not wait for.
    pub(crate) optional: BTreeSet<String>,
    pub(crate) sharing: Sharing,
    pub(crate) channel: Option<ChannelName>,
    pub(crate) parameter: Option<String>,
    pub(crate) allow_revoked: bool,
}

/// What became of it.
#[derive(Debug)]
pub(crate) struct Made {
    pub(crate) report: Report,
    /// Why not all of it is done.
    pub(crate) failure: Option<Failure>,
}

/// Takes a line of talk.
#[derive(Clone)]
pub(crate) struct Say(pub(crate) Arc<dyn Fn(&str) + Send + Sync>);

impl Job {
    /// The format of the file.
    pub(crate) const FORMAT: u32 = 1;
    /// The file beside the ledger.
    const FILE: &str = "publish-ami.json";

    /// What a build was asked for, if that were AMIs.
    pub(crate) fn read(directory: &Path) -> Result<Option<Self>, Failure> {
        let path = directory.join(Self::FILE);
        let text = match fs::read(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            read => read.map_err(kiln_io::fs::failed("read", &path, 0))?,
        };
        let job: Self = serde_json::from_slice(&text).map_err(|error| {
            Failure::new(format!("cannot understand `{}`", path.display())).because(error.to_string())
        })?;
        if job.format > Self::FORMAT {
            return Err(Failure::new(format!("`{}` was written by a newer kiln", path.display())));
        }
        Ok(Some(job))
    }

    /// Reaches the account, and says when that will soon be over.
    pub(crate) async fn account(&self, cancel: &CancellationToken, say: &Say) -> Result<Account, Failure> {
        let regions: Vec<_> = self.places.iter().map(|place| &place.region).collect();
        let account = Account::open_in(access(cancel, say), &regions).await?;
        if let Some(left) = account.time_left().await.filter(|left| *left < SOON) {
            let minutes = left.as_secs() / 60;
            say.line(&format!(
                "warning: the credentials end in {minutes} min; what is not done by then goes on after a new log-in"
            ));
        }
        Ok(account)
    }

    /// Makes what is missing, in all regions at once; then moves the channel and the parameter, if that may be.
    pub(crate) async fn carry_out(
        &self,
        registry: &Registry,
        record: &Record,
        account: &Account,
        tried: Option<&Tried>,
        say: &Say,
    ) -> Result<Made, Failure> {
        let dirs = surroundings::dirs()?;
        let build = build_id(surroundings::now());
        let ledger = Ledger::open(&dirs, &build).map_err(|error| Failure::of(&error))?;
        let text = serde_json::to_vec_pretty(self).map_err(|error| Failure::of(&error))?;
        kiln_io::fs::write_atomic(&ledger.directory().join(Self::FILE), &text, 0o644)?;
        let (catalog, now) = (self.registry.as_path(), surroundings::seconds());
        let publisher = Publisher { registry, catalog, dirs: &dirs, ledger: &ledger, tried, now };
        let report = publisher.publish(account, record, &self.places, &self.sharing).await;
        // Written whatever came of it, so that a job that failed still has its AMIs.
        let path = ledger.directory().join("publish.json");
        kiln_io::fs::write_atomic(&path, format!("{:#}\n", report.json()).as_bytes(), 0o644)?;
        tell(&report, say);
        let missing = report.regions.iter().any(|(name, made)| made.is_err() && !self.optional.contains(name));
        let mut failure = incomplete(&report, &path, &build);
        if !missing && let Err(error) = self.hand_over(registry, account, &report, say).await {
            failure = Some(error.exit(Exit::Partial));
        }
        Ok(Made { report, failure })
    }

    /// From here on consumers see it.
    async fn hand_over(
        &self,
        registry: &Registry,
        account: &Account,
        report: &Report,
        say: &Say,
    ) -> Result<(), Failure> {
        if let Some(channel) = &self.channel {
            self.promote(registry, channel, say).await?;
        }
        let Some(name) = &self.parameter else { return Ok(()) };
        for (region, made) in &report.regions {
            let Ok(made) = made else { continue };
            let before = account.region(region).point_parameter(name, &made.ami).await?;
            if before.as_deref() != Some(&made.ami) {
                say.line(&format!("{region}: `{name}` is {} now", made.ami));
            }
        }
        Ok(())
    }

    async fn promote(&self, registry: &Registry, channel: &ChannelName, say: &Say) -> Result<(), Failure> {
        if registry.channels(&self.image)?.get(channel).is_some_and(|now| now.version == self.version) {
            return Ok(());
        }
        let (by, allow_revoked) = (surroundings::who(), self.allow_revoked);
        if let Some(remote) = surroundings::remote(&self.registry, &CancellationToken::new())? {
            let version = self.version.to_string();
            let request = wire::Promote { version, expect: None, reason: None, by: Some(by), allow_revoked };
            remote.promote(&self.image, channel, &request).await?;
        } else {
            let selector = Selector { image: self.image.clone(), reference: Reference::Named(self.version.clone()) };
            let intent = Intent { by, now: surroundings::seconds(), reason: None, allow_revoked };
            registry.promote(&selector, channel, None, &intent)?;
        }
        say.line(&format!("{}@{channel} is {} now", self.image, self.version));
        Ok(())
    }
}

/// Why not all regions have it.
fn incomplete(report: &Report, path: &Path, build: &str) -> Option<Failure> {
    let (complete, all) = (report.complete(), report.regions.len());
    if complete == all {
        return None;
    }
    let failures: Vec<&AwsError> = report.regions.values().filter_map(|made| made.as_ref().err()).collect();
    let stopped = failures.iter().any(|error| matches!(error, AwsError::Stopped));
    let exit = match complete {
        _ if stopped => Exit::Interrupted,
        0 => Exit::Failed,
        _ => Exit::Partial,
    };
    let failure = Failure::new(format!("{complete} of {all} regions have the AMI"))
        .because(format!("the report is `{}`", path.display()));
    let goes_on =
        |error: &AwsError| matches!(error, AwsError::Stopped | AwsError::Stalled { .. } | AwsError::Unreachable { .. });
    let hint = failures.iter().filter(|error| !goes_on(error)).find_map(|error| error.hint());
    let hint = hint.map_or_else(String::new, |hint| format!("{hint}; "));
    Some(failure.hint(format!("{hint}`kiln resume {build}` goes on, `kiln clean` releases what was begun")).exit(exit))
}

/// AWS as the environment describes it.
pub(crate) fn access(cancel: &CancellationToken, say: &Say) -> Access {
    Access {
        stand_in: None,
        clock: Arc::new(SystemClock::new()),
        cancel: cancel.clone(),
        patience: Patience::default(),
        watch: Arc::new(say.clone()),
    }
}

fn tell(report: &Report, say: &Say) {
    let line = |region: &String, made: &Regional| match made {
        Ok(made) if made.already => format!("{region}: {} is there already", made.ami),
        Ok(made) => format!("{region}: {} from {}", made.ami, made.snapshot),
        Err(error) => format!("{region}: failed: {}", visible(&Failure::of(error).on_one_line())),
    };
    report.regions.iter().for_each(|(region, made)| say.line(&line(region, made)));
}

impl Say {
    /// To whoever reads standard error.
    pub(crate) fn talk() -> Self {
        Self(Arc::new(output::talk))
    }

    pub(crate) fn line(&self, line: &str) {
        (self.0)(line);
    }
}

impl fmt::Debug for Say {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Say")
    }
}

/// A line for each piece of news.
impl Watch for Say {
    fn note(&self, region: &str, note: Note<'_>) {
        self.line(&match note {
            Note::Uploading { blocks, present, parent } => {
                let on = parent.map_or_else(|| "in full".to_owned(), |version| format!("on top of {version}"));
                let present = if present > 0 { format!(", {present} are there already") } else { String::new() };
                format!("{region}: {blocks} blocks of 512 KiB to send, {on}{present}")
            }
            Note::Sent { done, blocks } => format!("{region}: {done} of {blocks} blocks sent"),
            Note::Waiting { what, progress } => {
                format!("{region}: waiting for {what} {}", visible(progress)).trim_end().to_owned()
            }
            Note::ReadBack { blocks } => format!("{region}: {blocks} blocks read back, all as sealed"),
            Note::NoAnswer { problem } => format!("{}; it is asked again", visible(&problem.to_string())),
            Note::Throttled => format!("{region}: AWS is throttling; going slower"),
            Note::Resumed { snapshot } => format!("{region}: going on with {snapshot}"),
        });
    }
}
