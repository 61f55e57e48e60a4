//! What the last bake of an image went through: keys with their inputs, so that a miss can be explained, also where a step
//! was too cheap to get a checkpoint.

use std::{collections::BTreeMap, fs, path::PathBuf};

use kiln_core::{
    ImageName,
    checkpoint::{Key, first_difference},
};
use kiln_io::{dirs::Dirs, fs::write_atomic};
use serde::{Deserialize, Serialize};

use super::CheckpointError;

/// `<cache>/trails/<image>.json`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trail {
    pub keys: Vec<Key>,
    /// Step to the milliseconds it took when it last ran.
    pub took: BTreeMap<usize, u64>,
}

impl Trail {
    /// The trail of the image's last bake; empty when there is none.
    pub fn read(dirs: &Dirs, image: &ImageName) -> Self {
        fs::read(path(dirs, image)).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default()
    }

    pub(crate) fn write(&self, dirs: &Dirs, image: &ImageName) -> Result<(), CheckpointError> {
        let path = path(dirs, image);
        if let Some(parent) = path.parent() {
            kiln_io::fs::create_private_dir(parent)?;
        }
        Ok(write_atomic(&path, &serde_json::to_vec(self).unwrap_or_default(), 0o600)?)
    }

    /// Why the machine after this step is not known: the first input that differs from the last bake.
    pub fn explain(&self, key: &Key) -> Option<String> {
        let before = self.keys.iter().find(|before| before.number == key.number)?;
        first_difference(&before.inputs, &key.inputs).map(|difference| difference.to_string())
    }

    /// Whether the last bake went through this very key.
    pub fn has(&self, key: &Key) -> bool {
        self.keys.iter().any(|before| before.digest == key.digest)
    }
}

fn path(dirs: &Dirs, image: &ImageName) -> PathBuf {
    dirs.cache.join("trails").join(format!("{image}.json"))
}
