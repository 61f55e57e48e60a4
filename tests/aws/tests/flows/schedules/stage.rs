//! Where a flow plays: a registry, an account with things of others in it, and what was acknowledged so far.

use std::collections::{BTreeMap, BTreeSet};

use kiln_aws::{AwsError, Fate, Keep, Place, Published, Sharing, Verdict};
use kiln_aws_tests::{BLOCK, BaseImage, Fake, Fault, Living, Schedule};
use kiln_core::ImageName;

use crate::bench::{self, Bench, GROUP, REGIONS};

const REGION: &str = REGIONS[0];
const PARAMETER: &str = "/images/web/stable";
const DAY: u64 = 86_400;

/// Something that kiln does in an account.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flow {
    /// Publishes into an empty region.
    First,
    /// Publishes on top of the version before; shared and protected.
    Further,
    /// Publishes to all regions at once.
    Everywhere,
    /// Tries a sealed disk, on top of the version before, and publishes it on what was sent for that.
    Try,
    /// The instance of a bake, from its start until its disk is here and it is gone.
    Bake,
    Point,
    Start,
    RollBack,
    TurnBack,
    /// The first half of retiring.
    Withdraw,
    /// The second half.
    Delete,
    /// Releases what a killed publish left.
    Clean,
}

impl Flow {
    pub(super) const ALL: [Self; 12] = [
        Self::First,
        Self::Further,
        Self::Everywhere,
        Self::Try,
        Self::Bake,
        Self::Point,
        Self::Start,
        Self::RollBack,
        Self::TurnBack,
        Self::Withdraw,
        Self::Delete,
        Self::Clean,
    ];

    fn version(self) -> &'static str {
        if matches!(self, Self::Further | Self::Everywhere | Self::Try) { "1.1.0" } else { "1.0.0" }
    }
}

/// How a run of kiln ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum End {
    Done,
    Failed(String),
    Killed,
}

pub(super) struct Stage {
    pub(super) bench: Bench,
    /// What others have in the account.
    pub(super) foreign: Vec<Living>,
    /// Every AMI that a run said is published, and that nobody asked to delete.
    pub(super) acknowledged: Vec<(String, Published)>,
    disks: BTreeMap<String, Vec<u8>>,
    /// What a bake starts from.
    base: String,
}

impl Stage {
    /// All that must be there before `flow`.
    pub(super) async fn set(flow: Flow, seed: u64) -> Self {
        let bench = Bench::timeless("schedule");
        bench.plant();
        let foreign = bench.fake.living();
        let mut stage = Self { bench, foreign, acknowledged: Vec::new(), disks: BTreeMap::new(), base: String::new() };
        let mut disk = bench::disk(seed, 3);
        disk.truncate(4 * BLOCK + 64 * 1024);
        stage.seal("1.0.0", &disk);
        match flow {
            Flow::First => {}
            Flow::Bake => {
                let (owner, name, disk) = ("136693071363", "debian-12", &disk[..BLOCK]);
                let base = BaseImage { region: REGION, owner, name, architecture: "x86_64", disk };
                stage.base = stage.bench.fake.base_image(base);
                stage.foreign = stage.bench.fake.living();
            }
            Flow::Further | Flow::Everywhere | Flow::Try | Flow::Withdraw | Flow::Delete => {
                disk[2 * BLOCK..3 * BLOCK].fill(0);
                disk[4 * BLOCK + 9] ^= 1;
                stage.prepared(Flow::First).await;
                stage.seal("1.1.0", &disk);
                if matches!(flow, Flow::Withdraw | Flow::Delete) {
                    stage.prepared(Flow::Further).await;
                }
                if flow == Flow::Delete {
                    stage.retire(0).await.unwrap();
                }
            }
            Flow::Point => stage.prepared(Flow::First).await,
            Flow::Start | Flow::RollBack | Flow::TurnBack => {
                stage.prepared(Flow::First).await;
                bench::group(&stage.bench, "ami-0123456789abcdef0", "1");
                if flow != Flow::Start {
                    stage.prepared(Flow::Start).await;
                    let replaced = if flow == Flow::RollBack { 2 } else { 1 };
                    stage.bench.fake.replace_instances(Fake::ACCOUNT, REGION, GROUP, replaced);
                }
            }
            Flow::Clean => {
                let (action, call) =
                    [("RegisterImage", 1), ("StartSnapshot", 1), ("CompleteSnapshot", 1), ("DescribeImages", 2)]
                        [seed as usize % 4];
                stage.bench.fake.schedule(Schedule::new().at(action, call, Fault::KillAfter));
                assert_eq!(stage.run(Flow::First).await, End::Killed);
                stage.bench.fake.schedule(Schedule::new());
            }
        }
        stage
    }

