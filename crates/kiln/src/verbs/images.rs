//! `kiln images`: what is published.

use kiln_registry::{Listed, Parent, RegistryError};
use serde_json::json;

use crate::{
    arguments::Images,
    calendar::Moment,
    failure::{Exit, Outcome},
    output, surroundings,
};

pub(crate) fn run(arguments: &Images) -> Outcome {
    let registry = surroundings::registry(&arguments.registry)?;
    if let Some(image) = &arguments.image {
        let versions = registry.versions(image)?;
        if arguments.json {
            output::json(&versions)?;
        } else {
            let (channels, now) = (registry.channels(image)?, surroundings::seconds());
            let heading = ["VERSION", "DISK", "PUBLISHED", "BUILD", "MARKS"].map(str::to_owned).to_vec();
            let rows = versions.iter().map(|listed| {
                let here = channels.iter().filter(|(_, channel)| channel.version == listed.version);
                let here = here.map(|(name, _)| name.to_string()).collect::<Vec<_>>().join(", ");
                let name = Parent { image: image.clone(), version: listed.version.clone() };
                let revoked = registry.revoked(&name, now)?.map_or("", |_| "revoked");
                let here = [here.as_str(), revoked].into_iter().filter(|mark| !mark.is_empty()).collect::<Vec<_>>();
                Ok([columns(listed).to_vec(), vec![listed.build.clone(), here.join(", ")]].concat())
            });
            let rows = rows.collect::<Result<Vec<_>, RegistryError>>()?;
            output::data(&output::table(&std::iter::once(heading).chain(rows).collect::<Vec<_>>()))?;
        }
        return Ok(Exit::Done);
    }
    let images = registry.images()?;
    if arguments.json {
        let list = images
            .iter()
            .map(|summary| json!({ "image": summary.image, "versions": summary.versions, "newest": summary.newest }));
        output::json(&list.collect::<Vec<_>>())?;
    } else if images.is_empty() {
        output::talk(&format!(
            "no images in `{}` yet; `kiln build TEMPLATE` publishes there",
            registry.root().display()
        ));
    } else {
        let heading = ["IMAGE", "NEWEST", "DISK", "PUBLISHED", "VERSIONS"].map(str::to_owned).to_vec();
        let rows = images.iter().map(|summary| {
            let [version, disk, published] = columns(&summary.newest);
            vec![summary.image.to_string(), version, disk, published, summary.versions.to_string()]
        });
        output::data(&output::table(&std::iter::once(heading).chain(rows).collect::<Vec<_>>()))?;
    }
    Ok(Exit::Done)
}

fn columns(listed: &Listed) -> [String; 3] {
    [listed.version.to_string(), listed.disk.short(), Moment::of_seconds(listed.published).minute()]
}
