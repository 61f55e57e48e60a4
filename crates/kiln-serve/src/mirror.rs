//! A version in any OCI registry: its blobs, its manifest, and tags for the version and the channels that are named.
//!
//! What is stored is an OCI image already, so nothing is converted and every stock client can fetch it.

use std::{fmt, sync::Arc, time::Duration};

use bytes::Bytes;
use docker_credential::{CredentialRetrievalError, DockerCredential};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use kiln_core::{Digest, Version};
use kiln_io::time::{Clock, GaveUp};
use kiln_registry::{LONGEST_MANIFEST, Record, Registry, RegistryError};
use oci_client::{
    Client, Reference, RegistryOperation,
    client::{ClientConfig, ClientProtocol},
    errors::{OciDistributionError, OciErrorCode},
    secrets::RegistryAuth,
};
use reqwest::{StatusCode, header::HeaderValue};
use tokio_util::sync::CancellationToken;

use crate::{ServeError, again::again};

/// Blobs on their way at once; each is in memory.
const AT_ONCE: usize = 4;
/// A segment that nothing compresses, and some.
const LARGEST_BLOB: u64 = 16 << 20;
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// A repository of an OCI registry.
#[derive(Clone)]
pub struct Mirror {
    client: Client,
    registry: String,
    repository: String,
    auth: RegistryAuth,
    clock: Arc<dyn Clock>,
    cancel: CancellationToken,
}

/// What mirroring did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mirrored {
    /// Bytes that went over the network, and bytes that the version has.
    pub sent: u64,
    pub whole: u64,
}

impl fmt::Debug for Mirror {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mirror").field("repository", &self.name()).finish_non_exhaustive()
    }
}

/// The tag of a version: `+` cannot stand in one.
pub fn tag(version: &Version) -> String {
    version.as_str().replace('+', "_")
}

impl Mirror {
    /// The repository `to`: `registry.example.com/team/web`. Who asks is in Docker's configuration, if anywhere.
    pub fn new(
        to: &str,
        plain_http: bool,
        clock: Arc<dyn Clock>,
        cancel: CancellationToken,
    ) -> Result<Self, ServeError> {
        let refused = |problem: &str| ServeError::Repository { to: to.to_owned(), problem: problem.to_owned() };
        let name = to.strip_prefix("docker://").unwrap_or(to);
        let (registry, repository) = name.split_once('/').ok_or_else(|| refused("it has no `/`"))?;
        if !registry.contains(['.', ':']) && registry != "localhost" {
            return Err(refused("it begins with no host"));
        }
        if repository.contains([':', '@']) {
            return Err(refused("it has a tag or digest; the version is the tag"));
        }
        let named = format!("{registry}/{repository}:tag");
        named.parse::<Reference>().map_err(|error| refused(&error.to_string()))?;
        let config = ClientConfig {
            protocol: if plain_http { ClientProtocol::Http } else { ClientProtocol::Https },
            use_monolithic_push: true,
            read_timeout: Some(Duration::from_mins(1)),
            connect_timeout: Some(Duration::from_secs(10)),
            ..ClientConfig::default()
        };
        let client = Client::try_from(config).map_err(|error| refused(&error.to_string()))?;
        let auth = credential(registry).map_err(|error| refused(&error.to_string()))?;
        Ok(Self { client, registry: registry.to_owned(), repository: repository.to_owned(), auth, clock, cancel })
    }

