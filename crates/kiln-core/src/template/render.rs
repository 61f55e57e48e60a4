//! The readable text of a plan: what `kiln plan` prints and what the goldens hold.

use std::{collections::BTreeMap, fmt::Write as _, time::Duration};

use serde_json::Value as Json;

use crate::{
    ByteSize, duration,
    plan::{
        AmiBase, AmiRegion, AmiTarget, Base, Builder, Caching, Check, CheckKind, CheckpointKind, Ec2Machine,
        ImageVersion, OutputFormat, Plan, Qcow2Source, Step, VersionSpec, Which,
    },
};

/// Longest value that is shown in full.
const LONGEST: usize = 300;
/// The default of `cache`, which is not shown.
const DAY: Duration = Duration::from_hours(24);

impl Plan {
    /// What a bake of this plan would do, in order. The same on every machine.
    pub fn render(&self) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = self.write(&mut text);
        text
    }

    fn write(&self, text: &mut String) -> std::fmt::Result {
        match &self.version {
            VersionSpec::Fixed(version) => writeln!(text, "image {} {version}", self.image)?,
            VersionSpec::Auto => writeln!(text, "image {} (version chosen at publishing)", self.image)?,
        }
        if let Some(description) = &self.description {
            writeln!(text, "  {}", line(description))?;
        }
        if !self.member.is_empty() {
            let axes: Vec<String> = self.member.iter().map(|(axis, value)| format!("{axis}={value}")).collect();
            writeln!(text, "member {} ({})", self.member_name, axes.join(", "))?;
        }
        writeln!(text, "base {}", base(&self.base))?;
        writeln!(text, "machine {}", machine(&self.builder))?;
        writeln!(text, "\nsteps")?;
        self.steps.iter().try_for_each(|step| write_step(text, step))?;
        if self.steps.is_empty() {
            writeln!(text, "  none")?;
        }
        writeln!(text, "\nchecks")?;
        self.checks.iter().try_for_each(|check| write_check(text, check))?;
        if self.checks.is_empty() {
            writeln!(text, "  none")?;
        }
        for waiver in &self.waivers {
            writeln!(text, "\nwaived {}: {}", waiver.finding, line(&waiver.reason))?;
        }
        let outputs: Vec<&str> =
            std::iter::once("qcow2").chain(self.outputs.iter().copied().map(format_name)).collect();
        writeln!(text, "\noutput {}", outputs.join(", "))?;
        writeln!(text, "publish {}", if self.publish.registry { "local registry" } else { "nowhere" })?;
        self.publish.ami.iter().try_for_each(|target| write_amis(text, target))?;
        match self.awaited() {
            Some(image) => writeln!(text, "recipe known once {image} is built"),
            None => writeln!(text, "recipe {}", self.recipe),
        }
    }
}

fn write_amis(text: &mut String, target: &AmiTarget) -> std::fmt::Result {
    let region = |(name, region): (&String, &AmiRegion)| {
        let key = region.kms_key.as_ref().map(|key| format!(", key {}", line(key))).unwrap_or_default();
        format!("{name}{}{key}", if region.required { "" } else { " (not required)" })
    };
    writeln!(text, "  AMIs in {}", target.regions.iter().map(region).collect::<Vec<_>>().join(", "))?;
    let whom = target.share_with.iter().map(String::as_str).chain(target.public.then_some("EVERYBODY"));
    let whom: Vec<_> = whom.collect();
    if !whom.is_empty() {
        writeln!(text, "    launched also by {}", line(&whom.join(", ")))?;
    }
    if let Some(seconds) = target.deprecate_after {
        let after = match (seconds / 86_400, seconds % 86_400) {
            (days, 0) => format!("{days} days"),
            _ => duration::format(Duration::from_secs(seconds)),
        };
        writeln!(text, "    deprecated {after} after the bake")?;
    }
    if target.protect {
        writeln!(text, "    protected from being deregistered")?;
    }
    if !target.tags.is_empty() {
        writeln!(text, "    tagged {}", line(&pairs(&target.tags)))?;
    }
    if let Some(channel) = &target.channel {
        writeln!(text, "    then channel {channel}")?;
    }
    if let Some(parameter) = &target.parameter {
        writeln!(text, "    then parameter {parameter}")?;
    }
    Ok(())
}

