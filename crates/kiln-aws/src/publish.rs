//! The way of a version into one region, and into all that were asked for at once.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use aws_sdk_ec2::types::{BootModeValues, ImageState};
use futures_util::future::join_all;
use kiln_core::{ImageName, Version, artifact::Artifact};
use kiln_disk::hygiene::firmware;
use kiln_io::{dirs::Dirs, ledger::Ledger};
use kiln_registry::{Ami, Record, Reference, Registry, Selector};
use serde::{Deserialize, Serialize};

use crate::{
    Account, Region, Sharing,
    blocks::{self, Layout},
    error::AwsError,
    image::{Found, boot_mode},
    intent::{self, Intent, TAG},
    retention::WITHDRAWN,
    sharing::Under,
    trial::Tried,
    upload::{Disk, Parent, Wanted},
};

/// Versions before that are weighed as what a snapshot may stand on.
const CANDIDATES: usize = 3;

/// What an AMI carries as its intent when another kiln made it: no ledger has it, so nobody's `kiln clean` takes it away.
const ADOPTED: &str = "adopted";

/// Turns versions of a registry into AMIs.
#[derive(Debug)]
pub struct Publisher<'a> {
    pub registry: &'a Registry,
    /// Its name, by which `kiln clean` finds it from anywhere; it goes into the ledger.
    pub catalog: &'a Path,
    pub dirs: &'a Dirs,
    /// That of this run; it has every intent before anything is made for it.
    pub ledger: &'a Ledger,
    /// Its snapshot is there already, if it is the same disk: nothing of it is sent again.
    pub tried: Option<&'a Tried>,
    /// Seconds since 1970, UTC.
    pub now: u64,
}

/// A region to publish to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    pub region: String,
    /// ARN of the key that encrypts the snapshot; `None`: as the account has it by default.
    pub kms_key: Option<String>,
}

/// What there is in a region.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Published {
    pub account: String,
    pub ami: String,
    pub snapshot: String,
    /// It was there before.
    pub already: bool,
    /// Blocks of 512 KiB that were sent.
    pub blocks: usize,
}

/// The AMIs of a version in a region, as the catalog has them.
#[derive(Debug, Default)]
struct Known {
    here: Option<Ami>,
    /// Somebody deregistered them.
    gone: Vec<Ami>,
}

/// What an AMI is made of.
#[derive(Debug)]
struct Source<'a> {
    record: &'a Record,
    disk: Disk,
    boot_mode: BootModeValues,
    /// Besides kiln's own.
    tags: &'a BTreeMap<String, String>,
    under: &'a Under,
    gone: &'a [Ami],
}

/// What became of one region.
pub type Outcome = Result<Published, AwsError>;

/// What became of every region.
#[derive(Debug)]
pub struct Report {
    pub image: ImageName,
    pub version: Version,
    pub regions: BTreeMap<String, Outcome>,
}

impl Report {
    /// How many regions have the AMI.
    pub fn complete(&self) -> usize {
        self.regions.values().filter(|outcome| outcome.is_ok()).count()
    }

    /// For people and programs: what there is, and what went wrong.
    pub fn json(&self) -> serde_json::Value {
        let region = |outcome: &Outcome| match outcome {
            Ok(published) => serde_json::json!(published),
            Err(error) => serde_json::json!({ "error": error.to_string() }),
        };
        let regions: serde_json::Map<_, _> =
            self.regions.iter().map(|(name, outcome)| (name.clone(), region(outcome))).collect();
        serde_json::json!({ "image": self.image, "version": self.version, "regions": regions })
    }
}

