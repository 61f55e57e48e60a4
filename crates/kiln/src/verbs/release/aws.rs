//! Parameters and Auto Scaling groups.

use kiln_aws::{Account, Refresh, Region, Release};
use kiln_registry::{Ami, Record, Registry};

use crate::{
    arguments::{ReleaseGroup, ReleasePoint, ReleaseStart},
    escape::visible,
    failure::{Exit, Failure, Outcome},
    output,
    signals::Interruption,
    surroundings,
    verbs::publish::ami::access,
};

pub(super) async fn point(arguments: ReleasePoint) -> Outcome {
    let registry = surroundings::reading(&arguments.registry, &arguments.image.image)?;
    surroundings::refuse_old_state(&registry, &arguments.image.image, arguments.allow_unproven)?;
    let record = registry.usable(&arguments.image, surroundings::seconds(), arguments.allow_revoked)?;
    surroundings::refuse_unproven(&registry, &record, arguments.allow_unproven)?;
    let interruption = Interruption::listen()?;
    let account = Account::open_in(access(interruption.token()), &arguments.regions).await?;
    // All are known to be there before the first is pointed to.
    let mut amis = Vec::new();
    for region in &arguments.regions {
        amis.push(ami(&registry, &record, &account.number, region)?);
    }
    for ami in amis {
        let before = account.region(&ami.region).point_parameter(&arguments.parameter, &ami.ami).await?;
        let name = &arguments.parameter;
        output::talk(&match before {
            Some(before) if before == ami.ami => format!("{}: `{name}` is {} already", ami.region, ami.ami),
            Some(before) => format!("{}: `{name}` is {} now, was {}", ami.region, ami.ami, visible(&before)),
            None => format!("{}: `{name}` is {} now, a new parameter", ami.region, ami.ami),
        });
    }
    Ok(Exit::Done)
}

pub(super) async fn start(arguments: ReleaseStart) -> Outcome {
    let registry = surroundings::reading(&arguments.registry, &arguments.image.image)?;
    surroundings::refuse_old_state(&registry, &arguments.image.image, arguments.allow_unproven)?;
    let record = registry.usable(&arguments.image, surroundings::seconds(), arguments.allow_revoked)?;
    surroundings::refuse_unproven(&registry, &record, arguments.allow_unproven)?;
    let interruption = Interruption::listen()?;
    let (account, region) = open(&interruption, &arguments.group).await?;
    let ami = ami(&registry, &record, &account.number, &region.name)?;
    let subject = format!("{}@{}", record.artifact.image, record.artifact.version);
    let release = region.release(&arguments.group.group, &ami.ami, &subject).await?;
    say(&release);
    follow(&region, &arguments.group, release.refresh.is_some()).await
}

pub(super) async fn status(arguments: ReleaseGroup) -> Outcome {
    let interruption = Interruption::listen()?;
    let (_, region) = open(&interruption, &arguments).await?;
    match region.last_refresh(&arguments.group).await? {
        Some(refresh) => output::data(&format!("{}\n", describe(&refresh)))?,
        None => output::talk(&format!("the machines of {} were never replaced", arguments.group)),
    }
    Ok(Exit::Done)
}

pub(super) async fn roll_back(arguments: ReleaseGroup) -> Outcome {
    let interruption = Interruption::listen()?;
    let (_, region) = open(&interruption, &arguments).await?;
    let under_way = match region.roll_back(&arguments.group).await? {
        None => {
            if region.last_refresh(&arguments.group).await?.is_some_and(|refresh| refresh.went_back()) {
                output::talk(&format!("{} has the version before its last release already", arguments.group));
                return Ok(Exit::Done);
            }
            output::talk("the release under way is turned around");
            if arguments.no_wait {
                return Ok(Exit::Done);
            }
            let refresh = region.refreshed(&arguments.group).await?;
            return ended(&refresh, refresh.went_back());
        }
        Some(release) => {
            say(&release);
            release.refresh.is_some()
        }
    };
    follow(&region, &arguments, under_way).await
}

async fn open(interruption: &Interruption, group: &ReleaseGroup) -> Result<(Account, Region), Failure> {
    let account = Account::open(access(interruption.token()), &group.region).await?;
    let region = account.region(&group.region);
    Ok((account, region))
}

/// The AMI that `record` is there.
fn ami(registry: &Registry, record: &Record, account: &str, region: &str) -> Result<Ami, Failure> {
    let artifact = &record.artifact;
    let amis = registry.amis(&artifact.image, &artifact.version)?;
    amis.into_iter().find(|ami| ami.account == account && ami.region == region).ok_or_else(|| {
        let name = format!("{}@{}", artifact.image, artifact.version);
        Failure::new(format!("{name} has no AMI in {region} of account {account}"))
            .hint(format!("`kiln publish ami {name} --region {region}`"))
    })
}

fn say(release: &Release) {
    for warning in &release.warnings {
        output::talk(&format!("warning: {}", visible(warning)));
    }
    let Release { group, template, from, to, ami, .. } = release;
    output::talk(&match &release.refresh {
        None => format!("{group} has version {to} of {template} ({ami}) already"),
        Some(refresh) => format!("{group} gets version {to} of {template} ({ami}), had {from}: {refresh}"),
    });
}

async fn follow(region: &Region, group: &ReleaseGroup, under_way: bool) -> Outcome {
    if !under_way || group.no_wait {
        return Ok(Exit::Done);
    }
    let refresh = region.refreshed(&group.group).await?;
    ended(&refresh, refresh.succeeded())
}

fn ended(refresh: &Refresh, good: bool) -> Outcome {
    if good {
        output::talk(&describe(refresh));
        return Ok(Exit::Done);
    }
    let hint = if refresh.went_back() {
        "the group has the version before again; `kiln release start` tries once more"
    } else {
        "`kiln release rollback` brings all machines to the version before"
    };
    Err(Failure::new(describe(refresh)).hint(hint))
}

/// `refresh-1: Successful, 100 %`
fn describe(refresh: &Refresh) -> String {
    let reason = refresh.reason.as_deref().map(|reason| format!(": {}", visible(reason))).unwrap_or_default();
    format!("{}: {}, {} %{reason}", refresh.id, refresh.status, refresh.percentage)
}