    async fn prepared(&mut self, flow: Flow) {
        assert_eq!(self.run(flow).await, End::Done, "{flow:?}");
    }

    fn seal(&mut self, version: &str, disk: &[u8]) {
        self.bench.publish(version, disk);
        self.disks.insert(version.to_owned(), disk.to_vec());
    }

    /// One run of kiln, up to its end or until the schedule kills it. What it leaves, it leaves to others.
    pub(super) async fn run(&mut self, flow: Flow) -> End {
        let outcome = tokio::select! {
            biased;
            outcome = self.attempt(flow) => Some(outcome),
            () = self.bench.fake.killed() => None,
        };
        self.bench.die();
        if flow == Flow::Delete {
            // From here on it may be gone, or half of it.
            self.acknowledged.retain(|(version, _)| version != "1.0.0");
        }
        match outcome {
            None => End::Killed,
            Some(Err(error)) => End::Failed(error.to_string()),
            Some(Ok(outcome)) => {
                self.acknowledged.extend(outcome.published.into_iter().map(|done| (flow.version().to_owned(), done)));
                outcome.failure.map_or(End::Done, End::Failed)
            }
        }
    }

    async fn attempt(&self, flow: Flow) -> Result<Outcome, AwsError> {
        match flow {
            Flow::First => self.publish(flow, &REGIONS[..1], &Sharing::default()).await,
            Flow::Further => {
                let with = vec!["210987654321".to_owned()];
                self.publish(flow, &REGIONS[..1], &Sharing { with, protect: true, ..Sharing::default() }).await
            }
            Flow::Everywhere => self.publish(flow, &REGIONS, &Sharing::default()).await,
            Flow::Try => {
                let disk = &self.disks[flow.version()];
                let published = self.bench.ami_after_trial(flow.version(), disk).await?;
                Ok(Outcome { published: vec![published], failure: None })
            }
            Flow::Withdraw => self.retire(0).await,
            Flow::Delete => self.retire(20).await,
            Flow::Clean => self.bench.try_clean().await.map(|()| Outcome::default()),
            Flow::Bake => self.bench.bake(&self.base).await.map(|()| Outcome::default()),
            Flow::Point => {
                let region = self.bench.try_region(REGION).await?;
                region.point_parameter(PARAMETER, &self.ami("1.0.0")).await?;
                Ok(Outcome::default())
            }
            Flow::Start => {
                let region = self.bench.try_region(REGION).await?;
                region.release(GROUP, &self.ami("1.0.0"), "web@1.0.0").await?;
                Ok(Outcome::default())
            }
            Flow::RollBack | Flow::TurnBack => {
                let region = self.bench.try_region(REGION).await?;
                region.roll_back(GROUP).await?;
                Ok(Outcome::default())
            }
        }
    }

    async fn publish(&self, flow: Flow, regions: &[&str], sharing: &Sharing) -> Result<Outcome, AwsError> {
        let places: Vec<_> =
            regions.iter().map(|region| Place { region: (*region).to_owned(), kms_key: None }).collect();
        let report = self.bench.try_report(flow.version(), &places, sharing).await?;
        let mut outcome = Outcome::default();
        for region in report.regions.into_values() {
            match region {
                Ok(published) => outcome.published.push(published),
                Err(error) => outcome.failure = Some(error.to_string()),
            }
        }
        Ok(outcome)
    }

