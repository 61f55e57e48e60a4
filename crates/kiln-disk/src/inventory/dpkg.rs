//! dpkg's database: `status`, and `status.d` of images without dpkg. Format: deb822, Debian Policy chapter 5.

use super::{Inventory, Kind, MOST_PACKAGES, Package, field, licence};
use crate::tree::Files;

const STATUS: &str = "/var/lib/dpkg/status";
const STATUS_DIRECTORY: &str = "/var/lib/dpkg/status.d";
/// The longest of Debian's own has 400 KiB.
const LONGEST_COPYRIGHT: usize = 1 << 20;

pub(super) fn read(root: &Files, inventory: &mut Inventory) {
    if let Some(text) = inventory.database(root, STATUS) {
        take(root, &text, inventory);
    }
    for name in root.list(STATUS_DIRECTORY).iter().filter(|name| !name.ends_with(".md5sums")) {
        if let Some(text) = inventory.database(root, &format!("{STATUS_DIRECTORY}/{name}")) {
            take(root, &text, inventory);
        }
    }
}

fn take(root: &Files, text: &str, inventory: &mut Inventory) {
    for paragraph in paragraphs(text) {
        if inventory.packages.len() > MOST_PACKAGES {
            return;
        }
        inventory.packages.extend(package(paragraph).map(|package| {
            let path = format!("/usr/share/doc/{}/copyright", package.name);
            // A name that leads elsewhere is nobody's documentation.
            let copyright = if package.name.contains('/') { Vec::new() } else { root.head(&path, LONGEST_COPYRIGHT) };
            Package { licences: licence::of_copyright(&String::from_utf8_lossy(&copyright)), ..package }
        }));
    }
}

/// Runs of lines without an empty one.
fn paragraphs(text: &str) -> impl Iterator<Item = &str> {
    text.split("\n\n").map(|paragraph| paragraph.trim_matches('\n')).filter(|paragraph| !paragraph.is_empty())
}

/// The package of a paragraph, if it is installed.
fn package(paragraph: &str) -> Option<Package> {
    let value = |name: &str| {
        let mut lines = paragraph.lines().filter(|line| !line.starts_with([' ', '\t']));
        let value = lines.find_map(|line| {
            let (found, value) = line.split_once(':')?;
            found.eq_ignore_ascii_case(name).then(|| field(value))
        });
        value.filter(|value| !value.is_empty())
    };
    // A removed package whose configuration stayed keeps its paragraph. `status.d` has no such field.
    if value("Status").is_some_and(|status| status.split_whitespace().nth(2) != Some("installed")) {
        return None;
    }
    let (name, version) = (value("Package")?, value("Version")?);
    let source = match value("Source") {
        None => (name.clone(), version.clone()),
        Some(source) => match source.split_once('(') {
            // The versions differ where a binary was rebuilt, or has a version of its own.
            Some((source, version)) => (field(source), field(version.trim_end_matches(')'))),
            None => (source, version.clone()),
        },
    };
    Some(Package {
        kind: Kind::Deb,
        architecture: value("Architecture").unwrap_or_else(|| "all".to_owned()),
        source,
        licences: Vec::new(),
        supplier: value("Maintainer"),
        homepage: value("Homepage"),
        summary: value("Description"),
        name,
        version,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_the_source_package_with_its_own_version() {
        let paragraph = "Package: libgcc-s1\nStatus: install ok installed\nVersion: 12.2.0-14+b1\n\
             Architecture: amd64\nSource: gcc-12 (12.2.0-14)\nDescription: GCC support library\n Shared version.";
        let package = package(paragraph).unwrap();
        assert_eq!(package.source, ("gcc-12".to_owned(), "12.2.0-14".to_owned()));
        assert_eq!((package.summary.as_deref(), package.homepage), (Some("GCC support library"), None));
    }

    #[test]
    fn without_a_source_the_package_is_its_own() {
        let package = package("Package: bash\nVersion: 5.2.15-2+b8\nArchitecture: amd64").unwrap();
        assert_eq!(package.source, ("bash".to_owned(), "5.2.15-2+b8".to_owned()));
    }

    #[test]
    fn leaves_out_what_was_removed_and_what_has_no_name() {
        for paragraph in [
            "Package: nginx\nStatus: deinstall ok config-files\nVersion: 1",
            "Package: nginx\nStatus: install ok half-installed\nVersion: 1",
            "Status: install ok installed\nVersion: 1",
            "Package: nginx\nStatus: install ok installed",
            ":\n:::\n Package: x\nVersion 1",
        ] {
            assert_eq!(package(paragraph), None, "{paragraph}");
        }
    }
}
