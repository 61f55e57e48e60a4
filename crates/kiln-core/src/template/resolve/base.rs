//! Base and builder of a plan.

use super::{World, ec2, parsed};
use crate::{
    ByteSize, Digest, ImageName, Version,
    facts::ImageFact,
    keys::{BASE, BUILDER, DEBIAN, QCOW2, QEMU},
    node::{Node, Report},
    plan::{
        Accelerator, Base, Builder, CheckpointKind, DebianBase, ImageBase, Login, Qcow2Base, Qcow2Source, QemuMachine,
    },
    shape::Section,
    template::load::report_fact,
};

/// Debian 12 does not boot with less.
const LEAST_MEMORY: ByteSize = ByteSize::mib(128);
/// Beyond this a size is a slip of the pen.
const MOST_MEMORY: ByteSize = ByteSize::gib(4096);
const LEAST_DISK: ByteSize = ByteSize::mib(64);
/// A Debian base has a root file system of 2 GiB at the least, and 65 MiB of boot partitions and partition table.
const LEAST_DEBIAN_DISK: ByteSize = ByteSize::mib(2048 + 65);
const MOST_DISK: ByteSize = ByteSize::gib(64 << 10);

pub(super) fn base(report: &mut Report, root: Section<'_>, world: &World<'_>, allowed: &[String]) -> Option<Base> {
    let node = root.node("base")?;
    let base = Section::new(node, BASE);
    let kinds = ["debian", "qcow2", "image", "ami"];
    let mut given = kinds.into_iter().filter_map(|kind| Some((kind, base.node(kind)?)));
    let Some((kind, first)) = given.next() else {
        let help = "write `[base.debian]`, `[base.qcow2]`, `base.image = \"..\"` or `[base.ami]`";
        if node.as_table().is_some_and(std::collections::BTreeMap::is_empty) {
            report.error_with_help(node.at, "the base is empty", help);
        }
        return None;
    };
    if let Some((_, second)) = given.next() {
        report.error(second.at, "there are two bases; an image starts from exactly one");
        return None;
    }
    match kind {
        "image" => image(report, root, first, world),
        "ami" => ec2::base(report, root, first, world).map(Base::Ami),
        _ if ec2::section(root).is_some() => {
            let help = "write `[base.ami]`, or `base.image` with a version that has an AMI in the region";
            report.error_with_help(first.at, "the builder `ec2` starts from an AMI", help);
            None
        }
        "debian" => debian(report, Section::new(first, DEBIAN)).map(Base::Debian),
        _ => qcow2(report, first, world, allowed).map(Base::Qcow2),
    }
}

fn debian(report: &mut Report, section: Section<'_>) -> Option<DebianBase> {
    let mirror = section.node("mirror").and_then(|node| Some((node, node.text()?)));
    if let Some((node, url)) = &mirror {
        check_url(report, node, url, &["http://", "https://", "file://", "copy://"]);
    }
    for node in section.list("packages") {
        let Some(name) = node.text() else { continue };
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "+.:~=_-".contains(c);
        if !name.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit()) || !name.chars().all(plain) {
            report.error(node.at, format!("`{}` is not the name of a Debian package", name.escape_debug()));
        }
    }
    let mut packages = section.strings("packages");
    packages.sort();
    packages.dedup();
    Some(DebianBase { suite: section.string("suite")?, mirror: mirror.map(|(_, url)| url), packages })
}

fn qcow2(report: &mut Report, node: &Node, world: &World<'_>, allowed: &[String]) -> Option<Qcow2Base> {
    let section = Section::new(node, QCOW2);
    let given = parsed(report, section, "sha256", str::parse::<Digest>);
    let login = if section.string("login")? == "credentials" { Login::Credentials } else { Login::Nocloud };
    let source = match (section.node("path"), section.node("url")) {
        (Some(path), None) => file(report, path, given, world, allowed)?,
        (None, Some(url)) => {
            let text = url.text()?;
            check_url(report, url, &text, &["http://", "https://"]);
            if !section.has("sha256") {
                let help = "add `sha256 = \"..\"`, as published beside the image";
                report.error_with_help(url.at, "a base from a URL needs its `sha256`", help);
            }
            Qcow2Source::Url { url: text, digest: given? }
        }
        (Some(_), Some(second)) => {
            report.error(second.at, "the base has both a `path` and a `url`");
            return None;
        }
        (None, None) => {
            report.error_with_help(node.at, "`[base.qcow2]` names no image", "add `path`, or `url` with its `sha256`");
            return None;
        }
    };
    Some(Qcow2Base { source, login })
}

