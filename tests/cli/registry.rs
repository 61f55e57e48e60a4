//! The verbs on a registry with images in it.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::process::ExitStatusExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use kiln_core::{
    Digest,
    artifact::{Artifact, BaseRecord, BootRecord, CheckRecord, Disk, File, Machine, StepRecord},
    plan::{Login, VersionSpec},
};
use kiln_disk::{
    DiskFile, GuestDisk,
    seal::{Options, seal},
};
use kiln_io::guest::Quiet;
use kiln_registry::{Publication, Registry};

use kiln_tests::home::Home;

use crate::goldens;

/// A registry with `web` 1.0.0: a qcow2 of 8 MiB with some data in it. The path of the same disk as raw.
pub(crate) fn published(user: &Home) -> PathBuf {
    let directory = user.path("baked");
    fs::create_dir_all(&directory).unwrap();
    let raw = user.path("disk.raw");
    let mut bytes = vec![0; 8 << 20];
    for (number, byte) in bytes[1 << 20..2 << 20].iter_mut().enumerate() {
        *byte = u8::try_from(number % 251).unwrap();
    }
    fs::write(&raw, &bytes).unwrap();
    let qcow2 = directory.join("web.qcow2");
    let sealed = seal(&GuestDisk::open(&[DiskFile::raw(&raw)]).unwrap(), &qcow2, &Options::default()).unwrap();
    let file =
        File { name: "web.qcow2".to_owned(), format: "qcow2".to_owned(), bytes: sealed.bytes, sha256: sealed.qcow2 };
    let artifact = artifact(file, sealed.disk_digest);
    let registry = Registry::open(&user.path("data/registry")).unwrap();
    registry.publish(&artifact, &directory, &publication("1.0.0"), &Quiet).unwrap();
    raw
}

/// The same disk as `version`, from a kiln that records how to log in.
pub(crate) fn published_as_a_base(user: &Home, version: &str) {
    published(user);
    let registry = Registry::open(&user.path("data/registry")).unwrap();
    let selector = "web@1.0.0".parse().unwrap();
    let boot = Some(BootRecord { login: Login::Credentials, command_line: None });
    let artifact = Artifact { boot, ..registry.artifact(&selector).unwrap() };
    registry.publish(&artifact, &user.path("baked"), &publication(version), &Quiet).unwrap();
}

pub(crate) fn publication(version: &str) -> Publication {
    Publication {
        version: VersionSpec::Fixed(version.parse().unwrap()),
        date: "2026-11-21".to_owned(),
        now: 1_795_267_596,
        by: "ada@forge".to_owned(),
        allow_revoked: false,
    }
}

pub(crate) fn artifact(file: File, disk: Digest) -> Artifact {
    Artifact {
        format: kiln_core::artifact::FORMAT,
        image: "web".parse().unwrap(),
        version: "1.0.0".parse().unwrap(),
        description: Some("nginx on Debian 12".to_owned()),
        member: BTreeMap::new(),
        build: "b-6b01a9d1-f2791225".to_owned(),
        created: 1_795_267_500,
        started: None,
        variables: BTreeMap::new(),
        recipe: Digest::of(b"recipe"),
        disk: Disk { digest: disk, size: 8 << 20, chunk_size: 1 << 16, chunks: 16 },
        files: vec![file],
        placement: None,
        base: BaseRecord {
            name: "debian bookworm".to_owned(),
            digest: Digest::of(b"base"),
            key: Digest::of(b"key"),
            parent: None,
        },
        boot: None,
        machine: Machine {
            builder: "qemu".to_owned(),
            accelerator: "tcg".to_owned(),
            reason: "no guest answers under KVM".to_owned(),
            memory: 1 << 30,
            cpus: 2,
        },
        steps: vec![StepRecord {
            name: "web server\u{1b}[31m".to_owned(),
            provisioner: "nginx".to_owned(),
            provisioner_digest: Digest::of(b"nginx"),
            outcome: "ok".to_owned(),
            milliseconds: 41_200,
            cached: None,
        }],
        checks: vec![CheckRecord {
            name: "http http://localhost/".to_owned(),
            on: "artifact".to_owned(),
            passed: true,
            milliseconds: 120,
        }],
        hygiene: Vec::new(),
        tools: BTreeMap::from([("qemu".to_owned(), "7.2.22".to_owned())]),
        times: BTreeMap::new(),
    }
}

