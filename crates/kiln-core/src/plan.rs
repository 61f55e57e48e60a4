//! A plan: everything a bake will do, in order, as one value that prints, hashes and compares.

mod ec2;

use std::{collections::BTreeMap, time::Duration};

pub use ec2::{Address, Ami, AmiBase, AmiWish, Ec2Machine, Which};
use serde::{Deserialize, Serialize};

use crate::{
    ByteSize, ChannelName, Digest, ImageName, Secret, Version,
    artifact::BootRecord,
    manifest::{Manifest, RunsOn},
};

/// What one bake of one image will do.
#[derive(Debug, Clone, Serialize)]
pub struct Plan {
    pub image: ImageName,
    pub version: VersionSpec,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// The matrix member this is: axis to value, empty without a matrix.
    pub member: BTreeMap<String, String>,
    /// The member's values in the order of the axes as written, joined by `-`: `bookworm-small`. Empty without a matrix.
    pub member_name: String,
    pub base: Base,
    pub builder: Builder,
    pub steps: Vec<Step>,
    pub checks: Vec<Check>,
    /// Hygiene findings that are accepted, by name, with a reason.
    pub waivers: Vec<Waiver>,
    /// Files to write besides the qcow2.
    pub outputs: Vec<OutputFormat>,
    pub publish: Publish,
    /// Over every input that can change the image. The same on any machine.
    pub recipe: Digest,
    /// Values of the other variables by name, as text; what they change is in the steps already.
    #[serde(skip)]
    pub variables: BTreeMap<String, String>,
    /// Values of sensitive variables by name; never serialised, never part of the recipe.
    #[serde(skip)]
    pub secrets: BTreeMap<String, Secret>,
}

impl Plan {
    /// The plan on a base that was built meanwhile; without a base of the registry it stays as it is.
    #[must_use]
    pub fn on(mut self, version: ImageVersion) -> Self {
        let Base::Image(base) = &mut self.base else { return self };
        if let Builder::Qemu(machine) = &mut self.builder
            && base.disk_follows
        {
            machine.disk = machine.disk.max(version.size);
        }
        base.version = Some(version);
        self.recipe = crate::template::recipe(&self);
        self
    }

    /// The image that has to be built before this plan can be baked.
    pub fn awaited(&self) -> Option<&ImageName> {
        match &self.base {
            Base::Image(ImageBase { image, version: None, .. }) => Some(image),
            _ => None,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum VersionSpec {
    Fixed(Version),
    /// Calendar version with a counter: `2026.11.21.1`; chosen when the bake publishes.
    Auto,
}

/// What a bake starts from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Base {
    Debian(DebianBase),
    Qcow2(Qcow2Base),
    Image(ImageBase),
    Ami(AmiBase),
}

/// A Debian system from Debian's own packages.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DebianBase {
    /// `bookworm` or `trixie`.
    pub suite: String,
    /// Package mirror. `None`: the host's own sources where it is Debian, else the default mirror.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mirror: Option<String>,
    /// Packages besides the built-in set.
    pub packages: Vec<String>,
}

/// A disk image made elsewhere.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Qcow2Base {
    #[serde(flatten)]
    pub source: Qcow2Source,
    pub login: Login,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Qcow2Source {
    File {
        /// As written in the template.
        path: String,
        /// Absolute, on the build host. Not part of the recipe.
        #[serde(skip)]
        resolved: String,
        digest: Digest,
    },
    Url {
        url: String,
        digest: Digest,
    },
}

/// A version of an image of the registry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ImageBase {
    /// As written: `golden-base@stable`.
    pub reference: String,
    pub image: ImageName,
    /// `None`: it is built first, in the same run.
    #[serde(flatten)]
    pub version: Option<ImageVersion>,
    /// The template says nothing of a disk: it is at least as large as that of the base.
    #[serde(skip)]
    pub disk_follows: bool,
}

/// A published version as a base.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ImageVersion {
    pub version: Version,
    /// The disk digest.
    pub disk: Digest,
    /// The SHA-256 of its qcow2. Another kiln may compress the same disk otherwise: not part of the recipe.
    pub qcow2: Digest,
    /// Virtual size of its disk.
    pub size: ByteSize,
    pub boot: BootRecord,
}

/// How kiln gets its key into the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Login {
    /// systemd credentials over SMBIOS; needs systemd 252 or later in the guest and DHCP by itself.
    Credentials,
    /// A cloud-init `NoCloud` seed.
    Nocloud,
}

/// The machine a bake runs in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[expect(clippy::large_enum_variant, reason = "a plan has one")]
pub enum Builder {
    Qemu(QemuMachine),
    Ec2(Ec2Machine),
}

