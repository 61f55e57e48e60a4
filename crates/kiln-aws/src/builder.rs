//! An instance that a bake runs in: key, security group, machine, then its disk, and all of it gone again.
//!
//! All of it carries one intent, and nothing of it is meant to stay: what the image is becomes known here, and its AMI is made of
//! the sealed disk like any other. So whatever carries the mark can be taken away, by the bake itself or by `kiln clean`.

mod ami;
mod disk;
mod dismantle;
mod launch;
mod network;
mod source;
mod state;
mod user_data;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use kiln_core::{ImageName, plan::Ec2Machine};
use kiln_io::{
    dirs::Dirs,
    keys::{KeyPair, PublicKey},
    ledger::{EntryId, Ledger, LedgerError, Remote, Resource},
    random::nonce,
};
use kiln_registry::Registry;

pub(crate) use self::dismantle::is_temporary;
use self::{ami::Origin, launch::Launched};
use crate::{
    Account, Region, Released,
    error::AwsError,
    intent::{PROVIDER, TAG},
    reconcile::Sweeping,
};

/// What an instance is made of.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    pub machine: &'a Ec2Machine,
    pub ami: &'a str,
    pub image: &'a ImageName,
    pub build: &'a str,
    /// Whose private half logs in.
    pub login: &'a PublicKey,
    /// What the guest is to show.
    pub host: &'a KeyPair,
}

/// An instance that runs, and everything that was made for it.
#[derive(Debug)]
pub struct Instance {
    region: Region,
    machine: Ec2Machine,
    remote: Remote,
    ledger: Ledger,
    entry: EntryId,
    origin: Origin,
    launched: Launched,
    address: String,
    /// The root volume.
    volume: String,
    /// What was made, though it may not be seen yet.
    known: Mutex<Vec<String>>,
}

impl Instance {
    /// Starts one. The intent is in the ledger of the build before anything else is.
    pub async fn start(account: &Account, dirs: &Dirs, wanted: Wanted<'_>) -> Result<Self, AwsError> {
        let region = account.region(&wanted.machine.region);
        // What can be refused is refused before anything is made.
        let origin = region.origin(wanted.ami).await?;
        let subnets = region.subnets(wanted.machine).await?;
        let source = source::of_caller(wanted.machine, &subnets, &region.caller.cancel).await?;
        let ledger = Ledger::join(dirs, wanted.build)?;
        let region = region.on_behalf_of(&ledger);
        let remote = Remote {
            provider: PROVIDER.to_owned(),
            account: region.account.clone(),
            region: region.name.clone(),
            intent: format!("i-{}", nonce()),
            subject: format!("{} in build {}", wanted.image, wanted.build),
            // No registry ever knows what is made for a bake.
            catalog: PathBuf::new(),
        };
        let entry = ledger.acquire("EC2 instance", Resource::Remote(remote.clone()))?;
        let name = format!("kiln {}", wanted.image);
        let tags = tags(name, wanted.image, wanted.build, &remote.intent, &wanted.machine.tags);
        let mut known = Vec::new();
        let made = async {
            let key = region.import_key(&remote.intent, wanted.login, &tags).await?;
            known.push(key.clone());
            let group = region.make_group(&remote.intent, &subnets[0].vpc, &tags).await?;
            known.push(group.clone());
            if let Some(source) = &source {
                region.let_in(&group, wanted.machine.ssh_port, source).await?;
            }
            let user_data = user_data::encoded(wanted.machine, wanted.host, wanted.login);
            let with = launch::With { ami: &origin, key: &key, group: &group, user_data: &user_data, tags: &tags };
            let launched = region.launch(wanted.machine, &subnets, &with).await?;
            known.push(launched.id.clone());
            let up = region.up(&launched.id, wanted.machine, &origin.root).await?;
            Ok::<_, AwsError>((launched, up))
        };
        let made = made.await;
        match made {
            Ok((launched, up)) => Ok(Self {
                machine: wanted.machine.clone(),
                region,
                remote,
                ledger,
                entry,
                origin,
                launched,
                address: up.address,
                volume: up.volume,
                known: Mutex::new(known),
            }),
            Err(error) => {
                give_back(&region, &remote, (&ledger, &entry), &known).await;
                Err(error)
            }
        }
    }