#[test]
fn images_and_show_tell_what_is_published() {
    let user = Home::apart("images");
    let empty = user.kiln(&["images"]).ends_with(0);
    assert!(empty.stdout.is_empty() && empty.stderr.contains("kiln build"), "{empty:?}");
    published(&user);
    let list = user.kiln(&["images"]).ends_with(0).stdout;
    assert!(list.lines().nth(1).is_some_and(|line| line.starts_with("web    1.0.0   ")), "{list}");
    let versions = user.kiln(&["images", "web"]).ends_with(0).stdout;
    assert!(versions.contains("b-6b01a9d1-f2791225"), "{versions}");
    let shown = user.kiln(&["show", "web@1.0.0"]).ends_with(0).stdout;
    for part in ["web 1.0.0", "8 MiB virtual", "no guest answers under KVM", "41.2 s  ok", "passed on the artifact"] {
        assert!(shown.contains(part), "{part} is not in\n{shown}");
    }
    assert!(!shown.contains('\u{1b}'), "{shown:?}");
    let record: serde_json::Value =
        serde_json::from_str(&user.kiln(&["show", "web", "--json"]).ends_with(0).stdout).unwrap();
    assert_eq!(record["version"], "1.0.0");
    let unknown = user.kiln(&["show", "web@2.0.0"]).ends_with(1).stderr;
    assert!(unknown.contains("hint: published: `1.0.0`"), "{unknown}");
}

#[test]
fn every_format_comes_out_with_the_bytes_that_went_in() {
    let user = Home::apart("export");
    let raw = published(&user);
    for (format, judged_as) in [("qcow2", "qcow2"), ("raw", "raw"), ("vmdk", "vmdk"), ("vhd", "vpc")] {
        let to = user.path(&format!("out.{format}"));
        let ran = user.kiln(&["export", "web", "--format", format, "--to", to.to_str().unwrap()]).ends_with(0);
        assert!(ran.stdout.is_empty(), "{ran:?}");
        same_disk(&raw, &to, judged_as);
    }
    let to = user.path("out.raw");
    let refused = user.kiln(&["export", "web", "--format", "raw", "--to", to.to_str().unwrap()]).ends_with(2);
    assert!(refused.stderr.contains("--force"), "{refused:?}");
    user.kiln(&["export", "web", "--format", "raw", "--force", "--to", to.to_str().unwrap()]).ends_with(0);
    let to = user.path("out.raw.zst");
    user.kiln(&["export", "web", "--format", "raw.zst", "--to", to.to_str().unwrap()]).ends_with(0);
    let restored = Command::new("zstd").arg("-dc").arg(&to).output().unwrap();
    assert!(restored.stdout == fs::read(&raw).unwrap());
}

#[test]
fn an_export_that_is_killed_leaves_nothing_beside_its_target() {
    let user = Home::apart("export-killed");
    published(&user);
    let directory = user.path("out");
    fs::create_dir(&directory).unwrap();
    // In the middle of the bytes, and when the whole file is about to get its name.
    for (format, call) in [("raw", "pwrite64"), ("qcow2", "linkat"), ("raw", "linkat"), ("vmdk", "linkat")] {
        let to = directory.join(format!("web.{format}"));
        let kiln = user.command(&["export", "web", "--format", format, "--to", to.to_str().unwrap()]);
        let mut strace = Command::new("strace");
        strace.args(["-f", "-qq", "-o", "/dev/null", "-e", &format!("trace={call}")]);
        strace.args(["-e", &format!("inject={call}:signal=KILL")]);
        strace.arg(kiln.get_program()).args(kiln.get_args()).current_dir(kiln.get_current_dir().unwrap()).env_clear();
        strace.envs(kiln.get_envs().filter_map(|(name, value)| Some((name, value?))));
        let output = strace.output().unwrap();
        assert_eq!(output.status.signal(), Some(9), "{format} at {call}: {output:?}");
        let left: Vec<_> = fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert!(left.is_empty(), "{format} at {call} left {left:?}");
    }
}

