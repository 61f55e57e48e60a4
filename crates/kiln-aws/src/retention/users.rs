//! Who launches which AMI, where EC2's own references do not look: those know the newest versions of a launch template, and neither the
//! one that is its default nor the one that an Auto Scaling group names.

use std::collections::{BTreeMap, BTreeSet};

use aws_sdk_autoscaling::types::{AutoScalingGroup, LaunchTemplateOverrides, LaunchTemplateSpecification};
use aws_sdk_ec2::types::LaunchTemplateVersion;

use crate::{Region, call::Age, error::AwsError};

/// AMIs and somebody who launches each.
#[derive(Debug, Default)]
pub(super) struct Users(BTreeMap<String, String>);

impl Users {
    pub(super) fn of(&self, ami: &str) -> Option<&String> {
        self.0.get(ami)
    }

    fn add(&mut self, version: &LaunchTemplateVersion, who: impl FnOnce() -> String) {
        let ami = version.launch_template_data.as_ref().and_then(|data| data.image_id.clone());
        if let Some(ami) = ami {
            self.0.entry(ami).or_insert_with(who);
        }
    }
}

impl Region {
    pub(super) async fn users(&self) -> Result<Users, AwsError> {
        let mut users = Users::default();
        for version in self.template_versions(None, &["$Default", "$Latest"], Age::Old).await? {
            users.add(&version, || {
                let number = version.version_number.unwrap_or_default();
                format!("version {number} of {}", version.launch_template_id.as_deref().unwrap_or("a launch template"))
            });
        }
        let groups = self.groups().await?;
        let mut configurations = BTreeMap::new();
        if groups.iter().any(|group| group.launch_configuration_name.is_some()) {
            configurations = self.launch_configurations().await?;
        }
        for group in groups {
            let name = group.auto_scaling_group_name.clone().unwrap_or_default();
            for (template, version) in launched(&group) {
                for version in self.version(&template, &version).await? {
                    users.add(&version, || format!("the group {name}"));
                }
            }
            let configured = group.launch_configuration_name().and_then(|name| configurations.get(name).cloned());
            for image in images(&group).chain(configured) {
                users.0.entry(image).or_insert_with(|| format!("the group {name}"));
            }
        }
        Ok(users)
    }

    /// One version of a launch template; one that is not there any more launches nothing.
    async fn version(&self, template: &str, number: &str) -> Result<Vec<LaunchTemplateVersion>, AwsError> {
        match self.template_versions(Some(template), &[number], Age::Old).await {
            Err(error) if error.code().is_some_and(|code| code.ends_with("NotFound")) => Ok(Vec::new()),
            versions => versions,
        }
    }

    async fn groups(&self) -> Result<Vec<AutoScalingGroup>, AwsError> {
        let (mut groups, mut next) = (Vec::new(), None);
        loop {
            let look = || self.autoscaling.describe_auto_scaling_groups().set_next_token(next.clone()).send();
            let page = self.caller.call("DescribeAutoScalingGroups", Age::Old, look).await?;
            groups.extend(page.auto_scaling_groups.unwrap_or_default());
            next = page.next_token.filter(|token| !token.is_empty());
            if next.is_none() {
                return Ok(groups);
            }
        }
    }

    /// The AMIs of launch configurations, which groups had before there were launch templates, by name.
    async fn launch_configurations(&self) -> Result<BTreeMap<String, String>, AwsError> {
        let (mut configurations, mut next) = (BTreeMap::new(), None);
        loop {
            let look = || self.autoscaling.describe_launch_configurations().set_next_token(next.clone()).send();
            let page = self.caller.call("DescribeLaunchConfigurations", Age::Old, look).await?;
            for found in page.launch_configurations.unwrap_or_default() {
                configurations.extend(found.launch_configuration_name.zip(found.image_id));
            }
            next = page.next_token.filter(|token| !token.is_empty());
            if next.is_none() {
                return Ok(configurations);
            }
        }
    }
}

/// The types of a mixed instances policy that differ from the rest.
fn overrides(group: &AutoScalingGroup) -> &[LaunchTemplateOverrides] {
    let policy = group.mixed_instances_policy().and_then(|policy| policy.launch_template());
    policy.map_or(&[], |template| template.overrides())
}

/// Launch templates and their versions as `group` names them.
fn launched(group: &AutoScalingGroup) -> BTreeSet<(String, String)> {
    let policy = group.mixed_instances_policy().and_then(|policy| policy.launch_template());
    let mixed = policy.and_then(|template| template.launch_template_specification());
    let own = overrides(group).iter().filter_map(LaunchTemplateOverrides::launch_template_specification);
    let named = |specification: &LaunchTemplateSpecification| {
        let version = specification.version.clone().unwrap_or_else(|| "$Default".to_owned());
        Some((specification.launch_template_id.clone()?, version))
    };
    group.launch_template().into_iter().chain(mixed).chain(own).filter_map(named).collect()
}

/// AMIs that `group` names without a launch template.
fn images(group: &AutoScalingGroup) -> impl Iterator<Item = String> + '_ {
    overrides(group).iter().filter_map(|own| own.image_id.clone())
}
