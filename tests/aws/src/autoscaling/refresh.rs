//! Instance refresh: instances replaced one by one, forwards or back.

use kiln_core::moment::Moment;

use crate::{
    Fake,
    autoscaling::{
        Group, group, invalid,
        launched::{Launched, launched},
    },
    form::Form,
    refusal::Refusal,
    server::lock,
    world::World,
    xml::Xml,
};

#[derive(Debug, Clone)]
pub(crate) struct Refresh {
    id: String,
    status: Status,
    reason: Option<String>,
    started: Moment,
    ended: Option<Moment>,
    /// What the group is to launch from now on, if it was given.
    desired: Option<Launched>,
    /// What it launched before.
    before: Launched,
    auto_rollback: bool,
    skip_matching: bool,
    healthy: u32,
    warmup: Option<u32>,
    /// Instances to replace in all, and those still to be replaced.
    all: Vec<String>,
    left: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Status {
    Pending,
    InProgress,
    Successful,
    Failed,
    Cancelled,
    RollbackInProgress,
    RollbackSuccessful,
}

impl Refresh {
    pub(super) fn is_active(&self) -> bool {
        matches!(self.status, Status::Pending | Status::InProgress | Status::RollbackInProgress)
    }

    pub(super) fn is_desired(&self) -> bool {
        self.desired.is_some()
    }

    fn target(&self) -> &Launched {
        if self.status == Status::RollbackInProgress {
            &self.before
        } else {
            self.desired.as_ref().unwrap_or(&self.before)
        }
    }

    fn percentage(&self) -> usize {
        (self.all.len() - self.left.len()) * 100 / self.all.len().max(1)
    }

    /// Turns round: what was replaced is replaced once more.
    fn turn_back(&mut self, reason: &str) {
        self.left = self.all.iter().filter(|id| !self.left.contains(id)).cloned().collect();
        self.status = Status::RollbackInProgress;
        self.reason = Some(reason.to_owned());
    }
}

/// Whether a version names always the same thing.
fn is_fixed(world: &mut World, launched: &Launched) -> bool {
    let number = launched.version.parse().ok();
    let template = world.here().templates.get(&launched.id);
    let version = template.and_then(|template| template.versions.get(&number?));
    version.is_some_and(|version| !version.data.peek("ImageId").is_some_and(|image| image.starts_with("resolve:ssm:")))
}

pub(super) fn start(world: &mut World, mut form: Form, xml: &mut Xml) -> Result<(), Refusal> {
    let name = form.required("AutoScalingGroupName")?;
    form.choice("Strategy", &["Rolling"])?;
    let desired = launched(world, &mut form, "DesiredConfiguration.")?;
    let auto_rollback = form.flag("Preferences.AutoRollback")? == Some(true);
    let skip_matching = form.flag("Preferences.SkipMatching")? == Some(true);
    let healthy = form.number("Preferences.MinHealthyPercentage")?.unwrap_or(90);
    let most: Option<u32> = form.number("Preferences.MaxHealthyPercentage")?;
    let warmup = form.number("Preferences.InstanceWarmup")?;
    form.finish()?;
    if healthy > 100 || most.is_some_and(|most| !(100..=200).contains(&most) || most - healthy > 100) {
        return Err(invalid("The healthy percentages are not valid"));
    }
    let before = group(world, &name)?.template.clone();
    if auto_rollback {
        let fixed = is_fixed(world, &before) && desired.as_ref().is_some_and(|desired| is_fixed(world, desired));
        if !fixed {
            let message = "AutoRollback requires a DesiredConfiguration, and launch templates that use neither $Latest, $Default nor an AWS Systems Manager parameter";
            return Err(invalid(message));
        }
    }
    let (id, started) = (uuid(&world.id("refresh")), world.now());
    let group = group(world, &name)?;
    if group.refreshes.last().is_some_and(Refresh::is_active) {
        let message = "An Instance Refresh is already in progress and blocks the execution of this Instance Refresh.";
        return Err(Refusal::client("InstanceRefreshInProgress", message));
    }
    let target = desired.clone().unwrap_or_else(|| before.clone());
    let stale = group.instances.iter().filter(|(_, launched)| !skip_matching || **launched != target);
    let all: Vec<String> = stale.map(|(id, _)| id.clone()).collect();
    xml.text("InstanceRefreshId", &id);
    world.created.push(id.clone());
    let refresh = Refresh {
        id,
        status: Status::Pending,
        reason: None,
        started,
        ended: None,
        desired,
        before,
        auto_rollback,
        skip_matching,
        healthy,
        warmup,
        left: all.clone(),
        all,
    };
    super::group(world, &name)?.refreshes.push(refresh);
    Ok(())
}

/// The form of an id of a refresh.
fn uuid(id: &str) -> String {
    let hex: String = id.chars().filter(char::is_ascii_hexdigit).cycle().take(32).collect();
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

pub(super) fn describe(world: &mut World, mut form: Form, xml: &mut Xml) -> Result<(), Refusal> {
    let name = form.required("AutoScalingGroupName")?;
    let ids = form.list("InstanceRefreshIds.member");
    let most: usize = form.number("MaxRecords")?.unwrap_or(50);
    form.finish()?;
    let group = group(world, &name)?;
    let newest = group.refreshes.iter().rev();
    let shown: Vec<Refresh> =
        newest.filter(|refresh| ids.is_empty() || ids.contains(&refresh.id)).take(most).cloned().collect();
    // Pending until somebody has looked.
    for refresh in &mut group.refreshes {
        if refresh.status == Status::Pending {
            refresh.status = Status::InProgress;
        }
    }
    xml.members("InstanceRefreshes", &shown, |xml, refresh| {
        xml.text("InstanceRefreshId", &refresh.id).text("AutoScalingGroupName", &name);
        xml.text("Status", format!("{:?}", refresh.status)).maybe("StatusReason", refresh.reason.as_ref());
        xml.text("StartTime", refresh.started.rfc3339()).maybe("EndTime", refresh.ended.map(|at| at.rfc3339()));
        if refresh.status != Status::Pending {
            xml.text("PercentageComplete", refresh.percentage()).text("InstancesToUpdate", refresh.left.len());
        }
        xml.text("Strategy", "Rolling").node("Preferences", |xml| {
            xml.text("MinHealthyPercentage", refresh.healthy).maybe("InstanceWarmup", refresh.warmup);
            xml.text("SkipMatching", refresh.skip_matching).text("AutoRollback", refresh.auto_rollback);
        });
        if let Some(desired) = &refresh.desired {
            xml.node("DesiredConfiguration", |xml| desired.write(xml));
        }
        let back = matches!(refresh.status, Status::RollbackInProgress | Status::RollbackSuccessful);
        if let (true, Some(reason)) = (back, &refresh.reason) {
            xml.node("RollbackDetails", |xml| {
                xml.text("RollbackReason", reason).text("InstancesToUpdateOnRollback", refresh.left.len());
            });
        }
    });
    Ok(())
}

fn active<'a>(world: &'a mut World, name: &str) -> Result<&'a mut Refresh, Refusal> {
    let message = "No in progress or pending Instance Refresh found for Auto Scaling group";
    let missing = || Refusal::client("ActiveInstanceRefreshNotFound", format!("{message} {name}"));
    group(world, name)?.refreshes.last_mut().filter(|refresh| refresh.is_active()).ok_or_else(missing)
}

