//! The checks of a plan.

use std::collections::BTreeSet;

use super::{parsed, steps::unique};
use crate::{
    Digest,
    expression::Scope,
    keys::{CHECK, CHECKS},
    node::{Node, Report},
    plan::{Check, CheckKind},
    shape::{self, Section},
    template::evaluate::condition,
};

/// All checks that apply, or `None` when one of them has a mistake.
pub(super) fn all(report: &mut Report, scope: &Scope, nodes: &[Node]) -> Option<Vec<Check>> {
    let mut taken: BTreeSet<String> = nodes.iter().filter_map(|node| Section::new(node, CHECK).string("as")).collect();
    let mut checks = Vec::new();
    let mut sound = true;
    for node in nodes {
        let before = report.found.len();
        let applies = Section::new(node, CHECK).node("when").map_or(Some(true), |when| condition(report, scope, when));
        let check = check(report, node, &mut taken);
        match (applies, check) {
            (Some(false), Some(_)) => {}
            (Some(true), Some(check)) if report.found.len() == before => checks.push(check),
            _ => sound = false,
        }
    }
    for (index, check) in checks.iter_mut().enumerate() {
        check.number = index + 1;
    }
    sound.then_some(checks)
}

fn check(report: &mut Report, node: &Node, taken: &mut BTreeSet<String>) -> Option<Check> {
    let section = Section::new(node, CHECK);
    let variant = section.string("use").and_then(|name| CHECKS.iter().find(|variant| variant.name == name));
    let Some(variant) = variant else {
        shape::check_listed(report, node, CHECK, "`[[check]]`");
        return None;
    };
    shape::check_open(report, node, CHECK, variant.keys, &format!("a check of `{}`", variant.name));
    let kind = kind(report, variant.name, Section::new(node, variant.keys))?;
    let on = section.strings("on");
    if let Some(node) = section.node("on").filter(|_| on.is_empty()) {
        report.error_with_help(node.at, "the check runs nowhere", "name `guest`, `artifact`, or both");
    }
    Some(Check {
        number: 0,
        name: section.string("as").unwrap_or_else(|| unique(&default_name(&kind), taken)),
        on_guest: on.iter().any(|place| place == "guest"),
        on_artifact: on.iter().any(|place| place == "artifact"),
        within: section.duration("within")?,
        kind,
    })
}

fn kind(report: &mut Report, name: &str, section: Section<'_>) -> Option<CheckKind> {
    Some(match name {
        "command" => CheckKind::Command {
            run: section.string("run")?,
            exit: section.integer("exit")?,
            contains: section.string("contains"),
        },
        "http" => CheckKind::Http {
            url: parsed(report, section, "url", http_url)?,
            status: section.integer("status")?,
            contains: section.string("contains"),
        },
        "port" => CheckKind::Port {
            port: section.integer("port")?,
            address: section.string("address")?,
            open: section.bool("open")?,
        },
        "service" => CheckKind::Service {
            name: word(report, section, "name")?,
            running: section.bool("running")?,
            enabled: section.bool("enabled"),
        },
        "file" => file(report, section)?,
        "package" => CheckKind::Package {
            name: word(report, section, "name")?,
            installed: section.bool("installed")?,
            version: section.string("version"),
        },
        "user" => CheckKind::User {
            name: word(report, section, "name")?,
            exists: section.bool("exists")?,
            shell: section.string("shell"),
            home: section.string("home"),
            groups: section.strings("groups"),
        },
        _ => return None,
    })
}

fn file(report: &mut Report, section: Section<'_>) -> Option<CheckKind> {
    let path = parsed(report, section, "path", |path| {
        if path.starts_with('/') { Ok(path.to_owned()) } else { Err(format!("`{path}` is not an absolute path")) }
    });
    let sha256 = parsed(report, section, "sha256", str::parse::<Digest>);
    let mode = parsed(report, section, "mode", |mode| {
        let octal = (3..=5).contains(&mode.len()) && mode.chars().all(|c| ('0'..='7').contains(&c));
        if octal { Ok(mode.to_owned()) } else { Err(format!("`{mode}` is not a mode; write for instance `0644`")) }
    });
    let exists = section.bool("exists")?;
    let content = ["mode", "owner", "group", "contains", "sha256"];
    if let Some(entry) = content.iter().find_map(|name| section.entry(name)).filter(|_| !exists) {
        report.error(entry.key, "a file that must not be there has no properties");
    }
    Some(CheckKind::File {
        path: path?,
        exists,
        mode,
        owner: section.string("owner"),
        group: section.string("group"),
        contains: section.string("contains"),
        sha256,
    })
}

/// Asked through the guest's SSH connection without TLS; a server with TLS is asked by a `command`.
fn http_url(url: &str) -> Result<String, String> {
    let host = url.strip_prefix("http://").ok_or_else(|| {
        format!("`{url}` must begin with `http://`; ask a server with TLS through `use = \"command\"` and `curl`")
    })?;
    if host.is_empty() || host.starts_with(['/', ':']) || url.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Err(format!("`{}` is not a complete URL", url.escape_debug()));
    }
    Ok(url.to_owned())
}

/// A name that is one word and does not look like an option of a command.
fn word(report: &mut Report, section: Section<'_>, key: &'static str) -> Option<String> {
    parsed(report, section, key, |text| {
        let sound =
            !text.is_empty() && !text.starts_with('-') && !text.chars().any(|c| c.is_whitespace() || c.is_control());
        if sound { Ok(text.to_owned()) } else { Err(format!("`{}` cannot be the `{key}`", text.escape_debug())) }
    })
}

fn default_name(kind: &CheckKind) -> String {
    match kind {
        CheckKind::Command { run, .. } => {
            run.lines().next().unwrap_or_default().chars().filter(|c| !c.is_control()).take(60).collect()
        }
        CheckKind::Http { url, .. } => url.clone(),
        CheckKind::Port { port, .. } => format!("port {port}"),
        CheckKind::Service { name, .. } => format!("service {name}"),
        CheckKind::File { path, .. } => format!("file {path}"),
        CheckKind::Package { name, .. } => format!("package {name}"),
        CheckKind::User { name, .. } => format!("user {name}"),
    }
}
