//! `kiln images`: what is published.

use kiln_core::ImageName;
use kiln_index::Index;
use kiln_registry::{ImageSummary, Listed};
use kiln_serve::wire::ImageEntry;

use crate::{
    arguments::Images,
    calendar::Moment,
    escape::visible,
    failure::{Exit, Outcome},
    output,
    surroundings::{self, Place},
};

pub(crate) fn run(arguments: &Images) -> Outcome {
    let place = surroundings::place(&arguments.registry)?;
    match &arguments.image {
        Some(image) => versions(&place, image, arguments.json),
        None => images(&place, arguments.json),
    }
}

fn versions(place: &Place, image: &ImageName, json: bool) -> Outcome {
    let entries = match place {
        Place::Here(registry) => registry.listing(image, surroundings::seconds())?.versions,
        Place::There(remote) => surroundings::wait(remote.image(image))?.versions,
    };
    if json {
        output::json(&entries.iter().map(|entry| &entry.listed).collect::<Vec<_>>())?;
        return Ok(Exit::Done);
    }
    let heading = ["VERSION", "DISK", "PUBLISHED", "BUILD", "MARKS"].map(str::to_owned).to_vec();
    let rows = entries.iter().map(|entry| {
        let mut marks: Vec<_> = entry.channels.iter().map(ToString::to_string).collect();
        marks.extend(entry.revoked.as_ref().map(|_| "revoked".to_owned()));
        [columns(&entry.listed).to_vec(), vec![visible(&entry.listed.build), marks.join(", ")]].concat()
    });
    output::data(&output::table(&std::iter::once(heading).chain(rows).collect::<Vec<_>>()))?;
    Ok(Exit::Done)
}

fn images(place: &Place, json: bool) -> Outcome {
    let images = match place {
        Place::Here(registry) => {
            let entry = |summary: ImageSummary| {
                let ImageSummary { image, versions, newest } = summary;
                ImageEntry { image, versions, newest }
            };
            let index = Index::new(registry.clone(), surroundings::index().as_deref());
            index.images()?.into_iter().map(entry).collect()
        }
        Place::There(remote) => surroundings::wait(remote.images())?.images,
    };
    if json {
        output::json(&images)?;
    } else if images.is_empty() {
        let place = match place {
            Place::Here(registry) => registry.root().display().to_string(),
            Place::There(remote) => remote.url(),
        };
        output::talk(&format!("no images in `{place}` yet; `kiln build TEMPLATE` publishes there"));
    } else {
        let heading = ["IMAGE", "NEWEST", "DISK", "PUBLISHED", "VERSIONS"].map(str::to_owned).to_vec();
        let rows = images.iter().map(|entry| {
            let [version, disk, published] = columns(&entry.newest);
            vec![entry.image.to_string(), version, disk, published, entry.versions.to_string()]
        });
        output::data(&output::table(&std::iter::once(heading).chain(rows).collect::<Vec<_>>()))?;
    }
    Ok(Exit::Done)
}

fn columns(listed: &Listed) -> [String; 3] {
    [listed.version.to_string(), listed.disk.short(), Moment::of_seconds(listed.published).minute()]
}
