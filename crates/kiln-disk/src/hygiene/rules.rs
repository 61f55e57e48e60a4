//! The checks on the file tree of a root file system, each under its number of the hygiene table.

use super::{
    Asked, Finding,
    Level::{Fail, Warn},
};
use crate::tree::{Kind, Node, Tree};

/// A file of at most this size counts as empty where a log is meant: the bound that public image checks use.
const NEARLY_EMPTY: u64 = 50;

/// Files that carry what somebody typed.
const HISTORIES: [&str; 14] = [
    ".ash_history",
    ".bash_history",
    ".lesshst",
    ".mysql_history",
    ".node_repl_history",
    ".psql_history",
    ".python_history",
    ".rediscli_history",
    ".sh_history",
    ".sqlite_history",
    ".viminfo",
    ".wget-hsts",
    ".zhistory",
    ".zsh_history",
];

/// Files that hold credentials wherever they lie in a home directory.
const CREDENTIALS: [&str; 8] = [
    "/.aws/credentials",
    "/.config/gh/hosts.yml",
    "/.docker/config.json",
    "/.git-credentials",
    "/.kube/config",
    "/.netrc",
    "/.npmrc",
    "/.pypirc",
];

/// Logs that name who was there.
const RECORDS: [&str; 5] = ["wtmp", "btmp", "lastlog", "faillog", "tallylog"];
const RECORD_DIRECTORIES: [&str; 4] =
    ["/var/log/journal/", "/var/log/installer/", "/var/log/anaconda/", "/var/log/audit/"];
const LEASES: [&str; 6] = [
    "/var/lib/dhcp",
    "/var/lib/dhclient",
    "/var/lib/dhcp3",
    "/var/lib/dhcpcd",
    "/var/lib/NetworkManager",
    "/var/lib/systemd/network",
];
const FETCHED: [&str; 6] = [
    "/var/cache/apt/archives",
    "/var/lib/apt/lists",
    "/var/cache/dnf",
    "/var/cache/libdnf5",
    "/var/cache/yum",
    "/var/cache/apk",
];
const CRASHES: [&str; 5] =
    ["/var/crash", "/var/lib/systemd/coredump", "/var/spool/abrt", "/var/lib/apport", "/var/lib/systemd/pstore"];
const SPOOLS: [&str; 4] = ["/var/mail", "/var/spool/mail", "/var/spool/cron/crontabs", "/var/spool/at"];

