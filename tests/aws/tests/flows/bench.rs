//! A registry, a state directory and a fake AWS, and what is asked of them.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use kiln_aws::{
    Access, Account, AwsError, Instance, Patience, Place, Published, Publisher, Region, Report, Sharing, Silent,
    StandIn, Trial, Trying, Wanted,
};
use kiln_aws_tests::{Fake, documented};
use kiln_core::{
    ImageName,
    plan::{Address, Ec2Machine, Which},
};
use kiln_disk::{DiskFile, GuestDisk, seal};
use kiln_io::{
    dirs::Dirs,
    guest::Quiet,
    keys::KeyPair,
    ledger::{self, Condition, Ledger},
    random::nonce,
    time::{Clock, Policy, SystemClock, TestClock},
};
use kiln_registry::Registry;
use tokio_util::sync::CancellationToken;

use crate::artifact::{Scratch, fixed, sealed, sealed_file};

pub(crate) use kiln_aws_tests::BLOCK;

pub(crate) const REGIONS: [&str; 3] = ["eu-west-1", "eu-north-1", "us-east-1"];
pub(crate) const KEY: &str = "arn:aws:kms:eu-west-1:111122223333:key/11111111-2222-3333-4444-555555555555";

pub(crate) struct Bench {
    pub(crate) fake: Fake,
    pub(crate) registry: Registry,
    pub(crate) dirs: Dirs,
    scratch: Scratch,
    clock: Arc<dyn Clock>,
    patience: Patience,
}

impl Bench {
    /// Waits for real, but not for long.
    pub(crate) fn new(name: &str) -> Self {
        let patience = Patience {
            attempt: Duration::from_secs(20),
            retry: policy(2, 50, 60_000),
            visible: Duration::from_millis(200),
            progress: policy(2, 20, 400),
        };
        Self::with(name, Arc::new(SystemClock::new()), patience)
    }

    /// Waits as long as kiln does, on a clock that only moves when somebody waits.
    pub(crate) fn timeless(name: &str) -> Self {
        let patience = Patience { progress: policy(1_000, 15_000, 300_000), ..Patience::default() };
        Self::with(name, Arc::new(TestClock::at(SystemClock::new().wall())), patience)
    }

    fn with(name: &str, clock: Arc<dyn Clock>, patience: Patience) -> Self {
        let scratch = Scratch::new(&format!("aws-{name}-{}", &nonce()[..8]));
        let directory = |name| scratch.0.join(name);
        let dirs = Dirs { cache: directory("cache"), state: directory("state"), data: directory("data") };
        let fake = Fake::start();
        fake.allow(documented());
        fake.seen_after(clock.clone(), patience.visible);
        Self { fake, registry: scratch.registry(), dirs, scratch, clock, patience }
    }

    /// Publishes `disk` as a version of `web` into the registry.
    pub(crate) fn publish(&self, version: &str, disk: &[u8]) -> Vec<u8> {
        let directory = self.scratch.0.join(version);
        let built = sealed(&directory, &format!("b-{version}"), disk, 1);
        self.registry.publish(&built, &directory, &fixed(version), &Quiet).unwrap();
        disk.to_vec()
    }

    /// The same of a file, which the benchmark has.
    #[allow(dead_code, reason = "the tests have small disks")]
    pub(crate) fn publish_file(&self, version: &str, raw: &Path) {
        let directory = self.scratch.0.join(version);
        let built = sealed_file(&directory, &format!("b-{version}"), raw, 1);
        self.registry.publish(&built, &directory, &fixed(version), &Quiet).unwrap();
        fs::remove_dir_all(&directory).unwrap();
    }

    #[allow(dead_code, reason = "the tests have small disks")]
    pub(crate) fn scratch(&self) -> &Path {
        &self.scratch.0
    }

    pub(crate) async fn ami(&self, version: &str) -> Result<Published, AwsError> {
        self.ami_at(&self.fake.endpoint(), version).await
    }

    /// The same where something else answers.
    pub(crate) async fn ami_at(&self, url: &str, version: &str) -> Result<Published, AwsError> {
        let place = Place { region: REGIONS[0].to_owned(), kms_key: None };
        let report = self.report_at(url, version, &[place], &Sharing::default()).await?;
        report.regions.into_values().next().unwrap()
    }

