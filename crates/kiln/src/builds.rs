//! The builds of this user: their directories, and what their files tell.

use std::{
    fs,
    io::{self, BufRead as _, BufReader},
    path::PathBuf,
};

use kiln_core::event::Event;
use kiln_io::dirs::Dirs;
use serde::Deserialize;

use crate::{failure::Failure, render::EVENTS};

/// A build that has begun at some time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Build {
    pub(crate) id: String,
    pub(crate) directory: PathBuf,
    pub(crate) image: String,
    /// RFC 3339, when it began.
    pub(crate) began: String,
}

/// A line of `events.jsonl`.
#[derive(Debug, Deserialize)]
pub(crate) struct Entry {
    pub(crate) time: String,
    /// Milliseconds since the build began.
    pub(crate) elapsed: u64,
    #[serde(flatten)]
    pub(crate) event: Event,
}

/// Every build with events, oldest first.
pub(crate) fn all(dirs: &Dirs) -> Result<Vec<Build>, Failure> {
    let directory = dirs.state.join("builds");
    let entries = match fs::read_dir(&directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(kiln_io::fs::failed("read", &directory, 0)(error).into()),
    };
    let mut ids: Vec<_> = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
    // Ids begin with the time.
    ids.sort();
    Ok(ids.into_iter().filter_map(|id| read(dirs, id)).collect())
}

/// The build that `which` names: an id, the beginning of one, or an image's newest. The newest of all without a name.
pub(crate) fn find(
    dirs: &Dirs,
    which: Option<&str>,
    wanted: impl Fn(&Build) -> bool,
) -> Result<Option<Build>, Failure> {
    let builds: Vec<_> = all(dirs)?.into_iter().filter(wanted).collect();
    let Some(which) = which else { return Ok(builds.last().cloned()) };
    let exact = builds.iter().find(|build| build.id == which);
    let of_image = || builds.iter().rev().find(|build| build.image == which);
    let mut beginning = builds.iter().filter(|build| which.len() > 2 && build.id.starts_with(which));
    let only = match (beginning.next(), beginning.next()) {
        (Some(build), None) => Some(build),
        _ => None,
    };
    Ok(exact.or_else(of_image).or(only).cloned())
}

fn read(dirs: &Dirs, id: String) -> Option<Build> {
    let directory = dirs.build(&id);
    let first = BufReader::new(fs::File::open(directory.join(EVENTS)).ok()?).lines().next()?.ok()?;
    let entry: Entry = serde_json::from_str(&first).ok()?;
    let Event::BuildStarted { image, .. } = entry.event else { return None };
    Some(Build { id, directory, image: image.to_string(), began: entry.time })
}
