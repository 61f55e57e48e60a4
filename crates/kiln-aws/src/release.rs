//! The machines of an Auto Scaling group, replaced by those of another version, and back again.
//!
//! The group gets a numbered version of its launch template, never `$Latest`: only then can AWS go back to what was there.

mod group;

use aws_sdk_autoscaling::types::{InstanceRefresh, InstanceRefreshStatus, RefreshPreferences};
use serde::Serialize;

use self::group::Setup;
use crate::{
    Region,
    call::{Age, Look},
    error::AwsError,
    launch_template::TemplateVersion,
};

/// A replacement of the machines of a group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Refresh {
    pub id: String,
    /// As AWS has it: `InProgress`, `Successful`, `RollbackSuccessful`.
    pub status: String,
    pub reason: Option<String>,
    pub percentage: i32,
    /// The version of the launch template that the machines get.
    pub to: Option<String>,
}

/// A release that was begun.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Release {
    pub group: String,
    pub ami: String,
    /// `lt-0123..`
    pub template: String,
    pub from: i64,
    pub to: i64,
    /// `None`: the group has this version already.
    pub refresh: Option<String>,
    /// What makes it impossible to go back.
    pub warnings: Vec<String>,
}

impl Refresh {
    /// Whether it goes on by itself.
    pub fn is_under_way(&self) -> bool {
        !matches!(self.status.as_str(), "Successful" | "Failed" | "Cancelled" | "RollbackSuccessful" | "RollbackFailed")
    }

    /// Whether it brings back what it began to replace.
    fn turns_around(&self) -> bool {
        self.status.starts_with("Rollback")
    }

    /// Whether it ended with machines of both versions.
    fn broke_off(&self) -> bool {
        matches!(self.status.as_str(), "Failed" | "Cancelled" | "RollbackFailed")
    }

    /// Whether the group has what it had before, and all its machines, too.
    pub fn went_back(&self) -> bool {
        self.status == "RollbackSuccessful"
    }

    /// Whether all machines are of the new version.
    pub fn succeeded(&self) -> bool {
        self.status == "Successful"
    }
}

impl Region {
    /// Begins to replace the machines of `group` by those of `ami`, which is `subject`. When that is under way already, says so.
    pub async fn release(&self, group: &str, ami: &str, subject: &str) -> Result<Release, AwsError> {
        let setup = self.group(group).await?;
        let next = self.template_with(&setup.current, ami, subject).await?;
        self.refresh(group, &setup, &next).await
    }

    /// Goes back: what is under way is turned around, what broke off is brought to an end the other way, and so is what is done.
    /// Twice is as good as once: what goes back already, or came back by itself, is left alone.
    pub async fn roll_back(&self, group: &str) -> Result<Option<Release>, AwsError> {
        let setup = self.group(group).await?;
        let current = &setup.current;
        if let Some(refresh) = self.last_refresh(group).await? {
            let to = refresh.to.as_ref().and_then(|to| to.parse().ok());
            if refresh.is_under_way() && (to.is_none() || to != current.replaces) {
                self.turn_around(group, &refresh).await?;
                return Ok(None);
            }
            if !refresh.is_under_way() && self.came_to_nothing(current, to).await? {
                // What it began to replace is what the group has; some machines may be of the other version.
                return if refresh.went_back() {
                    Ok(None)
                } else {
                    self.refresh(group, &setup, current).await.map(Some)
                };
            }
        }
        let Some(number) = current.replaces else {
            return Err(AwsError::NothingBefore { group: group.to_owned(), region: self.name.clone() });
        };
        let before = self.template_version(&current.template, &number.to_string()).await?;
        self.refresh(group, &setup, &before).await.map(Some)
    }

