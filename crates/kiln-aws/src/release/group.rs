//! What an Auto Scaling group launches: a launch template, alone or inside a mixed instances policy.

use aws_sdk_autoscaling::types::{
    AutoScalingGroup, DesiredConfiguration, InstanceRefresh, LaunchTemplateOverrides, LaunchTemplateSpecification,
    MixedInstancesPolicy,
};

use crate::{Region, call::Age, error::AwsError, launch_template::TemplateVersion};

/// How a group is set up now.
#[derive(Debug, Clone)]
pub(super) struct Setup {
    /// The launch template as the group names it.
    specification: LaunchTemplateSpecification,
    /// Types and purchase options around it.
    policy: Option<MixedInstancesPolicy>,
    pub(super) current: TemplateVersion,
}

impl Setup {
    /// The same with `version` of the launch template, by its number.
    pub(super) fn with(&self, version: &TemplateVersion) -> DesiredConfiguration {
        let named = LaunchTemplateSpecification::builder().launch_template_id(&version.template);
        let named = named.version(version.number.to_string()).build();
        let desired = DesiredConfiguration::builder();
        let Some(mut policy) = self.policy.clone() else { return desired.launch_template(named).build() };
        if let Some(template) = &mut policy.launch_template {
            template.launch_template_specification = Some(named);
        }
        desired.mixed_instances_policy(policy).build()
    }

    /// Whether the group names a version of its launch template, and not the newest or the default one.
    pub(super) fn is_numbered(&self) -> bool {
        self.specification.version.as_deref().is_some_and(|version| !version.starts_with('$'))
    }

    /// What of it makes it impossible to go back.
    pub(super) fn warnings(&self) -> Vec<String> {
        let version = self.specification.version.as_deref().unwrap_or("$Default");
        let mut warnings = Vec::new();
        if version.starts_with('$') {
            warnings.push(format!(
                "the group names version `{version}` of its launch template: AWS cannot roll this release back; from now on it names a number"
            ));
        }
        if self.current.ami.starts_with("resolve:ssm:") {
            warnings.push(format!(
                "version {} of the launch template takes its AMI from `{}`: AWS cannot roll this release back",
                self.current.number, self.current.ami
            ));
        }
        warnings
    }
}

/// The version of the launch template that a refresh brings.
pub(super) fn target(refresh: &InstanceRefresh) -> Option<String> {
    let desired = refresh.desired_configuration()?;
    let policy = || desired.mixed_instances_policy()?.launch_template()?.launch_template_specification();
    desired.launch_template().or_else(policy)?.version().map(str::to_owned)
}

impl Region {
    pub(super) async fn group(&self, name: &str) -> Result<Setup, AwsError> {
        let look = || self.autoscaling.describe_auto_scaling_groups().auto_scaling_group_names(name).send();
        let found = self.caller.call("DescribeAutoScalingGroups", Age::Old, look).await?;
        let group = found.auto_scaling_groups.unwrap_or_default().into_iter().next();
        let unfit = |why| AwsError::NoTemplate { group: name.to_owned(), region: self.name.clone(), why };
        let group = group.ok_or_else(|| unfit("is not there"))?;
        let (specification, policy) = launches(group).map_err(unfit)?;
        let id = specification.launch_template_id.clone();
        let id = id.ok_or_else(|| unfit("does not say which launch template it has"))?;
        let version = specification.version.clone().unwrap_or_else(|| "$Default".to_owned());
        let current = self.template_version(&id, &version).await?;
        Ok(Setup { specification, policy, current })
    }
}

fn launches(
    group: AutoScalingGroup,
) -> Result<(LaunchTemplateSpecification, Option<MixedInstancesPolicy>), &'static str> {
    let Some(policy) = group.mixed_instances_policy else {
        return Ok((group.launch_template.ok_or("has a launch configuration, not a launch template")?, None));
    };
    let template = policy.launch_template().ok_or("has a mixed instances policy without a launch template")?;
    let own =
        |other: &LaunchTemplateOverrides| other.launch_template_specification().is_some() || other.image_id().is_some();
    if template.overrides().iter().any(own) {
        return Err("has types of instances with an AMI or a launch template of their own");
    }
    let specification = template.launch_template_specification().cloned();
    Ok((specification.ok_or("has a mixed instances policy without a launch template")?, Some(policy)))
}

#[cfg(test)]
mod tests {
    use aws_sdk_autoscaling::types::LaunchTemplate;

    use super::*;

    fn template(ami: &str) -> TemplateVersion {
        TemplateVersion { template: "lt-1".to_owned(), number: 3, ami: ami.to_owned(), replaces: None }
    }

    fn specification(version: &str) -> LaunchTemplateSpecification {
        LaunchTemplateSpecification::builder().launch_template_id("lt-1").version(version).build()
    }

    #[test]
    fn warns_of_what_cannot_be_rolled_back() {
        let setup =
            |version, ami| Setup { specification: specification(version), policy: None, current: template(ami) };
        assert!(setup("3", "ami-1").warnings().is_empty());
        assert_eq!(setup("$Latest", "ami-1").warnings().len(), 1);
        assert_eq!(setup("$Latest", "resolve:ssm:/web").warnings().len(), 2);
    }

    #[test]
    fn a_type_with_an_ami_of_its_own_is_not_released_to() {
        let group = |other: LaunchTemplateOverrides| {
            let template = LaunchTemplate::builder().launch_template_specification(specification("3")).overrides(other);
            let policy = MixedInstancesPolicy::builder().launch_template(template.build()).build();
            AutoScalingGroup::builder().mixed_instances_policy(policy).build()
        };
        let plain = LaunchTemplateOverrides::builder().instance_type("t3.small");
        assert!(launches(group(plain.clone().build())).unwrap().1.is_some());
        assert!(launches(group(plain.clone().image_id("ami-1").build())).is_err());
        assert!(launches(group(plain.launch_template_specification(specification("1")).build())).is_err());
        assert!(launches(AutoScalingGroup::builder().launch_configuration_name("old").build()).is_err());
    }
}