impl Publisher<'_> {
    /// Publishes `record` to all `places` at once. What fails in one region changes nothing for another.
    pub async fn publish(&self, account: &Account, record: &Record, places: &[Place], sharing: &Sharing) -> Report {
        let regions = join_all(places.iter().map(|place| async {
            let region = account.region(&place.region).on_behalf_of(self.ledger);
            (place.region.clone(), self.bring_to(&region, record, place, sharing).await)
        }));
        Report {
            image: record.artifact.image.clone(),
            version: record.artifact.version.clone(),
            regions: regions.await.into_iter().collect(),
        }
    }

    async fn bring_to(&self, region: &Region, record: &Record, place: &Place, sharing: &Sharing) -> Outcome {
        let Known { here, gone } = self.known(region, record).await?;
        if let Some(here) = here {
            encrypted_as_asked(region, place, &here.ami, &[&here.wanted_key, &here.kms_key])?;
            self.forget(&gone)?;
            return self.again(region, here, sharing).await;
        }
        let under = region.shareable(place.kms_key.as_deref(), sharing).await?;
        let (disk, boot_mode) = self.bootable(record)?;
        let intent = Intent::declare(self.dirs, self.ledger, region, &subject(record, place), self.catalog.to_owned())?;
        let (found, blocks) = if let Some(found) = region.find_image(record, &intent.id).await? {
            encrypted_as_asked(region, place, &found.ami, &[&found.kms_key])?;
            (found, None)
        } else {
            let source = Source { record, disk, boot_mode, tags: &sharing.tags, under: &under, gone: &gone };
            let (found, blocks) = self.make(region, place, &intent, &source).await?;
            (found, Some(blocks))
        };
        region.available(&found.ami).await?;
        if let Some(here) = gone.iter().find(|known| known.ami == found.ami) {
            // It was there all the time, and only not to be seen.
            intent.fulfilled()?;
            return self.again(region, here.clone(), sharing).await;
        }
        if found.intent.as_ref() != Some(&intent.id) {
            let mut adopted = sharing.tags.clone();
            adopted.insert(TAG.to_owned(), ADOPTED.to_owned());
            region.mark(&[&found.ami, &found.snapshot], &adopted).await?;
        }
        region.share(&found.ami, sharing).await?;
        self.enter(region, record, place, &found, &intent)?;
        self.forget(&gone)?;
        // A lost answer, or another kiln that was faster, may have left a second snapshot.
        for other in region.snapshots_of(&intent.id).await? {
            if let Some(other) = other.snapshot_id.filter(|other| *other != found.snapshot) {
                region.delete_snapshot(&other).await?;
            }
        }
        intent.fulfilled()?;
        // Only now: what is not recorded yet must be possible to release.
        region.protect(&found.ami, sharing).await?;
        let Found { ami, snapshot, .. } = found;
        let account = region.account.clone();
        Ok(Published { account, ami, snapshot, already: blocks.is_none(), blocks: blocks.unwrap_or(0) })
    }

    /// It is there already; only what is set on it may be new, and it may have been withdrawn and enabled again.
    async fn again(&self, region: &Region, known: Ami, sharing: &Sharing) -> Outcome {
        region.restore(&known).await?;
        if !sharing.tags.is_empty() {
            region.mark(&[&known.ami, &known.snapshot], &sharing.tags).await?;
        }
        region.share(&known.ami, sharing).await?;
        region.protect(&known.ami, sharing).await?;
        let Ami { account, ami, snapshot, .. } = known;
        Ok(Published { account, ami, snapshot, already: true, blocks: 0 })
    }

    /// From here on the AMI is published.
    fn enter(
        &self,
        region: &Region,
        record: &Record,
        place: &Place,
        found: &Found,
        intent: &Intent<'_>,
    ) -> Result<(), AwsError> {
        let artifact = &record.artifact;
        self.registry.enter_ami(&Ami {
            format: Ami::FORMAT,
            image: artifact.image.clone(),
            version: artifact.version.clone(),
            disk: artifact.disk.digest,
            account: region.account.clone(),
            region: region.name.clone(),
            ami: found.ami.clone(),
            snapshot: found.snapshot.clone(),
            kms_key: found.kms_key.clone(),
            wanted_key: place.kms_key.clone(),
            intent: intent.id.clone(),
            published: self.now,
        })?;
        Ok(())
    }

    /// Snapshot, proof, AMI. How many blocks were sent for it.
    async fn make(
        &self,
        region: &Region,
        place: &Place,
        intent: &Intent<'_>,
        source: &Source<'_>,
    ) -> Result<(Found, usize), AwsError> {
        let Source { record, disk, boot_mode, tags: own, under, gone } = source;
        let kms_key = place.kms_key.as_deref();
        let mut tags = intent::tags(record, &intent.id);
        tags.extend((*own).clone());
        for gone in *gone {
            // Only the AMI was deregistered: its snapshot was proven when it was made.
            if let Some((snapshot, withdrawn)) = region.kept_snapshot(gone).await? {
                encrypted_as_asked(region, place, &gone.ami, &[&gone.wanted_key, &gone.kms_key])?;
                // Whoever deregisters this AMI, too, must find it again.
                let mut mark = (*own).clone();
                mark.insert(TAG.to_owned(), intent.id.clone());
                region.mark(&[&snapshot.id], &mark).await?;
                if withdrawn {
                    region.unmark(&[&snapshot.id], WITHDRAWN).await?;
                }
                return Ok((region.register(record, &snapshot, boot_mode, &tags).await?, 0));
            }
        }
        let Artifact { image, version, .. } = &record.artifact;
        let mut parents = parents(self.registry, region, image, Some(version), (kms_key, under), &disk.layout)?;
        parents.splice(..0, self.tried.and_then(|tried| tried.parent(region, kms_key, &disk.layout)));
        let wanted = Wanted { disk, tags: &tags, kms_key, parents: &parents };
        let (snapshot, blocks) = region.filled(intent, &wanted).await?;
        let found = region.register(record, &snapshot, boot_mode, &tags).await?;
        Ok((found, blocks))
    }

    /// The disk, and how it boots.
    fn bootable(&self, record: &Record) -> Result<(Disk, BootModeValues), AwsError> {
        let stored = self.registry.disk(record)?;
        let disk = Disk { layout: Arc::new(stored.content().into()), bytes: Arc::new(stored) };
        let Artifact { image, version, .. } = &record.artifact;
        let boot_mode = boot_mode(firmware(disk.bytes.as_ref()).map_err(AwsError::Disk)?);
        let missing = || AwsError::NotBootable { what: format!("{image} {version}") };
        Ok((disk, boot_mode.ok_or_else(missing)?))
    }

    /// What the catalog says that there is here, and whether it is.
    async fn known(&self, region: &Region, record: &Record) -> Result<Known, AwsError> {
        let mut known = Known::default();
        for ami in self.registry.amis(&record.artifact.image, &record.artifact.version)? {
            if (&ami.account, &ami.region) != (&region.account, &region.name) {
                continue;
            }
            match region.state(&ami.ami).await? {
                None => known.gone.push(ami),
                Some(ImageState::Available) => known.here = Some(ami),
                Some(state) => {
                    let (ami, region, state) = (ami.ami, region.name.clone(), state.to_string());
                    return Err(AwsError::Image { ami, region, state, reason: "it was published before".to_owned() });
                }
            }
        }
        Ok(known)
    }

    /// Notes that others took the place of these.
    fn forget(&self, gone: &[Ami]) -> Result<(), AwsError> {
        gone.iter().try_for_each(|ami| Ok(self.registry.forget_ami(ami)?))
    }
}

