//! What may stand in a template: every key with its kind, its default and its documentation.
//!
//! The parser's messages, the JSON Schema and the reference are all made from these tables.

/// One key of a table.
#[derive(Debug)]
pub(crate) struct Key {
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    pub(crate) need: Need,
    pub(crate) doc: &'static str,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Need {
    Required,
    Optional,
    /// As it would be written, without quotes.
    Default(&'static str),
}

#[derive(Debug)]
pub(crate) enum Kind {
    String,
    Bool,
    Integer(i64, i64),
    Duration,
    Size,
    /// A duration, or `false`.
    Caching,
    /// One of these words.
    Word(&'static [&'static str]),
    /// A list of these words.
    Words(&'static [&'static str]),
    Strings,
    /// Names to strings.
    StringMap,
    /// An expression without braces, or a boolean.
    Condition,
    /// Any value.
    Any,
    Table(&'static [Key]),
    /// An array of tables: `[[key]]`.
    Tables(&'static [Key]),
    /// An array of tables whose other keys are the options of what `use` names.
    Steps(&'static [Key]),
    /// An array of tables whose other keys depend on the word in `use`.
    Variants(&'static [Key], &'static [Variant]),
    /// Tables under names of the author's choice: `[variables.<name>]`.
    Named(&'static [Key]),
    /// Names of the author's choice to lists.
    Axes,
}

/// What else may stand in a table whose `use` is `name`.
#[derive(Debug)]
pub(crate) struct Variant {
    pub(crate) name: &'static str,
    pub(crate) doc: &'static str,
    pub(crate) keys: &'static [Key],
}

const fn required(name: &'static str, kind: Kind, doc: &'static str) -> Key {
    Key { name, kind, need: Need::Required, doc }
}

const fn optional(name: &'static str, kind: Kind, doc: &'static str) -> Key {
    Key { name, kind, need: Need::Optional, doc }
}

const fn with_default(name: &'static str, kind: Kind, default: &'static str, doc: &'static str) -> Key {
    Key { name, kind, need: Need::Default(default), doc }
}

/// The suites that `base.debian` can build.
pub(crate) const SUITES: &[&str] = &["bookworm", "trixie"];
/// The types of a variable.
pub(crate) const TYPES: &[&str] = &["string", "number", "bool", "list", "map"];

/// How long a step may be taken from a checkpoint unless it says otherwise.
pub(crate) const DAY: &str = "1 day";

pub(crate) const EXTENDS: &str = "extends";
pub(crate) const INCLUDE: &str = "include";
pub(crate) const REMOVE: &str = "remove";
pub(crate) const VARIABLES: &str = "variables";
pub(crate) const MATRIX: &str = "matrix";

/// A template file.
pub(crate) const TEMPLATE: &[Key] = &[
    optional(
        EXTENDS,
        Kind::String,
        "The template this one builds on: a directory with a `template.toml`, or a file; relative to this file.",
    ),
    optional(
        INCLUDE,
        Kind::Strings,
        "Parts to take in before this file: paths of `.toml` files of the same shape, relative to this file.",
    ),
    optional("allow_paths", Kind::Strings, "Directories outside the template's own from which steps may take files."),
    required("image", Kind::Table(IMAGE), "What the image is called."),
    optional(
        VARIABLES,
        Kind::Named(VARIABLE),
        "Values that the caller may set with `--var`, `--var-file` or `KILN_VAR_<NAME>`. The table's name is the variable's name.",
    ),
    optional(
        MATRIX,
        Kind::Axes,
        "Axes to lists of values: one image for every combination. A value is a string, an integer, or a table with a \
         `name`; expressions see it as `matrix.<axis>`. The members' `image.name` must differ.",
    ),
    required("base", Kind::Table(BASE), "What the bake starts from: exactly one of the tables below."),
    optional("builder", Kind::Table(BUILDER), "The machine the bake runs in."),
    optional(
        "provision",
        Kind::Steps(STEP),
        "The steps, in order. All keys that are not listed here are options of the provisioner.",
    ),
    optional(
        "check",
        Kind::Variants(CHECK, CHECKS),
        "Tests that must hold after provisioning and again on the sealed artifact, booted on a throw-away overlay, or as an instance of EC2.",
    ),
    optional("waive", Kind::Tables(WAIVER), "Hygiene findings that are accepted."),
    optional(REMOVE, Kind::Table(REMOVALS), "What of `extends` and `include` is left out, by name."),
    optional("output", Kind::Table(OUTPUT), "Files to write besides the qcow2."),
    optional("publish", Kind::Table(PUBLISH), "Where the sealed image goes."),
];

pub(crate) const IMAGE: &[Key] = &[
    required("name", Kind::String, "Name of the image: `a-z`, `0-9`, `.`, `_`, `-`, at most 128."),
    with_default(
        "version",
        Kind::String,
        "auto",
        "A version such as `1.4.0`, or `auto`: the day and a counter, `2026.11.21.1`. A version is published once.",
    ),
    optional("description", Kind::String, "One line for people."),
];

pub(crate) const VARIABLE: &[Key] = &[
    with_default("type", Kind::Word(TYPES), "string", "Type of the value."),
    optional(
        "default",
        Kind::Any,
        "The value when the caller gives none; taken as it stands. Without it the variable must be set.",
    ),
    optional("description", Kind::String, "One line for people."),
    with_default(
        "sensitive",
        Kind::Bool,
        "false",
        "The value is a secret: a string that may be used only in a step's `secrets`, and never appears in a plan, a recipe or a log.",
    ),
    optional("validation", Kind::Tables(VALIDATION), "Conditions that the value must meet."),
];

pub(crate) const VALIDATION: &[Key] = &[
    required("condition", Kind::Condition, "An expression that must be true, such as `port > 1023`."),
    required("message", Kind::String, "What to tell when it is not."),
];

pub(crate) const BASE: &[Key] = &[
    optional("debian", Kind::Table(DEBIAN), "A Debian system from Debian's own packages."),
    optional("qcow2", Kind::Table(QCOW2), "A disk image made elsewhere: `path`, or `url` with its `sha256`."),
    optional(
        "image",
        Kind::String,
        "An image of the registry: `golden-base` (its newest version), `golden-base@1.4.0` or a channel, `golden-base@stable`. When it \
         is built in the same run, what was just built. With the builder `ec2`, the AMI that the version has in its region.",
    ),
    optional(
        "ami",
        Kind::Table(AMI),
        "An AMI, for the builder `ec2`: `id`, `name` with its `owner`, or `parameter`. What the last two mean is written into \
         `kiln.lock` beside the template and stays until `--relock`.",
    ),
];

pub(crate) const AMI: &[Key] = &[
    optional("id", Kind::String, "Exactly this one: `ami-0123456789abcdef0`."),
    optional(
        "name",
        Kind::String,
        "The newest one for x86-64 whose name fits; `*` and `?` stand for any characters. Anybody can publish an AMI of any name, so `owner` is mandatory.",
    ),
    optional(
        "parameter",
        Kind::String,
        "A parameter of Parameter Store that holds an id: `/aws/service/debian/release/12/latest/amd64`.",
    ),
    optional("owner", Kind::String, "Whose it must be: an account number, `amazon`, `aws-marketplace` or `self`."),
];

pub(crate) const DEBIAN: &[Key] = &[
    required("suite", Kind::Word(SUITES), "The Debian release."),
    optional(
        "mirror",
        Kind::String,
        "URL of the package mirror. Without it: the build host's own sources where it is Debian, else Debian's default.",
    ),
    optional("packages", Kind::Strings, "Packages besides the built-in set."),
];

pub(crate) const QCOW2: &[Key] = &[
    optional("path", Kind::String, "A local file, relative to the template."),
    optional("url", Kind::String, "Where to download it from (`http`, `https`)."),
    optional("sha256", Kind::String, "The SHA-256 of the file, 64 hex digits. Mandatory with `url`."),
    with_default(
        "login",
        Kind::Word(&["nocloud", "credentials"]),
        "nocloud",
        "How kiln gets its key in: a cloud-init NoCloud seed, or systemd credentials (systemd 252 or later, DHCP by itself).",
    ),
];

pub(crate) const BUILDER: &[Key] = &[
    optional("qemu", Kind::Table(QEMU), "A local QEMU virtual machine."),
    optional(
        "ec2",
        Kind::Table(EC2),
        "An EC2 instance, on an AMI ([aws.md](aws.md)); needs a kiln with the cargo feature `aws`.",
    ),
];

pub(crate) const EC2: &[Key] = &[
    required("region", Kind::String, "Where: `eu-west-1`."),
    required("instance_types", Kind::Strings, "Types for x86-64, tried in this order where there is no capacity."),
    optional("zones", Kind::Strings, "Availability zones, tried in this order for every type; by default EC2 chooses."),
    optional("subnet", Kind::String, "Id of the subnet; by default one of the VPC's."),
    optional("subnet_filter", Kind::StringMap, "Finds the subnets by EC2's filters: `{ \"tag:Name\" = \"build\" }`."),
    optional("vpc", Kind::String, "Id of the VPC; by default that of the subnet, else the account's default."),
    optional("vpc_filter", Kind::StringMap, "Finds the VPC by EC2's filters; exactly one must fit."),
    with_default("spot", Kind::Bool, "false", "A spot instance where there is one, else on demand."),
    optional(
        "volume",
        Kind::Size,
        "Size of the root volume, whole GiB; by default as the AMI has it. It is gp3 and encrypted in any case.",
    ),
    optional("kms_key", Kind::String, "Encrypts the root volume; by default the account's key for EBS."),
    optional("profile", Kind::String, "Instance profile, by name or ARN: what the machine itself may do in AWS."),
    optional(
        "tags",
        Kind::StringMap,
        "Tags besides kiln's own on all that is made for the bake: instance, volume, snapshot, key pair, security group.",
    ),
    optional("user_data", Kind::String, "User data for cloud-init (`#cloud-config` or a script), besides kiln's own."),
    with_default("ssh_port", Kind::Integer(1, 65535), "22", "Where the guest's SSH server listens."),
    with_default(
        "address",
        Kind::Word(&["public", "private"]),
        "public",
        "The address of the instance that kiln connects to.",
    ),
    optional(
        "source",
        Kind::String,
        "The IPv4 network that may connect to the SSH port, `198.51.100.7/32`; by default the address that this machine is seen at: for \
         `public` as `checkip.amazonaws.com` says, for `private` that of its interface. The whole internet is refused.",
    ),
    optional(
        "proxy_command",
        Kind::String,
        "A shell command whose input and output are the connection: through a bastion, `ssh -W %h:%p bastion.example.com`, or Session Manager, `aws ssm \
         start-session --target %i --document-name AWS-StartSSHSession --parameters portNumber=%p`. `%h` is the address, `%p` the port, `%i` the \
         instance. Without `source`, the security group then lets nobody in.",
    ),
    with_default(
        "lifetime",
        Kind::Duration,
        "2h",
        "After this the guest shuts itself down and the instance is gone, whatever became of kiln; a reboot starts it anew.",
    ),
    with_default("boot_timeout", Kind::Duration, "10 min", "How long the guest may take until SSH answers."),
    with_default("shutdown_timeout", Kind::Duration, "10 min", "How long the guest may take to power off."),
];

pub(crate) const QEMU: &[Key] = &[
    with_default("memory", Kind::Size, "1 GiB", "Memory of the machine, at least 128 MiB."),
    with_default("cpus", Kind::Integer(1, 256), "2", "Processors of the machine."),
    with_default("disk", Kind::Size, "4 GiB", "Size of the image's disk; on `base.image` at least that of the base."),
    with_default(
        "accelerator",
        Kind::Word(&["auto", "kvm", "tcg"]),
        "auto",
        "`auto` calibrates: KVM if a tiny guest answers under it, else TCG.",
    ),
    with_default(
        "checkpoints",
        Kind::Word(&["memory", "disk"]),
        "memory",
        "What checkpoints hold: memory and disk, so that a build goes on where it was, or the disk alone. Those are smaller and are still good \
         after an update of QEMU, but the machine boots from them: what a step only started or left in memory is gone.",
    ),
    with_default("boot_timeout", Kind::Duration, "5 min", "How long the guest may take until SSH answers."),
    with_default("shutdown_timeout", Kind::Duration, "2 min", "How long the guest may take to power off."),
];

/// Every step, whatever its provisioner.
pub(crate) const STEP: &[Key] = &[
    required("use", Kind::String, "The provisioner: a directory of that name on the search path."),
    optional(
        "as",
        Kind::String,
        "Name of the step; the provisioner's name by default. A step of the same name in a child template replaces it.",
    ),
    optional(
        "when",
        Kind::Condition,
        "The step is listed but not run when this is false: `matrix.suite == \"trixie\"`.",
    ),
    optional("timeout", Kind::Duration, "Time limit of one attempt; the provisioner's own by default."),
    with_default(
        "retries",
        Kind::Integer(0, 20),
        "0",
        "Attempts after a failure; only for provisioners that declare `idempotent`.",
    ),
    with_default(
        "cache",
        Kind::Caching,
        DAY,
        "How long a checkpoint after this step may be used instead of running it: a duration, since steps read the outside \
         world. `false`: the step and all after it run in every bake.",
    ),
    optional("env", Kind::StringMap, "Environment of the provisioner."),
    optional("secrets", Kind::StringMap, "Environment from sensitive variables: `{ TOKEN = \"{{ token }}\" }`."),
];

/// Every check, whatever it tests.
pub(crate) const CHECK: &[Key] = &[
    required("use", Kind::Word(CHECK_NAMES), "What to test."),
    optional(
        "as",
        Kind::String,
        "Name of the check; made from what it tests by default. A check of the same name in a child template replaces it.",
    ),
    optional("when", Kind::Condition, "The check is left out when this is false."),
    with_default("on", Kind::Words(&["guest", "artifact"]), "guest, artifact", "Where it must hold."),
    with_default("within", Kind::Duration, "30s", "How long it may keep failing before that counts."),
];

pub(crate) const CHECK_NAMES: &[&str] = &["command", "http", "port", "service", "file", "package", "user"];

pub(crate) const CHECKS: &[Variant] = &[
    Variant {
        name: "command",
        doc: "A shell command ends with the expected status.",
        keys: &[
            required("run", Kind::String, "Text for the guest's `sh`."),
            with_default("exit", Kind::Integer(0, 255), "0", "The expected exit status."),
            optional("contains", Kind::String, "Text that its output must contain."),
        ],
    },
    Variant {
        name: "http",
        doc: "A web server answers, asked from inside the guest.",
        keys: &[
            required("url", Kind::String, "`http://localhost/`."),
            with_default("status", Kind::Integer(100, 599), "200", "The expected status."),
            optional("contains", Kind::String, "Text that the answer must contain."),
        ],
    },
    Variant {
        name: "port",
        doc: "Something listens, or nothing does.",
        keys: &[
            required("port", Kind::Integer(1, 65535), "TCP port."),
            with_default("address", Kind::String, "127.0.0.1", "Address in the guest."),
            with_default("open", Kind::Bool, "true", "Whether a connection must succeed."),
        ],
    },
    Variant {
        name: "service",
        doc: "A service is in the expected state.",
        keys: &[
            required("name", Kind::String, "Name of the unit."),
            with_default("running", Kind::Bool, "true", "Whether it must be active."),
            optional("enabled", Kind::Bool, "Whether it must start at boot."),
        ],
    },
    Variant {
        name: "file",
        doc: "A file is there, or is not, and is as expected.",
        keys: &[
            required("path", Kind::String, "Absolute path in the guest."),
            with_default("exists", Kind::Bool, "true", "Whether it must be there."),
            optional("mode", Kind::String, "Permission bits: `0644`."),
            optional("owner", Kind::String, "Name of the owner."),
            optional("group", Kind::String, "Name of the group."),
            optional("contains", Kind::String, "Text that it must contain."),
            optional("sha256", Kind::String, "SHA-256 of its content."),
        ],
    },
    Variant {
        name: "package",
        doc: "A package is installed, or is not.",
        keys: &[
            required("name", Kind::String, "Name of the package."),
            with_default("installed", Kind::Bool, "true", "Whether it must be installed."),
            optional("version", Kind::String, "The exact version."),
        ],
    },
    Variant {
        name: "user",
        doc: "An account is there, or is not, and is as expected.",
        keys: &[
            required("name", Kind::String, "Login name."),
            with_default("exists", Kind::Bool, "true", "Whether it must be there."),
            optional("shell", Kind::String, "Login shell."),
            optional("home", Kind::String, "Home directory."),
            optional("groups", Kind::Strings, "Groups it must be in."),
        ],
    },
];

pub(crate) const WAIVER: &[Key] = &[
    required("finding", Kind::String, "Name of the finding: `H21`."),
    required("reason", Kind::String, "Why it is acceptable; goes into `artifact.json`."),
];

pub(crate) const REMOVALS: &[Key] = &[
    optional("provision", Kind::Strings, "Names of steps."),
    optional("check", Kind::Strings, "Names of checks."),
    optional("waive", Kind::Strings, "Findings whose waiver is taken back."),
];

pub(crate) const OUTPUT: &[Key] =
    &[optional("formats", Kind::Words(&["raw", "raw.zst", "vmdk", "vhd"]), "Disk formats besides qcow2.")];

pub(crate) const PUBLISH: &[Key] = &[
    optional("registry", Kind::Table(REGISTRY), "The local registry."),
    optional(
        "ami",
        Kind::Table(AMI_TARGET),
        "AMIs of the version, made once it is in the registry ([aws.md](aws.md)).",
    ),
];

pub(crate) const AMI_TARGET: &[Key] = &[
    required(
        "regions",
        Kind::Named(AMI_REGION),
        "Where: a table for each region, which may be empty. The table's name is the region's name, `eu-west-1`.",
    ),
    optional(
        "share_with",
        Kind::Strings,
        "Who may launch them: accounts (twelve digits), organisations and organisational units (ARNs).",
    ),
    with_default("public", Kind::Bool, "false", "Everybody may launch them. Not together with a key."),
    optional(
        "deprecate_after",
        Kind::Duration,
        "How long after it was baked the version is offered: `180 days`. Instances still start from it after.",
    ),
    with_default("protect", Kind::Bool, "false", "They cannot be deregistered until somebody takes that off."),
    optional("tags", Kind::StringMap, "Tags besides kiln's own on the AMIs and their snapshots: `{ team = \"web\" }`."),
    optional("channel", Kind::String, "The channel that points to the version once all required regions have it."),
    optional(
        "parameter",
        Kind::String,
        "The parameter of Parameter Store that then is the AMI, in each region: `/images/web/stable`.",
    ),
];

pub(crate) const AMI_REGION: &[Key] = &[
    optional("kms_key", Kind::String, "ARN of the key that encrypts the AMI there."),
    with_default("required", Kind::Bool, "true", "Whether the channel waits for this region."),
];

pub(crate) const REGISTRY: &[Key] = &[
    with_default("enabled", Kind::Bool, "true", "Whether `kiln build` publishes the image there."),
    with_default(
        "placement",
        Kind::Bool,
        "true",
        "Whether unchanged files lie where the version before has them, so that a version stores only what changed.",
    ),
];

/// `provisioner.toml`.
pub(crate) const MANIFEST: &[Key] = &[
    required("api", Kind::Integer(1, 1), "Version of the provisioner contract: 1."),
    required("name", Kind::String, "Name of the provisioner, the same as its directory's."),
    required("summary", Kind::String, "What it does, in one line."),
    with_default("runs_on", Kind::Word(&["guest", "host"]), "guest", "Where `run` is executed."),
    with_default("run", Kind::String, "run", "The script or executable, inside the directory."),
    with_default("idempotent", Kind::Bool, "false", "Whether repeating the step after a failure is safe."),
    with_default("reboots", Kind::Bool, "false", "Whether the step ends in a reboot that kiln waits for."),
    with_default("timeout", Kind::Duration, "15 min", "Time limit unless the step has its own."),
    optional("supports", Kind::Strings, "`ID` values of `/etc/os-release` it works on; any when left out."),
    optional("options", Kind::Named(OPTION), "The options it takes."),
];

/// One option of a provisioner, or one field of a table option.
pub(crate) const OPTION: &[Key] = &[
    required(
        "type",
        Kind::String,
        "`string`, `text`, `integer`, `bool`, `path`, `duration`, `size`, `table`, `list<..>` or `map<..>`.",
    ),
    required("doc", Kind::String, "What it means."),
    with_default("required", Kind::Bool, "false", "Whether it must be given."),
    optional("default", Kind::Any, "Its value when it is not given. Without it the option is then unset."),
    optional("one_of", Kind::Strings, "The allowed values of a string."),
    optional(
        "pattern",
        Kind::String,
        "A regular expression that the whole of a string matches, or every string of a list or map.",
    ),
    optional("keys", Kind::String, "The same for the keys of a map."),
    optional("min", Kind::Integer(i64::MIN, i64::MAX), "The least that an integer may be."),
    optional("max", Kind::Integer(i64::MIN, i64::MAX), "The greatest that an integer may be."),
    // Fields are options again; `manifest` walks them itself.
    optional("fields", Kind::Any, "The fields of a table: `[options.<name>.fields.<field>]`, each like an option."),
];