fn base(base: &Base) -> String {
    match base {
        Base::Debian(debian) => {
            let mut text = format!("debian {}", debian.suite);
            if let Some(mirror) = &debian.mirror {
                let _ = write!(text, " from {}", line(mirror));
            }
            if !debian.packages.is_empty() {
                let _ = write!(text, " with {}", debian.packages.join(", "));
            }
            text
        }
        Base::Qcow2(qcow2) => {
            let login = format!("{:?}", qcow2.login).to_lowercase();
            let (place, digest) = match &qcow2.source {
                Qcow2Source::File { path, digest, .. } => (path, digest),
                Qcow2Source::Url { url, digest } => (url, digest),
            };
            format!("qcow2 {} ({digest}), login by {login}", line(place))
        }
        Base::Image(base) => match &base.version {
            None => format!("image {}, built first", line(&base.reference)),
            Some(ImageVersion { version, disk, boot, .. }) => {
                let login = format!("{:?}", boot.login).to_lowercase();
                format!("image {} = {version} (disk {disk}), login by {login}", line(&base.reference))
            }
        },
        Base::Ami(AmiBase { region, wanted, found }) => {
            let wanted = line(&wanted.to_string());
            match found {
                None => format!("ami {wanted} in {region}, looked up when it is baked"),
                Some(found) if wanted.starts_with(&found.ami) => format!("ami {wanted} in {region}"),
                Some(found) => format!("ami {wanted} in {region} = {}", line(&found.ami)),
            }
        }
    }
}

fn machine(builder: &Builder) -> String {
    match builder {
        Builder::Qemu(machine) => format!(
            "qemu: memory {}, {} CPUs, disk {}, accelerator {}, boot within {}, shut down within {}{}",
            machine.memory,
            machine.cpus,
            machine.disk,
            format!("{:?}", machine.accelerator).to_lowercase(),
            duration::format(machine.boot_timeout),
            duration::format(machine.shutdown_timeout),
            if machine.checkpoints == CheckpointKind::Disk { ", checkpoints of the disk alone" } else { "" }
        ),
        Builder::Ec2(machine) => ec2(machine),
    }
}

fn ec2(machine: &Ec2Machine) -> String {
    let which = |what: &str, which: &Which| match which {
        Which::Default => String::new(),
        Which::Id(id) => format!(", {what} {}", line(id)),
        Which::Filters(filters) => format!(", {what} with {}", line(&pairs(filters))),
    };
    let or = |given: Option<&String>, before: &str| {
        given.map_or_else(String::new, |given| format!(", {before} {}", line(given)))
    };
    let tags =
        if machine.tags.is_empty() { String::new() } else { format!(", tagged {}", line(&pairs(&machine.tags))) };
    let zones = if machine.zones.is_empty() { String::new() } else { format!(" ({})", machine.zones.join(", ")) };
    format!(
        "ec2 in {}{zones}: {}{}{}{}, {} of encrypted gp3{}{}{}{tags}, boot within {}, shut down within {}, gone after {}",
        machine.region,
        machine.instance_types.join(" or "),
        if machine.spot { ", spot if there is one" } else { "" },
        which("VPC", &machine.vpc),
        which("subnet", &machine.subnet),
        machine.volume.map_or_else(|| "the AMI's size".to_owned(), |volume| volume.to_string()),
        or(machine.kms_key.as_ref(), "key"),
        or(machine.profile.as_ref(), "profile"),
        if machine.user_data.is_some() { ", with user data" } else { "" },
        duration::format(machine.boot_timeout),
        duration::format(machine.shutdown_timeout),
        duration::format(machine.lifetime),
    )
}

/// `a=b c=d`
fn pairs(map: &BTreeMap<String, String>) -> String {
    map.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(" ")
}

fn write_step(text: &mut String, step: &Step) -> std::fmt::Result {
    let named = if step.name == step.provisioner { String::new() } else { format!(" ({})", step.provisioner) };
    let host = if step.runs_on == crate::manifest::RunsOn::Host { " on the build host" } else { "" };
    let reboots = if step.reboots { ", reboots" } else { "" };
    let retries = if step.retries > 0 { format!(", {} retries", step.retries) } else { String::new() };
    let limit = duration::format(step.timeout);
    let cache = match step.cache {
        Caching::Never => ", never from a checkpoint".to_owned(),
        Caching::For(age) if age == DAY => String::new(),
        Caching::For(age) => format!(", from a checkpoint for {}", duration::format(age)),
    };
    writeln!(text, "{:>3}. {}{named}{host}, at most {limit}{retries}{reboots}{cache}", step.number, line(&step.name))?;
    if let Some(reason) = &step.skipped {
        writeln!(text, "     skipped: {}", line(reason))?;
    }
    write_options(text, "     ", &step.options)?;
    for (name, value) in &step.env {
        writeln!(text, "     env {name} = {}", short(&Json::from(value.as_str())))?;
    }
    for (name, variable) in &step.secrets {
        writeln!(text, "     secret {name} from {variable}")?;
    }
    for input in &step.inputs {
        let kind = if input.directory { "directory" } else { "file" };
        let size = ByteSize(input.bytes).approximate();
        writeln!(text, "     takes {kind} {} ({size}, {})", line(&input.path), input.digest.short())?;
    }
    Ok(())
}