    /// An AMI of a version whose disk was tried before.
    pub(crate) async fn ami_after_trial(&self, version: &str, disk: &[u8]) -> Result<Published, AwsError> {
        let (image, build) = ("web".parse().unwrap(), format!("b-{}", nonce()));
        let (raw, file) = (self.scratch.0.join(format!("{build}.raw")), self.scratch.0.join(format!("{build}.qcow2")));
        fs::write(&raw, disk).unwrap();
        let guest = GuestDisk::open(&[DiskFile::raw(&raw)]).unwrap();
        let sealed = seal::seal(&guest, &file, &seal::Options { level: 1, ..Default::default() }).unwrap();
        let account = Account::open(self.access(&self.fake.endpoint()), REGIONS[0]).await?;
        let record = self.registry.record(&format!("web@{version}").parse().unwrap())?;
        let ledger = Ledger::open(&self.dirs, &build)?;
        let trying = Trying {
            image: &image,
            build: &build,
            file: &file,
            sealed: &sealed,
            region: REGIONS[0],
            kms_key: None,
            tags: &BTreeMap::new(),
            registry: Some(&self.registry),
        };
        let trial = Trial::prepare(&account, &self.dirs, trying).await?;
        let (registry, catalog, tried) = (&self.registry, self.registry.root(), Some(trial.tried()));
        let publisher = Publisher { registry, catalog, dirs: &self.dirs, ledger: &ledger, tried, now: 5_000 };
        let place = Place { region: REGIONS[0].to_owned(), kms_key: None };
        let report = publisher.publish(&account, &record, &[place], &Sharing::default()).await;
        let released = trial.release().await;
        let published = report.regions.into_values().next().unwrap()?;
        released.map(|()| published)
    }

    /// The instance of a bake from the AMI `base`, which powers itself off, until its disk is here.
    #[allow(dead_code, reason = "the benchmark starts none")]
    pub(crate) async fn bake(&self, base: &str) -> Result<(), AwsError> {
        let (image, build, region) = ("web".parse().unwrap(), format!("b-{}", nonce()), REGIONS[0]);
        let machine = machine(region);
        let account = Account::open(self.access(&self.fake.endpoint()), region).await?;
        let _owner = Ledger::open(&self.dirs, &build)?;
        let (login, host) = (KeyPair::generate("kiln").unwrap(), KeyPair::generate("").unwrap());
        let (machine, login, host) = (&machine, &login.public, &host);
        let wanted = Wanted { machine, ami: base, image: &image, build: &build, login, host };
        let instance = Instance::start(&account, &self.dirs, wanted).await?;
        let path = self.dirs.state.join(&build);
        let disk = async {
            instance.let_go().await?;
            self.fake.power_off(Fake::ACCOUNT, region, instance.id());
            instance.disk(&path, &|_, _| {}).await
        };
        let disk = disk.await;
        let _ = fs::remove_file(&path);
        instance.release().await?;
        disk.map(drop)
    }

    pub(crate) async fn report(&self, version: &str, places: &[Place], sharing: &Sharing) -> Report {
        self.try_report(version, places, sharing).await.unwrap()
    }

    pub(crate) async fn try_report(
        &self,
        version: &str,
        places: &[Place],
        sharing: &Sharing,
    ) -> Result<Report, AwsError> {
        self.report_at(&self.fake.endpoint(), version, places, sharing).await
    }

    pub(crate) async fn report_at(
        &self,
        url: &str,
        version: &str,
        places: &[Place],
        sharing: &Sharing,
    ) -> Result<Report, AwsError> {
        let regions: Vec<_> = places.iter().map(|place| &place.region).collect();
        let account = Account::open_in(self.access(url), &regions).await?;
        let record = self.registry.record(&format!("web@{version}").parse().unwrap())?;
        let ledger = Ledger::open(&self.dirs, &format!("b-{}", nonce()))?;
        let (registry, catalog) = (&self.registry, self.registry.root());
        let publisher = Publisher { registry, catalog, dirs: &self.dirs, ledger: &ledger, tried: None, now: 5_000 };
        Ok(publisher.publish(&account, &record, places, sharing).await)
    }

    pub(crate) async fn region(&self, name: &str) -> Region {
        self.try_region(name).await.unwrap()
    }

    pub(crate) async fn try_region(&self, name: &str) -> Result<Region, AwsError> {
        self.region_at(&self.fake.endpoint(), name).await
    }

    pub(crate) async fn region_at(&self, url: &str, name: &str) -> Result<Region, AwsError> {
        Ok(Account::open(self.access(url), name).await?.region(name))
    }

    /// What `kiln clean` does, once.
    pub(crate) async fn clean(&self) {
        self.try_clean().await.unwrap();
    }

