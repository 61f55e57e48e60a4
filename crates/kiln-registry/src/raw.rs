//! The records of an image as they are stored, for a server to hand on: who gets the very bytes judges them himself, signatures and
//! all. Blobs are not handed out here.

use kiln_core::ImageName;

use crate::{Registry, RegistryError, durable::failed, image_key};

/// As long as any record is.
const LONGEST: u64 = 64 << 20;

impl Registry {
    /// The bytes of `head.json`, of a record, a log entry or an AMI of `image`; `None` for what is not there or none of these.
    pub fn raw_record(&self, image: &ImageName, key: &str) -> Result<Option<Vec<u8>>, RegistryError> {
        if !is_record(key) {
            return Ok(None);
        }
        let key = format!("{}/{key}", image_key(image));
        let found = self.place.read(&key, LONGEST).map_err(failed("read", &self.place.path(&key)))?;
        Ok(found.map(|(bytes, _)| bytes).filter(|bytes| bytes.len() as u64 <= LONGEST))
    }

    /// What lies under `v`, `log`, `ami` or `ami/VERSION` of `image`; `None` for another folder.
    pub fn raw_names(&self, image: &ImageName, folder: &str) -> Result<Option<Vec<String>>, RegistryError> {
        let parts: Vec<_> = folder.split('/').collect();
        if !matches!(parts[..], ["v" | "log" | "ami"]) && !matches!(parts[..], ["ami", version] if is_name(version)) {
            return Ok(None);
        }
        let folder = format!("{}/{folder}", image_key(image));
        let mut names = self.place.names(&folder).map_err(failed("read", &self.place.path(&folder)))?;
        names.retain(|name| is_name(name));
        names.sort_unstable();
        Ok(Some(names))
    }
}

fn is_record(key: &str) -> bool {
    let parts: Vec<_> = key.split('/').collect();
    match parts[..] {
        ["head.json"] => true,
        ["v" | "log", name] => is_name(name),
        ["ami", version, name] => is_name(version) && is_name(name),
        _ => false,
    }
}

/// Nothing that leads anywhere else.
fn is_name(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._+-".contains(c);
    !name.is_empty() && !name.starts_with('.') && name.chars().all(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_records_are_records() {
        for key in ["head.json", "v/1.0.0.json", "log/12.json", "ami/1.0.0/1.eu.ami-1.json", "v/1.0.0+b1.json"] {
            assert!(is_record(key), "{key}");
        }
        for key in ["", "lock", "v", "v/", "v/../head.json", "v/.tmp", "../web/head.json", "ami/1/2/3", "/v/a", "v/a\0"]
        {
            assert!(!is_record(key), "{key}");
        }
    }
}
