//! Ids: how they look, and what EC2 says when there is none such.

use crate::refusal::Refusal;

/// `prefix-` and 8 to 17 hexadecimal digits.
pub(crate) fn well_formed(id: &str, prefix: &str) -> bool {
    let digits = id.strip_prefix(prefix).and_then(|rest| rest.strip_prefix('-')).unwrap_or_default();
    (8..=17).contains(&digits.len())
        && digits.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

/// Kinds of things that have ids: the prefix, the stem of the code when there is none such, the type in tags.
const KINDS: [(&str, &str, &str); 9] = [
    ("ami", "InvalidAMIID", "image"),
    ("snap", "InvalidSnapshot", "snapshot"),
    ("i", "InvalidInstanceID", "instance"),
    ("vol", "InvalidVolume", "volume"),
    ("sg", "InvalidGroup", "security-group"),
    ("key", "InvalidKeyPair", "key-pair"),
    ("subnet", "InvalidSubnetID", "subnet"),
    ("vpc", "InvalidVpcID", "vpc"),
    ("lt", "InvalidLaunchTemplateId", "launch-template"),
];

/// What tag specifications and `DescribeTags` call the kind of thing that an id names.
pub(crate) fn kind_of(id: &str) -> Option<&'static str> {
    let prefix = id.split('-').next()?;
    KINDS.iter().find(|(known, _, _)| *known == prefix).map(|(_, _, kind)| *kind)
}

/// Refuses what cannot be an id of this kind.
pub(crate) fn check(id: &str, prefix: &str) -> Result<(), Refusal> {
    if well_formed(id, prefix) {
        return Ok(());
    }
    Err(Refusal::client(
        &format!("{}.Malformed", stem(prefix)),
        format!("Invalid id: \"{id}\" (expecting \"{prefix}-...\")"),
    ))
}

pub(crate) fn not_found(id: &str) -> Refusal {
    let prefix = id.split('-').next().unwrap_or_default();
    let message = match prefix {
        "ami" => format!("The image id '[{id}]' does not exist"),
        "snap" => format!("The snapshot '{id}' does not exist."),
        "sg" => format!("The security group '{id}' does not exist"),
        "key" => format!("The key pair '{id}' does not exist"),
        "i" => format!("The instance ID '{id}' does not exist"),
        _ => format!("The ID '{id}' does not exist"),
    };
    Refusal::client(&format!("{}.NotFound", stem(prefix)), message)
}

fn stem(prefix: &str) -> &'static str {
    KINDS.iter().find(|(known, _, _)| *known == prefix).map_or("InvalidID", |(_, stem, _)| stem)
}