pub(super) fn cancel(world: &mut World, mut form: Form, xml: &mut Xml) -> Result<(), Refusal> {
    let name = form.required("AutoScalingGroupName")?;
    form.flag("WaitForTransitioningInstances")?;
    form.finish()?;
    let now = world.now();
    let refresh = active(world, &name)?;
    refresh.status = Status::Cancelled;
    refresh.reason = Some("Cancelled due to user request.".to_owned());
    refresh.ended = Some(now);
    xml.text("InstanceRefreshId", &refresh.id);
    Ok(())
}

pub(super) fn rollback(world: &mut World, mut form: Form, xml: &mut Xml) -> Result<(), Refusal> {
    let name = form.required("AutoScalingGroupName")?;
    form.finish()?;
    let (before, desired) = {
        let refresh = active(world, &name)?;
        if refresh.status == Status::RollbackInProgress {
            let message = format!("No in progress or pending Instance Refresh found for Auto Scaling group {name}");
            return Err(Refusal::client("ActiveInstanceRefreshNotFound", message));
        }
        (refresh.before.clone(), refresh.desired.is_some())
    };
    if !desired || !is_fixed(world, &before) {
        let message = "The instance refresh has no desired configuration, or the group's launch template uses $Latest, $Default or an AWS Systems Manager parameter.";
        return Err(Refusal::client("IrreversibleInstanceRefresh", message));
    }
    let refresh = active(world, &name)?;
    refresh.turn_back("Rollback was initiated by the user.");
    xml.text("InstanceRefreshId", &refresh.id);
    Ok(())
}

impl Group {
    /// Replaces up to so many instances; the last one ends the refresh.
    fn replace(&mut self, instances: usize, ids: Vec<String>, now: Moment) {
        let Some(refresh) = self.refreshes.last_mut().filter(|refresh| refresh.is_active()) else { return };
        if refresh.status == Status::Pending {
            refresh.status = Status::InProgress;
        }
        for new in ids.into_iter().take(instances.min(refresh.left.len())) {
            let old = refresh.left.remove(0);
            self.instances.remove(&old);
            self.instances.insert(new.clone(), refresh.target().clone());
            refresh.all.iter_mut().filter(|id| **id == old).for_each(|id| id.clone_from(&new));
        }
        if refresh.left.is_empty() {
            refresh.ended = Some(now);
            self.template = refresh.target().clone();
            let back = refresh.status == Status::RollbackInProgress;
            refresh.status = if back { Status::RollbackSuccessful } else { Status::Successful };
        }
    }
}

impl Fake {
    /// Moves the refresh of a group along by so many instances, forwards or back.
    pub fn replace_instances(&self, account: &str, region: &str, group: &str, instances: usize) {
        let mut world = lock(&self.shared().world);
        world.enter(account, region, None);
        let ids = (0..instances).map(|_| world.id("i")).collect();
        let now = world.now();
        if let Some(group) = world.here().scaling.get_mut(group) {
            group.replace(instances, ids, now);
        }
    }

    /// The new instances are not healthy: the refresh fails, or turns back if it was told to.
    pub fn fail_refresh(&self, account: &str, region: &str, group: &str, reason: &str) {
        let mut world = lock(&self.shared().world);
        world.enter(account, region, None);
        let now = world.now();
        let Some(refresh) = world.here().scaling.get_mut(group).and_then(|group| group.refreshes.last_mut()) else {
            return;
        };
        if !refresh.is_active() {
            return;
        }
        if refresh.auto_rollback {
            refresh.turn_back(reason);
        } else {
            refresh.status = Status::Failed;
            refresh.reason = Some(reason.to_owned());
            refresh.ended = Some(now);
        }
    }
}