/// The newest versions of `image`, but for `itself`, whose snapshots in `region` a disk may stand on; that with the fewest blocks to write first.
pub(crate) fn parents(
    registry: &Registry,
    region: &Region,
    image: &ImageName,
    itself: Option<&Version>,
    (kms_key, under): (Option<&str>, &Under),
    disk: &Layout,
) -> Result<Vec<Parent>, AwsError> {
    let mut parents = Vec::new();
    for listed in registry.versions(image)? {
        if Some(&listed.version) == itself || parents.len() == CANDIDATES {
            continue;
        }
        let amis = registry.amis(image, &listed.version)?;
        let here = amis.into_iter().filter(|ami| under.takes(ami.kms_key.as_deref())).find(|ami| {
            (&ami.account, &ami.region, ami.wanted_key.as_deref()) == (&region.account, &region.name, kms_key)
        });
        let Some(ami) = here else { continue };
        let selector = Selector { image: image.clone(), reference: Reference::Named(listed.version.clone()) };
        // A version that cannot be read is no reason to fail, only nothing to stand on.
        let content = registry.record(&selector).and_then(|record| registry.content(&record));
        let Ok(content) = content else { continue };
        let layout = Layout::from(&content);
        if layout.disk == ami.disk && blocks::fits(disk, &layout) {
            let version = listed.version.to_string();
            parents.push(Parent { version, snapshot: ami.snapshot, layout: Arc::new(layout) });
        }
    }
    parents.sort_by_cached_key(|parent| blocks::to_write(disk, Some(&parent.layout)).len());
    Ok(parents)
}

/// What an intent is for, as its entry in the ledger says it. What was begun without a key is not what is wanted with one.
fn subject(record: &Record, place: &Place) -> String {
    let artifact = &record.artifact;
    let key = place.kms_key.as_ref().map(|key| format!(" {key}")).unwrap_or_default();
    format!("{}@{} {}{key}", artifact.image, artifact.version, artifact.disk.digest)
}

/// Refuses an AMI that is there already, and not under the key that was asked for.
fn encrypted_as_asked(region: &Region, place: &Place, ami: &str, keys: &[&Option<String>]) -> Result<(), AwsError> {
    let Some(wanted) = &place.kms_key else { return Ok(()) };
    // EC2 names the key behind an alias.
    let alias = wanted.contains(":alias/");
    if keys.iter().any(|key| key.as_ref() == Some(wanted) || (alias && key.is_some())) {
        return Ok(());
    }
    let (ami, region, wanted) = (ami.to_owned(), region.name.clone(), wanted.clone());
    Err(AwsError::OtherKey { ami, region, wanted })
}

/// Opens the registry that a ledger names as the catalog of an image.
pub type OpenCatalog<'a> = &'a (dyn Fn(&Path, &ImageName) -> Result<Registry, String> + Sync);

/// Whether `catalog` has an AMI of `subject` that is `ami`, or that stands on the snapshot `ami`. One that is not there, since a
/// disk is not mounted, knows nothing, and that must not look like an answer.
pub(crate) fn is_recorded(open: OpenCatalog<'_>, catalog: &Path, subject: &str, id: &str) -> Result<bool, AwsError> {
    let unknown = |problem: String| AwsError::Catalog { catalog: catalog.to_owned(), problem };
    let elsewhere = catalog.to_str().is_some_and(|name| name.contains("://"));
    if !elsewhere {
        std::fs::read_dir(catalog).map_err(|error| unknown(error.to_string()))?;
    }
    let image = subject.split_once('@').and_then(|(image, _)| image.parse().ok());
    let image: ImageName = image.ok_or_else(|| unknown(format!("`{subject}` names no image")))?;
    let amis = open(catalog, &image).map_err(unknown)?.amis_of(&image)?;
    Ok(amis.iter().any(|ami| ami.ami == id || ami.snapshot == id))
}
