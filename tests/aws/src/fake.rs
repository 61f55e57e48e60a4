//! The fake as a test sees it: started, asked, disturbed, inspected.

use std::{
    collections::BTreeMap,
    io,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    sync::{Arc, Mutex},
    thread::JoinHandle,
    time::Duration,
};

use kiln_io::time::{Clock, SystemClock};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    blocks::{BLOCK, PER_GIB, noise},
    ec2::{images::Image, snapshots::Snapshot},
    fault::Schedule,
    form::Form,
    ledger::Entry,
    machines::{Machines, Nothing},
    refusal::Refusal,
    request::{Input, Service},
    server::{Shared, lock, serve},
    world::{Pace, World},
};

/// A running fake, on a thread of its own. Stops when dropped.
#[derive(Debug)]
pub struct Fake {
    address: SocketAddr,
    shared: Arc<Shared>,
    stop: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

/// A resource that costs money or stands in the way.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Living {
    pub region: String,
    pub account: String,
    /// As in tag specifications: `image`, `snapshot`, `instance`, `key-pair`, `security-group`, `launch-template`.
    pub kind: &'static str,
    pub id: String,
    pub tags: BTreeMap<String, String>,
}

/// An image that somebody else published.
#[derive(Debug, Clone, Copy)]
pub struct BaseImage<'a> {
    pub region: &'a str,
    pub owner: &'a str,
    pub name: &'a str,
    pub architecture: &'a str,
    /// The start of its disk of 1 GiB; the rest is empty.
    pub disk: &'a [u8],
}

impl Fake {
    /// The account of every access key that [`Fake::account`] did not give another.
    pub const ACCOUNT: &'static str = "111122223333";

