//! `kiln clean`: releases what interrupted builds left, and old cached things on request.

mod remote;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use kiln_build::{base, checkpoint::Store};
use kiln_core::ByteSize;
use kiln_io::{
    dirs::Dirs,
    fs::Lock,
    ledger::{self, BuildReport, Choice, Condition, Resource},
};

use crate::{
    arguments::Clean,
    builds,
    failure::{Exit, Failure, Outcome},
    output, surroundings,
};

pub(crate) async fn run(arguments: Clean) -> Outcome {
    let dirs = surroundings::dirs()?;
    let build = match &arguments.build {
        // An image's name means its newest build; what is not known by its events may still have a ledger.
        Some(which) => {
            builds::find(&dirs, Some(which), |_| true)?.map_or_else(|| Some(which.clone()), |build| Some(build.id))
        }
        None => None,
    };
    let choice = Choice { kept: arguments.kept || build.is_some(), build };
    let mut complete = true;
    if !arguments.dry_run
        && let Err(failure) = remote::release(&dirs, &choice).await
    {
        // What is here is released all the same.
        output::complain(&failure);
        complete = false;
    }
    let reports = if arguments.dry_run { ledger::survey(&dirs) } else { ledger::reap(&dirs, &choice) };
    let mut reports = reports.map_err(|error| Failure::of(&error))?;
    reports.retain(|report| choice.build.as_ref().is_none_or(|build| *build == report.build));
    if let (Some(build), true) = (&choice.build, reports.is_empty()) {
        output::talk(&format!("build {build} has nothing to release"));
    }
    for report in &reports {
        output::talk(&describe(report, &choice, arguments.dry_run));
        complete &= report.failed.is_empty() && !matches!(report.condition, Condition::Unreadable(_));
    }
    if arguments.build.is_none() {
        let bases = half_made_bases(&dirs, arguments.dry_run).await?;
        if reports.is_empty() && bases == 0 {
            output::talk("no build left anything");
        }
    }
    if arguments.cache {
        complete &= clean_cache(&dirs, &arguments)?;
    }
    Ok(if complete { Exit::Done } else { Exit::Failed })
}

/// Releases bases that nobody makes any more, and says so; how many.
async fn half_made_bases(dirs: &Dirs, dry: bool) -> Result<usize, Failure> {
    let (word, bases) = if dry {
        ("would release", base::half_made(dirs))
    } else {
        ("released", base::sweep(dirs).await.map_err(|error| Failure::of(&error))?)
    };
    if bases > 0 {
        output::talk(&format!("{word} {bases} half-made base{}", if bases == 1 { "" } else { "s" }));
    }
    Ok(bases)
}

/// `build b-1: released 1 VM, 1 overlay`
pub(crate) fn describe(report: &BuildReport, choice: &Choice, dry: bool) -> String {
    let found = brief(report);
    let build = &report.build;
    match &report.condition {
        Condition::Alive => format!("build {build} is running: {found}"),
        Condition::Kept if !choice.kept => {
            format!("build {build} is kept: {found}; `kiln ssh {build}` looks inside, `kiln clean {build}` releases it")
        }
        Condition::Unreadable(reason) => format!("build {build} cannot be cleaned: {reason}"),
        Condition::Kept | Condition::Interrupted if dry => format!("build {build}: would release {found}"),
        Condition::Kept | Condition::Interrupted if report.failed.is_empty() => {
            format!("build {build}: released {found}")
        }
        Condition::Kept | Condition::Interrupted => {
            format!("build {build}: released {} of {found}; left: {}", report.released, report.failed.join("; "))
        }
    }
}

/// `1 VM, 1 guard, 7 files`: programs by name, since they matter; of the rest only how much there is.
pub(crate) fn brief(report: &BuildReport) -> String {
    let mut programs = BTreeMap::<&str, usize>::new();
    let mut files = 0;
    for outstanding in &report.found {
        match outstanding.resource {
            Resource::Process { .. } | Resource::Remote(_) => *programs.entry(&outstanding.what).or_default() += 1,
            Resource::File { .. } | Resource::Directory { .. } => files += 1,
        }
    }
    let counted = programs.into_iter().chain((files > 0).then_some(("file", files)));
    let plural = |count| if count == 1 { "" } else { "s" };
    let parts: Vec<_> = counted.map(|(what, count)| format!("{count} {what}{}", plural(count))).collect();
    parts.join(", ")
}

