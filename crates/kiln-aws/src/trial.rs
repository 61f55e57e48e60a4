//! An AMI of a sealed disk that is tried before it is published: nobody else sees it, and it goes when it was looked at.
//!
//! Only what differs from the versions before is sent for it. The AMI of the version, when it passes, stands on its snapshot: for that
//! one nothing is sent any more.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use kiln_core::ImageName;
use kiln_disk::{
    FileBytes,
    hygiene::firmware,
    qcow2::{header::Limits, image::Image},
    seal::Sealed,
};
use kiln_io::{
    dirs::Dirs,
    ledger::{EntryId, Ledger},
};
use kiln_registry::Registry;

use crate::{
    Account, Region, Released,
    blocks::{self, Layout},
    builder::{give_back, no_catalog, tags},
    error::AwsError,
    image::boot_mode,
    intent::Intent,
    publish::parents,
    reconcile::Sweeping,
    sharing::Under,
    upload::{Disk, Parent, Wanted},
};

/// What is to be tried, and where.
#[derive(Debug, Clone, Copy)]
pub struct Trying<'a> {
    pub image: &'a ImageName,
    pub build: &'a str,
    /// The sealed qcow2.
    pub file: &'a Path,
    pub sealed: &'a Sealed,
    pub region: &'a str,
    /// ARN of the key that encrypts the snapshot.
    pub kms_key: Option<&'a str>,
    /// Tags besides kiln's own.
    pub tags: &'a BTreeMap<String, String>,
    /// Where the versions before are.
    pub registry: Option<&'a Registry>,
}

/// An AMI that is there to be tried, until it is released.
#[derive(Debug)]
pub struct Trial {
    region: Region,
    remote: kiln_io::ledger::Remote,
    ledger: Ledger,
    entry: EntryId,
    ami: String,
    tried: Tried,
}

/// A disk that is in a snapshot already.
#[derive(Debug, Clone)]
pub struct Tried {
    account: String,
    region: String,
    kms_key: Option<String>,
    snapshot: String,
    layout: Arc<Layout>,
}

impl Tried {
    /// As what the snapshot of the same disk may stand on.
    pub(crate) fn parent(&self, region: &Region, kms_key: Option<&str>, disk: &Layout) -> Option<Parent> {
        let here = (&self.account, &self.region, self.kms_key.as_deref()) == (&region.account, &region.name, kms_key);
        (here && blocks::fits(disk, &self.layout)).then(|| Parent {
            version: "what was tried".to_owned(),
            snapshot: self.snapshot.clone(),
            layout: self.layout.clone(),
        })
    }
}

impl Trial {
    /// Makes the AMI. Its intent is in the ledger of the build before anything else is; on an error nothing is left, or it stands there.
    pub async fn prepare(account: &Account, dirs: &Dirs, trying: Trying<'_>) -> Result<Self, AwsError> {
        let disk = disk(&trying)?;
        let missing = || AwsError::NotBootable { what: format!("the disk of {}", trying.image) };
        let boots = boot_mode(firmware(disk.bytes.as_ref()).map_err(AwsError::Disk)?).ok_or_else(missing)?;
        let ledger = Ledger::join(dirs, trying.build)?;
        let region = account.region(trying.region).on_behalf_of(&ledger);
        let subject = format!("a trial of {} in build {}", trying.image, trying.build);
        // No registry ever knows it.
        let intent = Intent::declare(dirs, &ledger, &region, &subject, PathBuf::new())?;
        let made = async {
            // Without versions before, or where they cannot be read, all of it is sent.
            let before = trying.registry;
            let before = before.map(|before| {
                parents(before, &region, trying.image, None, (trying.kms_key, &Under::Any), &disk.layout)
            });
            let parents = before.and_then(Result::ok).unwrap_or_default();
            let name = format!("kiln trial of {}", trying.image);
            let tags = tags(name, trying.image, trying.build, &intent.id, trying.tags);
            let wanted = Wanted { disk: &disk, tags: &tags, kms_key: trying.kms_key, parents: &parents };
            let (snapshot, _) = region.filled(&intent, &wanted).await?;
            let found = region.register_trial(&snapshot, &boots, &tags).await?;
            intent.note(&found.ami);
            region.available(&found.ami).await?;
            Ok::<_, AwsError>(found)
        };
        let made = made.await;
        intent.forget_blocks();
        let (remote, entry) = (intent.remote.clone(), intent.entry.clone());
        match made {
            Ok(found) => {
                let tried = Tried {
                    account: region.account.clone(),
                    region: region.name.clone(),
                    kms_key: trying.kms_key.map(str::to_owned),
                    snapshot: found.snapshot,
                    layout: disk.layout,
                };
                Ok(Self { region, remote, ledger, entry, ami: found.ami, tried })
            }
            Err(error) => {
                give_back(&region, &remote, (&ledger, &entry), &intent.made()).await;
                Err(error)
            }
        }
    }

    pub fn ami(&self) -> &str {
        &self.ami
    }

    /// What the AMI of the version may stand on, as long as this lives.
    pub const fn tried(&self) -> &Tried {
        &self.tried
    }

    /// Takes it away, also after somebody asked to stop.
    pub async fn release(&self) -> Result<(), AwsError> {
        let region = self.region.afterwards();
        let age = region.seen_since();
        let expected = [self.ami.clone(), self.tried.snapshot.clone()];
        let sweeping = Sweeping { region: &region, remote: &self.remote, age, expected: &expected, open: &no_catalog };
        sweeping.release(&mut Released::default()).await?;
        Ok(self.ledger.release(&self.entry)?)
    }
}

fn disk(trying: &Trying<'_>) -> Result<Disk, AwsError> {
    let open = std::fs::File::open(trying.file).and_then(FileBytes::new);
    let image = Image::open(Arc::new(open.map_err(AwsError::Disk)?), Limits::default());
    let image = image.map_err(|error| AwsError::Disk(std::io::Error::other(error)))?;
    Ok(Disk { layout: Arc::new(trying.sealed.into()), bytes: Arc::new(image) })
}
