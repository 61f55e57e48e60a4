//! apk's database `installed`: a paragraph for each package, its lines a letter, a colon and a value.

use super::{Inventory, Kind, MOST_PACKAGES, Package, field};
use crate::tree::Files;

/// Alpine's apk-tools 2, and 3 on systems whose `/usr` holds everything.
const INSTALLED: [&str; 2] = ["/lib/apk/db/installed", "/usr/lib/apk/db/installed"];

pub(super) fn read(root: &Files, inventory: &mut Inventory) {
    for path in INSTALLED {
        if let Some(text) = inventory.database(root, path) {
            for paragraph in text.split("\n\n") {
                if inventory.packages.len() > MOST_PACKAGES {
                    return;
                }
                inventory.packages.extend(package(paragraph));
            }
        }
    }
}

fn package(paragraph: &str) -> Option<Package> {
    let value = |letter: char| {
        let mut lines = paragraph.lines();
        let value = lines.find_map(|line| line.strip_prefix(letter)?.strip_prefix(':'));
        value.map(field).filter(|value| !value.is_empty())
    };
    let (name, version) = (value('P')?, value('V')?);
    Some(Package {
        kind: Kind::Apk,
        architecture: value('A').unwrap_or_else(|| "noarch".to_owned()),
        source: (value('o').unwrap_or_else(|| name.clone()), version.clone()),
        licences: value('L').into_iter().collect(),
        supplier: value('m'),
        homepage: value('U'),
        summary: value('T'),
        name,
        version,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_a_paragraph_of_alpine() {
        let paragraph = "C:Q1qKcZ+j23xssAXmgQhkOO8dHnbWw=\nP:ssl_client\nV:1.36.1-r15\nA:x86_64\nS:4690\n\
             T:External ssl_client for busybox wget\nU:https://busybox.net/\nL:GPL-2.0-only\no:busybox\nF:usr/bin\nR:ssl_client";
        let package = package(paragraph).unwrap();
        assert_eq!(package.source, ("busybox".to_owned(), "1.36.1-r15".to_owned()));
        assert_eq!((package.licences, package.architecture), (vec!["GPL-2.0-only".to_owned()], "x86_64".to_owned()));
    }
}
