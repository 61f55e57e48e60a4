//! Checking a whole registry: every head, record, manifest, config and segment is read.

use std::collections::{BTreeMap, BTreeSet};

use kiln_core::Digest;
use kiln_disk::ordered::ordered;

use crate::{
    Registry, RegistryError,
    content::{Content, Descriptor},
    damage::Damage,
    head::Record,
};

/// Something that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Finding {
    /// What is wrong, with the path.
    pub problem: String,
    /// The versions that cannot be used because of it: `web@1.4.0`.
    pub harmed: Vec<String>,
}

/// What a check saw.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize)]
pub struct Report {
    pub versions: usize,
    /// Versions all of whose bytes were read and found right.
    pub whole: usize,
    /// Blobs that some version needs, and their bytes.
    pub blobs: usize,
    pub bytes: u64,
    /// Blobs that no version needs, and their bytes; collection removes them.
    pub unneeded: usize,
    pub unneeded_bytes: u64,
    pub findings: Vec<Finding>,
}

/// Which blobs are needed, and by which versions.
#[derive(Debug, Default)]
struct Needs {
    blobs: BTreeMap<Digest, (u64, BTreeSet<String>)>,
}

impl Needs {
    fn add(&mut self, digest: Digest, size: u64, version: &str) {
        self.blobs.entry(digest).or_insert((size, BTreeSet::new())).1.insert(version.to_owned());
    }
}

impl Registry {
    /// Reads everything and compares it with its digests. A bad blob is set aside. `watch` gets the bytes done and the bytes in
    /// all, and says whether to go on.
    pub fn verify(&self, watch: &dyn Fn(u64, u64) -> bool) -> Result<Report, RegistryError> {
        let _leased = self.lease()?;
        let mut report = Report::default();
        let mut needs = Needs::default();
        for image in self.names()? {
            let head = match self.read_head(&image) {
                Ok(head) => head,
                Err(error) => {
                    report.findings.push(finding(&error, vec![image.to_string()]));
                    continue;
                }
            };
            for listed in &head.versions {
                let name = format!("{image}@{}", listed.version);
                report.versions += 1;
                match self.listed_record(&image, listed) {
                    Ok(record) => self.need(&record, &name, &mut needs, &mut report),
                    Err(error) => report.findings.push(finding(&error, vec![name])),
                }
            }
        }
        self.read_blobs(&needs, &mut report, watch)?;
        self.count_unneeded(&needs, &mut report)?;
        let harmed: BTreeSet<_> = report.findings.iter().flat_map(|finding| &finding.harmed).collect();
        report.whole = report.versions.saturating_sub(harmed.iter().filter(|name| name.contains('@')).count());
        Ok(report)
    }

    /// The same for everything that one version needs.
    pub fn verify_version(&self, record: &Record, watch: &dyn Fn(u64, u64) -> bool) -> Result<Report, RegistryError> {
        let _leased = self.lease()?;
        let (mut report, mut needs) = (Report { versions: 1, ..Report::default() }, Needs::default());
        let name = format!("{}@{}", record.artifact.image, record.artifact.version);
        self.need(record, &name, &mut needs, &mut report);
        self.read_blobs(&needs, &mut report, watch)?;
        report.whole = usize::from(report.findings.is_empty());
        Ok(report)
    }

    /// Adds what one version needs.
    fn need(&self, record: &Record, name: &str, needs: &mut Needs, report: &mut Report) {
        needs.add(record.manifest.digest, record.manifest.size, name);
        for file in &record.artifact.files {
            if crate::lay_down::Form::of(&file.format).is_none() {
                needs.add(file.sha256, file.bytes, name);
            }
        }
        for attestation in &record.attestations {
            needs.add(attestation.manifest.digest, attestation.manifest.size, name);
            match self.try_attestation(attestation) {
                Ok(Ok(blobs)) => blobs.iter().for_each(|blob| needs.add(blob.digest, blob.size, name)),
                Ok(Err(problem)) => {
                    let blob = self.blob(&attestation.manifest.digest);
                    report.findings.push(finding(&RegistryError::Content { blob, problem }, vec![name.to_owned()]));
                }
                Err(_) => {}
            }
        }
        // A manifest that is itself damaged is found again, and set aside, when the blobs are read.
        let Ok(manifest) = self.blob_bytes(&record.manifest) else { return };
        match Content::blobs_of(&manifest) {
            Ok(blobs) => blobs.iter().for_each(|blob| needs.add(blob.digest, blob.size, name)),
            Err(problem) => report.findings.push(self.contradiction(record, problem, name)),
        }
        if let Ok(Err(problem)) = self.try_content(record) {
            report.findings.push(self.contradiction(record, problem, name));
        }
    }

    fn contradiction(&self, record: &Record, problem: String, name: &str) -> Finding {
        let blob = self.blob(&record.manifest.digest);
        finding(&RegistryError::Content { blob, problem }, vec![name.to_owned()])
    }

    fn read_blobs(
        &self,
        needs: &Needs,
        report: &mut Report,
        watch: &dyn Fn(u64, u64) -> bool,
    ) -> Result<(), RegistryError> {
        let blobs: Vec<_> = needs.blobs.iter().collect();
        let total = blobs.iter().map(|(_, (size, _))| size).sum();
        let read = |number: u64| {
            let (digest, (size, _)) = blobs[usize::try_from(number).unwrap_or(usize::MAX)];
            self.check_blob(&Descriptor { media_type: String::new(), digest: *digest, size: *size })
        };
        ordered(blobs.len() as u64, read, |number, checked| {
            let (_, (size, versions)) = blobs[usize::try_from(number).unwrap_or(usize::MAX)];
            report.blobs += 1;
            report.bytes += size;
            if let Err(damage) = checked {
                let error = self.set_aside(damage);
                report.findings.push(finding(&error, versions.iter().cloned().collect()));
            }
            if watch(report.bytes, total) {
                Ok(())
            } else {
                Err(RegistryError::Stopped { path: self.root().to_owned() })
            }
        })
    }

    /// Reads one blob in pieces: whole files of other formats may be large.
    fn check_blob(&self, blob: &Descriptor) -> Result<(), Damage> {
        let open = self.sized_blob(blob)?;
        let found = kiln_disk::seal::digest_of(&mut open.stored.reader());
        open.judge(found.map_err(|error| open.unread(error))?)
    }

    fn count_unneeded(&self, needs: &Needs, report: &mut Report) -> Result<(), RegistryError> {
        let unneeded = self.unneeded(&needs.blobs.keys().copied().collect())?;
        report.unneeded = unneeded.len();
        report.unneeded_bytes = unneeded.iter().map(|(_, bytes)| bytes).sum();
        Ok(())
    }
}

fn finding(error: &RegistryError, harmed: Vec<String>) -> Finding {
    let mut problem = error.to_string();
    let mut next = std::error::Error::source(error);
    while let Some(cause) = next {
        problem = format!("{problem}: {cause}");
        next = cause.source();
    }
    Finding { problem, harmed }
}