/// One rule: the findings of a tree.
type Rule = fn(&Tree, &Asked<'_>, &mut Findings);

const RULES: [Rule; 14] = [
    machine_id,
    host_keys,
    ssh_directories,
    private_keys,
    passwords,
    build_users,
    histories,
    cloud_init,
    seeds_and_names,
    logs,
    network_leftovers,
    package_leftovers,
    temporary_files,
    backups_and_spools,
];

/// Runs every rule.
pub(super) fn check(tree: &Tree, asked: &Asked<'_>) -> Vec<Finding> {
    let mut findings = Findings(Vec::new());
    for rule in RULES {
        rule(tree, asked, &mut findings);
    }
    findings.0
}

struct Findings(Vec<Finding>);

impl Findings {
    fn fail(&mut self, id: &'static str, path: &str, detail: impl Into<String>) {
        self.0.push(Finding { id, level: Fail, path: path.to_owned(), detail: detail.into() });
    }

    fn warn(&mut self, id: &'static str, path: &str, detail: impl Into<String>) {
        self.0.push(Finding { id, level: Warn, path: path.to_owned(), detail: detail.into() });
    }

    /// Fails for each of `paths` that exists.
    fn fail_if_there(&mut self, tree: &Tree, id: &'static str, paths: &[&str], detail: &str) {
        for path in paths.iter().filter(|path| tree.exists(path)) {
            self.fail(id, path, detail);
        }
    }
}

/// H01: every clone must make its own machine id.
fn machine_id(tree: &Tree, _: &Asked<'_>, findings: &mut Findings) {
    let unset = |text: &[u8]| text.is_empty() || text == b"uninitialized\n";
    if tree.exists("/etc/machine-id") && !unset(&tree.files().head("/etc/machine-id", 64)) {
        findings.fail("H01", "/etc/machine-id", "the machine id is set; every clone would share it");
    }
    if tree.node("/var/lib/dbus/machine-id").is_some_and(|node| node.kind == Kind::File) {
        findings.fail("H01", "/var/lib/dbus/machine-id", "D-Bus keeps a machine id of its own");
    }
}

/// H02: every clone must make its own host keys.
fn host_keys(tree: &Tree, _: &Asked<'_>, findings: &mut Findings) {
    let ssh = tree.beneath("/etc/ssh").filter(|(path, _)| path.starts_with("/etc/ssh/ssh_host_"));
    let dropbear = tree.beneath("/etc/dropbear").filter(|(path, _)| path.ends_with("_host_key"));
    for (path, _) in ssh.chain(dropbear) {
        findings.fail("H02", path, "an SSH host key; every clone would share it");
    }
}

/// H03: nobody may be let in by a key of the build.
fn ssh_directories(tree: &Tree, _: &Asked<'_>, findings: &mut Findings) {
    for (path, node) in files(tree) {
        let Some((directory, name)) = path.rsplit_once('/') else { continue };
        if !directory.ends_with("/.ssh") && !directory.starts_with("/etc/ssh/authorized_keys") {
            continue;
        }
        if name.starts_with("authorized_keys") && !has_content(&tree.files().text(path)) && node.size < 1 << 20 {
            continue;
        }
        findings.fail("H03", path, "an SSH file of a user; keys are given to a machine, not to an image");
    }
}

fn has_content(text: &str) -> bool {
    text.lines().map(str::trim).any(|line| !line.is_empty() && !line.starts_with('#'))
}

/// H04: no private key and no stored credential, wherever it lies.
fn private_keys(tree: &Tree, _: &Asked<'_>, findings: &mut Findings) {
    for (path, node) in files(tree) {
        if CREDENTIALS.iter().any(|end| path.ends_with(end)) && node.size > 0 {
            findings.fail("H04", path, "stored credentials");
        }
        // Reported as H02.
        if path.starts_with("/etc/ssh/ssh_host_") || !(64..=64 << 10).contains(&node.size) {
            continue;
        }
        if !is_private_key(&tree.files().head(path, 4096)) {
            continue;
        }
        // Packages bring keys of test suites and examples; they are public, not secret.
        if path.starts_with("/usr/") && !path.starts_with("/usr/local/") {
            findings.warn("H04", path, "a private key that a package seems to bring");
        } else {
            findings.fail("H04", path, "a private key");
        }
    }
}

/// A line that opens a PEM private key.
fn is_private_key(head: &[u8]) -> bool {
    head.split(|byte| *byte == b'\n').any(|line| {
        let line = line.trim_ascii_end();
        line.starts_with(b"-----BEGIN ") && line.ends_with(b"PRIVATE KEY-----")
    })
}

/// H05, H08: no account with a password, no second root.
fn passwords(tree: &Tree, _: &Asked<'_>, findings: &mut Findings) {
    for line in tree.files().text("/etc/shadow").lines() {
        let mut fields = line.split(':');
        let (Some(user), Some(password)) = (fields.next(), fields.next()) else { continue };
        if password.is_empty() {
            findings.fail("H05", "/etc/shadow", format!("`{user}` can log in with an empty password"));
        } else if !password.starts_with(['!', '*']) {
            findings.fail("H05", "/etc/shadow", format!("`{user}` has a password; every clone would share it"));
        }
    }
    for line in tree.files().text("/etc/passwd").lines() {
        let fields: Vec<&str> = line.split(':').collect();
        if fields.len() > 2 && fields[2] == "0" && fields[0] != "root" {
            findings.fail("H08", "/etc/passwd", format!("`{}` has the user id of root", fields[0]));
        }
    }
}

/// H09: the user a bake logs in as leaves no trace.
fn build_users(tree: &Tree, asked: &Asked<'_>, findings: &mut Findings) {
    let passwd = tree.files().text("/etc/passwd");
    for user in asked.build_users {
        if passwd.lines().any(|line| line.split(':').next() == Some(user)) {
            findings.fail("H09", "/etc/passwd", format!("the build user `{user}` still exists"));
        }
        let leftovers = [
            format!("/home/{user}"),
            format!("/etc/sudoers.d/{user}"),
            format!("/var/mail/{user}"),
            format!("/var/spool/cron/crontabs/{user}"),
        ];
        for path in leftovers.iter().filter(|path| tree.exists(path)) {
            findings.fail("H09", path, format!("left behind by the build user `{user}`"));
        }
    }
    findings.fail_if_there(
        tree,
        "H09",
        &["/etc/sudoers.d/90-cloud-init-users"],
        "cloud-init lets its user become root without a password; it writes this anew on each machine",
    );
}

/// H10
fn histories(tree: &Tree, _: &Asked<'_>, findings: &mut Findings) {
    for (path, _) in files(tree).filter(|(path, _)| HISTORIES.iter().any(|name| file_name(path) == *name)) {
        findings.fail("H10", path, "a history of what was typed or done during the build");
    }
}

/// H11, H12, H13: cloud-init must find a machine it has never seen.
fn cloud_init(tree: &Tree, _: &Asked<'_>, findings: &mut Findings) {
    for (path, _) in tree.beneath("/var/lib/cloud").filter(|(path, _)| !path.starts_with("/var/lib/cloud/scripts/")) {
        findings.fail("H11", path, "cloud-init's state of the build; a clone would take itself for the build machine");
    }
    let generated = "written by cloud-init for the build machine";
    for (path, _) in files(tree) {
        let name = file_name(path);
        let by_cloud_init = path.starts_with("/var/log/cloud-init")
            || (path.starts_with("/etc/") && (name.starts_with("50-cloud-init") || name.starts_with("10-cloud-init-")))
            || (path.starts_with("/etc/NetworkManager/system-connections/") && name.starts_with("cloud-init-"));
        if by_cloud_init {
            findings.fail("H12", path, generated);
        }
    }
    if tree.files().text("/etc/fstab").contains("comment=cloudconfig") {
        findings.fail("H12", "/etc/fstab", "entries written by cloud-init for the build machine");
    }
    findings.fail_if_there(
        tree,
        "H13",
        &[
            "/etc/cloud/cloud-init.disabled",
            "/etc/cloud/cloud.cfg.d/99-installer.cfg",
            "/etc/cloud/cloud.cfg.d/curtin-preserve-sources.cfg",
            "/etc/cloud/cloud.cfg.d/subiquity-disable-cloudinit-networking.cfg",
        ],
        "keeps cloud-init from configuring a new machine",
    );
}

/// H14, H15, H16: seeds, credentials and names of one machine.
fn seeds_and_names(tree: &Tree, asked: &Asked<'_>, findings: &mut Findings) {
    findings.fail_if_there(
        tree,
        "H14",
        &["/var/lib/systemd/random-seed", "/var/lib/urandom/random-seed", "/var/lib/seedrng/seed.credit"],
        "a random seed; every clone would start from the same one",
    );
    findings.fail_if_there(
        tree,
        "H15",
        &["/var/lib/systemd/credential.secret"],
        "the key of this machine's encrypted credentials",
    );
    let name = tree.files().text("/etc/hostname");
    if !matches!(name.trim(), "" | "localhost" | "localhost.localdomain") {
        findings.warn("H16", "/etc/hostname", format!("every clone would be called `{}`", name.trim()));
    }
    if tree.exists("/etc/machine-info") {
        findings.warn("H16", "/etc/machine-info", "describes one machine");
    }
    if let Some(build) = asked.build_host_name
        && tree.files().text("/etc/hosts").split_whitespace().any(|word| word == build)
    {
        findings.warn("H16", "/etc/hosts", format!("names the build machine `{build}`"));
    }
}

/// H18: what happened during the build is not the clone's past.
fn logs(tree: &Tree, _: &Asked<'_>, findings: &mut Findings) {
    for (path, node) in tree.beneath("/var/log").filter(|(_, node)| node.kind == Kind::File) {
        let name = file_name(path);
        // Reported as H12.
        if path.starts_with("/var/log/cloud-init") {
            continue;
        }
        let digits = |end: &str, length| end.len() == length && end.bytes().all(|byte| byte.is_ascii_digit());
        let rotated = name.rsplit_once('.').is_some_and(|(_, end)| end == "gz" || digits(end, 1))
            || name.rsplit_once('-').is_some_and(|(_, end)| digits(end, 8));
        let record = RECORDS.contains(&name) || RECORD_DIRECTORIES.iter().any(|directory| path.starts_with(directory));
        if rotated {
            findings.fail("H18", path, "a rotated log of the build");
        } else if node.size > 0 && record {
            findings.fail("H18", path, format!("{} bytes of the build's records", node.size));
        } else if node.size > NEARLY_EMPTY {
            findings.warn("H18", path, format!("{} bytes of the build's log", node.size));
        }
    }
}

/// H19, H20: interfaces, leases and identifiers of the build machine's network.
fn network_leftovers(tree: &Tree, _: &Asked<'_>, findings: &mut Findings) {
    findings.fail_if_there(
        tree,
        "H19",
        &["/etc/udev/rules.d/70-persistent-net.rules", "/etc/udev/rules.d/75-persistent-net-generator.rules"],
        "binds interface names to the build machine's hardware",
    );
    for (path, _) in tree.beneath("/etc/sysconfig/network-scripts") {
        if tree.files().text(path).lines().any(|line| line.starts_with("HWADDR=")) {
            findings.fail("H19", path, "binds an interface to the build machine's hardware");
        }
    }
    for (path, _) in LEASES.iter().flat_map(|path| tree.beneath(path)).filter(|(_, node)| node.size > 0) {
        findings.fail("H20", path, "a DHCP lease or identifier; clones would ask for the same address");
    }
    findings.fail_if_there(tree, "H20", &["/etc/dhcpcd.duid"], "a DHCP identifier; clones would share it");
}

/// H21: what the package manager fetched, and how.
fn package_leftovers(tree: &Tree, _: &Asked<'_>, findings: &mut Findings) {
    for directory in FETCHED {
        let left: Vec<u64> = tree
            .beneath(directory)
            .filter(|(path, node)| node.kind == Kind::File && node.size > 0 && file_name(path) != "lock")
            .map(|(_, node)| node.size)
            .collect();
        if !left.is_empty() {
            let bytes = kiln_core::ByteSize(left.iter().sum()).approximate();
            findings.fail("H21", directory, format!("{} files, {bytes}, fetched during the build", left.len()));
        }
    }
    for (path, _) in tree.beneath("/etc/apt/apt.conf.d").filter(|(path, _)| file_name(path).contains("proxy")) {
        findings.fail("H21", path, "a package proxy of the build network");
    }
}

/// H23, H24, H25: swap, temporary files, crash data.
fn temporary_files(tree: &Tree, _: &Asked<'_>, findings: &mut Findings) {
    for path in ["/swapfile", "/swap.img"].into_iter().filter(|path| tree.exists(path)) {
        findings.warn("H23", path, "a swap file of the build, with whatever was in memory");
    }
    for directory in ["/tmp", "/var/tmp"] {
        for (path, _) in tree.beneath(directory) {
            findings.fail("H24", path, "a temporary file of the build");
        }
        if let Some(Node { kind: Kind::Directory, mode, .. }) = tree.node(directory)
            && mode != 0o1777
        {
            findings.fail("H24", directory, format!("its mode is {mode:o}, not 1777"));
        }
    }
    for (path, _) in CRASHES.iter().flat_map(|path| tree.beneath(path)).filter(|(_, node)| node.size > 0) {
        findings.fail("H25", path, "crash data of the build, with whatever was in memory");
    }
}

/// H26, H27: copies of account files, mail and jobs.
fn backups_and_spools(tree: &Tree, _: &Asked<'_>, findings: &mut Findings) {
    for name in ["passwd-", "shadow-", "group-", "gshadow-", "subuid-", "subgid-"] {
        let path = format!("/etc/{name}");
        if tree.exists(&path) {
            findings.warn("H26", &path, "a copy of the accounts as they were during the build");
        }
    }
    let spooled = SPOOLS.iter().flat_map(|path| tree.beneath(path));
    for (path, _) in spooled.filter(|(path, node)| node.size > 0 && file_name(path) != ".SEQ") {
        findings.warn("H27", path, "mail or a job of the build");
    }
}

fn files(tree: &Tree) -> impl Iterator<Item = (&str, Node)> {
    tree.all().filter(|(_, node)| node.kind == Kind::File)
}

fn file_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}
