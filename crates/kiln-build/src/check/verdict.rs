//! Compares what a check expects with what the guest said. Pure.

use kiln_core::plan::CheckKind;

use super::probe::Fields;

/// Whether a check holds; if not, what was expected and what was seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    Holds,
    Fails(String),
}

/// The verdict on a check that a probe asked about.
pub(super) fn of(kind: &CheckKind, seen: Option<&Fields>) -> Verdict {
    let Some(seen) = seen else { return Verdict::Fails("the guest did not answer the question".to_owned()) };
    let field = |name: &str| seen.get(name).map_or("", |text| text.trim());
    match kind {
        CheckKind::Service { name, running, enabled } => {
            service(name, *running, *enabled, field("active"), field("enabled"))
        }
        CheckKind::File { .. } => file(kind, &field, seen.get("content").map_or("", String::as_str)),
        CheckKind::Package { name, installed, version } => {
            package(name, *installed, version.as_deref(), field("version"))
        }
        CheckKind::User { .. } => user(kind, field("passwd"), field("groups")),
        CheckKind::Command { .. } | CheckKind::Http { .. } | CheckKind::Port { .. } => {
            Verdict::Fails("this check is not asked by a probe".to_owned())
        }
    }
}

/// Holds if `text` contains `wanted`, or nothing is wanted.
pub(super) fn contains(what: &str, text: &str, wanted: Option<&str>) -> Verdict {
    match wanted {
        Some(wanted) if !text.contains(wanted) => {
            Verdict::Fails(format!("{what} does not contain `{wanted}`{}", quoted("it ends", text)))
        }
        _ => Verdict::Holds,
    }
}

/// The last lines of a text, for evidence.
pub(super) fn quoted(label: &str, text: &str) -> String {
    let lines: Vec<&str> = text.trim_end().lines().collect();
    if lines.is_empty() {
        return "; it is empty".to_owned();
    }
    let last = &lines[lines.len().saturating_sub(10)..];
    let cut = |line: &&str| line.chars().take(200).collect::<String>();
    format!("; {label}:\n  {}", last.iter().map(cut).collect::<Vec<_>>().join("\n  "))
}

fn all(differences: &[String]) -> Verdict {
    if differences.is_empty() { Verdict::Holds } else { Verdict::Fails(differences.join("; ")) }
}

fn service(name: &str, running: bool, enabled: Option<bool>, active: &str, state: &str) -> Verdict {
    let mut differences = Vec::new();
    if (active == "active") != running {
        let expected = if running { "running" } else { "stopped" };
        let found = if active.is_empty() { "unknown to the guest" } else { active };
        differences.push(format!("`{name}` must be {expected}, it is {found}"));
    }
    if let Some(enabled) = enabled {
        let starts = matches!(state, "enabled" | "enabled-runtime" | "alias" | "generated");
        if starts != enabled {
            let expected = if enabled { "enabled" } else { "disabled" };
            let found = if state.is_empty() { "unknown to the guest" } else { state };
            differences.push(format!("`{name}` must be {expected}, it is {found}"));
        }
    }
    all(&differences)
}

fn file<'a>(kind: &CheckKind, field: &impl Fn(&str) -> &'a str, content: &str) -> Verdict {
    let CheckKind::File { path, exists, mode, owner, group, contains: wanted, sha256 } = kind else {
        return Verdict::Holds;
    };
    let found = field("exists") == "yes";
    if found != *exists {
        let expected = if *exists { "must exist and does not" } else { "must not exist and does" };
        return Verdict::Fails(format!("`{path}` {expected}"));
    }
    if !found {
        return Verdict::Holds;
    }
    let stat: Vec<&str> = field("stat").split(' ').collect();
    let seen = |index: usize| stat.get(index).copied().unwrap_or_default();
    let mut differences = Vec::new();
    if let Some(mode) = mode
        && u32::from_str_radix(mode, 8).ok() != u32::from_str_radix(seen(0), 8).ok()
    {
        differences.push(format!("the mode of `{path}` must be {mode}, it is {:0>4}", seen(0)));
    }
    for (what, expected, seen) in [("owner", owner, seen(1)), ("group", group, seen(2))] {
        if let Some(expected) = expected
            && expected != seen
        {
            differences.push(format!("the {what} of `{path}` must be {expected}, it is {seen}"));
        }
    }
    if let Some(digest) = sha256 {
        let seen = field("sha256").split(' ').next().unwrap_or_default();
        if digest.hex() != seen {
            let seen = if seen.is_empty() { "not a file" } else { seen };
            differences.push(format!("the SHA-256 of `{path}` must be {}, it is {seen}", digest.hex()));
        }
    }
    if let Verdict::Fails(difference) = contains(&format!("`{path}`"), content, wanted.as_deref()) {
        differences.push(difference);
    }
    all(&differences)
}