#[test]
fn a_damaged_image_is_not_exported_in_any_format() {
    let user = Home::apart("damaged");
    published(&user);
    let indexed = user.kiln(&["registry", "index", "--json"]).ends_with(0);
    assert!(indexed.stdout.contains("\"builds\""), "{indexed:?}");
    let whole = user.kiln(&["registry", "verify"]).ends_with(0);
    assert!(whole.stderr.starts_with("1 of 1 versions are whole: "), "{whole:?}");
    let segments = fs::read_dir(user.path("data/registry/blobs/sha256")).unwrap().map(|entry| entry.unwrap().path());
    let blob = segments.max_by_key(|path| fs::metadata(path).unwrap().len()).unwrap();
    let mut bytes = fs::read(&blob).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::remove_file(&blob).unwrap();
    fs::write(&blob, bytes).unwrap();
    let damaged = user.kiln(&["registry", "verify"]).ends_with(1);
    assert!(damaged.stderr.contains("  harmed: web@1.0.0\n0 of 1 versions are whole"), "{damaged:?}");
    for format in ["qcow2", "raw"] {
        let to = user.path(&format!("out.{format}"));
        let ran = user.kiln(&["export", "web", "--format", format, "--to", to.to_str().unwrap()]).ends_with(1);
        assert!(ran.stderr.contains("is damaged") && ran.stderr.contains("harmed: `web@1.0.0`"), "{ran:?}");
        assert!(!to.exists());
    }
    let left: Vec<_> = fs::read_dir(user.path("")).unwrap().flatten().map(|entry| entry.file_name()).collect();
    assert!(!left.iter().any(|name| name.to_string_lossy().starts_with('.')), "{left:?}");
}

#[test]
fn a_channel_is_promoted_resolved_exported_and_rolled_back() {
    let user = Home::new("channel");
    published(&user);
    again(&user, "1.1.0");
    let none = user.kiln(&["channel", "web"]).ends_with(0);
    assert!(none.stdout.is_empty() && none.stderr.contains("kiln promote web VERSION --to CHANNEL"), "{none:?}");
    let by = ["--by", "ada@forge", "--reason", "first \u{1b}[31mlight"];
    let first = user.kiln(&[&["promote", "web", "1.0.0", "--to", "stable"], &by[..]].concat()).ends_with(0);
    assert_eq!(first.stderr, "web@stable is 1.0.0 now, a new channel (revision 3)\n");
    let second = user.kiln(&["promote", "web", "latest", "--to", "stable", "--expect", "1.0.0"]).ends_with(0);
    assert_eq!(second.stderr, "web@stable is 1.1.0 now, was 1.0.0 (revision 4)\n");
    let stale = user.kiln(&["promote", "web", "1.0.0", "--to", "stable", "--expect", "1.0.0"]).ends_with(1);
    assert!(stale.stderr.contains("hint: `kiln channel web stable` says who and why"), "{stale:?}");
    let resolved = user.kiln(&["resolve", "web@stable", "--format", "env"]).ends_with(0).stdout;
    assert!(resolved.contains("KILN_ID='web@1.1.0'\n") && resolved.contains("KILN_CHANNEL='stable'\n"), "{resolved}");
    let back = user.kiln(&["rollback", "web", "stable", "--reason", "no"]).ends_with(0);
    assert_eq!(back.stderr, "web@stable is 1.0.0 now, was 1.1.0 (revision 5)\n");
    let history = user.kiln(&["channel", "web", "stable"]).ends_with(0).stdout;
    let lines: Vec<_> = history.lines().map(|line| line.split_whitespace().collect::<Vec<_>>()).collect();
    assert_eq!((lines.len(), lines[1][0], lines[1][3]), (4, "5", "rollback"), "{history}");
    assert!(history.contains("ada@forge  first") && !history.contains('\u{1b}'), "{history:?}");
    let images = user.kiln(&["images", "web"]).ends_with(0).stdout;
    assert!(images.lines().nth(2).is_some_and(|line| line.ends_with("  stable")), "{images}");
    let to = user.path("stable.qcow2");
    user.kiln(&["export", "web@stable", "--to", to.to_str().unwrap()]).ends_with(0);
    same_disk(&user.path("disk.raw"), &to, "qcow2");
    let unknown = user.kiln(&["resolve", "web@stabel"]).ends_with(1);
    assert!(unknown.stderr.contains("published: `stable`, `1.1.0`, `1.0.0`"), "{unknown:?}");
    assert_eq!(user.kiln(&["promote", "web", "1.0.0", "--to", "Stable"]).code, Some(2));
}

