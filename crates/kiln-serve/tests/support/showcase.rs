//! A registry as one finds it in the field: two images, many versions, lineage, channels, a revocation, and texts of strangers.

use std::{fs, path::Path};

use kiln_core::{
    Digest,
    artifact::{Artifact, CheckRecord, FindingRecord, StepRecord},
};
use kiln_io::guest::Quiet;
use kiln_registry::{Intent, Parent, Publication, Registry};

use crate::{
    artifacts::{disk, fixed, sealed, select},
    system::{STATUS, System},
};

const DAY: u64 = 86_400;

fn intent(by: &str, now: u64, reason: &str) -> Intent {
    Intent { by: by.to_owned(), now, reason: Some(reason.to_owned()), allow_revoked: false }
}

fn publish(registry: &Registry, directory: &Path, artifact: &Artifact, version: &str, now: u64) -> Digest {
    let publication = Publication { now, ..fixed(version) };
    registry.publish(artifact, directory, &publication, &Quiet).unwrap().artifact.files[0].sha256
}

fn dressed(mut artifact: Artifact, number: u64) -> Artifact {
    let step = |name: &str, provisioner: &str, milliseconds, cached| StepRecord {
        name: name.to_owned(),
        provisioner: provisioner.to_owned(),
        provisioner_digest: Digest::of(provisioner.as_bytes()),
        outcome: "ok".to_owned(),
        milliseconds,
        cached,
    };
    artifact.description = Some("nginx on Debian 12, hardened".to_owned());
    artifact.steps = vec![
        step("packages", "packages", 41_200 + number * 700, (number % 3 == 1).then_some(1)),
        step("web server", "nginx", 12_400, None),
        step("<script>alert(1)</script>\u{1b}[31m", "files", 800, None),
        step("hardening", "hardening", 6_300 + number * 90, None),
    ];
    let check = |name: &str, on: &str| CheckRecord {
        name: name.to_owned(),
        on: on.to_owned(),
        passed: true,
        milliseconds: 340,
    };
    artifact.checks = vec![
        check("http answers 200", "guest"),
        check("nginx runs", "guest"),
        check("http answers 200", "sealed image"),
    ];
    artifact.hygiene = vec![FindingRecord {
        id: "H12".to_owned(),
        level: "warning".to_owned(),
        path: "/var/log/apt/history.log".to_owned(),
        detail: "a log that tells of the build".to_owned(),
        waived: Some("wanted by the auditors".to_owned()),
    }];
    let times = [
        ("boot", 16_800),
        ("provision", 60_700 + number * 790),
        ("check", 1100),
        ("clean", 2400),
        ("shutdown", 3100),
        ("seal", 4600),
        ("hygiene", 900),
        ("boot-test", 17_400),
    ];
    artifact.times = times.into_iter().map(|(name, time)| (name.to_owned(), time)).collect();
    artifact.tools =
        [("kiln", "0.1.0"), ("qemu", "7.2.17"), ("zstd", "1.5.7")].map(|(a, b)| (a.to_owned(), b.to_owned())).into();
    artifact
}

/// A small Debian; the later one has other packages, files and units.
fn base_disk(place: &Path, later: bool) -> Vec<u8> {
    fs::create_dir_all(place).unwrap();
    let system = System::debian(place);
    system.write("etc/motd", if later { "made by kiln\n" } else { "made by hand\n" });
    system.write("usr/bin/tool", "#!/bin/sh\n");
    system.mode("usr/bin/tool", if later { 0o4755 } else { 0o755 });
    if later {
        system.write("etc/systemd/system/multi-user.target.wants/nginx.service", "[Service]\n");
        let status = STATUS.replace("12.2.0-14+deb12u1", "12.2.0-14+deb12u2");
        system.write("var/lib/dpkg/status", &status.replace("deinstall ok config-files", "install ok installed"));
    }
    system.disk()
}

/// Publishes it all; `now` is the present.
pub(crate) fn fill(registry: &Registry, work: &Path, now: u64) {
    let begun = now - 30 * DAY;
    let base = |version: &str, number: u64| {
        let directory = work.join(format!("base-{version}"));
        let bytes = base_disk(&work.join(format!("system-{number}")), number > 0);
        let mut artifact = dressed(sealed(&directory, &format!("b-base-{number}"), &bytes, 3), number);
        artifact.image = "golden-base".parse().unwrap();
        artifact.description = Some("Debian 12 with our keys, agents and mirrors".to_owned());
        publish(registry, &directory, &artifact, version, begun + number * 10 * DAY)
    };
    let (old, new) = (base("2026.10.20.1", 0), base("2026.11.1.1", 1));
    for number in 0..14_u64 {
        let version = format!("1.{number}.0");
        let directory = work.join(&version);
        // Noise that no compressor makes smaller, a little more in each version.
        let mut state = 7_u64;
        let noise = (0..(200 + number * number * 9) << 10).map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            state.to_le_bytes()[7]
        });
        let mut bytes = [disk(&version), noise.collect()].concat();
        bytes.resize(bytes.len().next_multiple_of(512), 0);
        let mut artifact = dressed(sealed(&directory, &format!("b-6b01a9d{number:x}"), &bytes, 3), number);
        artifact.base.digest = if number < 6 { old } else { new };
        publish(registry, &directory, &artifact, &version, begun + number * 2 * DAY);
        fs::remove_dir_all(&directory).unwrap();
    }
    let log = work.join("builds/b-6b01a9dd");
    fs::create_dir_all(&log).unwrap();
    let text = "Reading package lists...\r\n\u{1b}]52;c;aGk=\u{7}<script>alert('log')</script>\n";
    fs::write(log.join("log"), text).unwrap();
    let move_to = |version: &str, channel: &str, days: u64, reason: &str| {
        let intent = intent("ada@forge", begun + days * DAY, reason);
        registry.promote(&select(&format!("web@{version}")), &channel.parse().unwrap(), None, &intent).unwrap();
    };
    move_to("1.4.0", "stable", 9, "two days in staging");
    move_to("1.11.0", "stable", 24, "nightly patches");
    move_to("1.13.0", "candidate", 27, "fresh from the forge");
    move_to("1.12.0", "stable", 26, "<b>new kernel</b>");
    let back = intent("grace@forge", begun + 27 * DAY, "latency doubled");
    registry.rollback(&"web".parse().unwrap(), &"stable".parse().unwrap(), None, None, &back).unwrap();
    let bad = Parent { image: "web".parse().unwrap(), version: "1.12.0".parse().unwrap() };
    let reason = intent("grace@forge", begun + 28 * DAY, "CVE-2026-1234 in nginx");
    registry.revoke(&bad, Some(begun + 28 * DAY), &reason).unwrap();
}
