//! What can go wrong with a registry.

use std::{io, path::PathBuf};

use kiln_core::{ByteSize, ChannelName, Digest, ImageName, Version};

use crate::{
    lineage::{Parent, Revoked},
    proof::verify::Unproven,
};

/// An operation on a registry that did not happen. What was published before is untouched.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    #[error("cannot {operation} `{path}`")]
    Io {
        operation: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("no space left to {operation} `{path}`: {shortage}")]
    Full { operation: &'static str, path: PathBuf, shortage: Shortage },
    #[error("`{path}` has been locked for a minute by {holder}")]
    Locked { path: PathBuf, holder: String },
    #[error("the registry `{path}` is on {filesystem}, where locks and renames are not reliable")]
    RemoteFilesystem { path: PathBuf, filesystem: &'static str },
    #[error("`{path}` is not a registry yet: it has no `registry.json`")]
    NotInitialised { path: PathBuf },
    #[error("`{path}` cannot hold a registry: {problem}")]
    Unsound { path: PathBuf, problem: String },
    #[error("somebody collects what is not needed in the registry `{path}`")]
    Collecting { path: PathBuf },
    #[error(
        "the lease on the registry `{path}` was lost: this process was stopped for too long, and others went on without it"
    )]
    LeaseLost { path: PathBuf },
    #[error("`{path}` is not a kiln registry: it has files, but no `oci-layout`")]
    NotARegistry { path: PathBuf },
    #[error("{image} {version} is already published with the disk {published}; this one has the disk {offered}")]
    Conflict { image: ImageName, version: Version, published: Digest, offered: Digest },
    #[error("`{path}` has the digest {found}, its record says {expected}")]
    Altered { path: PathBuf, expected: Digest, found: Digest },
    #[error("`{path}` was written by an early kiln that stored whole files; this one stores segments")]
    FirstForm { path: PathBuf },
    #[error("the build of `{image}` has no qcow2, from which its segments would be taken")]
    NoQcow2 { image: ImageName },
    #[error(transparent)]
    Disk(#[from] kiln_disk::Error),
    #[error("the blob `{blob}` is damaged: {problem}")]
    Damaged { blob: PathBuf, problem: String, harmed: Vec<String> },
    #[error("`{blob}` is not the content of a version: {problem}")]
    Content { blob: PathBuf, problem: String },
    #[error("`{image}` has no channel `{channel}`")]
    UnknownChannel { image: ImageName, channel: ChannelName, known: Vec<String> },
    #[error("`{channel}` of `{image}` points to {found}, not to {expected}: somebody moved it")]
    Moved { image: ImageName, channel: ChannelName, expected: String, found: String },
    #[error("`{name}` cannot be a channel: a channel begins with a letter and is not `latest`")]
    NotAChannel { name: ChannelName },
    #[error("`{image}` has a version and would have a channel of the name `{name}`")]
    NameTaken { image: ImageName, name: String },
    #[error("`{channel}` of `{image}` has no version before {current} to go back to")]
    NothingBefore { image: ImageName, channel: ChannelName, current: Version },
    #[error("revision {rev} of `{image}` exists already: something changed the registry without its lock")]
    Raced { image: ImageName, rev: u64 },
    #[error("{} is revoked{}: {}", revoked.chain[0], through(&revoked.chain), revoked.revocation.reason)]
    Revoked { revoked: Box<Revoked> },
    #[error("`{channel}` is a channel of `{image}`, not a version; it points to {points_to}")]
    NotAVersion { image: ImageName, channel: Version, points_to: Version },
    #[error("somebody publishes to, or reads from, the registry `{path}`")]
    Busy { path: PathBuf },
    #[error("{image} {version} was published before and removed since")]
    Retired { image: ImageName, version: Version },
    #[error("{} blobs of the offered version of `{image}` are not here", missing.len())]
    Incomplete { image: ImageName, missing: Vec<Digest> },
    #[error("cannot write the image")]
    Sink(#[source] io::Error),
    #[error("the artifact names the file `{name}`, which is not a plain file name")]
    FileName { name: String },
    #[error("`{key}` is not entered: {problem}")]
    NotAnAmi { key: String, problem: &'static str },
    #[error("there is no image `{image}` in the registry `{registry}`")]
    UnknownImage { image: ImageName, registry: PathBuf, known: Vec<String> },
    #[error("`{image}` has no version and no channel `{version}`")]
    UnknownVersion { image: ImageName, version: String, known: Vec<String> },
    #[error("{image} {version} is not stored as `{format}`")]
    UnknownFormat { image: ImageName, version: Version, format: String, stored: Vec<String> },
    #[error("`{path}` cannot be read as a record of the registry")]
    Unreadable {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
    #[error("`{path}` has format {found}; this kiln reads up to {known}")]
    NewerFormat { path: PathBuf, found: u32, known: u32 },
    #[error("stopped while reading `{path}`")]
    Stopped { path: PathBuf },
    #[error("{version} is not proven")]
    Unproven {
        version: Parent,
        #[source]
        why: Box<Unproven>,
    },
    #[error("revision {rev} of `{image}` cannot be believed")]
    State {
        image: ImageName,
        rev: u64,
        #[source]
        why: Box<Unproven>,
    },
    #[error("the state of `{image}` in `{registry}` is not the newest one: {problem}")]
    OldState { image: ImageName, registry: PathBuf, problem: String, seen: PathBuf },
    #[error(
        "the state of `{image}` in `{registry}` expired on {expired}: it is older than whoever signed it lets it become"
    )]
    Expired { image: ImageName, registry: PathBuf, expired: String },
    #[error("the state of `{image}` cannot be signed anew: there is no key here")]
    CannotSign { image: ImageName },
    #[error("`{channel}` is restricted and does not take {version}: {problem}")]
    Restricted { channel: ChannelName, version: Parent, problem: String },
    #[error("cannot sign what is to be published")]
    Signing(#[source] kiln_io::signing::SigningError),
    #[error("`{date}` is not a date of the form YYYY-MM-DD")]
    Date { date: String },
}

/// What a file system has no more of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Shortage {
    #[error("{} more are needed, {} are free", needed.approximate(), free.approximate())]
    Bytes { needed: ByteSize, free: ByteSize },
    #[error("the file system holds no more files, however small (`df -i`)")]
    Files,
    #[error("the quota of this user is used up (`quota`)")]
    Quota,
}

impl RegistryError {
    /// The next thing to try.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Full { path, .. } => {
                Some(format!("free space on the file system of `{}`, then publish again", path.display()))
            }
            Self::RemoteFilesystem { .. } => Some("choose a directory on a local disk with `--registry`".to_owned()),
            Self::NotARegistry { .. } => {
                Some("choose an empty directory or an existing registry with `--registry`".to_owned())
            }
            Self::Conflict { .. } => {
                Some("a version is written once: give the image another `version`, or `version = \"auto\"`".to_owned())
            }
            Self::Retired { .. } => Some(
                "another registry may still have it, and pushing it from there brings it back; its name never means another disk"
                    .to_owned(),
            ),
            Self::FirstForm { path } => Some(format!(
                "move `{}` away and build the images again; a qcow2 in it lies under its SHA-256 in `blobs/sha256`",
                path.display()
            )),
            Self::Damaged { harmed, .. } => {
                let harmed = if harmed.is_empty() { "no version that can be read".to_owned() } else { listed(harmed) };
                Some(format!(
                    "harmed: {harmed}; all others are whole. Publishing the same disk again brings the blob back, \
                     `kiln registry verify` checks everything"
                ))
            }
            Self::UnknownChannel { known, .. } if known.is_empty() => {
                Some("`kiln promote NAME VERSION --to CHANNEL` makes one".to_owned())
            }
            Self::UnknownChannel { known, .. } => Some(format!("its channels: {}", listed(known))),
            Self::Moved { image, channel, .. } => {
                Some(format!("`kiln channel {image} {channel}` says who and why; decide again"))
            }
            Self::Unproven { why, .. } | Self::State { why, .. } => Some(why.hint()),
            Self::OldState { seen, .. } => Some(format!(
                "somebody may be showing you an old state; where the registry was restored from a backup, remove `{}`",
                seen.display()
            )),
            Self::Expired { image, .. } => Some(format!(
                "somebody may be keeping newer states from you; if nobody renewed it, `kiln registry renew {image}` does, \
                 where its key and its registry are; `--allow-unproven` goes on all the same"
            )),
            Self::CannotSign { .. } => Some("`kiln key init` makes one".to_owned()),
            Self::Restricted { channel, version, .. } => Some(format!(
                "`kiln verify {version}` says more; `kiln channel {} {channel} --unrestrict` lets it take any version",
                version.image
            )),
            Self::NameTaken { .. } | Self::NotAChannel { .. } => Some("choose another name".to_owned()),
            Self::NothingBefore { .. } => Some("name a version with `--to VERSION`".to_owned()),
            Self::Revoked { revoked } => Some(format!(
                "`kiln images {0}` lists others; `--allow-revoked` and the version by its name (`{1}`) use it all the same",
                revoked.chain[0].image, revoked.chain[0]
            )),
            Self::NotAVersion { image, points_to, .. } => {
                Some(format!("name the version: `kiln revoke {image} {points_to}`"))
            }
            Self::Busy { .. } => Some("run the same command again when it is done; nothing was removed".to_owned()),
            Self::Raced { .. } | Self::LeaseLost { .. } => Some("run the same command again".to_owned()),
            Self::Collecting { .. } => Some("run the same command again when it is done".to_owned()),
            Self::NotInitialised { path } => Some(format!(
                "`kiln registry init --registry '{}'` tries whether it can hold one, and makes it one",
                path.display()
            )),
            Self::Unsound { .. } => {
                Some("use a store whose conditional writes hold, such as Amazon S3, or a local directory".to_owned())
            }
            Self::Content { .. } => Some("`kiln registry verify` checks all versions".to_owned()),
            Self::Altered { .. } => Some("the file was changed after it was sealed; bake the image again".to_owned()),
            Self::UnknownImage { known, .. } if known.is_empty() => {
                Some("nothing was published yet: `kiln build TEMPLATE`".to_owned())
            }
            Self::UnknownImage { known, .. } => Some(format!("`kiln images` lists them: {}", listed(known))),
            Self::UnknownVersion { known, .. } => Some(format!("published: {}", listed(known))),
            Self::UnknownFormat { stored, .. } => Some(format!("stored formats: {}", listed(stored))),
            Self::NewerFormat { .. } => Some("a newer kiln wrote this registry; use that one".to_owned()),
            Self::Unreadable { path, .. } if path.ends_with("head.json") => {
                Some(format!("move `{}` aside: the next publish rebuilds it from the records in `v/`", path.display()))
            }
            Self::Locked { .. } => Some(
                "wait for that process, or end it: a lock goes with its holder, and nothing was changed".to_owned(),
            ),
            Self::Io { source, .. } => limit(source),
            Self::Stopped { .. }
            | Self::Incomplete { .. }
            | Self::Disk(_)
            | Self::Sink(_)
            | Self::NoQcow2 { .. }
            | Self::FileName { .. }
            | Self::NotAnAmi { .. }
            | Self::Unreadable { .. }
            | Self::Signing(_)
            | Self::Date { .. } => None,
        }
    }

    /// Whether an integrity rule refused, rather than the machine failing.
    pub fn is_refusal(&self) -> bool {
        matches!(
            self,
            Self::Conflict { .. } | Self::Altered { .. } | Self::RemoteFilesystem { .. } | Self::FileName { .. }
        )
    }
}

/// What stands in the way when the system refuses, and who can move it.
fn limit(error: &io::Error) -> Option<String> {
    let hint = match error.kind() {
        io::ErrorKind::ReadOnlyFilesystem => "the file system is mounted read-only; `dmesg` may say since when and why",
        io::ErrorKind::FileTooLarge => "a limit on the size of files is in force (`ulimit -f`)",
        _ if error.raw_os_error() == Some(rustix::io::Errno::MFILE.raw_os_error()) => {
            "this process may open no more files: raise the limit (`ulimit -n`)"
        }
        _ => return None,
    };
    Some(hint.to_owned())
}

/// How a version came by the revocation of another.
fn through(chain: &[Parent]) -> String {
    let parents: Vec<_> = chain.iter().skip(1).map(|parent| format!(", baked on {parent}")).collect();
    parents.concat()
}

fn listed(names: &[String]) -> String {
    use std::fmt::Write as _;
    const SHOWN: usize = 8;
    let mut text = names.iter().take(SHOWN).map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    if names.len() > SHOWN {
        let _ = write!(text, " and {} more", names.len() - SHOWN);
    }
    text
}