    pub(crate) async fn try_clean(&self) -> Result<(), AwsError> {
        let mut reports = ledger::survey(&self.dirs).unwrap();
        reports.retain(|report| report.condition == Condition::Interrupted);
        let released = kiln_aws::reconcile(&self.dirs, &reports, || self.access(&self.fake.endpoint()), &open).await;
        released.failed.into_iter().next().map_or(Ok(()), Err)
    }

    /// Every one has a key of its own, so that the fake can tell the living from the killed.
    fn access(&self, url: &str) -> Access {
        static KEYS: AtomicU64 = AtomicU64::new(1);
        let key = format!("AKIDEXAMPLE{}", KEYS.fetch_add(1, Ordering::Relaxed));
        Access {
            stand_in: Some(StandIn { url: url.to_owned(), key, secret: "secret".to_owned() }),
            clock: self.clock.clone(),
            cancel: CancellationToken::new(),
            patience: self.patience,
            watch: Arc::new(Silent),
        }
    }

    /// By the clock of the kilns that run here.
    pub(crate) fn now(&self) -> SystemTime {
        self.clock.wall()
    }

    /// The files of all ledgers.
    pub(crate) fn ledgers(&self) -> Vec<PathBuf> {
        let builds = fs::read_dir(self.dirs.state.join("builds")).into_iter().flatten().flatten();
        builds.map(|build| build.path().join(ledger::FILE)).collect()
    }

    /// From now on the kilns that ran so far are dead: their ledgers name another process.
    pub(crate) fn die(&self) {
        // Their clock may be ahead.
        let now = self.now();
        for path in self.ledgers() {
            let text = fs::read_to_string(&path).unwrap();
            let mut first: serde_json::Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
            first["owner"]["pid"] = (1 << 30).into();
            fs::write(&path, format!("{text}{first}\n")).unwrap();
            fs::File::options().append(true).open(&path).unwrap().set_modified(now).unwrap();
        }
    }

    /// Entries of all ledgers that were not released.
    pub(crate) fn outstanding(&self) -> usize {
        ledger::survey(&self.dirs).unwrap().iter().map(|report| report.found.len()).sum()
    }

    /// Things of the same account that look like ours and are not.
    pub(crate) fn plant(&self) {
        let tags = [
            ("TagSpecification.1.ResourceType", "snapshot"),
            ("TagSpecification.1.Tag.1.Key", "kiln:image"),
            ("TagSpecification.1.Tag.1.Value", "web"),
            ("TagSpecification.1.Tag.2.Key", "kiln:intent"),
            ("TagSpecification.1.Tag.2.Value", "i-somebody-else"),
        ];
        let disk = vec![1; BLOCK];
        let ami = self.fake.base_image(kiln_aws_tests::BaseImage {
            region: REGIONS[0],
            owner: Fake::ACCOUNT,
            name: "web-1.0.0-00000000",
            architecture: "x86_64",
            disk: &disk,
        });
        let snapshot = self.fake.root_snapshot(REGIONS[0], Fake::ACCOUNT, &ami).unwrap();
        let mut fields = vec![("ResourceId.1", ami.as_str()), ("ResourceId.2", snapshot.as_str())];
        let tags: Vec<_> =
            tags[1..].iter().map(|(key, value)| (key.trim_start_matches("TagSpecification.1."), *value)).collect();
        fields.extend(tags);
        self.fake.ec2(Fake::ACCOUNT, REGIONS[0], "CreateTags", &fields).unwrap();
    }

    /// How many images and snapshots there are.
    pub(crate) fn living(&self) -> (usize, usize) {
        let living = self.fake.living();
        let count = |kind| living.iter().filter(|living| living.kind == kind).count();
        (count("image"), count("snapshot"))
    }

    /// Calls of `action` that were carried out.
    pub(crate) fn calls(&self, action: &str) -> usize {
        self.fake.ledger().iter().filter(|entry| entry.action == action && entry.refused.is_none()).count()
    }

    /// Panics unless the AMI's volume would be `disk`, with zeros up to its end.
    pub(crate) fn holds(&self, published: &Published, disk: &[u8]) {
        self.compare(published, disk).unwrap();
    }

    pub(crate) fn compare(&self, published: &Published, disk: &[u8]) -> Result<(), String> {
        let living = self.fake.living().into_iter().find(|living| living.id == published.ami);
        let region = living.ok_or_else(|| format!("{} is not there", published.ami))?.region;
        let snapshot = self.fake.root_snapshot(&region, Fake::ACCOUNT, &published.ami).unwrap();
        assert_eq!(snapshot, published.snapshot);
        for (index, expected) in (0_u32..).zip(disk.chunks(BLOCK)) {
            let block = self.fake.block(&region, Fake::ACCOUNT, &snapshot, index).unwrap();
            if !block.starts_with(expected) || block[expected.len()..].iter().any(|byte| *byte != 0) {
                return Err(format!("block {index} is another"));
            }
        }
        Ok(())
    }
}