fn write_options(text: &mut String, indent: &str, options: &Json) -> std::fmt::Result {
    for (name, value) in options.as_object().into_iter().flatten() {
        match value {
            Json::Array(items) if items.iter().any(Json::is_object) => {
                writeln!(text, "{indent}{name}")?;
                items.iter().try_for_each(|item| writeln!(text, "{indent}  - {}", short(item)))?;
            }
            Json::Array(items) if items.is_empty() => {}
            Json::Object(map) if map.is_empty() => {}
            value => writeln!(text, "{indent}{name} = {}", short(value))?,
        }
    }
    Ok(())
}

fn write_check(text: &mut String, check: &Check) -> std::fmt::Result {
    let places = match (check.on_guest, check.on_artifact) {
        (true, true) => "guest and artifact",
        (true, false) => "guest",
        _ => "artifact",
    };
    let within = duration::format(check.within);
    writeln!(text, "{:>3}. {}, on {places}, within {within}", check.number, line(&check.name))?;
    writeln!(text, "     {}", kind(&check.kind))
}

fn kind(kind: &CheckKind) -> String {
    let mut wanted = Vec::new();
    let subject = match kind {
        CheckKind::Command { run, exit, contains } => {
            wanted.push(format!("exits with {exit}"));
            wanted.extend(contains.iter().map(|text| format!("prints {text:?}")));
            format!("`{}`", line(run))
        }
        CheckKind::Http { url, status, contains } => {
            wanted.push(format!("answers {status}"));
            wanted.extend(contains.iter().map(|text| format!("contains {text:?}")));
            url.clone()
        }
        CheckKind::Port { port, address, open } => {
            wanted.push(if *open { "accepts connections" } else { "refuses connections" }.to_owned());
            format!("{address} port {port}")
        }
        CheckKind::Service { name, running, enabled } => {
            wanted.push(if *running { "is running" } else { "is stopped" }.to_owned());
            wanted.extend(enabled.map(|on| if on { "is enabled" } else { "is disabled" }.to_owned()));
            format!("service {name}")
        }
        CheckKind::File { path, exists, mode, owner, group, contains, sha256 } => {
            wanted.push(if *exists { "exists" } else { "does not exist" }.to_owned());
            wanted.extend(mode.iter().map(|mode| format!("has mode {mode}")));
            wanted.extend(owner.iter().map(|owner| format!("belongs to {owner}")));
            wanted.extend(group.iter().map(|group| format!("belongs to group {group}")));
            wanted.extend(contains.iter().map(|text| format!("contains {text:?}")));
            wanted.extend(sha256.iter().map(|digest| format!("has {digest}")));
            format!("file {path}")
        }
        CheckKind::Package { name, installed, version } => {
            wanted.push(if *installed { "is installed" } else { "is not installed" }.to_owned());
            wanted.extend(version.iter().map(|version| format!("has version {version}")));
            format!("package {name}")
        }
        CheckKind::User { name, exists, shell, home, groups } => {
            wanted.push(if *exists { "exists" } else { "does not exist" }.to_owned());
            wanted.extend(shell.iter().map(|shell| format!("has shell {shell}")));
            wanted.extend(home.iter().map(|home| format!("has home {home}")));
            wanted.extend((!groups.is_empty()).then(|| format!("is in {}", groups.join(", "))));
            format!("user {name}")
        }
    };
    line(&format!("{subject} {}", wanted.join(", ")))
}

fn format_name(format: OutputFormat) -> &'static str {
    match format {
        OutputFormat::Raw => "raw",
        OutputFormat::RawZstd => "raw.zst",
        OutputFormat::Vmdk => "vmdk",
        OutputFormat::Vhd => "vhd",
    }
}

/// JSON on one line, cut where it gets long. JSON escapes line breaks, and [`line`] the rest.
fn short(value: &Json) -> String {
    line(&value.to_string())
}

/// One line without control characters.
fn line(text: &str) -> String {
    let first = text.lines().next().unwrap_or_default();
    let cut = first.len() < text.trim_end().len() || first.chars().count() > LONGEST;
    let mut shown: String = first.chars().take(LONGEST).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
    if cut {
        shown.push_str(" ..");
    }
    shown
}
