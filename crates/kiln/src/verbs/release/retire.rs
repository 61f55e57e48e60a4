//! `kiln release retire`: old AMIs.

use kiln_aws::{Account, Fate, Keep};

use crate::{
    arguments::ReleaseRetire,
    escape::visible,
    failure::{Exit, Failure, Outcome},
    output,
    signals::Interruption,
    surroundings,
    verbs::publish::ami::access,
};

pub(super) async fn run(arguments: ReleaseRetire) -> Outcome {
    let registry = surroundings::reading(&arguments.registry, &arguments.image)?;
    let interruption = Interruption::listen()?;
    let account = Account::open_in(access(interruption.token()), &arguments.regions).await?;
    let keep = Keep { newest: arguments.keep, days: arguments.days, now: surroundings::seconds() };
    let mut verdicts = Vec::new();
    for region in &arguments.regions {
        let region = account.region(region);
        verdicts.extend(region.retain(&registry, &arguments.image, &keep, !arguments.yes).await?);
    }
    if arguments.json {
        output::json(&verdicts)?;
    } else {
        let heading = ["REGION", "VERSION", "AMI", "FATE"].map(str::to_owned).to_vec();
        let rows = verdicts.iter().map(|verdict| {
            let fate = match &verdict.fate {
                Fate::Kept(why) => format!("kept: {why}"),
                Fate::Withdrawn => "withdrawn".to_owned(),
                Fate::Deleted => "deleted".to_owned(),
                Fate::Failed(why) => format!("failed: {}", visible(why)),
            };
            vec![verdict.region.clone(), verdict.version.to_string(), verdict.ami.clone(), fate]
        });
        output::data(&output::table(&std::iter::once(heading).chain(rows).collect::<Vec<_>>()))?;
    }
    if !arguments.yes && verdicts.iter().any(|verdict| matches!(verdict.fate, Fate::Withdrawn | Fate::Deleted)) {
        output::talk("nothing was changed; `--yes` does it");
    }
    match verdicts.iter().filter(|verdict| matches!(verdict.fate, Fate::Failed(_))).count() {
        0 => Ok(Exit::Done),
        failed => Err(Failure::new(format!("{failed} of {} AMIs could not be dealt with", verdicts.len()))
            .exit(Exit::Partial)
            .hint("the same command goes on with them")),
    }
}
