//! Numbered versions of launch templates: each differs from the one before in its AMI, and says which one it replaces.

use aws_sdk_ec2::types::{LaunchTemplateVersion, RequestLaunchTemplateData};
use kiln_io::random::nonce;

use crate::{Region, call::Age, error::AwsError};

/// A version of a launch template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TemplateVersion {
    /// `lt-0123..`
    pub template: String,
    pub number: i64,
    pub ami: String,
    /// The version that it was made from, if kiln made it.
    pub replaces: Option<i64>,
}

impl Region {
    /// The version `version` of `template`: a number, `$Latest` or `$Default`.
    pub(crate) async fn template_version(&self, template: &str, version: &str) -> Result<TemplateVersion, AwsError> {
        let found = self.template_versions(Some(template), &[version], Age::New).await?.into_iter().find_map(read);
        found.ok_or_else(|| self.caller.incomplete("DescribeLaunchTemplateVersions", "launchTemplateVersionSet"))
    }

    /// The version of `before`'s template that is `before` with `ami` instead: the one that is there, else a new one.
    pub(crate) async fn template_with(
        &self,
        before: &TemplateVersion,
        ami: &str,
        subject: &str,
    ) -> Result<TemplateVersion, AwsError> {
        if before.ami == ami {
            return Ok(before.clone());
        }
        let description = describe(subject, before.number);
        for version in self.template_versions(Some(&before.template), &[], Age::Old).await? {
            if version.version_description.as_deref() == Some(&description)
                && let Some(found) = read(version).filter(|found| found.ami == ami)
            {
                return Ok(found);
            }
        }
        let token = nonce();
        let data = RequestLaunchTemplateData::builder().image_id(ami).build();
        let create = || {
            let request = self.ec2.create_launch_template_version().launch_template_id(&before.template);
            let request = request.source_version(before.number.to_string()).version_description(&description);
            request.launch_template_data(data.clone()).client_token(&token).send()
        };
        let created = self.caller.call("CreateLaunchTemplateVersion", Age::New, create).await?;
        let created = created.launch_template_version.and_then(read);
        created.ok_or_else(|| self.caller.incomplete("CreateLaunchTemplateVersion", "launchTemplateVersion"))
    }

    /// Versions of `template`, else of all launch templates: these (a number, `$Latest` or `$Default`), else all.
    pub(crate) async fn template_versions(
        &self,
        template: Option<&str>,
        numbers: &[&str],
        age: Age,
    ) -> Result<Vec<LaunchTemplateVersion>, AwsError> {
        let numbers: Vec<_> = numbers.iter().map(|number| (*number).to_owned()).collect();
        let numbers = Some(numbers).filter(|numbers| !numbers.is_empty());
        let (mut versions, mut next) = (Vec::new(), None);
        loop {
            let look = || {
                let request = self.ec2.describe_launch_template_versions();
                let request = request.set_launch_template_id(template.map(str::to_owned));
                request.set_versions(numbers.clone()).set_next_token(next.clone()).send()
            };
            let page = self.caller.call("DescribeLaunchTemplateVersions", age, look).await?;
            versions.extend(page.launch_template_versions.unwrap_or_default());
            next = page.next_token.filter(|token| !token.is_empty());
            if next.is_none() {
                return Ok(versions);
            }
        }
    }
}

/// `kiln: web@1.4.0, replaces 3`
fn describe(subject: &str, replaces: i64) -> String {
    format!("kiln: {subject}, replaces {replaces}").chars().take(255).collect()
}

fn replaced(description: &str) -> Option<i64> {
    description.strip_prefix("kiln: ")?.rsplit_once(", replaces ")?.1.parse().ok()
}

fn read(version: LaunchTemplateVersion) -> Option<TemplateVersion> {
    Some(TemplateVersion {
        template: version.launch_template_id?,
        number: version.version_number?,
        ami: version.launch_template_data?.image_id.unwrap_or_default(),
        replaces: version.version_description.as_deref().and_then(replaced),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_says_which_one_it_replaces() {
        assert_eq!(replaced(&describe("web@1.4.0", 3)), Some(3));
        for other in ["", "kiln: web@1.4.0", "somebody's, replaces 3", "kiln: web, replaces x"] {
            assert_eq!(replaced(other), None, "{other}");
        }
    }
}