/// AWS as the tests see it, where there is no bench.
pub(crate) fn access(fake: &Fake) -> Access {
    Access {
        stand_in: Some(StandIn { url: fake.endpoint(), key: "AKIDEXAMPLE".to_owned(), secret: "secret".to_owned() }),
        clock: Arc::new(SystemClock::new()),
        cancel: CancellationToken::new(),
        patience: Patience {
            attempt: Duration::from_secs(20),
            retry: policy(2, 50, 60_000),
            visible: Duration::from_millis(200),
            progress: policy(2, 20, 400),
        },
        watch: Arc::new(Silent),
    }
}

fn policy(first: u64, max: u64, deadline: u64) -> Policy {
    Policy {
        first: Duration::from_millis(first),
        max: Duration::from_millis(max),
        deadline: Duration::from_millis(deadline),
    }
}

/// A disk that a BIOS would boot, with data in about `blocks` blocks, and an empty one and a part of one behind them.
pub(crate) fn disk(seed: u64, blocks: usize) -> Vec<u8> {
    let mut disk = vec![0; (blocks + 1) * BLOCK + 192 * 1024];
    let mut state = seed;
    for block in 0..blocks {
        let at = block * BLOCK + (next(&mut state) % 300_000) as usize;
        for byte in &mut disk[at..at + 1000] {
            *byte = next(&mut state).to_le_bytes()[0] | 1;
        }
    }
    disk[0] = 0xeb;
    disk
}

/// Changes a few blocks, empties some, fills others.
pub(crate) fn mutate(disk: &mut [u8], seed: u64) {
    let mut state = seed;
    for _ in 0..10 {
        let block = usize::try_from(next(&mut state) % (disk.len() / BLOCK) as u64).unwrap();
        let range = block * BLOCK..(block + 1) * BLOCK;
        match next(&mut state) % 3 {
            0 => disk[range].fill(0),
            1 => disk[range].fill(7),
            _ => disk[range.start + 4_000] ^= 1,
        }
    }
    disk[0] = 0xeb;
}

fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    *state >> 33
}

/// A machine of a template.
#[allow(dead_code, reason = "the benchmark starts none")]
pub(crate) fn machine(region: &str) -> Ec2Machine {
    Ec2Machine {
        region: region.to_owned(),
        instance_types: ["m6i.large", "t3.micro"].map(str::to_owned).to_vec(),
        zones: ["b", "a"].map(|zone| format!("{region}{zone}")).to_vec(),
        subnet: Which::Default,
        vpc: Which::Default,
        spot: false,
        volume: None,
        kms_key: None,
        profile: None,
        tags: BTreeMap::from([("team".to_owned(), "images".to_owned())]),
        user_data: None,
        ssh_port: 22,
        address: Address::Private,
        source: Some("198.51.100.7/32".to_owned()),
        proxy_command: None,
        lifetime: Duration::from_hours(2),
        boot_timeout: Duration::from_mins(5),
        shutdown_timeout: Duration::from_secs(5),
    }
}

/// The catalogs of these tests are directories.
pub(crate) fn open(catalog: &Path, _: &ImageName) -> Result<Registry, String> {
    Registry::open(catalog).map_err(|error| error.to_string())
}

pub(crate) fn in_a_month() -> u64 {
    now() + 30 * 86_400
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    SystemClock::new().wall().duration_since(std::time::SystemTime::UNIX_EPOCH).unwrap().as_secs()
}

pub(crate) const GROUP: &str = "web";

/// A group of two machines whose launch template has one version, from `ami`; the group names `version`.
pub(crate) fn group(bench: &Bench, ami: &str, version: &str) {
    let template = [
        ("LaunchTemplateName", GROUP),
        ("LaunchTemplateData.ImageId", ami),
        ("LaunchTemplateData.InstanceType", "t3.small"),
    ];
    bench.fake.ec2(Fake::ACCOUNT, REGIONS[0], "CreateLaunchTemplate", &template).unwrap();
    let group = [
        ("AutoScalingGroupName", GROUP),
        ("LaunchTemplate.LaunchTemplateName", GROUP),
        ("LaunchTemplate.Version", version),
        ("MinSize", "2"),
        ("MaxSize", "4"),
        ("AvailabilityZones.member.1", "eu-west-1a"),
    ];
    bench.fake.autoscaling(Fake::ACCOUNT, REGIONS[0], "CreateAutoScalingGroup", &group).unwrap();
}
