//! `s3://bucket/prefix?endpoint=https://store.example.com&region=eu-west-1`

use std::fmt;

use reqwest::Url;

use crate::BucketError;

/// A bucket, or a prefix in one, and where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    pub(crate) bucket: String,
    /// Without a `/` at either end; may be empty.
    pub(crate) prefix: String,
    pub(crate) endpoint: Option<String>,
    pub(crate) region: Option<String>,
}

impl Address {
    /// Whether `text` names a bucket and not a directory.
    pub fn is_one(text: &str) -> bool {
        text.starts_with("s3://")
    }

    pub fn parse(text: &str) -> Result<Self, BucketError> {
        let refused = |problem: String| BucketError::Address { url: text.to_owned(), problem };
        let url: Url = text.parse().map_err(|error| refused(format!("{error}")))?;
        let bucket = url.host_str().filter(|_| url.scheme() == "s3" && url.port().is_none());
        let bucket = bucket.ok_or_else(|| refused("it has no bucket".to_owned()))?.to_owned();
        if !url.username().is_empty() || url.password().is_some() {
            return Err(refused("credentials do not belong into it".to_owned()));
        }
        let prefix = url.path().trim_matches('/').to_owned();
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
        if !prefix.chars().all(plain)
            || prefix.split('/').any(|part| part == "." || part == "..")
            || prefix.contains("//")
        {
            return Err(refused(
                "its prefix has characters that are not letters, digits, `-`, `_`, `.` or `/`".to_owned(),
            ));
        }
        let mut address = Self { bucket, prefix, endpoint: None, region: None };
        for (name, value) in url.query_pairs() {
            match &*name {
                "endpoint" => address.endpoint = Some(value.trim_end_matches('/').to_owned()),
                "region" => address.region = Some(value.into_owned()),
                other => return Err(refused(format!("`{other}` is not `endpoint` or `region`"))),
            }
        }
        Ok(address)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s3://{}", self.bucket)?;
        if self.prefix.is_empty() { Ok(()) } else { write!(f, "/{}", self.prefix) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_bucket_prefix_endpoint_and_region() {
        let address = Address::parse("s3://images/team/web/?endpoint=http://127.0.0.1:5000/&region=eu-west-1").unwrap();
        assert_eq!((address.bucket.as_str(), address.prefix.as_str()), ("images", "team/web"));
        assert_eq!(address.endpoint.as_deref(), Some("http://127.0.0.1:5000"));
        assert_eq!(address.region.as_deref(), Some("eu-west-1"));
        assert_eq!(address.to_string(), "s3://images/team/web");
        assert_eq!(Address::parse("s3://images").unwrap().to_string(), "s3://images");
    }

    #[test]
    fn refuses_what_is_not_the_name_of_a_bucket() {
        for text in
            ["s3://", "s3://a:b@images", "s3://images?color=red", "s3://images/a b", "s3://images/a//b", "s3:images"]
        {
            assert!(Address::parse(text).is_err(), "{text}");
        }
    }
}
