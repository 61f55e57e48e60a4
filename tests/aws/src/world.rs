//! The state of every account and region, and what the handlers of all services share: ids, time, visibility.

use std::{
    collections::{BTreeMap, HashMap},
    io,
    sync::Arc,
    time::{Duration, SystemTime},
};

use kiln_core::moment::Moment;
use kiln_io::time::Clock;
use sha2::{Digest as _, Sha256};

use crate::{
    autoscaling::Group as ScalingGroup,
    blocks::Blocks,
    ec2::{
        groups::SecurityGroup, images::Image, instances::Instance, keys::KeyPair, network::Network,
        snapshots::Snapshot, templates::Template, volumes::Volume,
    },
    fault::Fault,
    machines::Launch,
    refusal::Refusal,
    ssm::Parameter,
};

pub(crate) type Tags = BTreeMap<String, String>;

/// How slow the fake is, counted in reads so that no test depends on time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pace {
    /// What was created is not found by so many reads of it.
    pub hidden: u32,
    /// After them it is found once and then not found once more.
    pub flapping: bool,
    /// It is pending for so many reads after that.
    pub pending: u32,
    /// The most results on a page; 0 means as many as the caller asked for.
    pub page: usize,
}

/// Counts down to the moment a resource is ready, or failed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Progress {
    left: u32,
    fails: bool,
    stuck: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    Waiting,
    Ready,
    Failed,
}

impl Progress {
    /// Never ready.
    pub(crate) const NEVER: Self = Self { left: 0, fails: false, stuck: true };

    /// Ready now.
    pub(crate) const DONE: Self = Self { left: 0, fails: false, stuck: false };

    pub(crate) fn stage(self) -> Stage {
        match self {
            Self { stuck: true, .. } | Self { left: 1.., .. } => Stage::Waiting,
            Self { fails: true, .. } => Stage::Failed,
            _ => Stage::Ready,
        }
    }

    /// One read.
    pub(crate) fn look(&mut self) -> Stage {
        let stage = self.stage();
        self.left = self.left.saturating_sub(1);
        stage
    }
}

/// What one account has in one region.
#[derive(Debug, Default)]
pub(crate) struct Region {
    pub(crate) images: BTreeMap<String, Image>,
    /// Images that were deregistered a moment ago, with their tags.
    pub(crate) leaving: BTreeMap<String, (Image, Tags)>,
    pub(crate) snapshots: BTreeMap<String, Snapshot>,
    pub(crate) volumes: BTreeMap<String, Volume>,
    pub(crate) instances: BTreeMap<String, Instance>,
    pub(crate) key_pairs: BTreeMap<String, KeyPair>,
    pub(crate) groups: BTreeMap<String, SecurityGroup>,
    pub(crate) templates: BTreeMap<String, Template>,
    pub(crate) parameters: BTreeMap<String, Parameter>,
    pub(crate) scaling: BTreeMap<String, ScalingGroup>,
    /// Launch configurations and their images.
    pub(crate) configurations: BTreeMap<String, String>,
    /// The key of EBS encryption by default, where it is on.
    pub(crate) default_key: Option<String>,
    pub(crate) network: Network,
    pub(crate) tags: BTreeMap<String, Tags>,
    /// Reads until each new resource is found, and when it was made by the callers' clock.
    unseen: HashMap<String, (u32, Duration)>,
}

impl Region {
    pub(crate) fn tags(&self, id: &str) -> Tags {
        self.tags.get(id).cloned().unwrap_or_default()
    }

    /// One read of a resource: whether it is found.
    fn sees(&mut self, id: &str, flapping: bool, oldest: Option<Duration>) -> bool {
        let Some((left, made)) = self.unseen.get_mut(id) else { return true };
        if oldest.is_some_and(|oldest| *made <= oldest) {
            self.unseen.remove(id);
            return true;
        }
        *left -= 1;
        let left = *left;
        if left == 0 {
            self.unseen.remove(id);
        }
        // The last three reads of a flapping resource: not found, found, not found.
        flapping && left == 1
    }
}

#[derive(Debug)]
pub(crate) struct World {
    /// The caller's.
    pub(crate) account: String,
    pub(crate) region: String,
    /// What befalls what this call creates.
    pub(crate) fate: Option<Fault>,
    pub(crate) created: Vec<String>,
    pub(crate) deleted: Vec<String>,
    /// Guests to start, stop and end once the call is done.
    pub(crate) launches: Vec<Launch>,
    pub(crate) stops: Vec<String>,
    pub(crate) ends: Vec<String>,

    pub(crate) pace: Pace,
    /// By this clock everything is found after so long, however few reads there were.
    pub(crate) seen_after: Option<(Arc<dyn Clock>, Duration)>,
    pub(crate) blocks: Blocks,
    /// Blocks written so far, to tell one writing from the next.
    pub(crate) puts: u64,
    /// Machines left of a type in a zone; without an entry, there are enough.
    pub(crate) capacity: BTreeMap<(String, String), u32>,
    /// By region, then account.
    pub(crate) regions: BTreeMap<(String, String), Region>,
    tokens: HashMap<(String, String, String), (String, String)>,
    start: SystemTime,
    passed: Duration,
    ids: u64,
}