    /// Starts on a free port of the loopback address.
    ///
    /// # Panics
    /// Where there is no port, no thread or no temporary file to be had.
    pub fn start() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        listener.set_nonblocking(true).expect("a socket for tokio");
        let address = listener.local_addr().expect("an address");
        let world = World::new(SystemClock::new().wall()).expect("a temporary file");
        let shared = Arc::new(Shared {
            world: Mutex::new(world),
            schedule: Mutex::default(),
            ledger: Mutex::default(),
            machines: Mutex::new(Arc::new(Nothing)),
            accounts: Mutex::default(),
            dead: watch::Sender::default(),
            disabled: Mutex::default(),
            allowed: Mutex::default(),
            callers: Mutex::default(),
            busy: watch::Sender::new(0),
        });
        let stop = CancellationToken::new();
        let (served, stopped) = (shared.clone(), stop.clone());
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let thread = std::thread::spawn(move || {
            runtime.block_on(serve(served, listener, stopped)).expect("a server");
            runtime.shutdown_background();
        });
        Self { address, shared, stop, thread: Some(thread) }
    }

    pub(crate) fn shared(&self) -> &Shared {
        &self.shared
    }

    /// The one URL of all services.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// From now on this access key belongs to this account.
    pub fn account(&self, access_key: &str, account: &str) {
        lock(&self.shared.accounts).push((access_key.to_owned(), account.to_owned()));
    }

    /// Replaces the faults to come; calls are counted anew.
    pub fn schedule(&self, schedule: Schedule) {
        *lock(&self.shared.schedule) = schedule;
    }

    pub fn pace(&self, pace: Pace) {
        lock(&self.shared.world).pace = pace;
    }

    /// By the callers' clock everything is found after so long, whatever the pace says.
    pub fn seen_after(&self, clock: Arc<dyn Clock>, limit: Duration) {
        lock(&self.shared.world).seen_after = Some((clock, limit));
    }

    /// Lets time pass: tokens and unfinished snapshots expire, images become deprecated.
    pub fn advance(&self, duration: Duration) {
        lock(&self.shared.world).advance(duration);
    }

    /// From now on there are so many machines of a type in a zone.
    pub fn capacity(&self, instance_type: &str, zone: &str, machines: u32) {
        lock(&self.shared.world).capacity.insert((instance_type.to_owned(), zone.to_owned()), machines);
    }

    /// Nobody has enabled this region: its services know no caller.
    pub fn disable(&self, region: &str) {
        lock(&self.shared.disabled).insert(region.to_owned());
    }

    /// From now on everything in a region is encrypted with `key` where nobody names one: `alias/aws/ebs` is the account's own.
    pub fn encrypt_by_default(&self, region: &str, key: &str) {
        let mut world = lock(&self.shared.world);
        world.enter(Self::ACCOUNT, region, None);
        world.here().default_key = Some(key.to_owned());
    }

    /// From now on callers have the right to these actions (`ec2:RunInstances`) and to no others.
    pub fn allow(&self, actions: impl IntoIterator<Item = String>) {
        *lock(&self.shared.allowed) = Some(actions.into_iter().collect());
    }

    /// What stands behind the instances from now on.
    pub fn machines(&self, machines: Arc<dyn Machines>) {
        *lock(&self.shared.machines) = machines;
    }

    /// Waits until the schedule has killed a caller that comes from now on, and nothing of it is being carried out any more. Whoever
    /// asked for that drops the caller then; the next one comes with another access key. What an earlier one had under way when it
    /// ended kills nobody.
    pub fn killed(&self) -> impl Future<Output = ()> {
        let before = lock(&self.shared.callers).clone();
        let (mut dead, mut busy) = (self.shared.dead.subscribe(), self.shared.busy.subscribe());
        async move {
            // The senders live as long as this.
            let _ = dead.wait_for(|dead| !dead.is_subset(&before)).await;
            let _ = busy.wait_for(|calls| *calls == 0).await;
        }
    }

    /// Every call so far.
    pub fn ledger(&self) -> Vec<Entry> {
        lock(&self.shared.ledger).clone()
    }

    /// A call of EC2 past network, schedule and SDK, in the name of an account: to plant and to look.
    pub fn ec2(&self, account: &str, region: &str, action: &str, fields: &[(&str, &str)]) -> Result<String, Refusal> {
        self.query(Service::Ec2, (account, region), action, fields)
    }

    /// The same for Auto Scaling.
    pub fn autoscaling(
        &self,
        account: &str,
        region: &str,
        action: &str,
        fields: &[(&str, &str)],
    ) -> Result<String, Refusal> {
        self.query(Service::AutoScaling, (account, region), action, fields)
    }

    fn query(
        &self,
        service: Service,
        place: (&str, &str),
        action: &str,
        fields: &[(&str, &str)],
    ) -> Result<String, Refusal> {
        let answer = self.shared.perform(place, service, action, Input::Form(Form::of(fields)), None)?;
        Ok(String::from_utf8_lossy(&answer.body).into_owned())
    }

    /// Everything that lives in every region and account: what a clean-up must have taken away is not in it.
    pub fn living(&self) -> Vec<Living> {
        let world = lock(&self.shared.world);
        let mut all = Vec::new();
        for ((place, account), region) in &world.regions {
            let mut add = |kind, ids: Vec<&String>| {
                all.extend(ids.into_iter().map(|id| Living {
                    region: place.clone(),
                    account: account.clone(),
                    kind,
                    id: id.clone(),
                    tags: region.tags(id),
                }));
            };
            add("image", region.images.keys().collect());
            add("snapshot", region.snapshots.keys().collect());
            let running = region.instances.iter().filter(|(_, instance)| !instance.is_over());
            add("instance", running.map(|(id, _)| id).collect());
            add("volume", region.volumes.keys().collect());
            add("key-pair", region.key_pairs.values().map(|key| &key.id).collect());
            let made = region.groups.iter().filter(|(_, group)| group.name != "default");
            add("security-group", made.map(|(id, _)| id).collect());
            add("launch-template", region.templates.keys().collect());
        }
        all
    }

    /// A block of a snapshot as an encrypted volume made from it would show it; `None` where there is no such block. What nobody wrote
    /// into a snapshot that was written block by block is noise there: what the key makes of nothing.
    ///
    /// # Panics
    /// Where the temporary file cannot be read.
    pub fn block(&self, region: &str, account: &str, snapshot: &str, index: u32) -> Option<Vec<u8>> {
        let world = lock(&self.shared.world);
        let snapshot = world.regions.get(&(region.to_owned(), account.to_owned()))?.snapshots.get(snapshot)?;
        if u64::from(index) >= snapshot.size * PER_GIB {
            return None;
        }
        Some(match snapshot.blocks.get(&index) {
            Some(block) => world.blocks.read(&block.digest).expect("a stored block can be read"),
            None if snapshot.encrypted || !snapshot.written.is_empty() => noise(&snapshot.id, index),
            None => vec![0; BLOCK],
        })
    }

    /// The snapshot of an image's root device.
    pub fn root_snapshot(&self, region: &str, account: &str, image: &str) -> Option<String> {
        let world = lock(&self.shared.world);
        let image = world.regions.get(&(region.to_owned(), account.to_owned()))?.images.get(image)?;
        image.root().map(|ebs| ebs.snapshot.clone())
    }

    /// Writes a snapshot's disk to a file, sparse where it is zero.
    pub fn write_disk(&self, region: &str, account: &str, snapshot: &str, file: &std::fs::File) -> io::Result<()> {
        use std::os::unix::fs::FileExt as _;
        let mut index = 0;
        while let Some(block) = self.block(region, account, snapshot, index) {
            if block.iter().any(|byte| *byte != 0) {
                file.write_all_at(&block, u64::from(index) * BLOCK as u64)?;
            }
            index += 1;
        }
        file.set_len(u64::from(index) * BLOCK as u64)
    }

    /// Publishes an image for everybody, as its owner did long ago; returns its id.
    pub fn base_image(&self, base: BaseImage<'_>) -> String {
        let mut world = lock(&self.shared.world);
        world.enter(base.owner, base.region, None);
        let snapshot = Snapshot::of_disk(&mut world, base.disk, 1);
        let id = world.id("ami");
        let image = Image::published(&world, &id, base.name, base.architecture, &snapshot.id);
        let here = world.here();
        here.snapshots.insert(snapshot.id.clone(), snapshot);
        here.images.insert(id.clone(), image);
        id
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}
