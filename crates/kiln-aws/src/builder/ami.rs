//! Which AMI a template means, and whether an instance of it is of use.

use aws_sdk_ec2::types::{ArchitectureValues, Filter, Image, ImageState};
use kiln_core::plan::{Ami, AmiWish};

use crate::{Account, Region, call::Age, error::AwsError};

/// The billing of a system that costs nothing but the machine.
const FREE: &str = "RunInstances";

/// The AMI that an instance starts from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Origin {
    pub(super) ami: String,
    /// Name of its root device.
    pub(super) root: String,
}

impl Account {
    /// The AMI that is meant by a name or a parameter, or by its id, whose owner is checked.
    pub async fn find_ami(&self, region: &str, wanted: &AmiWish) -> Result<Ami, AwsError> {
        let region = self.region(region);
        let nothing = || AwsError::NoAmi { wanted: wanted.to_string(), region: region.name.clone() };
        let image = match wanted {
            AmiWish::Id { id, .. } => region.image_with_id(id).await?,
            AmiWish::Parameter { path, .. } => {
                let id = region.parameter(path).await?.ok_or_else(nothing)?;
                region.image_with_id(&id).await?
            }
            AmiWish::Name { pattern, owner } => region.newest(pattern, owner).await?,
            AmiWish::Image { .. } => None,
        };
        let image = image.ok_or_else(nothing)?;
        let ami = image.image_id.clone().ok_or_else(nothing)?;
        if let Some(expected) = wanted.owner()
            && !self.is_owned_by(&image, expected)
        {
            let (owner, expected) = (image.owner_id.unwrap_or_default(), expected.to_owned());
            return Err(AwsError::OtherOwner { ami, owner, expected });
        }
        Ok(Ami { ami, owner: image.owner_id, name: image.name, parent: None })
    }

    fn is_owned_by(&self, image: &Image, expected: &str) -> bool {
        let owner = image.owner_id.as_deref();
        let own = expected == "self" && owner == Some(&self.number);
        own || owner == Some(expected) || image.image_owner_alias.as_deref() == Some(expected)
    }
}

impl Region {
    /// What an instance needs to know of the AMI; refused if nothing good can come of it.
    pub(super) async fn origin(&self, ami: &str) -> Result<Origin, AwsError> {
        let nothing = || AwsError::NoAmi { wanted: ami.to_owned(), region: self.name.clone() };
        let image = self.image_with_id(ami).await?.ok_or_else(nothing)?;
        let unfit = |reason: String| Err(AwsError::Unfit { ami: ami.to_owned(), region: self.name.clone(), reason });
        if image.state != Some(ImageState::Available) {
            return unfit(format!("it is {}", image.state.map_or("gone".to_owned(), |state| state.to_string())));
        }
        if image.architecture != Some(ArchitectureValues::X8664) {
            return unfit("it is not for x86-64".to_owned());
        }
        // The AMI of the bake is registered anew, and who has to be paid for the system would be forgotten.
        if !image.product_codes().is_empty() || image.usage_operation.as_deref().is_some_and(|billed| billed != FREE) {
            return unfit("its system is billed for, and an AMI that kiln makes of it would not be".to_owned());
        }
        match image.root_device_name {
            Some(root) => Ok(Origin { ami: ami.to_owned(), root }),
            None => unfit("it has no root device".to_owned()),
        }
    }

    async fn image_with_id(&self, ami: &str) -> Result<Option<Image>, AwsError> {
        let look = || self.ec2.describe_images().image_ids(ami).include_deprecated(true).send();
        match self.caller.call("DescribeImages", Age::Old, look).await {
            Ok(answer) => Ok(answer.images.unwrap_or_default().into_iter().next()),
            Err(error) if error.is_missing() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The newest one of `owner` whose name fits.
    async fn newest(&self, pattern: &str, owner: &str) -> Result<Option<Image>, AwsError> {
        let filter = |name: &str, value: &str| Filter::builder().name(name).values(value).build();
        let filters = [filter("name", pattern), filter("architecture", "x86_64"), filter("state", "available")];
        let (mut newest, mut next) = (None::<Image>, None);
        loop {
            let look = || {
                let request = self.ec2.describe_images().owners(owner).set_filters(Some(filters.to_vec()));
                request.set_next_token(next.clone()).send()
            };
            let page = self.caller.call("DescribeImages", Age::Old, look).await?;
            // Of the same second the id decides, so that the answer does not depend on the order.
            let key = |image: &Image| (image.creation_date.clone(), image.image_id.clone());
            newest = newest.into_iter().chain(page.images.unwrap_or_default()).max_by_key(key);
            next = page.next_token.filter(|token| !token.is_empty());
            if next.is_none() {
                return Ok(newest);
            }
        }
    }
}