impl Builder {
    /// The local machine, if it is one.
    pub fn qemu(&self) -> Option<&QemuMachine> {
        match self {
            Self::Qemu(machine) => Some(machine),
            Self::Ec2(_) => None,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct QemuMachine {
    pub memory: ByteSize,
    pub cpus: u32,
    /// Size of the guest's disk.
    pub disk: ByteSize,
    pub accelerator: Accelerator,
    pub checkpoints: CheckpointKind,
    #[serde(serialize_with = "seconds")]
    pub boot_timeout: Duration,
    #[serde(serialize_with = "seconds")]
    pub shutdown_timeout: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Accelerator {
    /// Whatever the calibration finds to work.
    Auto,
    Kvm,
    Tcg,
}

/// What checkpoints hold.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum CheckpointKind {
    /// Disk and memory: the machine goes on where it was.
    #[default]
    Memory,
    /// The disk: the machine boots from it.
    Disk,
}

/// One use of a provisioner.
#[derive(Debug, Clone, Serialize)]
pub struct Step {
    /// From 1.
    pub number: usize,
    pub name: String,
    pub provisioner: String,
    pub provisioner_digest: Digest,
    pub origin: String,
    pub runs_on: RunsOn,
    /// The step ends in a reboot that kiln waits for.
    pub reboots: bool,
    /// Set when `when` is false: the step is listed and not run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub skipped: Option<String>,
    /// Options with defaults filled in. A `path` or `text` option stands as written; see `inputs`.
    pub options: serde_json::Value,
    pub inputs: Vec<Input>,
    pub env: BTreeMap<String, String>,
    /// Environment name to the name of the sensitive variable whose value it gets.
    pub secrets: BTreeMap<String, String>,
    #[serde(serialize_with = "seconds")]
    pub timeout: Duration,
    pub retries: u32,
    /// How long a checkpoint after this step may stand for running it.
    pub cache: Caching,
    #[serde(skip)]
    pub manifest: Manifest,
}

/// Whether a step may be taken from a checkpoint instead of run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Caching {
    /// It runs in every bake, and with it everything after it.
    Never,
    /// Until this long after it ran: it may have read the outside world.
    For(#[serde(serialize_with = "seconds")] Duration),
}

/// A local file or directory that a step takes along.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Input {
    /// JSON pointer into the step's options: `/files/0/source`.
    pub option: String,
    /// As written in the template.
    pub path: String,
    /// Absolute, on the build host. Not part of the recipe.
    #[serde(skip)]
    pub resolved: String,
    pub directory: bool,
    pub digest: Digest,
    pub bytes: u64,
}

/// A test that must hold before sealing and again on the sealed artifact.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    pub number: usize,
    pub name: String,
    /// Run after provisioning.
    pub on_guest: bool,
    /// Run on the sealed artifact, booted on a throw-away overlay.
    pub on_artifact: bool,
    /// How long the check may keep failing before it counts.
    #[serde(serialize_with = "seconds")]
    pub within: Duration,
    #[serde(flatten)]
    pub kind: CheckKind,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase", tag = "use")]
pub enum CheckKind {
    Command {
        run: String,
        exit: i32,
        contains: Option<String>,
    },
    /// Asked from inside the guest's network, through the SSH connection.
    Http {
        url: String,
        status: u16,
        contains: Option<String>,
    },
    Port {
        port: u16,
        address: String,
        open: bool,
    },
    Service {
        name: String,
        running: bool,
        enabled: Option<bool>,
    },
    File {
        path: String,
        exists: bool,
        mode: Option<String>,
        owner: Option<String>,
        group: Option<String>,
        contains: Option<String>,
        sha256: Option<Digest>,
    },
    Package {
        name: String,
        installed: bool,
        version: Option<String>,
    },
    User {
        name: String,
        exists: bool,
        shell: Option<String>,
        home: Option<String>,
        groups: Vec<String>,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Waiver {
    /// `H21`.
    pub finding: String,
    pub reason: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum OutputFormat {
    #[serde(rename = "raw")]
    Raw,
    #[serde(rename = "raw.zst")]
    RawZstd,
    #[serde(rename = "vmdk")]
    Vmdk,
    #[serde(rename = "vhd")]
    Vhd,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Default)]
pub struct Publish {
    /// Publish to the local registry; on unless the template turns it off.
    pub registry: bool,
    /// Lay unchanged files where the version before has them.
    pub placement: bool,
    /// Make AMIs of what is in the registry.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ami: Option<AmiTarget>,
}

/// What no tag of a template's own begins with, in whatever case: these are AWS's and kiln's.
pub fn reserved_tag(key: &str) -> Option<&'static str> {
    ["aws:", "kiln:"].into_iter().find(|prefix| key.to_ascii_lowercase().starts_with(prefix))
}

/// The AMIs of a version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AmiTarget {
    /// By name; at least one.
    pub regions: BTreeMap<String, AmiRegion>,
    /// Accounts, and ARNs of organisations and units, that may launch them.
    pub share_with: Vec<String>,
    pub public: bool,
    /// Seconds from when the image was baked until it is no longer offered.
    pub deprecate_after: Option<u64>,
    pub protect: bool,
    /// Besides kiln's own.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tags: BTreeMap<String, String>,
    /// Moves when all required regions have the AMI.
    pub channel: Option<ChannelName>,
    /// Points to the AMI, in each region, after that.
    pub parameter: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AmiRegion {
    /// ARN of the key that encrypts there.
    pub kms_key: Option<String>,
    /// Whether the channel waits for it.
    pub required: bool,
}

fn seconds<S: serde::Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(duration.as_secs())
}