/// Publishes the disk of `published` under another version.
fn again(user: &Home, version: &str) {
    let registry = Registry::open(&user.path("data/registry")).unwrap();
    let artifact = registry.artifact(&"web".parse().unwrap()).unwrap();
    registry.publish(&artifact, &user.path("baked"), &publication(version), &Quiet).unwrap();
}

#[test]
fn a_revoked_version_and_what_was_baked_on_it_is_used_only_by_its_name() {
    let user = Home::new("revoke");
    published(&user);
    let registry = Registry::open(&user.path("data/registry")).unwrap();
    let mut child = registry.artifact(&"web".parse().unwrap()).unwrap();
    child.image = "shop".parse().unwrap();
    child.base.digest = child.files[0].sha256;
    registry.publish(&child, &user.path("baked"), &publication("2.0.0"), &Quiet).unwrap();
    user.kiln(&["promote", "web", "1.0.0", "--to", "stable"]).ends_with(0);
    again(&user, "1.1.0");
    assert_eq!(user.kiln(&["outdated"]).ends_with(0).stdout.lines().nth(1), Some("shop@2.0.0  web@1.0.0  1.1.0"));
    assert!(user.kiln(&["revoke", "web", "1.0.0"]).ends_with(2).stderr.contains("--reason"));
    let later = ["revoke", "web", "1.0.0", "--reason", "CVE-2026-1", "--at", "2999-01-01"];
    let later = user.kiln(&later).ends_with(0).stderr;
    assert!(later.starts_with("web@1.0.0 is revoked from 2999-01-01 00:00 UTC on: CVE-2026-1\n"), "{later}");
    user.kiln(&["resolve", "shop"]).ends_with(0);
    let now = user.kiln(&["revoke", "web", "1.0.0", "--reason", "CVE-2026-1"]).ends_with(0).stderr;
    assert!(now.contains("  and with it shop@2.0.0, which is baked on it\n"), "{now}");
    assert!(now.contains("web@stable points there: `kiln rollback web stable`"), "{now}");
    let to = user.path("out.raw");
    let to = to.to_str().unwrap();
    for arguments in [
        &["resolve", "web@stable", "--allow-revoked"][..],
        &["resolve", "shop@2.0.0"],
        &["export", "shop", "--format", "raw", "--to", to],
        &["promote", "shop", "2.0.0", "--to", "stable"],
    ] {
        let refused = user.kiln(arguments).ends_with(1).stderr;
        let expected =
            if arguments[1].starts_with("web") { "web@1.0.0 is revoked: CVE" } else { "baked on web@1.0.0: CVE" };
        assert!(refused.contains(expected) && refused.contains("--allow-revoked"), "{arguments:?}: {refused}");
    }
    user.kiln(&["export", "shop@2.0.0", "--allow-revoked", "--format", "raw", "--to", to]).ends_with(0);
    assert!(user.kiln(&["resolve", "web"]).ends_with(0).stdout.contains("\"web@1.1.0\""));
    assert!(user.kiln(&["images", "web"]).ends_with(0).stdout.contains("stable, revoked"));
    assert!(user.kiln(&["show", "shop"]).ends_with(0).stderr.contains("is revoked, baked on web@1.0.0"));
    user.kiln(&["revoke", "web", "1.0.0", "--lift"]).ends_with(0);
    user.kiln(&["resolve", "shop"]).ends_with(0);
}

