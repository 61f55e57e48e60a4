//! `kiln release check`: AMIs that somebody else changed or took away.

use kiln_aws::{Account, Health};

use crate::{
    arguments::ReleaseCheck,
    failure::{Exit, Failure, Outcome},
    output,
    signals::Interruption,
    surroundings,
    verbs::publish::ami::access,
};

pub(super) async fn run(arguments: ReleaseCheck) -> Outcome {
    let registry = surroundings::reading(&arguments.registry, &arguments.image)?;
    let interruption = Interruption::listen()?;
    let account = Account::open_in(access(interruption.token()), &arguments.regions).await?;
    let mut checked = Vec::new();
    for region in &arguments.regions {
        checked.extend(account.region(region).check(&registry, &arguments.image, arguments.public).await?);
    }
    if arguments.json {
        output::json(&checked)?;
    } else {
        let heading = ["REGION", "VERSION", "AMI", "CHANNELS", "STANDS"].map(str::to_owned).to_vec();
        let rows = checked.iter().map(|one| {
            let stands = match &one.health {
                Health::Sound => "sound",
                Health::Withdrawn => "withdrawn",
                Health::Broken(why) => why,
            };
            let channels = one.channels.join(", ");
            vec![one.region.clone(), one.version.to_string(), one.ami.clone(), channels, stands.to_owned()]
        });
        output::data(&output::table(&std::iter::once(heading).chain(rows).collect::<Vec<_>>()))?;
    }
    let broken = checked.iter().filter(|one| matches!(one.health, Health::Broken(_))).count();
    if broken == 0 {
        return Ok(Exit::Done);
    }
    Err(Failure::new(format!("{broken} of {} AMIs are not what was published", checked.len())))
}
