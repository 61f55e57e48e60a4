//! The mark on all that is made for one purpose, and its entry in the ledger, which is there before anything else is.

use std::{
    collections::BTreeMap,
    fs,
    path::PathBuf,
    sync::{Mutex, PoisonError},
};

use kiln_io::{
    dirs::Dirs,
    ledger::{self, Condition, EntryId, Ledger, Remote, Resource},
    random::nonce,
};
use kiln_registry::Record;

use crate::{Region, error::AwsError};

/// The tag that every request to make something carries.
pub(crate) const TAG: &str = "kiln:intent";
/// The tag that says which disk it is.
pub(crate) const DISK: &str = "kiln:disk";
/// The provider's name in the ledger.
pub(crate) const PROVIDER: &str = "aws";

/// An intent that stands in the ledger.
#[derive(Debug)]
pub(crate) struct Intent<'a> {
    pub(crate) id: String,
    /// What a dead kiln had uploaded for it, if one began.
    pub(crate) journals: Vec<PathBuf>,
    pub(crate) remote: Remote,
    pub(crate) entry: EntryId,
    ledger: &'a Ledger,
    /// What was made for it, though it may not be seen yet.
    made: Mutex<Vec<String>>,
}

impl<'a> Intent<'a> {
    /// Enters a new intent into `ledger`, or takes over that of a dead kiln that wanted the same in the same place.
    pub(crate) fn declare(
        dirs: &Dirs,
        ledger: &'a Ledger,
        region: &Region,
        subject: &str,
        catalog: PathBuf,
    ) -> Result<Self, AwsError> {
        let same = |remote: &Remote| {
            (remote.provider.as_str(), &remote.account, &remote.region, remote.subject.as_str())
                == (PROVIDER, &region.account, &region.name, subject)
        };
        let mut abandoned = Vec::new();
        for report in ledger::survey(dirs)? {
            if report.condition != Condition::Interrupted {
                continue;
            }
            for entry in report.found {
                if let Resource::Remote(remote) = entry.resource
                    && same(&remote)
                {
                    abandoned.push((report.build.clone(), entry.id, remote));
                }
            }
        }
        let id = abandoned.last().map_or_else(|| format!("i-{}", nonce()), |(_, _, remote)| remote.intent.clone());
        let remote = Remote {
            provider: PROVIDER.to_owned(),
            account: region.account.clone(),
            region: region.name.clone(),
            intent: id.clone(),
            subject: subject.to_owned(),
            catalog,
        };
        let entry = ledger.acquire("AMI", Resource::Remote(remote.clone()))?;
        let mut journals = vec![journal(ledger, region)];
        // From here on it is ours alone: two ledgers never hold the same intent for long.
        for (build, entry, remote) in abandoned {
            if remote.intent == id {
                journals.push(dirs.build(&build).join(journal_name(region)));
                Ledger::join(dirs, &build)?.release(&entry)?;
            }
        }
        Ok(Self { id, journals, remote, entry, ledger, made: Mutex::default() })
    }

    /// Notes what was made.
    pub(crate) fn note(&self, id: &str) {
        self.made.lock().unwrap_or_else(PoisonError::into_inner).push(id.to_owned());
    }

    pub(crate) fn made(&self) -> Vec<String> {
        self.made.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether a kiln before this one may have made something for it.
    pub(crate) const fn is_taken_over(&self) -> bool {
        self.journals.len() > 1
    }

    /// What was made is recorded elsewhere, or gone.
    pub(crate) fn fulfilled(&self) -> Result<(), AwsError> {
        self.forget_blocks();
        Ok(self.ledger.release(&self.entry)?)
    }

    /// Removes the journals of what was uploaded. One that stays counts only for its snapshot.
    pub(crate) fn forget_blocks(&self) {
        for journal in &self.journals {
            let _ = fs::remove_file(journal);
        }
    }
}

fn journal(ledger: &Ledger, region: &Region) -> PathBuf {
    ledger.directory().join(journal_name(region))
}

fn journal_name(region: &Region) -> String {
    format!("{}.blocks", region.name)
}

/// The tags of what is made from `record` for `intent`.
pub(crate) fn tags(record: &Record, intent: &str) -> BTreeMap<String, String> {
    let artifact = &record.artifact;
    let tags = [
        ("Name", format!("{} {}", artifact.image, artifact.version)),
        ("kiln:image", artifact.image.to_string()),
        ("kiln:version", artifact.version.to_string()),
        (DISK, artifact.disk.digest.to_string()),
        ("kiln:recipe", artifact.recipe.to_string()),
        ("kiln:build", artifact.build.clone()),
        (TAG, intent.to_owned()),
    ];
    // The longest value that AWS takes.
    tags.into_iter().map(|(key, value)| (key.to_owned(), value.chars().take(256).collect())).collect()
}

/// The same tags for EC2.
pub(crate) fn ec2_tags(tags: &BTreeMap<String, String>) -> Vec<aws_sdk_ec2::types::Tag> {
    tags.iter().map(|(key, value)| aws_sdk_ec2::types::Tag::builder().key(key).value(value).build()).collect()
}

/// The value of a tag.
pub(crate) fn tag<'a>(tags: &'a [aws_sdk_ec2::types::Tag], key: &str) -> Option<&'a str> {
    tags.iter().find(|tag| tag.key() == Some(key))?.value()
}

/// Finds what carries a tag.
pub(crate) fn tagged(key: &str, value: &str) -> aws_sdk_ec2::types::Filter {
    aws_sdk_ec2::types::Filter::builder().name(format!("tag:{key}")).values(value).build()
}