#[test]
fn what_goes_is_said_with_reasons_before_anything_is_removed() {
    let user = Home::new("prune");
    published(&user);
    for version in ["1.1.0", "1.2.0", "1.3.0"] {
        again(&user, version);
    }
    user.kiln(&["promote", "web", "1.1.0", "--to", "stable"]).ends_with(0);
    let dry = user.kiln(&["registry", "prune", "--keep", "1"]).ends_with(0);
    for (line, ending) in
        ["KEPT BECAUSE", "one of the newest 1", "- would go", "stable points there", "- would go"].iter().enumerate()
    {
        assert!(dry.stdout.lines().nth(line).is_some_and(|text| text.ends_with(ending)), "{ending}: {}", dry.stdout);
    }
    assert!(dry.stderr.starts_with("`--remove` would remove 2 versions and 4 blobs"), "{}", dry.stderr);
    user.kiln(&["resolve", "web@1.0.0"]).ends_with(0);
    let removed = user.kiln(&["registry", "prune", "--keep", "1", "--remove"]).ends_with(0);
    assert!(removed.stderr.starts_with("removed 2 versions and 4 blobs"), "{}", removed.stderr);
    user.kiln(&["resolve", "web@1.0.0"]).ends_with(1);
    assert!(user.kiln(&["registry", "verify"]).ends_with(0).stderr.starts_with("2 of 2 versions are whole"));
}

#[test]
fn what_is_resolved_is_said_in_the_form_of_each_consumer() {
    let user = Home::new("resolve");
    published(&user);
    user.kiln(&["promote", "web", "1.0.0", "--to", "stable"]).ends_with(0);
    for format in ["json", "env", "tfvars", "github-output", "ansible"] {
        let ran = user.kiln(&["resolve", "web@stable", "--format", format]).ends_with(0);
        goldens::compare(&format!("tests/goldens/resolve/{format}.txt"), &goldens::text_of(&ran, &user));
    }
}

/// `qemu-img compare` is the outside judge. A format may round the size up; what is beyond must be zero.
fn same_disk(raw: &Path, other: &Path, format: &str) {
    let compare = Command::new("qemu-img").args(["compare", "-f", "raw", "-F", format]).arg(raw).arg(other).output();
    let compare = compare.unwrap();
    assert!(compare.status.success(), "{format}: {compare:?}");
}

#[test]
fn a_new_registry_may_have_a_relative_path_and_has_to_be_of_a_known_kind() {
    let user = Home::apart("kinds");
    let init = user.command(&["registry", "init", "--registry", "a/b"]).current_dir(user.path("")).output().unwrap();
    assert!(init.status.success() && user.path("a/b").is_dir(), "{init:?}");
    for verb in [&["images"][..], &["registry", "verify"]] {
        let refused = user.kiln(&[verb, &["--registry", "gs://bucket/images"]].concat()).ends_with(2).stderr;
        assert!(refused.contains("`gs://bucket/images` is no registry") && refused.contains("s3://"), "{refused}");
    }
}

#[test]
fn a_registry_that_is_named_and_not_there_is_not_sound() {
    let user = Home::apart("missing");
    for verb in [&["verify"][..], &["prune"], &["prune", "--remove"], &["index"], &["renew"]] {
        let refused = user.kiln(&[&["registry"], verb, &["--registry", "typo"]].concat()).ends_with(1).stderr;
        assert!(refused.contains("there is no registry at `typo`"), "{verb:?}: {refused}");
    }
}