/// Removes what the cache holds in its subdirectories, and the logs of builds that are over, if it was not touched for
/// a while. Says whether all of it could be removed.
fn clean_cache(dirs: &Dirs, arguments: &Clean) -> Result<bool, Failure> {
    let age = Duration::from_secs(arguments.older_than.saturating_mul(86_400));
    let mut entries = Vec::new();
    let sections = children(&dirs.cache)?.into_iter();
    for section in sections.filter(|section| !section.ends_with("checkpoints") && !section.ends_with("bases")) {
        if section.is_dir() { entries.extend(children(&section)?) } else { entries.push(section) }
    }
    // A build that still has something to release has its ledger in its directory.
    let unfinished: Vec<_> =
        ledger::survey(dirs).map_err(|error| Failure::of(&error))?.into_iter().map(|report| report.build).collect();
    for build in children(&dirs.state.join("builds"))? {
        let name = build.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if !unfinished.contains(&name) {
            entries.push(build);
        }
    }
    let (mut freed, mut complete) = (0, true);
    let mut remove = |path: &Path| {
        let bytes = size(path);
        let removed = match (arguments.dry_run, path.is_dir()) {
            (true, _) => Ok(()),
            (false, true) => fs::remove_dir_all(path),
            (false, false) => fs::remove_file(path),
        };
        match removed {
            Ok(()) => {
                freed += bytes;
                let word = if arguments.dry_run { "would remove" } else { "removed" };
                output::talk(&format!("{word} {} ({})", path.display(), ByteSize(bytes).approximate()));
            }
            Err(error) => {
                complete = false;
                output::talk(&format!("cannot remove {}: {error}", path.display()));
            }
        }
    };
    for path in entries.iter().filter(|path| untouched_for(path, age)) {
        // Of the locks themselves only those go that nobody has.
        let locked = !arguments.dry_run && path.join(".lock").exists();
        let alone = locked.then(|| Lock::take(path, "kiln clean")).transpose();
        if alone.is_ok() {
            remove(path);
        }
    }
    // Machines stand on bases, and other kilns make some: only their own cache knows which may go.
    base::forget_older(dirs, age, surroundings::now(), arguments.dry_run, &mut remove);
    // Checkpoints stand on each other, and machines on them: only their own store knows which may go.
    if !arguments.dry_run {
        let pruned = Store::at(dirs).prune_older(age, surroundings::now());
        freed += pruned.bytes;
        if pruned.removed > 0 {
            output::talk(&format!("removed {} checkpoints ({})", pruned.removed, ByteSize(pruned.bytes).approximate()));
        }
    }
    let word = if arguments.dry_run { "would be freed" } else { "freed" };
    output::talk(&format!("{} {word}", ByteSize(freed).approximate()));
    Ok(complete)
}

fn children(directory: &Path) -> Result<Vec<PathBuf>, Failure> {
    if !directory.exists() {
        return Ok(Vec::new());
    }
    let entries = fs::read_dir(directory).map_err(kiln_io::fs::failed("read", directory, 0))?;
    let mut children: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    children.sort();
    Ok(children)
}

fn untouched_for(path: &Path, age: Duration) -> bool {
    let Ok(metadata) = path.symlink_metadata() else { return false };
    // What is only read keeps its time of change; its time of last reading tells more, where it is kept.
    let times = [metadata.modified(), metadata.accessed()];
    let newest = times.into_iter().flatten().max();
    newest.is_some_and(|newest| surroundings::now().duration_since(newest).unwrap_or_default() >= age)
}

/// Bytes on the disk beneath `path`.
fn size(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    let Ok(metadata) = path.symlink_metadata() else { return 0 };
    let own = metadata.blocks() * 512;
    if metadata.is_dir() {
        own + children(path).unwrap_or_default().iter().map(|child| size(child)).sum::<u64>()
    } else {
        own
    }
}