fn package(name: &str, installed: bool, version: Option<&str>, seen: &str) -> Verdict {
    match (installed, seen.is_empty()) {
        (true, true) => Verdict::Fails(format!("the package `{name}` must be installed and is not")),
        (false, false) => {
            Verdict::Fails(format!("the package `{name}` must not be installed and is, in version {seen}"))
        }
        (false, true) => Verdict::Holds,
        // Several architectures of one package give several lines.
        (true, false) => match version {
            Some(version) if !seen.lines().any(|line| line == version) => {
                Verdict::Fails(format!("the package `{name}` must be version {version}, it is {seen}"))
            }
            _ => Verdict::Holds,
        },
    }
}

fn user(kind: &CheckKind, passwd: &str, member: &str) -> Verdict {
    let CheckKind::User { name, exists, shell, home, groups } = kind else { return Verdict::Holds };
    let fields: Vec<&str> = passwd.lines().next().unwrap_or_default().split(':').collect();
    let found = fields.first() == Some(&name.as_str());
    if found != *exists {
        let expected = if *exists { "must exist and does not" } else { "must not exist and does" };
        return Verdict::Fails(format!("the user `{name}` {expected}"));
    }
    let mut differences = Vec::new();
    for (what, expected, seen) in [("shell", shell, fields.get(6)), ("home", home, fields.get(5))] {
        if let (Some(expected), Some(seen)) = (expected, seen)
            && expected != seen
        {
            differences.push(format!("the {what} of `{name}` must be {expected}, it is {seen}"));
        }
    }
    let missing: Vec<&str> = groups
        .iter()
        .map(String::as_str)
        .filter(|group| found && !member.split_whitespace().any(|seen| seen == *group))
        .collect();
    if !missing.is_empty() {
        differences.push(format!("`{name}` must be in {}, it is in {member}", missing.join(", ")));
    }
    all(&differences)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(list: &[(&str, &str)]) -> Fields {
        list.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    fn seen(kind: &CheckKind, list: &[(&str, &str)]) -> String {
        match of(kind, Some(&fields(list))) {
            Verdict::Holds => String::new(),
            Verdict::Fails(seen) => seen,
        }
    }

    #[test]
    fn a_service_is_judged_by_what_it_does_and_what_it_will_do() {
        let kind = CheckKind::Service { name: "nginx".to_owned(), running: true, enabled: Some(true) };
        assert_eq!(seen(&kind, &[("active", "active\n"), ("enabled", "enabled\n")]), "");
        let failed = seen(&kind, &[("active", "failed\n"), ("enabled", "masked\n")]);
        assert_eq!(failed, "`nginx` must be running, it is failed; `nginx` must be enabled, it is masked");
        assert!(seen(&kind, &[]).contains("unknown to the guest"));
    }

    #[test]
    fn a_file_tells_every_difference_at_once() {
        let digest = kiln_core::Digest::of(b"x");
        let kind = CheckKind::File {
            path: "/etc/x".to_owned(),
            exists: true,
            mode: Some("0640".to_owned()),
            owner: Some("root".to_owned()),
            group: Some("adm".to_owned()),
            contains: Some("two\nlines".to_owned()),
            sha256: Some(digest),
        };
        let good =
            [("exists", "yes"), ("stat", "640 root adm"), ("content", "a two\nlines b"), ("sha256", &digest.hex())];
        assert_eq!(seen(&kind, &good), "");
        let bad = seen(&kind, &[("exists", "yes"), ("stat", "4755 eve root"), ("content", "two"), ("sha256", "ab  -")]);
        for part in ["must be 0640, it is 4755", "owner", "group", "SHA-256", "does not contain `two\nlines`"] {
            assert!(bad.contains(part), "{part}: {bad}");
        }
        assert_eq!(seen(&kind, &[("exists", "no")]), "`/etc/x` must exist and does not");
    }

    #[test]
    fn packages_and_users_are_compared_whole() {
        let package = CheckKind::Package { name: "a".to_owned(), installed: true, version: Some("1.2".to_owned()) };
        assert_eq!(seen(&package, &[("version", "1.2\n")]), "");
        assert!(seen(&package, &[("version", "1.2.1\n")]).contains("it is 1.2.1"));
        assert!(seen(&package, &[("version", "")]).contains("is not"));
        let user = CheckKind::User {
            name: "app".to_owned(),
            exists: true,
            shell: Some("/bin/sh".to_owned()),
            home: None,
            groups: vec!["adm".to_owned(), "www".to_owned()],
        };
        let entry = ("passwd", "app:x:1000:1000::/home/app:/bin/sh\n");
        assert_eq!(seen(&user, &[entry, ("groups", "app www adm\n")]), "");
        assert!(seen(&user, &[entry, ("groups", "app admin\n")]).contains("must be in adm, www"));
        assert!(seen(&user, &[("passwd", "apple:x:1::/:/bin/sh")]).contains("does not"));
    }
}
