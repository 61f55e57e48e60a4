//! What a finished disk is searched for: the findings by name, for templates that waive them and for whoever reads of one.

/// Name and meaning, in their order.
pub const FINDINGS: [(&str, &str); 26] = [
    ("H01", "A machine id"),
    ("H02", "SSH host keys"),
    ("H03", "SSH files of users: keys that may log in, known hosts"),
    ("H04", "Stored credentials and private keys"),
    ("H05", "Passwords, also empty ones"),
    ("H08", "A second user with the id of root"),
    ("H09", "The user of the build, or what it left"),
    ("H10", "Histories of shells and programs"),
    ("H11", "State of cloud-init"),
    ("H12", "What cloud-init configured for the build machine"),
    ("H13", "What keeps cloud-init from configuring a new machine"),
    ("H14", "Random seeds"),
    ("H15", "The key of systemd's encrypted credentials"),
    ("H16", "Names of the build machine"),
    ("H18", "Logs of the build"),
    ("H19", "Network interfaces bound to the build machine's hardware"),
    ("H20", "DHCP leases and identifiers"),
    ("H21", "What the package manager fetched, and a proxy of the build network"),
    ("H23", "A swap file"),
    ("H24", "Temporary files, and directories for them with a wrong mode"),
    ("H25", "Crash data"),
    ("H26", "Copies of the accounts as they were during the build"),
    ("H27", "Mail and jobs of the build"),
    ("H38", "A file system that is damaged, was not left clean, cannot be read, or whose free space is not empty"),
    ("H39", "The value of a secret anywhere on the disk"),
    ("H40", "A qcow2 that is not sound"),
];

/// Whether there is a finding of this name.
pub(crate) fn is_known(name: &str) -> bool {
    FINDINGS.iter().any(|(known, _)| *known == name)
}