    /// Whether a refresh that is over was to bring the successor of what the group still has.
    async fn came_to_nothing(&self, current: &TemplateVersion, to: Option<i64>) -> Result<bool, AwsError> {
        let Some(to) = to.filter(|to| *to != current.number) else { return Ok(false) };
        match self.template_version(&current.template, &to.to_string()).await {
            Ok(next) => Ok(next.replaces == Some(current.number)),
            // Somebody deleted it since.
            Err(error) if error.code().is_some_and(|code| code.ends_with("NotFound")) => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn turn_around(&self, group: &str, refresh: &Refresh) -> Result<(), AwsError> {
        if refresh.turns_around() {
            return Ok(());
        }
        let back = || self.autoscaling.rollback_instance_refresh().auto_scaling_group_name(group).send();
        match self.caller.call("RollbackInstanceRefresh", Age::Old, back).await {
            // Also when the answer to our own first attempt was lost.
            Err(error @ AwsError::Refused { .. }) => match self.last_refresh(group).await? {
                Some(now) if now.turns_around() => Ok(()),
                _ => Err(error),
            },
            turned => turned.map(drop),
        }
    }

    /// The newest replacement of the machines of `group`.
    pub async fn last_refresh(&self, group: &str) -> Result<Option<Refresh>, AwsError> {
        let look =
            || self.autoscaling.describe_instance_refreshes().auto_scaling_group_name(group).max_records(1).send();
        let found = self.caller.call("DescribeInstanceRefreshes", Age::Old, look).await?;
        Ok(found.instance_refreshes.unwrap_or_default().into_iter().next().map(read))
    }

    /// Waits until the newest replacement is over.
    pub async fn refreshed(&self, group: &str) -> Result<Refresh, AwsError> {
        let look = || async {
            Ok(match self.last_refresh(group).await? {
                Some(refresh) if refresh.is_under_way() => {
                    Look::Under(format!("{} {} %", refresh.status, refresh.percentage))
                }
                Some(refresh) => Look::Done(refresh),
                None => Look::Under("not to be seen".to_owned()),
            })
        };
        self.caller.wait("the machines", look).await
    }

    async fn refresh(&self, group: &str, setup: &Setup, to: &TemplateVersion) -> Result<Release, AwsError> {
        let (from, warnings) = (&setup.current, setup.warnings());
        let release = |refresh| Release {
            group: group.to_owned(),
            ami: to.ami.clone(),
            template: to.template.clone(),
            from: from.number,
            to: to.number,
            refresh,
            warnings: warnings.clone(),
        };
        // A group that names no number has it only for the machines that start from now on.
        if from.number == to.number && setup.is_numbered() {
            let last = self.last_refresh(group).await?;
            if !last.as_ref().is_some_and(Refresh::broke_off) {
                return Ok(release(None));
            }
        }
        let desired = setup.with(to);
        // AWS refuses to promise a way back that it has not.
        let preferences = RefreshPreferences::builder().skip_matching(true).auto_rollback(warnings.is_empty()).build();
        let start = || {
            let request = self.autoscaling.start_instance_refresh().auto_scaling_group_name(group);
            request.desired_configuration(desired.clone()).preferences(preferences.clone()).send()
        };
        match self.caller.call("StartInstanceRefresh", Age::Old, start).await {
            Ok(started) => Ok(release(started.instance_refresh_id)),
            // Also when the answer to our own first attempt was lost.
            Err(error) if error.code() == Some("InstanceRefreshInProgress") => {
                let under_way = self.last_refresh(group).await?;
                match under_way.filter(|refresh| refresh.to.as_deref() == Some(&to.number.to_string())) {
                    Some(refresh) => Ok(release(Some(refresh.id))),
                    None => Err(error),
                }
            }
            Err(error) => Err(error),
        }
    }
}

fn read(refresh: InstanceRefresh) -> Refresh {
    let to = group::target(&refresh);
    Refresh {
        id: refresh.instance_refresh_id.unwrap_or_default(),
        status: refresh.status.as_ref().map_or("Pending", InstanceRefreshStatus::as_str).to_owned(),
        reason: refresh.status_reason,
        percentage: refresh.percentage_complete.unwrap_or(0),
        to,
    }
}
