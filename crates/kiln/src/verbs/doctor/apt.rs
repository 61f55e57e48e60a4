//! Which packages to install in which versions, from what `apt-cache policy` says. Pure.

use std::collections::BTreeMap;

/// These two come from one source and must have one version: alone, the first may remove the second.
pub(super) const QEMU: [&str; 2] = ["qemu-system-x86", "qemu-utils"];

/// What `apt-cache policy` knows about each package.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Table(BTreeMap<String, Package>);

#[derive(Debug, Default, PartialEq)]
struct Package {
    installed: Option<String>,
    candidate: Option<String>,
    /// Newest first; those that only the package database of this machine knows cannot be downloaded.
    versions: Vec<Version>,
}

#[derive(Debug, PartialEq)]
struct Version {
    number: String,
    downloadable: bool,
}

impl Table {
    pub(super) fn parse(text: &str) -> Self {
        let mut packages = BTreeMap::<String, Package>::new();
        let mut current = String::new();
        for line in text.lines() {
            let trimmed = line.trim();
            let package = packages.entry(current.clone()).or_default();
            let value = |value: &str| Some(value.trim().to_owned()).filter(|value| value != "(none)");
            if let Some(name) = line.strip_suffix(':').filter(|_| !line.starts_with(' ')) {
                name.clone_into(&mut current);
            } else if let Some(rest) = trimmed.strip_prefix("Installed:") {
                package.installed = value(rest);
            } else if let Some(rest) = trimmed.strip_prefix("Candidate:") {
                package.candidate = value(rest);
            } else if line.starts_with("        ") {
                // A source below its version: priority, then where.
                if let Some(version) = package.versions.last_mut() {
                    version.downloadable |= !trimmed.ends_with("/var/lib/dpkg/status");
                }
            } else if let Some(number) = trimmed.trim_start_matches("*** ").split_whitespace().next()
                && trimmed != "Version table:"
            {
                package.versions.push(Version { number: number.to_owned(), downloadable: false });
            }
        }
        packages.remove("");
        Self(packages)
    }

    /// Whether the package is installed or can be.
    pub(super) fn knows(&self, package: &str) -> bool {
        self.0.get(package).is_some_and(|package| package.candidate.is_some())
    }

    fn installed(&self, package: &str) -> Option<&str> {
        self.0.get(package)?.installed.as_deref()
    }

    /// The version of `package` that apt would take, then the others, newest first; only what can really be had.
    fn choices(&self, package: &str) -> Vec<&str> {
        let Some(package) = self.0.get(package) else { return Vec::new() };
        let had = |version: &&Version| version.downloadable || package.installed.as_ref() == Some(&version.number);
        let candidate = package.candidate.as_deref();
        let mut choices: Vec<_> = package.versions.iter().filter(had).map(|version| version.number.as_str()).collect();
        choices.sort_by_key(|version| Some(*version) != candidate);
        choices
    }
}

/// The one command that installs `packages`.
pub(super) fn install(packages: &[&str], table: &Table) -> Vec<String> {
    let mut command: Vec<String> =
        ["env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "install", "-y", "--no-install-recommends"]
            .map(str::to_owned)
            .to_vec();
    let mut names: Vec<String> =
        packages.iter().filter(|name| !QEMU.contains(name)).map(|name| (*name).to_owned()).collect();
    if packages.iter().any(|name| QEMU.contains(name)) {
        let [system, utils] = QEMU;
        let others = table.choices(utils);
        let changes =
            |version: &&str| QEMU.iter().any(|name| table.installed(name).is_some_and(|there| there != *version));
        // One that leaves what is installed as it is comes before the one that apt would take.
        match table.choices(system).into_iter().filter(|version| others.contains(version)).min_by_key(changes) {
            Some(version) => {
                if changes(&version) {
                    command.push("--allow-downgrades".to_owned());
                }
                names.extend(QEMU.iter().map(|name| format!("{name}={version}")));
            }
            None => names.extend(QEMU.map(str::to_owned)),
        }
    }
    command.extend(names);
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRESH: &str = "\
qemu-system-x86:
  Installed: (none)
  Candidate: 1:7.2-7
  Version table:
     1:7.2-7 500
        500 http://deb.example/debian bookworm/main amd64 Packages
qemu-utils:
  Installed: (none)
  Candidate: 1:7.2-7
  Version table:
     1:7.2-7 500
        500 http://deb.example/debian bookworm/main amd64 Packages
mmdebstrap:
  Installed: (none)
  Candidate: 1.3.5-7
  Version table:
     1.3.5-7 500
        500 http://deb.example/debian bookworm/main amd64 Packages
";

    fn tail(packages: &[&str], policy: &str) -> String {
        install(packages, &Table::parse(policy))[6..].join(" ")
    }

    #[test]
    fn both_qemu_packages_come_together_and_in_one_version() {
        for packages in [&["qemu-system-x86"][..], &["qemu-utils"], &["qemu-utils", "qemu-system-x86"]] {
            assert_eq!(tail(packages, FRESH), "qemu-system-x86=1:7.2-7 qemu-utils=1:7.2-7");
        }
        assert_eq!(tail(&["mmdebstrap"], FRESH), "mmdebstrap");
    }

    #[test]
    fn a_newer_qemu_utils_whose_source_is_gone_is_taken_back() {
        let policy = FRESH.replacen(
            "qemu-utils:\n  Installed: (none)\n  Candidate: 1:7.2-7\n  Version table:\n",
            "qemu-utils:\n  Installed: 1:10.0.2~bpo12+1\n  Candidate: 1:10.0.2~bpo12+1\n  Version table:\n \
             *** 1:10.0.2~bpo12+1 100\n        100 /var/lib/dpkg/status\n",
            1,
        );
        let expected = "--allow-downgrades mmdebstrap qemu-system-x86=1:7.2-7 qemu-utils=1:7.2-7";
        assert_eq!(tail(&["qemu-system-x86", "mmdebstrap"], &policy), expected);
    }

    #[test]
    fn a_newer_qemu_utils_whose_source_is_there_stays() {
        let backports =
            "     1:10.0.2~bpo12+1 100\n        100 http://deb.example/debian bookworm-backports/main amd64 Packages\n";
        let policy = FRESH
            .replacen("     1:7.2-7 500", &format!("{backports}     1:7.2-7 500"), 1)
            .replacen(
                "qemu-utils:\n  Installed: (none)\n  Candidate: 1:7.2-7\n  Version table:\n     1:7.2-7 500",
                &format!(
                    "qemu-utils:\n  Installed: 1:10.0.2~bpo12+1\n  Candidate: 1:10.0.2~bpo12+1\n  Version table:\n{}     1:7.2-7 500",
                    backports.replacen("    ", " ***", 1)
                ),
                1,
            );
        // apt would take 7.2 for the first; that version is there for both, and it would take the second back.
        let command = tail(&["qemu-system-x86"], &policy);
        assert_eq!(command, "qemu-system-x86=1:10.0.2~bpo12+1 qemu-utils=1:10.0.2~bpo12+1");
    }

    #[test]
    fn a_package_without_a_candidate_is_not_known() {
        let table = Table::parse("ovmf:\n  Installed: (none)\n  Candidate: (none)\n  Version table:\n");
        assert!(!table.knows("ovmf") && !table.knows("nothing"));
        assert!(Table::parse(FRESH).knows("mmdebstrap"));
    }
}
