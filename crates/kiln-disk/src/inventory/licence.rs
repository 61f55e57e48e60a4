//! Licences by their SPDX identifiers, out of Debian's machine-readable copyright files (DEP-5).

use std::collections::BTreeSet;

use super::field;

/// Names in DEP-5 and their SPDX identifiers, where they mean the same; version suffixes are handled apart.
const SAME: [(&str, &str); 38] = [
    ("0BSD", "0BSD"),
    ("Apache-1.1", "Apache-1.1"),
    ("Apache-2", "Apache-2.0"),
    ("Apache-2.0", "Apache-2.0"),
    ("Artistic-2", "Artistic-2.0"),
    ("Artistic-2.0", "Artistic-2.0"),
    ("BSD-2-clause", "BSD-2-Clause"),
    ("BSD-3-clause", "BSD-3-Clause"),
    ("BSD-4-clause", "BSD-4-Clause"),
    ("BSD-4-clause-UC", "BSD-4-Clause-UC"),
    ("BSL-1.0", "BSL-1.0"),
    ("CC0", "CC0-1.0"),
    ("CC0-1.0", "CC0-1.0"),
    ("CC-BY-3.0", "CC-BY-3.0"),
    ("CC-BY-4.0", "CC-BY-4.0"),
    ("CC-BY-SA-3.0", "CC-BY-SA-3.0"),
    ("CC-BY-SA-4.0", "CC-BY-SA-4.0"),
    ("curl", "curl"),
    ("Expat", "MIT"),
    ("FSFAP", "FSFAP"),
    ("FSFUL", "FSFUL"),
    ("FSFULLR", "FSFULLR"),
    ("FTL", "FTL"),
    ("HPND", "HPND"),
    ("ISC", "ISC"),
    ("libpng", "Libpng"),
    ("MIT", "MIT"),
    ("MPL-1.1", "MPL-1.1"),
    ("MPL-2.0", "MPL-2.0"),
    ("NCSA", "NCSA"),
    ("OFL-1.1", "OFL-1.1"),
    ("OLDAP-2.8", "OLDAP-2.8"),
    ("OpenLDAP-2.8", "OLDAP-2.8"),
    ("OpenSSL", "OpenSSL"),
    ("PostgreSQL", "PostgreSQL"),
    ("Unlicense", "Unlicense"),
    ("X11", "X11"),
    ("Zlib", "Zlib"),
];

/// Families whose names carry a version and maybe `+`, with the versions that SPDX has.
const FAMILIES: [(&str, &[&str]); 4] = [
    ("AGPL", &["1.0", "3.0"]),
    ("LGPL", &["2.0", "2.1", "3.0"]),
    ("GFDL", &["1.1", "1.2", "1.3"]),
    ("GPL", &["1.0", "2.0", "3.0"]),
];

/// A name in a `License` field has no more words; what has is the text itself.
const MOST_WORDS: usize = 12;
const MOST_NAMES: usize = 64;

/// The licences that a copyright file names, if it has the machine-readable form: identifiers where there are, else the
/// names as they stand. Sorted, each once.
pub fn of_copyright(text: &str) -> Vec<String> {
    let header = text.lines().find(|line| !line.trim().is_empty()).unwrap_or_default().to_ascii_lowercase();
    if !header.starts_with("format") || !(header.contains("copyright-format") || header.contains("dep5")) {
        return Vec::new();
    }
    let mut found = BTreeSet::new();
    for line in text.lines() {
        let Some(value) = line.strip_prefix("License:").map(str::trim) else { continue };
        if value.is_empty() || value.split_whitespace().count() > MOST_WORDS || value.len() > 200 {
            continue;
        }
        for name in value.replace(" and/or ", ",").replace(" or ", ",").replace(" and ", ",").split(',') {
            let name = &field(name);
            if !name.is_empty() && found.len() < MOST_NAMES {
                found.insert(identifier(name).unwrap_or_else(|| name.clone()));
            }
        }
    }
    found.into_iter().collect()
}

/// The SPDX identifier of a licence that DEP-5 calls `name`.
pub fn identifier(name: &str) -> Option<String> {
    if let Some((_, identifier)) = SAME.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)) {
        return Some((*identifier).to_owned());
    }
    let (family, rest) = name.split_once('-')?;
    let (family, versions) = FAMILIES.iter().find(|(known, _)| known.eq_ignore_ascii_case(family))?;
    let (version, later) = match rest.strip_suffix('+').or_else(|| rest.strip_suffix("-or-later")) {
        Some(version) => (version, true),
        None => (rest.strip_suffix("-only").unwrap_or(rest), false),
    };
    let version = if version.contains('.') { version.to_owned() } else { format!("{version}.0") };
    let version = versions.iter().find(|known| **known == version)?;
    Some(format!("{family}-{version}-{}", if later { "or-later" } else { "only" }))
}

/// Whether `name` is one of the SPDX identifiers that [`identifier`] gives.
pub fn is_identifier(name: &str) -> bool {
    SAME.iter().any(|(_, identifier)| *identifier == name) || identifier(name).as_deref() == Some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_identifiers_where_they_mean_the_same() {
        for (name, expected) in [
            ("Expat", Some("MIT")),
            ("GPL-2+", Some("GPL-2.0-or-later")),
            ("GPL-2.0+", Some("GPL-2.0-or-later")),
            ("GPL-3", Some("GPL-3.0-only")),
            ("LGPL-2.1+", Some("LGPL-2.1-or-later")),
            ("GFDL-1.3", Some("GFDL-1.3-only")),
            ("BSD-3-clause", Some("BSD-3-Clause")),
            ("GPL-2+ with Autoconf exception", None),
            ("GPL-7+", None),
            ("GPL", None),
            ("Artistic", None),
            ("public-domain", None),
        ] {
            assert_eq!(identifier(name).as_deref(), expected, "{name}");
            assert!(expected.is_none_or(is_identifier), "{name}");
        }
    }

    #[test]
    fn a_copyright_file_gives_each_licence_once() {
        let text = "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\n\n\
             Files: *\nCopyright: A\nLicense: GPL-2+ or Artistic\n\nFiles: debian/*\nLicense: GPL-2+\n text\n\n\
             License: Permission is hereby granted, free of charge, to any person obtaining a copy of this software\n";
        assert_eq!(of_copyright(text), ["Artistic", "GPL-2.0-or-later"]);
        assert_eq!(of_copyright("This is prose.\nLicense: MIT\n"), Vec::<String>::new());
    }
}
