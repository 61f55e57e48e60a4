//! The machines of an Auto Scaling group, replaced by those of another version, and back again.
//!
//! The group gets a numbered version of its launch template, never `$Latest`: only then can AWS go back to what was there.

use aws_sdk_autoscaling::types::{
    AutoScalingGroup, DesiredConfiguration, InstanceRefresh, InstanceRefreshStatus, LaunchTemplateSpecification,
    RefreshPreferences,
};
use serde::Serialize;

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

    /// Whether all machines are of the new version.
    pub fn succeeded(&self) -> bool {
        self.status == "Successful"
    }
}

impl Region {
    /// Begins to replace the machines of `group` by those of `ami`, which is `subject`. When that is under way already, says so.
    pub async fn release(&self, group: &str, ami: &str, subject: &str) -> Result<Release, AwsError> {
        let (specification, current) = self.group_template(group).await?;
        let warnings = warnings(&specification, &current);
        let next = self.template_with(&current, ami, subject).await?;
        self.refresh(group, &current, &next, warnings).await
    }

    /// Goes back: what is under way is turned around, what is done is done the other way.
    pub async fn roll_back(&self, group: &str) -> Result<Option<Release>, AwsError> {
        if let Some(refresh) = self.last_refresh(group).await?
            && refresh.is_under_way()
        {
            if !refresh.status.starts_with("Rollback") {
                let back = || self.autoscaling.rollback_instance_refresh().auto_scaling_group_name(group).send();
                self.caller.call("RollbackInstanceRefresh", Age::Old, back).await?;
            }
            return Ok(None);
        }
        let (specification, current) = self.group_template(group).await?;
        let Some(number) = current.replaces else {
            return Err(AwsError::NothingBefore { group: group.to_owned(), region: self.name.clone() });
        };
        let before = self.template_version(&current.template, &number.to_string()).await?;
        self.refresh(group, &current, &before, warnings(&specification, &current)).await.map(Some)
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

    async fn refresh(
        &self,
        group: &str,
        from: &TemplateVersion,
        to: &TemplateVersion,
        warnings: Vec<String>,
    ) -> Result<Release, AwsError> {
        let release = |refresh| Release {
            group: group.to_owned(),
            ami: to.ami.clone(),
            template: to.template.clone(),
            from: from.number,
            to: to.number,
            refresh,
            warnings: warnings.clone(),
        };
        if from.number == to.number {
            return Ok(release(None));
        }
        let template = LaunchTemplateSpecification::builder().launch_template_id(&to.template);
        let desired = DesiredConfiguration::builder().launch_template(template.version(to.number.to_string()).build());
        let desired = desired.build();
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

    /// What the launch template of `group` is, as the group names it and as it is.
    async fn group_template(&self, group: &str) -> Result<(LaunchTemplateSpecification, TemplateVersion), AwsError> {
        let look = || self.autoscaling.describe_auto_scaling_groups().auto_scaling_group_names(group).send();
        let found = self.caller.call("DescribeAutoScalingGroups", Age::Old, look).await?;
        let found: Option<AutoScalingGroup> = found.auto_scaling_groups.unwrap_or_default().into_iter().next();
        let specification = found.and_then(|group| group.launch_template);
        let (Some(specification), region) = (specification, self.name.clone()) else {
            return Err(AwsError::NoTemplate { group: group.to_owned(), region: self.name.clone() });
        };
        let Some(id) = specification.launch_template_id.clone() else {
            return Err(AwsError::NoTemplate { group: group.to_owned(), region });
        };
        let version = specification.version.clone().unwrap_or_else(|| "$Default".to_owned());
        let current = self.template_version(&id, &version).await?;
        Ok((specification, current))
    }
}

/// What of a group's set-up makes it impossible to go back.
fn warnings(specification: &LaunchTemplateSpecification, current: &TemplateVersion) -> Vec<String> {
    let version = specification.version.as_deref().unwrap_or("$Default");
    let mut warnings = Vec::new();
    if version.starts_with('$') {
        warnings.push(format!(
            "the group names version `{version}` of its launch template: AWS cannot roll this release back; from now on it names a number"
        ));
    }
    if current.ami.starts_with("resolve:ssm:") {
        warnings.push(format!(
            "version {} of the launch template takes its AMI from `{}`: AWS cannot roll this release back",
            current.number, current.ami
        ));
    }
    warnings
}

fn read(refresh: InstanceRefresh) -> Refresh {
    let desired = refresh.desired_configuration.and_then(|desired| desired.launch_template);
    Refresh {
        id: refresh.instance_refresh_id.unwrap_or_default(),
        status: refresh.status.as_ref().map_or("Pending", InstanceRefreshStatus::as_str).to_owned(),
        reason: refresh.status_reason,
        percentage: refresh.percentage_complete.unwrap_or(0),
        to: desired.and_then(|template| template.version),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warns_of_what_cannot_be_rolled_back() {
        let group = |version: &str| LaunchTemplateSpecification::builder().version(version).build();
        let template =
            |ami: &str| TemplateVersion { template: "lt-1".to_owned(), number: 3, ami: ami.to_owned(), replaces: None };
        assert!(warnings(&group("3"), &template("ami-1")).is_empty());
        assert_eq!(warnings(&group("$Latest"), &template("ami-1")).len(), 1);
        assert_eq!(warnings(&group("$Latest"), &template("resolve:ssm:/web")).len(), 2);
    }
}
