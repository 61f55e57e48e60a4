//! What the server changes for those who may: channels and revocations. None of it is tried again, for it may have been done.

use kiln_core::{ChannelName, ImageName, Version};

use super::Remote;
use crate::{ServeError, wire};

impl Remote {
    pub async fn promote(
        &self,
        image: &ImageName,
        channel: &ChannelName,
        request: &wire::Promote,
    ) -> Result<wire::Moved, ServeError> {
        self.post(&["images", image.as_str(), "channels", channel.as_str(), "promote"], request, self.patience).await
    }

    pub async fn rollback(
        &self,
        image: &ImageName,
        channel: &ChannelName,
        request: &wire::Rollback,
    ) -> Result<wire::Moved, ServeError> {
        self.post(&["images", image.as_str(), "channels", channel.as_str(), "rollback"], request, self.patience).await
    }

    /// From now on a channel takes only proven versions, or any again; whether that changed anything.
    pub async fn restrict(
        &self,
        image: &ImageName,
        channel: &ChannelName,
        request: &wire::Restrict,
    ) -> Result<wire::Changed, ServeError> {
        self.post(&["images", image.as_str(), "channels", channel.as_str(), "restrict"], request, self.patience).await
    }

    pub async fn revoke(
        &self,
        image: &ImageName,
        version: &Version,
        request: &wire::Revoke,
    ) -> Result<wire::Inherited, ServeError> {
        self.post(&["images", image.as_str(), "versions", version.as_str(), "revoke"], request, self.patience).await
    }
}
