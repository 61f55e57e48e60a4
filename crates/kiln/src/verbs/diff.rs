//! `kiln diff`: what differs between two versions of an image, for people, for programs, and for a release note.

use std::fmt::Write as _;

use kiln_core::ByteSize;
use kiln_registry::{
    Difference, Selector,
    compare::{FileChange, FileFacts, PackageChange},
};

use crate::{
    arguments::Diff,
    escape::visible,
    failure::{Exit, Failure, Outcome},
    output,
    signals::Interruption,
    surroundings,
};

/// Files that are listed unless all are asked for.
const SHOWN: usize = 50;

pub(crate) async fn run(arguments: Diff) -> Outcome {
    let registry = surroundings::reading(&arguments.registry, &arguments.image)?;
    let record = |reference: &kiln_registry::Reference| {
        registry.record(&Selector { image: arguments.image.clone(), reference: reference.clone() })
    };
    let (from, to) = (record(&arguments.from)?, record(&arguments.to)?);
    let interruption = Interruption::listen()?;
    let cancel = interruption.token().clone();
    let comparing = {
        let registry = registry.clone();
        tokio::task::spawn_blocking(move || registry.compare(&from, &to, &|_, _| !cancel.is_cancelled()))
    };
    let compared = comparing.await.map_err(|error| Failure::new("the work was ended").because(error.to_string()))?;
    if interruption.happened() {
        return Err(Failure::new("stopped before everything was compared").exit(Exit::Interrupted));
    }
    let difference = compared?;
    let shown = if arguments.all { usize::MAX } else { SHOWN };
    if arguments.json {
        output::json(&difference)?;
    } else if arguments.markdown {
        output::data(&markdown(&difference, shown))?;
    } else {
        output::data(&text(&difference, shown))?;
    }
    for unread in &difference.unread {
        output::talk(&format!("not compared: {}", one_line(unread)));
    }
    Ok(Exit::Done)
}

/// How a change is marked, and what it says.
struct Line {
    mark: char,
    what: String,
}

fn package(change: &PackageChange) -> Line {
    let name = &change.name;
    match (&change.from, &change.to) {
        (None, Some(to)) => Line { mark: '+', what: format!("{name} {to}") },
        (Some(from), None) => Line { mark: '-', what: format!("{name} {from}") },
        (from, to) => {
            let version = |version: &Option<String>| version.clone().unwrap_or_default();
            Line { mark: '~', what: format!("{name} {} -> {}", version(from), version(to)) }
        }
    }
}

fn file(change: &FileChange) -> Line {
    let path = &change.path;
    match (&change.from, &change.to) {
        (None, Some(facts)) => Line { mark: '+', what: format!("{path} ({})", describe(facts)) },
        (Some(facts), None) => Line { mark: '-', what: format!("{path} ({})", describe(facts)) },
        (Some(from), Some(to)) => Line { mark: '~', what: format!("{path} ({})", changed(from, to, change.content)) },
        (None, None) => Line { mark: '~', what: path.clone() },
    }
}

fn describe(facts: &FileFacts) -> String {
    let owner = if (facts.uid, facts.gid) == (0, 0) { String::new() } else { format!(" {}:{}", facts.uid, facts.gid) };
    match facts.kind {
        "file" => format!("{}{owner}, {}", facts.mode, ByteSize(facts.size).approximate()),
        kind => format!("{kind}, {}{owner}", facts.mode),
    }
}

fn changed(from: &FileFacts, to: &FileFacts, content: bool) -> String {
    let mut parts = Vec::new();
    if from.kind != to.kind {
        parts.push(format!("{} -> {}", from.kind, to.kind));
    } else if content && from.size != to.size {
        let size = |facts: &FileFacts| ByteSize(facts.size).approximate();
        parts.push(format!("content, {} -> {}", size(from), size(to)));
    } else if content {
        parts.push("content".to_owned());
    }
    if from.mode != to.mode {
        parts.push(format!("{} -> {}", from.mode, to.mode));
    }
    if (from.uid, from.gid) != (to.uid, to.gid) {
        parts.push(format!("{}:{} -> {}:{}", from.uid, from.gid, to.uid, to.gid));
    }
    parts.join(", ")
}