    /// Retires so many days from now.
    async fn retire(&self, days: u64) -> Result<Outcome, AwsError> {
        let keep = Keep { newest: 1, days: 7, now: bench::now() + days * DAY };
        let region = self.bench.try_region(REGION).await?;
        let verdicts = region.retain(&self.bench.registry, &web(), &keep, false).await?;
        let failed = |verdict: Verdict| if let Fate::Failed(why) = verdict.fate { Some(why) } else { None };
        Ok(Outcome { failure: verdicts.into_iter().find_map(failed), ..Outcome::default() })
    }
}

/// What a run that ended says.
#[derive(Debug, Default)]
struct Outcome {
    published: Vec<Published>,
    failure: Option<String>,
}

/// How things are, past the network and past everything that goes wrong.
impl Stage {
    /// The AMI of a version, as the registry has it.
    pub(super) fn ami(&self, version: &str) -> String {
        let amis = self.bench.registry.amis(&web(), &version.parse().unwrap()).unwrap();
        amis.into_iter().find(|ami| ami.region == REGION).map(|ami| ami.ami).unwrap_or_default()
    }

    /// AMIs and snapshots that the catalog knows.
    pub(super) fn recorded(&self) -> BTreeSet<String> {
        let amis = self.bench.registry.amis_of(&web()).unwrap();
        amis.into_iter().flat_map(|ami| [ami.ami, ami.snapshot]).collect()
    }

    /// Whether an AMI is all that was acknowledged.
    pub(super) fn intact(&self, version: &str, published: &Published) -> Result<(), String> {
        let living = self.bench.fake.living();
        let recorded = self.recorded();
        for id in [&published.ami, &published.snapshot] {
            if !living.iter().any(|thing| thing.id == *id) {
                return Err(format!("{id} is not there"));
            }
            if !recorded.contains(id) {
                return Err(format!("{id} is not in the catalog"));
            }
        }
        self.bench.compare(published, &self.disks[version])
    }

    pub(super) fn parameter(&self) -> String {
        self.bench.fake.parameter(Fake::ACCOUNT, REGION, PARAMETER).unwrap_or_default()
    }

    pub(super) fn image(&self, version: &str) -> String {
        let ami = self.ami(version);
        self.bench.fake.ec2(Fake::ACCOUNT, REGION, "DescribeImages", &[("ImageId.1", &ami)]).unwrap_or_default()
    }

    pub(super) fn has_group(&self) -> bool {
        self.bench.fake.living().iter().any(|thing| thing.kind == "launch-template")
    }

    /// Numbers and AMIs of the launch template's versions.
    pub(super) fn template_versions(&self) -> BTreeMap<String, String> {
        let name = [("LaunchTemplateName", GROUP)];
        let text = self.bench.fake.ec2(Fake::ACCOUNT, REGION, "DescribeLaunchTemplateVersions", &name).unwrap();
        values(&text, "versionNumber").into_iter().zip(values(&text, "imageId")).collect()
    }

    /// The number of the launch template's version that has the AMI of `version`.
    pub(super) fn numbered(&self, version: &str) -> String {
        let ami = self.ami(version);
        let mut versions = self.template_versions().into_iter();
        versions.find(|(_, found)| *found == ami).map(|(number, _)| number).unwrap_or_default()
    }

    pub(super) fn group_refreshes(&self) -> String {
        let name = [("AutoScalingGroupName", GROUP)];
        self.bench.fake.autoscaling(Fake::ACCOUNT, REGION, "DescribeInstanceRefreshes", &name).unwrap()
    }

    /// What the group's machines were to get, from the first time to the last.
    pub(super) fn refreshes(&self) -> Vec<String> {
        values(&self.group_refreshes(), "Version").into_iter().rev().collect()
    }
}

fn web() -> ImageName {
    "web".parse().unwrap()
}

/// What stands in every element of this name.
fn values(xml: &str, name: &str) -> Vec<String> {
    let (open, close) = (format!("<{name}>"), format!("</{name}>"));
    xml.split(&open).skip(1).filter_map(|rest| Some(rest.split_once(&close)?.0.to_owned())).collect()
}
