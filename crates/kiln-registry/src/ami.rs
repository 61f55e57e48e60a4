//! The AMIs that versions are: one record for each account and region, entered when the AMI is whole.
//!
//! The record of a version is never written to again, so these lie beside it: `images/<name>/ami/<version>/<account>.<region>.<ami>.json`.
//! They are never written to again either: an AMI that is gone has a second, empty object whose name ends in `.gone`.

use std::collections::BTreeSet;

use kiln_core::{Digest, ImageName, Version};
use serde::{Deserialize, Serialize};

use crate::{Reference, Registry, RegistryError, Selector, durable::failed, head::read_json, image_key};

/// The AMI of a version in one region of one account.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ami {
    pub format: u32,
    pub image: ImageName,
    pub version: Version,
    /// The disk that its snapshot holds, read back and compared.
    pub disk: Digest,
    /// Twelve digits.
    pub account: String,
    /// `eu-west-1`.
    pub region: String,
    /// `ami-0123..`
    pub ami: String,
    /// `snap-0123..`
    pub snapshot: String,
    /// The key that encrypts the snapshot; `None`: it is not encrypted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kms_key: Option<String>,
    /// The key that was asked for; an account may encrypt what nobody asked it to. Snapshots stand on each other only where this is
    /// the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wanted_key: Option<String>,
    /// Stands as the tag `kiln:intent` on both.
    pub intent: String,
    /// Seconds since 1970, UTC.
    pub published: u64,
}

impl Ami {
    /// The format of the records.
    pub const FORMAT: u32 = 1;
}

impl Registry {
    /// The AMIs of a version, by account and region.
    pub fn amis(&self, image: &ImageName, version: &Version) -> Result<Vec<Ami>, RegistryError> {
        let folder = folder(image, version);
        let names: BTreeSet<String> = self.listed(&folder)?.into_iter().collect();
        let mut amis: Vec<Ami> = Vec::new();
        for name in names.iter().filter_map(|name| name.strip_suffix(".json")) {
            if !names.contains(&format!("{name}.gone")) {
                amis.extend(read_json(&*self.place, &format!("{folder}/{name}.json"))?);
            }
        }
        Ok(amis)
    }

    /// Every AMI of an image, versions that retention removed here included.
    pub fn amis_of(&self, image: &ImageName) -> Result<Vec<Ami>, RegistryError> {
        let mut amis = Vec::new();
        for name in self.listed(&format!("{}/ami", image_key(image)))? {
            if let Ok(version) = name.parse() {
                amis.extend(self.amis(image, &version)?);
            }
        }
        Ok(amis)
    }

    /// Enters an AMI that is whole. Says `false` when it is there already.
    pub fn enter_ami(&self, ami: &Ami) -> Result<bool, RegistryError> {
        let _leased = self.lease()?;
        self.place.create(&format!("{}.json", key(ami)), &self.json(ami)?)
    }

    /// Notes that an AMI is no longer there.
    pub fn forget_ami(&self, ami: &Ami) -> Result<(), RegistryError> {
        let _leased = self.lease()?;
        self.place.create(&format!("{}.gone", key(ami)), b"").map(drop)
    }

    /// Enters `ami/VERSION/NAME` of `image` as another kiln sends it: the record of an AMI that holds the version's own disk, or the empty
    /// mark that one is gone. Says `false` when it is there already.
    pub fn enter_raw_ami(&self, image: &ImageName, key: &str, bytes: &[u8]) -> Result<bool, RegistryError> {
        let refused = |problem| RegistryError::NotAnAmi { key: key.to_owned(), problem };
        let path = format!("{}/{key}", image_key(image));
        if let Some(name) = path.strip_suffix(".gone") {
            let known: Option<Ami> = read_json(&*self.place, &format!("{name}.json"))?;
            let known = known.filter(|ami| self::key(ami) == name);
            let known = known.ok_or_else(|| refused("no AMI of this name was entered"))?;
            if !bytes.is_empty() {
                return Err(refused("the mark that an AMI is gone is empty"));
            }
            let _leased = self.lease()?;
            return self.place.create(&format!("{}.gone", self::key(&known)), b"");
        }
        let ami: Ami = serde_json::from_slice(bytes).map_err(|_| refused("it is not the record of an AMI"))?;
        if ami.format != Ami::FORMAT {
            return Err(refused("the record has another format"));
        }
        if Some(self::key(&ami).as_str()) != path.strip_suffix(".json") {
            return Err(refused("the record is that of another AMI"));
        }
        let record =
            self.record(&Selector { image: ami.image.clone(), reference: Reference::Named(ami.version.clone()) })?;
        if record.artifact.disk.digest != ami.disk {
            return Err(refused("the record names another disk than the version has"));
        }
        self.enter_ami(&ami)
    }

    fn listed(&self, folder: &str) -> Result<Vec<String>, RegistryError> {
        self.place.names(folder).map_err(failed("list", &self.place.path(folder)))
    }
}

fn folder(image: &ImageName, version: &Version) -> String {
    format!("{}/ami/{version}", image_key(image))
}

/// Without its end.
fn key(ami: &Ami) -> String {
    let plain = |text: &str| text.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '-').collect::<String>();
    let Ami { image, version, account, region, ami, .. } = ami;
    format!("{}/{}.{}.{}", folder(image, version), plain(account), plain(region), plain(ami))
}
