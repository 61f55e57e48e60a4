//! Who may launch an AMI, until when it is offered, and how well it is protected.

use std::collections::BTreeMap;

use aws_sdk_ec2::{
    primitives::DateTime,
    types::{ImageAttributeName, LaunchPermission, LaunchPermissionModifications, PermissionGroup},
};
use serde::{Deserialize, Serialize};

use crate::{Region, call::Age, error::AwsError};

/// The key that every account has and that no policy opens to others.
const OWN_KEY: &str = "alias/aws/ebs";

/// What is set on an AMI when it is whole. Nothing by default: it belongs to its account alone.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sharing {
    /// Accounts (twelve digits), organisations and organisational units (ARNs) that may launch it.
    pub with: Vec<String>,
    /// Everybody may launch it.
    pub public: bool,
    /// When it is no longer offered, seconds since 1970, UTC. Instances still start from it.
    pub deprecate_at: Option<u64>,
    /// It cannot be deregistered until somebody takes this off.
    pub protect: bool,
    /// Tags of it and its snapshot besides those of kiln.
    #[serde(default)]
    pub tags: BTreeMap<String, String>,
}

/// Under which keys a snapshot may be that another is to stand on.
#[derive(Debug)]
pub(crate) enum Under {
    Any,
    /// None, or this one.
    Only(Option<String>),
}

impl Under {
    pub(crate) fn takes(&self, key: Option<&str>) -> bool {
        match self {
            Self::Any => true,
            Self::Only(only) => key.is_none() || key == only.as_deref(),
        }
    }
}

impl Region {
    /// Refuses, before anything is sent, what could never be shared: encrypted under a key that no policy opens, or public. Else what
    /// the snapshot may stand on, whose key it takes.
    pub(crate) async fn shareable(&self, kms_key: Option<&str>, sharing: &Sharing) -> Result<Under, AwsError> {
        let refused = |key: &str, meant| {
            let (region, key) = (self.name.clone(), key.to_owned());
            Err(AwsError::NotShareable { region, key, meant })
        };
        if sharing.with.is_empty() && !sharing.public {
            return Ok(Under::Any);
        }
        if let Some(key) = kms_key {
            return if sharing.public { refused(key, "public") } else { Ok(Under::Any) };
        }
        match self.default_key().await? {
            Some(key) if sharing.public => refused(&key, "public"),
            Some(key) if key.ends_with(OWN_KEY) => refused(&key, "shared"),
            key => Ok(Under::Only(key)),
        }
    }

    /// The key that encrypts what names none. `None`: nothing is encrypted then, or it may not be asked.
    async fn default_key(&self) -> Result<Option<String>, AwsError> {
        let ask = || self.ec2.get_ebs_encryption_by_default().send();
        let encrypts = match self.caller.call("GetEbsEncryptionByDefault", Age::Old, ask).await {
            Err(error) if error.is_denied() => return Ok(None),
            answer => answer?.ebs_encryption_by_default,
        };
        if encrypts != Some(true) {
            return Ok(None);
        }
        let ask = || self.ec2.get_ebs_default_kms_key_id().send();
        match self.caller.call("GetEbsDefaultKmsKeyId", Age::Old, ask).await {
            Err(error) if error.is_denied() => Ok(None),
            answer => Ok(answer?.kms_key_id),
        }
    }

    /// Sets all of `sharing` on `ami` but its protection. Twice is as good as once.
    pub(crate) async fn share(&self, ami: &str, sharing: &Sharing) -> Result<(), AwsError> {
        let mut permissions: Vec<_> = sharing.with.iter().map(|whom| permission(whom)).collect();
        if sharing.public {
            permissions.push(LaunchPermission::builder().group(PermissionGroup::All).build());
        }
        if !permissions.is_empty() {
            let add = LaunchPermissionModifications::builder().set_add(Some(permissions)).build();
            let modify = || {
                let request = self.ec2.modify_image_attribute().image_id(ami);
                request.attribute(ImageAttributeName::LaunchPermission.as_str()).launch_permission(add.clone()).send()
            };
            self.caller.call("ModifyImageAttribute", Age::New, modify).await?;
        }
        if let Some(at) = sharing.deprecate_at {
            let at = DateTime::from_secs(i64::try_from(at).unwrap_or(i64::MAX));
            let deprecate = || self.ec2.enable_image_deprecation().image_id(ami).deprecate_at(at).send();
            self.caller.call("EnableImageDeprecation", Age::New, deprecate).await?;
        }
        Ok(())
    }

    /// Protects `ami` if `sharing` says so.
    pub(crate) async fn protect(&self, ami: &str, sharing: &Sharing) -> Result<(), AwsError> {
        if !sharing.protect {
            return Ok(());
        }
        let protect = || self.ec2.enable_image_deregistration_protection().image_id(ami).send();
        self.caller.call("EnableImageDeregistrationProtection", Age::New, protect).await.map(drop)
    }
}

/// Who is meant, by the form of the name.
fn permission(whom: &str) -> LaunchPermission {
    let permission = LaunchPermission::builder();
    if whom.contains(":ou/") {
        permission.organizational_unit_arn(whom).build()
    } else if whom.starts_with("arn:") {
        permission.organization_arn(whom).build()
    } else {
        permission.user_id(whom).build()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accounts_organisations_and_units_are_told_apart_by_their_names() {
        assert_eq!(permission("123456789012").user_id(), Some("123456789012"));
        let organisation = "arn:aws:organizations::123456789012:organization/o-1";
        assert_eq!(permission(organisation).organization_arn(), Some(organisation));
        let unit = "arn:aws:organizations::123456789012:ou/o-1/ou-2";
        assert_eq!(permission(unit).organizational_unit_arn(), Some(unit));
    }
}
