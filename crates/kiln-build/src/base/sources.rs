//! Where packages come from: the build host's own mirrors where it is a Debian, else what mmdebstrap takes by itself.

use std::path::Path;

/// Lines of `sources.list` for `suite`; empty means mmdebstrap's own choice (which has the security updates too).
pub(super) fn lines(suite: &str, mirror: Option<&str>, host: &HostSources) -> Vec<String> {
    let (main, security) = match mirror.map(|mirror| mirror.trim_end_matches('/')) {
        Some(mirror) => (Some(mirror.to_owned()), security_beside(mirror)),
        None => (host.main.clone(), host.security.clone()),
    };
    let Some(main) = main else { return Vec::new() };
    let mut lines = vec![format!("deb {main} {suite} main"), format!("deb {main} {suite}-updates main")];
    lines.extend(security.map(|security| format!("deb {security} {suite}-security main")));
    lines
}

/// A mirror of `.../debian` has the security archive at `.../debian-security`, by the usual layout.
fn security_beside(mirror: &str) -> Option<String> {
    let mirror = mirror.trim_end_matches('/');
    mirror.ends_with("/debian").then(|| format!("{mirror}-security"))
}

/// What to say of sources that bring no security updates.
pub(super) fn without_security(lines: &[String]) -> Option<String> {
    let main = lines.first()?.split(' ').nth(1)?;
    (!lines.iter().any(|line| line.contains("-security"))).then(|| {
        format!("no security archive is known beside {main}, so the base has no security updates; a mirror at `../debian` has it at `../debian-security`")
    })
}

/// The Debian mirrors of this machine.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct HostSources {
    pub(super) main: Option<String>,
    pub(super) security: Option<String>,
}

const SUITES: [&str; 4] = ["bullseye", "bookworm", "trixie", "forky"];

impl HostSources {
    /// From `<etc>/apt/sources.list` and `sources.list.d`. What cannot be read counts as absent.
    pub(super) fn read(etc: &Path) -> Self {
        let directory = etc.join("apt/sources.list.d");
        let listed = std::fs::read_dir(&directory).into_iter().flatten().flatten().map(|entry| entry.path());
        let mut files: Vec<_> = listed.collect();
        files.sort();
        files.insert(0, etc.join("apt/sources.list"));
        let mut found = Self::default();
        for file in files {
            let text = std::fs::read_to_string(&file).unwrap_or_default();
            match file.extension().and_then(|extension| extension.to_str()) {
                Some("list") => found.take_lines(&text),
                Some("sources") => found.take_stanzas(&text),
                _ => {}
            }
        }
        found
    }

    fn take_lines(&mut self, text: &str) {
        for line in text.lines() {
            let line = line.split('#').next().unwrap_or_default();
            let Some(rest) = line.trim().strip_prefix("deb ") else { continue };
            let rest = rest.trim_start();
            let rest = if rest.starts_with('[') { rest.split_once(']').map_or("", |(_, rest)| rest) } else { rest };
            let mut words = rest.split_whitespace();
            if let (Some(uri), Some(suite)) = (words.next(), words.next()) {
                self.take(uri, suite);
            }
        }
    }

    fn take_stanzas(&mut self, text: &str) {
        for stanza in text.split("\n\n") {
            let field = |name: &str| {
                stanza.lines().find_map(|line| {
                    let (key, value) = line.split_once(':')?;
                    key.eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
                })
            };
            let disabled = field("Enabled").is_some_and(|value| value.eq_ignore_ascii_case("no"));
            let (Some(uris), Some(suites)) = (field("URIs"), field("Suites")) else { continue };
            if let Some(uri) = uris.split_whitespace().next().filter(|_| !disabled) {
                suites.split_whitespace().for_each(|suite| self.take(uri, suite));
            }
        }
    }

    fn take(&mut self, uri: &str, suite: &str) {
        let plain = ["http://", "https://", "file:"].iter().any(|scheme| uri.starts_with(scheme));
        let uri = uri.trim_end_matches('/').to_owned();
        // A suite alone does not tell Debian's archive from a vendor's that uses its names; `-updates` and
        // `-security` do.
        match suite.split_once('-') {
            Some((name, "updates")) if plain && SUITES.contains(&name) => _ = self.main.get_or_insert(uri),
            Some((name, "security")) if plain && SUITES.contains(&name) => _ = self.security.get_or_insert(uri),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_both_forms_of_apt_sources_and_passes_over_vendors() {
        let stanzas = "Types: deb\n# a comment\nURIs: http://mirror.example/debian/\nSuites: bookworm bookworm-updates\n\n\
                       Types: deb\nURIs: http://mirror.example/debian-security\nSuites: bookworm-security\n";
        let expected = HostSources {
            main: Some("http://mirror.example/debian".into()),
            security: Some("http://mirror.example/debian-security".into()),
        };
        let mut found = HostSources::default();
        found.take_stanzas(stanzas);
        assert_eq!(found, expected);
        let mut found = HostSources::default();
        found.take_lines(
            "# deb http://no.example/debian bookworm-updates main\ndeb https://vendor.example/x bookworm main\n\
             deb [arch=amd64 signed-by=/x] http://mirror.example/debian bookworm-updates main\n\
             deb http://mirror.example/debian-security bookworm-security main\n",
        );
        assert_eq!(found, expected);
    }

    #[test]
    fn a_disabled_source_counts_for_nothing() {
        let mut found = HostSources::default();
        found.take_stanzas("Enabled: no\nURIs: http://mirror.example/debian\nSuites: bookworm-updates\n");
        assert_eq!(found, HostSources::default());
    }

    #[test]
    fn a_mirror_of_the_template_brings_its_updates_and_security() {
        let host = HostSources { main: Some("http://host.example/debian".into()), security: None };
        let of = |mirror| lines("trixie", mirror, &host);
        assert_eq!(
            of(Some("http://m.example/debian/"))[2],
            "deb http://m.example/debian-security trixie-security main"
        );
        assert_eq!(of(Some("http://m.example/x")).len(), 2);
        assert_eq!(of(None)[0], "deb http://host.example/debian trixie main");
        assert!(lines("trixie", None, &HostSources::default()).is_empty());
    }

    #[test]
    fn a_mirror_without_a_known_security_archive_is_told() {
        let host = HostSources::default();
        let told = without_security(&lines("bookworm", Some("http://mirror.test/deb"), &host));
        assert!(told.is_some_and(|told| told.contains("http://mirror.test/deb, so the base has no security updates")));
        assert_eq!(without_security(&lines("bookworm", Some("http://mirror.test/debian"), &host)), None);
        assert_eq!(without_security(&[]), None, "mmdebstrap's own choice has them");
    }
}
