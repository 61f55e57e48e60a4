//! What this user has seen of the images that he uses: the highest state of each, so that an older one is known for what it is.

use std::{fs, io, path::PathBuf};

use kiln_core::{Digest, ImageName};
use kiln_io::fs::write_atomic;
use serde::{Deserialize, Serialize};

use crate::{Registry, RegistryError, durable::failed};

/// Nobody changes an image more often between two looks. A number that is pushed to its end would end all changes.
const LARGEST_STEP: u64 = 1_000_000;

/// The states that were seen, a file for each image of each registry.
#[derive(Debug, Clone)]
pub struct Seen {
    directory: PathBuf,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Mark {
    rev: u64,
    /// When it was seen. Seconds since 1970, UTC.
    at: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    signer: Option<Digest>,
}

impl Seen {
    pub const fn new(directory: PathBuf) -> Self {
        Self { directory }
    }

    /// Where it stands what was seen of `image`.
    fn path(&self, registry: &Registry, image: &ImageName) -> PathBuf {
        // A bucket or a server is the same one wherever it is asked from.
        let root = registry.root();
        let place = if root.to_str().is_some_and(|text| text.contains("://")) {
            root.to_owned()
        } else {
            std::path::absolute(root).unwrap_or_else(|_| root.to_owned())
        };
        let name = Digest::of(place.as_os_str().as_encoded_bytes()).hex();
        self.directory.join(format!("{}-{image}.json", &name[..16]))
    }

    /// Refuses a state of `image` that is older than the one seen last, that is not signed when that one was, or whose number has
    /// been pushed up; remembers it otherwise. Refuses one too that is no longer good at `now`.
    pub fn check(&self, registry: &Registry, image: &ImageName, now: u64) -> Result<(), RegistryError> {
        let path = self.path(registry, image);
        let before = match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice::<Mark>(&bytes).ok(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(failed("read", &path)(error)),
        };
        // Read after the mark: what somebody beside us notes meanwhile must not look newer than what we read.
        let standing = registry.standing(image)?;
        // Who has a stolen key can sign any number: what such a key said does not count once it is revoked.
        let revoked = |id: &Digest| registry.trust().keys().iter().any(|key| key.id == *id && key.revoked.is_some());
        let before = before.filter(|mark| !mark.signer.as_ref().is_some_and(revoked));
        if let Some(before) = &before {
            let refused = |problem: String| RegistryError::OldState {
                image: image.clone(),
                registry: registry.root().to_owned(),
                problem,
                seen: path.clone(),
            };
            let day = kiln_core::moment::Moment::of_seconds(before.at).date();
            if standing.rev < before.rev {
                return Err(refused(format!("it is at revision {}, and was at {} on {day}", standing.rev, before.rev)));
            }
            if before.signer.is_some() && standing.signer.is_none() {
                return Err(refused(format!(
                    "nobody signed its revision {}, and {} was signed",
                    standing.rev, before.rev
                )));
            }
            if standing.rev - before.rev > LARGEST_STEP {
                return Err(refused(format!("its revision leapt from {} on {day} to {}", before.rev, standing.rev)));
            }
        }
        let mark = Mark { rev: standing.rev, at: now, signer: standing.signer };
        if before.is_none_or(|before| (before.rev, &before.signer) != (mark.rev, &mark.signer)) {
            let text =
                serde_json::to_vec(&mark).map_err(|source| RegistryError::Unreadable { path: path.clone(), source })?;
            // Where nothing can be written, on a full or read-only disk, images are still read; the next look remembers.
            let _ = fs::create_dir_all(&self.directory);
            let _ = write_atomic(&path, &text, 0o644);
        }
        match standing.expires {
            Some(expires) if expires <= now => Err(RegistryError::Expired {
                image: image.clone(),
                registry: registry.root().to_owned(),
                expired: kiln_core::moment::Moment::of_seconds(expires).minute(),
            }),
            _ => Ok(()),
        }
    }
}
