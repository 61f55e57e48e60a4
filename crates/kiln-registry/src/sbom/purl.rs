//! Package URLs: <https://github.com/package-url/purl-spec>, types `deb` and `apk`.

use std::fmt::Write as _;

use kiln_disk::inventory::{Kind, Package, System};

/// `pkg:deb/debian/libgcc-s1@12.2.0-14?arch=amd64&distro=debian-12&upstream=gcc-12`. The qualifier `upstream` names the source package where
/// it has another name or version, as scanners look it up.
pub(super) fn of(package: &Package, system: Option<&System>) -> String {
    let (kind, maker) = match package.kind {
        Kind::Deb => ("deb", "debian"),
        Kind::Apk => ("apk", "alpine"),
    };
    let maker = system.map_or_else(|| maker.to_owned(), |system| system.id.to_lowercase());
    let name = package.name.to_lowercase();
    let mut purl = format!("pkg:{kind}/{}/{}@{}", encoded(&maker), encoded(&name), encoded(&package.version));
    let _ = write!(purl, "?arch={}", encoded(&package.architecture));
    if let Some(system) = system {
        let version = system.version.as_ref().map(|version| format!("-{version}")).unwrap_or_default();
        let _ = write!(purl, "&distro={}", encoded(&format!("{}{version}", system.id)));
    }
    let (source, version) = &package.source;
    if *version != package.version {
        let _ = write!(purl, "&upstream={}", encoded(&format!("{source}@{version}")));
    } else if *source != package.name {
        let _ = write!(purl, "&upstream={}", encoded(source));
    }
    purl
}

/// Percent-encoded but for what stands for itself; the colon of an epoch does.
fn encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~:".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(name: &str, version: &str, source: (&str, &str)) -> Package {
        Package {
            kind: Kind::Deb,
            name: name.to_owned(),
            version: version.to_owned(),
            architecture: "amd64".to_owned(),
            source: (source.0.to_owned(), source.1.to_owned()),
            licences: Vec::new(),
            supplier: None,
            homepage: None,
            summary: None,
        }
    }

    #[test]
    fn names_the_source_where_it_differs_and_encodes_what_must_be() {
        let debian = System { id: "debian".to_owned(), version: Some("12".to_owned()), name: String::new() };
        for (package, expected) in [
            (package("curl", "7.88", ("curl", "7.88")), "curl@7.88?arch=amd64&distro=debian-12"),
            (
                package("libstdc++6", "12.2.0-14", ("gcc-12", "12.2.0-14")),
                "libstdc%2B%2B6@12.2.0-14?arch=amd64&distro=debian-12&upstream=gcc-12",
            ),
            (
                package("libattr1", "1:2.4.47-2+b1", ("attr", "1:2.4.47-2")),
                "libattr1@1:2.4.47-2%2Bb1?arch=amd64&distro=debian-12&upstream=attr%401:2.4.47-2",
            ),
            (
                package("a/../b?x=1#y", "1 2", ("a/../b?x=1#y", "1 2")),
                "a%2F..%2Fb%3Fx%3D1%23y@1%202?arch=amd64&distro=debian-12",
            ),
        ] {
            assert_eq!(of(&package, Some(&debian)), format!("pkg:deb/debian/{expected}"));
        }
        assert_eq!(of(&package("a", "1", ("a", "1")), None), "pkg:deb/debian/a@1?arch=amd64");
    }
}