    pub fn id(&self) -> &str {
        &self.launched.id
    }

    /// Where it answers.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The type that it got.
    pub fn instance_type(&self) -> &str {
        &self.launched.instance_type
    }

    /// For people: `i-0123 in eu-west-1a, on demand`.
    pub fn description(&self) -> String {
        let market = if self.launched.spot { "spot" } else { "on demand" };
        format!("{} ({}, {market}) in {}", self.launched.id, self.launched.instance_type, self.launched.zone)
    }

    /// Looks after it; returns only when it does not run any more.
    pub async fn watch(&self) -> AwsError {
        self.region.watch_instance(&self.launched.id).await
    }

    /// The last lines of its serial console.
    pub async fn console(&self) -> Vec<String> {
        self.region.console(&self.launched.id).await.unwrap_or_default()
    }

    /// From now on the root volume outlives the instance, which is about to power off and thereby to end.
    pub async fn let_go(&self) -> Result<(), AwsError> {
        self.region.keep_volume(&self.launched.id, &self.origin.root).await?;
        self.know(self.volume.clone());
        Ok(())
    }

    /// Waits until it has powered off, and writes its disk to `to`. The size in bytes.
    pub async fn disk(&self, to: &Path, progress: &(dyn Fn(u64, u64) + Send + Sync)) -> Result<u64, AwsError> {
        self.region.ended(&self.launched.id, self.machine.shutdown_timeout).await?;
        let tags = self.tags();
        let snapshot = self.region.snapshot_of(&self.volume, &tags).await?;
        self.know(snapshot.clone());
        self.region.completed(&snapshot).await?;
        self.region.fetch(&snapshot, to, progress).await
    }

    /// Takes everything away that was made for it, also after somebody asked to stop.
    pub async fn release(&self) -> Result<Released, AwsError> {
        let region = self.region.afterwards();
        region.terminate(&self.launched.id).await?;
        let age = region.seen_since();
        // The instance was told to end by its id, and may not be seen any more.
        let mut expected = self.known().clone();
        expected.retain(|id| *id != self.launched.id);
        let mut released = Released::default();
        let sweeping = Sweeping { region: &region, remote: &self.remote, age, expected: &expected, open: &no_catalog };
        sweeping.release(&mut released).await?;
        self.ledger.release(&self.entry)?;
        Ok(released)
    }

    fn know(&self, id: String) {
        self.known().push(id);
    }

    fn known(&self) -> MutexGuard<'_, Vec<String>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tags(&self) -> BTreeMap<String, String> {
        let mut tags = BTreeMap::from([("Name".to_owned(), format!("kiln {}", self.remote.subject))]);
        tags.extend(self.machine.tags.clone());
        tags.insert(TAG.to_owned(), self.remote.intent.clone());
        tags
    }
}

/// Takes away what was made before a start failed. What cannot go, or may come to light later, stays in the ledger.
pub(crate) async fn give_back(
    region: &Region,
    remote: &Remote,
    (ledger, entry): (&Ledger, &EntryId),
    expected: &[String],
) {
    let region = region.afterwards();
    let age = region.seen_since();
    let sweeping = Sweeping { region: &region, remote, age, expected, open: &no_catalog };
    let swept = sweeping.release(&mut Released::default()).await;
    if swept.is_ok() {
        let _: Result<(), LedgerError> = ledger.release(entry);
    }
}

/// No registry is asked about what is temporary.
pub(crate) fn no_catalog(_: &Path, _: &ImageName) -> Result<Registry, String> {
    Err("what is made for a bake stands in no catalog".to_owned())
}

/// Everything that is made for a build, and goes with it, says for which; `own` are the template's.
pub(crate) fn tags(
    name: String,
    image: &ImageName,
    build: &str,
    intent: &str,
    own: &BTreeMap<String, String>,
) -> BTreeMap<String, String> {
    let tags =
        [("Name", name), ("kiln:image", image.to_string()), ("kiln:build", build.to_owned()), (TAG, intent.to_owned())];
    let mut tags: BTreeMap<_, _> = tags.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
    tags.extend(own.clone());
    tags
}