fn units(difference: &Difference) -> Vec<Line> {
    let line = |mark| move |unit: &String| Line { mark, what: unit.clone() };
    let units = &difference.units;
    units.added.iter().map(line('+')).chain(units.removed.iter().map(line('-'))).collect()
}

/// Title, lines: what there is to say of each kind.
fn sections(difference: &Difference) -> Vec<(&'static str, Vec<Line>)> {
    let sections = vec![
        ("packages", difference.packages.iter().map(package).collect()),
        ("enabled units", units(difference)),
        ("set-uid and set-gid files", difference.set_id.iter().map(file).collect()),
        ("files", difference.files.iter().map(file).collect::<Vec<_>>()),
    ];
    sections.into_iter().filter(|(_, lines)| !lines.is_empty()).collect()
}

fn counted(lines: &[Line]) -> String {
    let count = |mark| lines.iter().filter(|line| line.mark == mark).count();
    let words = [(count('+'), "added"), (count('-'), "removed"), (count('~'), "changed")];
    let words = words.into_iter().filter(|(count, _)| *count > 0);
    words.map(|(count, word)| format!("{count} {word}")).collect::<Vec<_>>().join(", ")
}

/// Label and value of what is said first.
fn summary(difference: &Difference) -> Vec<(&'static str, String)> {
    let sizes = &difference.sizes;
    let size = |bytes| ByteSize(bytes).approximate();
    let base = if difference.base_digest.from == difference.base_digest.to {
        format!("{}, the same", difference.base.to)
    } else if difference.base.from == difference.base.to {
        format!("{}, a newer one", difference.base.to)
    } else {
        format!("{} -> {}", difference.base.from, difference.base.to)
    };
    let mut lines = vec![
        ("base", base),
        ("qcow2", format!("{} -> {}", size(sizes.qcow2.from), size(sizes.qcow2.to))),
        ("chunks", format!("{} of {} shared, {} new", sizes.shared, sizes.chunks, size(sizes.new_bytes))),
    ];
    if sizes.disk.from != sizes.disk.to {
        lines.insert(2, ("disk", format!("{} -> {}", ByteSize(sizes.disk.from), ByteSize(sizes.disk.to))));
    }
    lines
}

fn text(difference: &Difference, shown: usize) -> String {
    let mut text = format!("{} -> {}\n\n", difference.from, difference.to);
    for (label, value) in summary(difference) {
        let _ = writeln!(text, "{label:<10}{}", one_line(&value));
    }
    for (title, lines) in sections(difference) {
        let _ = writeln!(text, "\n{title}: {}", counted(&lines));
        for Line { mark, what } in lines.iter().take(shown) {
            let _ = writeln!(text, "  {mark} {}", one_line(what));
        }
        if lines.len() > shown {
            let _ = writeln!(text, "  and {} more; `--all` shows them", lines.len() - shown);
        }
    }
    if sections(difference).is_empty() && difference.unread.is_empty() {
        text.push_str("\nno difference in packages, units or files\n");
    }
    text
}

fn markdown(difference: &Difference, shown: usize) -> String {
    let mut text =
        format!("## {} {} (from {})\n\n", difference.to.image, difference.to.version, difference.from.version);
    for (label, value) in summary(difference) {
        let _ = writeln!(text, "- {label}: {}", escaped(&value));
    }
    for (title, lines) in sections(difference) {
        let _ = writeln!(text, "\n### {}{}: {}\n", title[..1].to_uppercase(), &title[1..], counted(&lines));
        for Line { mark, what } in lines.iter().take(shown) {
            let word = match mark {
                '+' => "added",
                '-' => "removed",
                _ => "changed",
            };
            let _ = writeln!(text, "- {word} {}", escaped(what));
        }
        if lines.len() > shown {
            let _ = writeln!(text, "- and {} more", lines.len() - shown);
        }
    }
    text
}

/// As code, so that no name on a disk becomes a link, an image or a heading of the note.
fn escaped(text: &str) -> String {
    format!("`{}`", one_line(text).replace('`', "'"))
}

/// A name on a disk may have line ends in it.
fn one_line(text: &str) -> String {
    visible(&text.replace(['\n', '\r'], "\u{fffd}"))
}