/// `golden-base`, `golden-base@1.4.0`, `golden-base@stable`, `golden-base@sha256:..`
fn image(report: &mut Report, root: Section<'_>, node: &Node, world: &World<'_>) -> Option<Base> {
    let reference = node.text()?;
    let (name, version) =
        reference.split_once('@').map_or((reference.as_str(), None), |(name, rest)| (name, Some(rest)));
    let image = name.parse::<ImageName>().map_err(|error| report.error(node.at, error.to_string())).ok()?;
    if let Some(version) =
        version.filter(|version| version.parse::<Version>().is_err() && version.parse::<Digest>().is_err())
    {
        let help = "behind the `@` stands a version, a channel, `latest` or a disk digest";
        report.error_with_help(node.at, format!("`{}` names no version", version.escape_debug()), help);
        return None;
    }
    let version = version.filter(|version| *version != "latest");
    if let Some(builder) = ec2::section(root) {
        return ec2::image(report, builder, node, (image, version.map(str::to_owned)), world).map(Base::Ami);
    }
    let version = match world.facts.image(&image, version) {
        Ok(ImageFact::Awaited) => None,
        Ok(ImageFact::Published(version)) => Some(*version),
        Err(error) => {
            report_fact(report, node.at, &error);
            return None;
        }
    };
    let disk_follows = !root.section("builder", BUILDER).section("qemu", QEMU).has("disk");
    Some(Base::Image(ImageBase { reference, image, version, disk_follows }))
}

fn file(
    report: &mut Report,
    node: &Node,
    given: Option<Digest>,
    world: &World<'_>,
    allowed: &[String],
) -> Option<Qcow2Source> {
    let path = node.text()?;
    match world.facts.input(report.file(node.at.file), &path, allowed) {
        Err(error) => report_fact(report, node.at, &error),
        Ok(fact) if fact.directory => report.error(node.at, format!("`{path}` is a directory, not a disk image")),
        Ok(fact) if given.is_some_and(|given| given != fact.digest) => {
            report.error(node.at, format!("`{path}` has the digest {}, not the one in `sha256`", fact.digest));
        }
        Ok(fact) => return Some(Qcow2Source::File { path, resolved: fact.path, digest: fact.digest }),
    }
    None
}

fn check_url(report: &mut Report, node: &Node, url: &str, schemes: &[&str]) {
    let Some(rest) = schemes.iter().find_map(|scheme| url.strip_prefix(scheme)) else {
        report.error(node.at, format!("the URL must begin with {}", crate::shape::list(schemes)));
        return;
    };
    let authority = rest.split('/').next().unwrap_or_default();
    if url.chars().any(|c| c.is_whitespace() || c.is_control()) || rest.is_empty() {
        report.error(node.at, "the URL is incomplete or holds white space");
    } else if authority.contains('@') {
        let help = "a plan and a recipe are not secret; use an address that needs no password";
        report.error_with_help(node.at, "the URL holds a user name or a password", help);
    }
}

pub(super) fn builder(report: &mut Report, root: Section<'_>, base: Option<&Base>) -> Option<Builder> {
    if let Some(section) = ec2::section(root) {
        if let Some(node) = root.section("builder", BUILDER).node("qemu") {
            report.error(node.at, "there are two builders; a bake has exactly one machine");
            return None;
        }
        return ec2::builder(report, section);
    }
    let least = if matches!(base, Some(Base::Debian(_))) { LEAST_DEBIAN_DISK } else { LEAST_DISK };
    let qemu = root.section("builder", BUILDER).section("qemu", QEMU);
    let memory = size(report, qemu, "memory", LEAST_MEMORY, MOST_MEMORY);
    let mut disk = size(report, qemu, "disk", least, MOST_DISK);
    if let Some(Base::Image(ImageBase { version: Some(version), disk_follows, .. })) = base {
        if *disk_follows {
            disk = disk.map(|disk| disk.max(version.size));
        } else if let Some((node, _)) = qemu.node("disk").zip(disk.filter(|disk| *disk < version.size)) {
            report.error(node.at, format!("`disk` must be at least {}, as large as that of the base", version.size));
        }
    }
    Some(Builder::Qemu(QemuMachine {
        memory: memory?,
        cpus: qemu.integer("cpus")?,
        disk: disk?,
        accelerator: match qemu.string("accelerator")?.as_str() {
            "kvm" => Accelerator::Kvm,
            "tcg" => Accelerator::Tcg,
            _ => Accelerator::Auto,
        },
        checkpoints: match qemu.string("checkpoints")?.as_str() {
            "disk" => CheckpointKind::Disk,
            _ => CheckpointKind::Memory,
        },
        boot_timeout: qemu.duration("boot_timeout")?,
        shutdown_timeout: qemu.duration("shutdown_timeout")?,
    }))
}

fn size(report: &mut Report, section: Section<'_>, name: &str, least: ByteSize, most: ByteSize) -> Option<ByteSize> {
    let size = section.size(name)?;
    if let Some(node) = section.node(name) {
        if size < least || size > most {
            report.error(node.at, format!("`{name}` must be from {least} to {most}"));
        } else if size.bytes() % ByteSize::mib(1).bytes() != 0 {
            report.error(node.at, format!("`{name}` must be a multiple of 1 MiB"));
        }
    }
    Some(size)
}
