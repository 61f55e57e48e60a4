//! What can be wrong with the name of a bucket.

/// A bucket that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BucketError {
    #[error("`{url}` does not name a bucket: {problem}")]
    Address { url: String, problem: String },
    #[error("cannot set up the connection to `{location}`: {problem}")]
    Connection { location: String, problem: String },
}

impl BucketError {
    /// The next thing to try.
    pub const fn hint(&self) -> &'static str {
        match self {
            Self::Address { .. } => {
                "`s3://bucket/prefix`, or `s3://bucket/prefix?endpoint=https://store.example.com&region=eu-west-1`"
            }
            Self::Connection { .. } => {
                "credentials are read from `AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY`, or from the machine's role"
            }
        }
    }
}
