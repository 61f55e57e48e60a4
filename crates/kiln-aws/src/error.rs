//! What can go wrong with an account.

use std::{io, path::PathBuf, time::Duration};

use kiln_core::Digest;
use kiln_io::ledger::LedgerError;
use kiln_registry::RegistryError;

/// Something in an account did not happen. What was made is in the ledger.
#[derive(Debug, thiserror::Error)]
pub enum AwsError {
    #[error("{operation} in {region}: {message} ({code})")]
    Refused { operation: &'static str, region: String, code: String, message: String },
    #[error("{operation} in {region} gets no answer: {reason}")]
    Unreachable { operation: &'static str, region: String, reason: String },
    #[error("the credentials expired before {operation} in {region}")]
    Expired { operation: &'static str, region: String },
    #[error("no credentials for AWS: {reason}")]
    NoCredentials { reason: String },
    #[error("{operation} in {region} answered without `{field}`")]
    Incomplete { operation: &'static str, region: String, field: &'static str },
    #[error("the credentials are those of account {found}, not of {expected}")]
    OtherAccount { expected: String, found: String },
    #[error("the snapshot {snapshot} in {region} failed: {reason}")]
    Snapshot { snapshot: String, region: String, reason: String },
    #[error("the AMI {ami} in {region} is {state}: {reason}")]
    Image { ami: String, region: String, state: String, reason: String },
    #[error("block {block} of the snapshot {snapshot} in {region} is not what was sealed")]
    Differs { snapshot: String, region: String, block: u32 },
    #[error("{what} in {region} makes no progress; it was {state} at last")]
    Stalled { what: String, region: String, state: String },
    #[error("the parameter `{name}` in {region} does not say {ami}: it was set, and says {} still", if now.is_empty() { "nothing" } else { now })]
    Parameter { name: String, region: String, ami: String, now: String },
    #[error("an AMI that `{key}` encrypts, in {region}, cannot be {meant}")]
    NotShareable { region: String, key: String, meant: &'static str },
    #[error("there is an AMI `{name}` in {region} already, {ami}, and its disk is not {disk}")]
    NameTaken { name: String, ami: String, region: String, disk: Digest },
    #[error("the AMI {ami} in {region} is this version already, and not encrypted with `{wanted}`")]
    OtherKey { ami: String, region: String, wanted: String },
    #[error("{what} has no boot sector and no EFI partition")]
    NotBootable { what: String },
    #[error("cannot read the stored disk")]
    Disk(#[source] io::Error),
    #[error("cannot keep the record of what was uploaded")]
    Journal(#[source] io::Error),
    #[error("cannot ask `{}`, the registry that knows what is published: {problem}", catalog.display())]
    Catalog { catalog: PathBuf, problem: String },
    #[error("the group `{group}` in {region} {why}")]
    NoTemplate { group: String, region: String, why: &'static str },
    #[error("the launch template of the group `{group}` in {region} does not say what it replaced")]
    NothingBefore { group: String, region: String },
    #[error("there is no AMI {wanted} in {region}")]
    NoAmi { wanted: String, region: String },
    #[error("the AMI {ami} is owned by {owner}, not by {expected}")]
    OtherOwner { ami: String, owner: String, expected: String },
    #[error("the AMI {ami} in {region} cannot be baked on: {reason}")]
    Unfit { ami: String, region: String, reason: String },
    #[error("no subnet in {region} is as asked for")]
    NoSubnet { region: String },
    #[error("{found} VPCs in {region} are as asked for, and it must be one")]
    NotOneVpc { region: String, found: usize },
    #[error("cannot tell the address that the instance sees this machine at: {reason}")]
    Caller { reason: String },
    #[error("{region} has no room for {types} in {zones}: {last}")]
    NoCapacity { region: String, types: String, zones: String, last: String },
    #[error("the instance {instance} in {region} is {state}: {reason}")]
    Instance { instance: String, region: String, state: String, reason: String },
    #[error("the instance {instance} in {region} did not power off within {}", kiln_core::duration::format(*limit))]
    StaysUp { instance: String, region: String, limit: Duration },
    #[error("cannot write the disk of the instance")]
    File(#[source] io::Error),
    #[error("stopped")]
    Stopped,
    #[error(transparent)]
    Registry(#[from] RegistryError),
    #[error(transparent)]
    Ledger(#[from] LedgerError),
}

impl AwsError {
    /// The next thing to try.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Expired { .. } => Some("log in again".to_owned()),
            Self::NoCredentials { .. } => {
                Some("`aws configure`, `aws sso login`, or `AWS_ACCESS_KEY_ID` and its kin; docs/aws.md says which rights are needed".to_owned())
            }
            Self::Refused { .. } if self.is_denied() => {
                Some("docs/aws.md has the policy that is needed".to_owned())
            }
            Self::Refused { code, .. } if code.contains("LimitExceeded") || code.contains("Quota") => {
                Some("a quota of the account is used up: raise it, or delete what is not needed".to_owned())
            }
            Self::Unreachable { .. } | Self::Stalled { .. } | Self::Stopped => {
                Some("the same command goes on from there".to_owned())
            }
            Self::Parameter { .. } => Some(
                "Systems Manager looks at the AMI before it takes it, and says in an event (`Parameter Store Change`) why it did not; the same command tries again".to_owned(),
            ),
            Self::NotShareable { .. } => Some(
                "to share it, name a key whose policy lets the others in, by region; a public one is not encrypted: name no key, and switch EBS encryption by default off there".to_owned(),
            ),
            Self::NameTaken { .. } => Some("give the image another version, or deregister that AMI".to_owned()),
            Self::OtherKey { .. } => Some(
                "`kiln clean` removes it if a publish was interrupted; a published one stays: give the image another version".to_owned(),
            ),
            Self::Differs { .. } | Self::Snapshot { .. } => {
                Some("`kiln clean` removes it; then the same command makes another".to_owned())
            }
            Self::Image { state, .. } if state == "disabled" => {
                Some("it was withdrawn: `aws ec2 enable-image` brings it back".to_owned())
            }
            Self::Image { .. } => Some("`kiln clean` removes it; then the same command makes another".to_owned()),
            Self::NotBootable { .. } => Some("only a disk that boots by itself can become an AMI".to_owned()),
            Self::OtherAccount { .. } => Some("choose the other account with `AWS_PROFILE`".to_owned()),
            Self::Catalog { .. } => {
                Some("nothing is deleted without it; the same command goes on when it can be reached".to_owned())
            }
            Self::NoTemplate { .. } => {
                Some("a release needs a group with one launch template, alone or in a mixed instances policy".to_owned())
            }
            Self::NothingBefore { .. } => Some("release the version that is meant with `kiln release start`".to_owned()),
            Self::NoCapacity { .. } => Some("name further `instance_types` or `zones` in `[builder.ec2]`, or try later".to_owned()),
            Self::NoSubnet { .. } | Self::NotOneVpc { .. } => {
                Some("name it with `subnet` or `vpc` in `[builder.ec2]`, by its id or by filters".to_owned())
            }
            Self::Caller { .. } => Some("say it with `source` in `[builder.ec2]`".to_owned()),
            Self::OtherOwner { .. } => Some("somebody else may have published it under that name; look at it before you trust it".to_owned()),
            Self::Registry(error) => error.hint(),
            Self::Refused { .. }
            | Self::NoAmi { .. }
            | Self::Unfit { .. }
            | Self::Instance { .. }
            | Self::StaysUp { .. }
            | Self::File(_)
            | Self::Incomplete { .. }
            | Self::Disk(_)
            | Self::Journal(_)
            | Self::Ledger(_) => None,
        }
    }

    /// What the service called it.
    pub(crate) fn code(&self) -> Option<&str> {
        match self {
            Self::Refused { code, .. } => Some(code),
            _ => None,
        }
    }

    /// What was asked for is not there.
    pub(crate) fn is_missing(&self) -> bool {
        self.code().is_some_and(is_missing)
    }

    /// The caller has no right to it.
    pub(crate) fn is_denied(&self) -> bool {
        self.code().is_some_and(|code| code.contains("Unauthorized") || code.contains("AccessDenied"))
    }

    /// Something else stands on what was to be deleted.
    pub(crate) fn is_in_use(&self) -> bool {
        self.code().is_some_and(is_in_use)
    }

    /// The operation met something of the same name.
    pub(crate) fn is_duplicate(&self) -> bool {
        self.code().is_some_and(|code| code.ends_with(".Duplicate"))
    }
}

/// Whether a deletion was carried out; that there is nothing to delete is no failure. Of what was listed a moment ago it may only mean that
/// it cannot be seen for a moment.
pub(crate) fn acknowledged<T>(deleted: Result<T, AwsError>) -> Result<bool, AwsError> {
    match deleted {
        Ok(_) => Ok(true),
        Err(error) if error.is_missing() => Ok(false),
        Err(error) => Err(error),
    }
}

/// Whether `code` is EC2's word for something that something else stands on.
pub(crate) fn is_in_use(code: &str) -> bool {
    ["DependencyViolation", "InvalidSnapshot.InUse", "VolumeInUse", "IncorrectState"].contains(&code)
}

/// Whether `code` is EC2's or EBS's word for something that does not exist, or cannot be seen yet.
pub(crate) fn is_missing(code: &str) -> bool {
    code.ends_with(".NotFound")
        || code.ends_with(".Unavailable")
        || ["ResourceNotFoundException", "ParameterNotFound"].contains(&code)
}