impl World {
    pub(crate) fn new(start: SystemTime) -> io::Result<Self> {
        Ok(Self {
            account: String::new(),
            region: String::new(),
            fate: None,
            created: Vec::new(),
            deleted: Vec::new(),
            launches: Vec::new(),
            stops: Vec::new(),
            ends: Vec::new(),
            pace: Pace::default(),
            seen_after: None,
            blocks: Blocks::new()?,
            puts: 0,
            capacity: BTreeMap::new(),
            regions: BTreeMap::new(),
            tokens: HashMap::new(),
            start,
            passed: Duration::ZERO,
            ids: 0,
        })
    }

    /// A call begins: time moves on, so that no two things are of the same moment.
    pub(crate) fn enter(&mut self, account: &str, region: &str, fate: Option<Fault>) {
        account.clone_into(&mut self.account);
        region.clone_into(&mut self.region);
        self.fate = fate;
        self.created.clear();
        self.deleted.clear();
        self.passed += Duration::from_millis(1);
        let place = (region.to_owned(), account.to_owned());
        self.regions.entry(place).or_insert_with(|| {
            let network = Network::of(region);
            let group = network.default_group.clone();
            let default =
                SecurityGroup::new(group.clone(), "default", "default VPC security group".to_owned(), &network.vpc);
            Region { network, groups: BTreeMap::from([(group, default)]), ..Region::default() }
        });
    }

    pub(crate) fn advance(&mut self, duration: Duration) {
        self.passed += duration;
    }

    pub(crate) fn now(&self) -> Moment {
        Moment::of(self.start + self.passed)
    }

    /// What the caller has where it called.
    pub(crate) fn here(&mut self) -> &mut Region {
        self.regions.entry((self.region.clone(), self.account.clone())).or_default()
    }

    /// A new id: a prefix, a hyphen and 17 hexadecimal digits.
    pub(crate) fn id(&mut self, prefix: &str) -> String {
        self.ids += 1;
        let digest = Sha256::digest(format!("{prefix} {}", self.ids));
        let number = digest.iter().take(8).fold(0_u64, |number, byte| number << 8 | u64::from(*byte));
        format!("{prefix}-0{number:016x}")
    }

    /// Notes what this call created, with its tags, and hides it for as long as the pace says.
    pub(crate) fn note(&mut self, id: &str, tags: Tags) {
        self.created.push(id.to_owned());
        let reads = self.pace.hidden + if self.pace.flapping { 2 } else { 0 };
        let made = self.seen_after.as_ref().map(|(clock, _)| clock.monotonic()).unwrap_or_default();
        let here = self.here();
        here.tags.insert(id.to_owned(), tags);
        if reads > 0 {
            here.unseen.insert(id.to_owned(), (reads, made));
        }
    }

    /// Notes what this call deleted.
    pub(crate) fn forget(&mut self, id: &str) {
        self.deleted.push(id.to_owned());
        let here = self.here();
        here.tags.remove(id);
        here.unseen.remove(id);
    }

    pub(crate) fn sees(&mut self, id: &str) -> bool {
        let flapping = self.pace.flapping;
        let oldest = self.seen_after.as_ref().and_then(|(clock, limit)| clock.monotonic().checked_sub(*limit));
        self.here().sees(id, flapping, oldest)
    }

    /// The way of what this call creates.
    pub(crate) fn progress(&self) -> Progress {
        let (fails, stuck) = (self.fate == Some(Fault::Fails), self.fate == Some(Fault::Stuck));
        Progress { left: self.pace.pending, fails, stuck }
    }

    /// The way of something that no schedule disturbs.
    pub(crate) fn settling(&self) -> Progress {
        Progress { left: self.pace.pending, fails: false, stuck: false }
    }

    /// What an earlier call with the same client token made, if there was one; `request` is what was asked for.
    pub(crate) fn repeated(&self, action: &str, token: Option<&str>, request: &str) -> Result<Option<String>, Refusal> {
        let Some(token) = token else { return Ok(None) };
        match self.tokens.get(&self.token(action, token)) {
            None => Ok(None),
            Some((earlier, made)) if earlier == request => Ok(Some(made.clone())),
            Some(_) => {
                let message =
                    "Arguments on this idempotent request are inconsistent with arguments used in previous request(s).";
                Err(Refusal::client("IdempotentParameterMismatch", message))
            }
        }
    }

    pub(crate) fn remember(&mut self, action: &str, token: Option<&str>, request: &str, made: &str) {
        if let Some(token) = token {
            let key = self.token(action, token);
            self.tokens.insert(key, (request.to_owned(), made.to_owned()));
        }
    }

    fn token(&self, action: &str, token: &str) -> (String, String, String) {
        (format!("{} {}", self.account, self.region), action.to_owned(), token.to_owned())
    }
}