    /// `registry.example.com/team/web`
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }

    /// Sends what the repository lacks of a version, then its manifest under the version's tag and under `channels`. A
    /// version's tag is never moved to another disk.
    pub async fn send(&self, record: &Record, from: &Registry, channels: &[String]) -> Result<Mirrored, ServeError> {
        let _leased = from.lease()?;
        let missing =
            || RegistryError::Content { blob: from.blob(&record.manifest.digest), problem: "it is missing".to_owned() };
        let manifest = from.small_blob(&record.manifest.digest, LONGEST_MANIFEST)?.ok_or_else(missing)?;
        let mut blobs = from.blobs_of(&manifest)?;
        blobs.sort_unstable();
        blobs.dedup();
        let version = self.reference(&tag(&record.artifact.version));
        self.refuse_another(&version, &record.manifest.digest).await?;
        let sending = blobs.iter().map(|(digest, size)| self.send_blob(&version, from, digest, *size));
        let sent =
            stream::iter(sending).buffer_unordered(AT_ONCE).try_fold(0, |sum, sent| async move { Ok(sum + sent) });
        let sent = sent.await?;
        let manifest = Bytes::from(manifest);
        for to in std::iter::once(version).chain(channels.iter().map(|channel| self.reference(channel))) {
            self.again(|| async {
                let kind = HeaderValue::from_static(MANIFEST);
                self.client.push_manifest_raw(&to, manifest.clone(), kind).await.map(|_| ())
            })
            .await?;
        }
        Ok(Mirrored { sent, whole: blobs.iter().map(|(_, size)| size).sum() })
    }

    fn reference(&self, tag: &str) -> Reference {
        Reference::with_tag(self.registry.clone(), self.repository.clone(), tag.to_owned())
    }

    async fn refuse_another(&self, version: &Reference, manifest: &Digest) -> Result<(), ServeError> {
        let found = self.again(|| async {
            self.client.auth(version, &self.auth, RegistryOperation::Push).await?;
            match self.client.fetch_manifest_digest(version, &self.auth).await {
                Ok(digest) => Ok(Some(digest)),
                Err(error) if is_absent(&error) => Ok(None),
                Err(error) => Err(error),
            }
        });
        match found.await? {
            Some(found) if found != manifest.to_string() => {
                Err(ServeError::Taken { tag: version.to_string(), found, offered: manifest.to_string() })
            }
            _ => Ok(()),
        }
    }

    /// The bytes that were sent: none when the repository has the blob.
    async fn send_blob(
        &self,
        version: &Reference,
        from: &Registry,
        digest: &Digest,
        size: u64,
    ) -> Result<u64, ServeError> {
        let name = digest.to_string();
        if self.again(|| self.client.blob_exists(version, &name)).await? {
            return Ok(0);
        }
        // Compared with its name before it goes.
        let bytes = from.small_blob(digest, LARGEST_BLOB)?;
        let bytes = Bytes::from(bytes.ok_or_else(|| RegistryError::Content {
            blob: from.blob(digest),
            problem: "it is missing, or too large for a segment".to_owned(),
        })?);
        self.again(|| async { self.client.push_blob(version, bytes.clone(), &name).await.map(|_| ()) }).await?;
        Ok(size)
    }

    /// Does `attempt` again, after a growing pause, while what is wrong may pass.
    async fn again<T, F: Future<Output = Result<T, OciDistributionError>>>(
        &self,
        attempt: impl FnMut() -> F,
    ) -> Result<T, ServeError> {
        again(&*self.clock, &self.cancel, passes, attempt).await.map_err(|gave_up| match gave_up {
            GaveUp::Cancelled => ServeError::Stopped,
            GaveUp::Deadline(error) | GaveUp::Stopped(error) => {
                ServeError::Request { url: self.name(), problem: error.to_string() }
            }
        })
    }
}

fn credential(registry: &str) -> Result<RegistryAuth, CredentialRetrievalError> {
    match docker_credential::get_credential(registry) {
        Ok(DockerCredential::UsernamePassword(name, password)) => Ok(RegistryAuth::Basic(name, password)),
        Ok(DockerCredential::IdentityToken(token)) => Ok(RegistryAuth::Bearer(token)),
        Err(
            CredentialRetrievalError::ConfigNotFound
            | CredentialRetrievalError::NoCredentialConfigured
            | CredentialRetrievalError::ConfigReadError,
        ) => Ok(RegistryAuth::Anonymous),
        Err(error) => Err(error),
    }
}

fn status(error: &OciDistributionError) -> Option<StatusCode> {
    match error {
        OciDistributionError::ServerError { code, .. } => StatusCode::from_u16(*code).ok(),
        OciDistributionError::RequestError(error) => error.status(),
        OciDistributionError::RegistryError { envelope, .. } => {
            let busy = envelope.errors.iter().any(|error| error.code == OciErrorCode::Toomanyrequests);
            busy.then_some(StatusCode::TOO_MANY_REQUESTS)
        }
        _ => None,
    }
}

fn is_absent(error: &OciDistributionError) -> bool {
    let unknown = |code: &OciErrorCode| matches!(code, OciErrorCode::ManifestUnknown | OciErrorCode::NameUnknown);
    match error {
        OciDistributionError::ImageManifestNotFoundError(_) => true,
        OciDistributionError::RegistryError { envelope, .. } => {
            envelope.errors.iter().all(|error| unknown(&error.code))
        }
        other => status(other) == Some(StatusCode::NOT_FOUND),
    }
}

fn passes(error: &OciDistributionError) -> bool {
    match (error, status(error)) {
        (_, Some(status)) => status == StatusCode::TOO_MANY_REQUESTS || status.is_server_error(),
        (OciDistributionError::RequestError(error), None) => error.is_connect() || error.is_timeout(),
        _ => false,
    }
}
